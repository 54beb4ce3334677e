"""EI-CLIP in a config whose default scope is mmdet."""

_base_ = '../../configs/eiclip_fashiongen_mini.py'
default_scope = 'mmdet'

# Said of an outermost dict, it holds for all that is nested in it: pipeline, tokenizer, towers, ….
ours = dict(_scope_='eiclip_mm')
model = ours
train_dataloader = dict(sampler=ours, dataset=ours)
val_dataloader = dict(dataset=ours)
test_dataloader = dict(dataset=ours)
val_evaluator = ours
test_evaluator = ours
default_hooks = dict(checkpoint=ours)
custom_hooks = [dict(hook, **ours) for hook in _base_.custom_hooks]
visualizer = ours
# A constructor is named by a string alone.
optim_wrapper = dict(constructor='eiclip_mm.TowerLrConstructor')
