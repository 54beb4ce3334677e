"""Row 3 with metadata in a sentence, Fashion Product Images.

Run     python tools/train.py configs/ablations/clip-meta-sentence_products.py
Parent  clip-meta_products.py; differs in tokenizer.fields
"""

_base_ = '../baselines/clip-meta_products.py'
compare_with = 'configs/baselines/clip-meta_products.py'
reading = dict(
    tokenizer=dict(
        context_length=48,
        fields=(
            'a photo of {colour} {article_type}',
            'by {brand}',
            'for {usage} use:',
            'description',
        ),
    )
)
model = reading
train_dataloader = dict(dataset=reading)
val_dataloader = dict(dataset=reading)
test_dataloader = dict(dataset=reading)
