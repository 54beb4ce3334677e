"""Around training: hooks and optimiser wrappers."""

import mmpretrain.engine  # noqa: F401  (fills the parent registries; a child does not)

from .checkpoint_files import WholeFileBackend, last_good
from .checkpoint_hook import SafeCheckpointHook
from .choice import CheckpointChoiceHook, chosen_on
from .feature_cache import ImageFeatureCache, TextFeatureCache
from .finite import NonFiniteHook
from .hooks import CausalEffectHook, PlainCheckpointHook, StepSeedHook
from .optim import AutocastOptimWrapper, TowerLrConstructor
from .run_record import RunRecordHook

__all__ = [
    'AutocastOptimWrapper',
    'CausalEffectHook',
    'CheckpointChoiceHook',
    'ImageFeatureCache',
    'NonFiniteHook',
    'PlainCheckpointHook',
    'RunRecordHook',
    'SafeCheckpointHook',
    'StepSeedHook',
    'TextFeatureCache',
    'TowerLrConstructor',
    'WholeFileBackend',
    'chosen_on',
    'last_good',
]
