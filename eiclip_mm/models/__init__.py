"""EI-CLIP: towers, CE-Selector, EA-Learner, loss. Read ``ei_clip.py`` first."""

import mmpretrain.models  # noqa: F401  (fills the parent registries; a child does not)

from .causal_effects import causal_effects
from .ce_selector import (
    AttentionCESelector,
    CESelector,
    EffectCESelector,
    GatedCESelector,
    KeepAll,
    KeepNone,
    KeepTypes,
)
from .ea_learner import EALearner
from .ei_clip import EICLIP, OpenCLIP
from .lora import add_lora, merge_lora
from .losses import InfoNCE
from .new_entities import add_entities, drop_entities, extended
from .tiled import log_probs_in_tiles
from .towers import OpenCLIPTowers

__all__ = [
    'EICLIP',
    'AttentionCESelector',
    'CESelector',
    'EALearner',
    'EffectCESelector',
    'GatedCESelector',
    'InfoNCE',
    'KeepAll',
    'KeepNone',
    'KeepTypes',
    'OpenCLIP',
    'OpenCLIPTowers',
    'add_entities',
    'add_lora',
    'causal_effects',
    'drop_entities',
    'extended',
    'log_probs_in_tiles',
    'merge_lora',
]
