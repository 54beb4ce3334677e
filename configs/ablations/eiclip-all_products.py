"""Does choosing entities help, or only having them? Fashion Product Images: row 4.

Run     python tools/train.py configs/ablations/eiclip-all_products.py
Parent  eiclip_products.py; differs in model.selector: every entity is kept
"""

_base_ = '../eiclip_products.py'
model = dict(selector=dict(_delete_=True, type='KeepAll'))
custom_hooks = _base_.custom_hooks[:-1]
