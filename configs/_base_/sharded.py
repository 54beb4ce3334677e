"""Towers that one GPU cannot hold: weights, gradients and optimiser state split over all processes.

Use     a config whose _base_ is [YOUR_CONFIG, '_base_/sharded.py'], with tools/dist_train.sh
Not     with CausalEffectHook, nor with cached features: both need whole weights on a process
"""

strategy = dict(
    type='eiclip_mm.engine.sharded.ShardedStrategy',
    blocks=['ResidualAttentionBlock'],  # open_clip's layers of both towers
)
