"""CE-Selector weighs each entity by the product's text, mini Fashion-Gen.

Run     python tools/train.py configs/ablations/eiclip-attention_fashiongen_mini.py
Parent  eiclip_fashiongen_mini.py; differs in model.selector
"""

_base_ = '../eiclip_fashiongen_mini.py'
model = dict(
    selector=dict(
        _delete_=True, type='AttentionCESelector', dim=_base_.model.towers.model.embed_dim
    )
)
custom_hooks = _base_.custom_hooks[:-1]
