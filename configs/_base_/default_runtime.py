default_scope = 'eiclip_mm'
custom_imports = dict(
    imports=[
        'eiclip_mm.datasets',
        'eiclip_mm.models',
        'eiclip_mm.evaluation',
        'eiclip_mm.engine',
        'eiclip_mm.visualization',
    ]
)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='SafeCheckpointHook',
        interval=1,
        max_keep_ckpts=1,
        save_best='full/first-image/SumR',
        rule='greater',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [
    dict(type='StepSeedHook'),
    dict(type='NonFiniteHook', action='stop'),
    dict(type='CheckpointChoiceHook'),
    dict(type='PlainCheckpointHook'),
    dict(type='ImageFeatureCache'),
    dict(type='RunRecordHook'),
]
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    # seconds that processes wait for each other; rank 0 alone measures causal effects meanwhile
    dist_cfg=dict(backend='nccl', timeout=600),
)
# dict(type='TensorboardVisBackend') in this list writes TensorBoard files
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)
log_level = 'INFO'
load_from = None
resume = False
randomness = dict(seed=0, deterministic=False)
