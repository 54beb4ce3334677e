"""CE-Selector learns gates under a price instead of measuring effects, mini Fashion-Gen.

Run     python tools/train.py configs/ablations/eiclip-gated_fashiongen_mini.py
Parent  eiclip_fashiongen_mini.py; differs in model.selector
"""

_base_ = '../eiclip_fashiongen_mini.py'
model = dict(selector=dict(_delete_=True, type='GatedCESelector'))
custom_hooks = _base_.custom_hooks[:-1]
