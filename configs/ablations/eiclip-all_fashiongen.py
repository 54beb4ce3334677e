"""Does choosing entities help, or only having them? Fashion-Gen: row 4.

Run     python tools/train.py configs/ablations/eiclip-all_fashiongen.py
Parent  eiclip_fashiongen.py; differs in model.selector: every entity is kept
"""

_base_ = '../eiclip_fashiongen.py'
model = dict(selector=dict(_delete_=True, type='KeepAll'))
custom_hooks = _base_.custom_hooks[:-1]
