"""CLIP fine-tuned on metadata and description as one text, Fashion Product Images: row 3.

Run     python tools/train.py configs/baselines/clip-meta_products.py
Parent  clip_products.py; differs in tokenizer.fields
"""

_base_ = 'clip_products.py'
with_metadata = dict(
    tokenizer=dict(fields=('brand', 'article_type', 'colour', 'usage', 'description'))
)
model = with_metadata
train_dataloader = dict(dataset=with_metadata)
val_dataloader = dict(dataset=with_metadata)
test_dataloader = dict(dataset=with_metadata)
