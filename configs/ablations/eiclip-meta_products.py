"""Metadata in the text of EI-CLIP too, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-meta_products.py
Parent  eiclip_products.py; differs in tokenizer.fields
"""

_base_ = '../eiclip_products.py'
reading = dict(tokenizer=dict(fields=('brand', 'article_type', 'colour', 'usage', 'description')))
model = reading
train_dataloader = dict(dataset=reading)
val_dataloader = dict(dataset=reading)
test_dataloader = dict(dataset=reading)
