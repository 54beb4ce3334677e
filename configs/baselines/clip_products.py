"""CLIP fine-tuned on the description alone, Fashion Product Images: row 2.

Run     python tools/train.py configs/baselines/clip_products.py
Parent  eiclip_products.py; differs in model (no selector, no learner, no causal effects)
"""

_base_ = '../eiclip_products.py'
model = dict(
    _delete_=True,
    type='OpenCLIP',
    towers=_base_.model.towers,
    tokenizer=_base_.model.tokenizer,
    loss=_base_.model.loss,
)
custom_hooks = _base_.custom_hooks[:-1]
