"""All of EI-CLIP but the entities: is it only more parameters? mini Fashion-Gen.

Run     python tools/train.py configs/ablations/eiclip-none_fashiongen_mini.py
Parent  eiclip_fashiongen_mini.py; differs in model.selector: no entity is intervened on
"""

_base_ = '../eiclip_fashiongen_mini.py'
model = dict(selector=dict(_delete_=True, type='KeepNone'))
custom_hooks = _base_.custom_hooks[:-1]
