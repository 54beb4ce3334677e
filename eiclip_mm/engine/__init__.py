"""Around training: hooks and optimiser wrappers."""

import mmpretrain.engine  # noqa: F401  (fills the parent registries; a child does not)

from .choice import CheckpointChoiceHook, chosen_on
from .hooks import CausalEffectHook, ImageFeatureCache, PlainCheckpointHook, StepSeedHook
from .optim import AutocastOptimWrapper, TowerLrConstructor

__all__ = [
    'AutocastOptimWrapper',
    'CausalEffectHook',
    'CheckpointChoiceHook',
    'ImageFeatureCache',
    'PlainCheckpointHook',
    'StepSeedHook',
    'TowerLrConstructor',
    'chosen_on',
]
