"""CLIP fine-tuned on metadata and description as one text, Fashion-Gen: row 3.

Run     python tools/train.py configs/baselines/clip-meta_fashiongen.py
Parent  eiclip_fashiongen.py; differs in model (no selector, no learner, no causal effects)
"""

_base_ = '../eiclip_fashiongen.py'
model = dict(
    _delete_=True,
    type='OpenCLIP',
    towers=_base_.model.towers,
    tokenizer=_base_.model.tokenizer,
    loss=_base_.model.loss,
)
custom_hooks = _base_.custom_hooks[:-1]
