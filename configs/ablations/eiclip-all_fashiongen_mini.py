"""Does choosing entities help, or only having them? the mini Fashion-Gen: row 4.

Run     python tools/train.py configs/ablations/eiclip-all_fashiongen_mini.py
Parent  eiclip_fashiongen_mini.py; differs in model.selector: every entity is kept
"""

_base_ = '../eiclip_fashiongen_mini.py'
model = dict(selector=dict(_delete_=True, type='KeepAll'))
custom_hooks = _base_.custom_hooks[:-1]
