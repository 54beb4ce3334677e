"""EI-CLIP with a selector that another package brings: it is named here, and nowhere else."""

_base_ = '../../configs/eiclip_fashiongen_mini.py'
custom_imports = dict(imports=[*_base_.custom_imports['imports'], 'my_selector'])
model = dict(selector=dict(_delete_=True, type='KeepFrequent', at_least=60))
custom_hooks = _base_.custom_hooks[:-1]  # all but CausalEffectHook, which only EffectCESelector has
