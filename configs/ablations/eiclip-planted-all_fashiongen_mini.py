"""Every entity of the planted types kept, for CE-Selector to be compared with brute force.

Run     python tools/train.py configs/ablations/eiclip-planted-all_fashiongen_mini.py
Parent  eiclip-planted_fashiongen_mini.py; differs in model.selector: every entity is kept
"""

_base_ = 'eiclip-planted_fashiongen_mini.py'
compare_with = 'configs/ablations/eiclip-planted_fashiongen_mini.py'
model = dict(selector=dict(_delete_=True, type='KeepAll'))
custom_hooks = _base_.custom_hooks[:-1]
