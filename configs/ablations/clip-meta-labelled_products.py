"""Row 3 with metadata named as what they are, Fashion Product Images.

Run     python tools/train.py configs/ablations/clip-meta-labelled_products.py
Parent  clip-meta_products.py; differs in tokenizer.fields
"""

_base_ = '../baselines/clip-meta_products.py'
compare_with = 'configs/baselines/clip-meta_products.py'
reading = dict(
    tokenizer=dict(
        context_length=48,  # else one text in eight is cut
        fields=(
            'brand: {brand},',
            'type: {article_type},',
            'colour: {colour},',
            'usage: {usage}.',
            'description',
        ),
    )
)
model = reading
train_dataloader = dict(dataset=reading)
val_dataloader = dict(dataset=reading)
test_dataloader = dict(dataset=reading)
