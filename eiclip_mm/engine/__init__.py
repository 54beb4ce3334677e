"""Around training: hooks and optimiser wrappers."""

import mmpretrain.engine  # noqa: F401  (fills the parent registries; a child does not)

from .choice import CheckpointChoiceHook, chosen_on
from .feature_cache import ImageFeatureCache, TextFeatureCache
from .hooks import CausalEffectHook, PlainCheckpointHook, StepSeedHook
from .optim import AutocastOptimWrapper, TowerLrConstructor

__all__ = [
    'AutocastOptimWrapper',
    'CausalEffectHook',
    'CheckpointChoiceHook',
    'ImageFeatureCache',
    'PlainCheckpointHook',
    'StepSeedHook',
    'TextFeatureCache',
    'TowerLrConstructor',
    'chosen_on',
]
