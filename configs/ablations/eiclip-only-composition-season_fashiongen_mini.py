"""EI-CLIP with two entity types, composition and season, mini Fashion-Gen.

Run     python tools/train.py configs/ablations/eiclip-only-composition-season_fashiongen_mini.py
Parent  eiclip_fashiongen_mini.py; differs in model.selector: no other type is intervened on
"""

_base_ = '../eiclip_fashiongen_mini.py'
model = dict(selector=dict(_delete_=True, type='KeepTypes', types=['composition', 'season']))
custom_hooks = _base_.custom_hooks[:-1]
