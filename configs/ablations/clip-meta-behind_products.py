"""Row 3 with metadata behind the description, Fashion Product Images.

Run     python tools/train.py configs/ablations/clip-meta-behind_products.py
Parent  clip-meta_products.py; differs in tokenizer.fields
"""

_base_ = '../baselines/clip-meta_products.py'
compare_with = 'configs/baselines/clip-meta_products.py'
reading = dict(tokenizer=dict(fields=('description', 'brand', 'article_type', 'colour', 'usage')))
model = reading
train_dataloader = dict(dataset=reading)
val_dataloader = dict(dataset=reading)
test_dataloader = dict(dataset=reading)
