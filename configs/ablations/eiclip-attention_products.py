"""CE-Selector weighs each entity by the product's text, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-attention_products.py
Parent  eiclip_products.py; differs in model.selector
"""

_base_ = '../eiclip_products.py'
model = dict(
    selector=dict(
        _delete_=True, type='AttentionCESelector', dim=_base_.model.towers.model.embed_dim
    )
)
custom_hooks = _base_.custom_hooks[:-1]
