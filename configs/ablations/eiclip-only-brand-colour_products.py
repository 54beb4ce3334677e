"""EI-CLIP with two entity types, brand and colour, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-only-brand-colour_products.py
Parent  eiclip_products.py; differs in model.selector: no other type is intervened on
"""

_base_ = '../eiclip_products.py'
model = dict(selector=dict(_delete_=True, type='KeepTypes', types=['brand', 'colour']))
custom_hooks = _base_.custom_hooks[:-1]
