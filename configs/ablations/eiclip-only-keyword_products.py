"""EI-CLIP with one entity type, keyword, Fashion Product Images.

Run     python tools/train.py configs/ablations/eiclip-only-keyword_products.py
Parent  eiclip_products.py; differs in model.selector: no other type is intervened on
"""

_base_ = '../eiclip_products.py'
model = dict(selector=dict(_delete_=True, type='KeepTypes', types=['keyword']))
custom_hooks = _base_.custom_hooks[:-1]
