"""All of EI-CLIP but the entities: is it only more parameters? Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-none_products.py
Parent  eiclip_products.py; differs in model.selector: no entity is intervened on
"""

_base_ = '../eiclip_products.py'
model = dict(selector=dict(_delete_=True, type='KeepNone'))
custom_hooks = _base_.custom_hooks[:-1]
