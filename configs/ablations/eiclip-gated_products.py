"""CE-Selector learns gates under a price instead of measuring effects, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-gated_products.py
Parent  eiclip_products.py; differs in model.selector
"""

_base_ = '../eiclip_products.py'
model = dict(selector=dict(_delete_=True, type='GatedCESelector'))
custom_hooks = _base_.custom_hooks[:-1]
