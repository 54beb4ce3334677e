"""Registry nodes of scope ``eiclip_mm``; each is a child of mmpretrain's node of that kind.

All kinds are declared, also those we add nothing to: the Runner looks every kind up in the
experiment's scope, and a missing node would hide mmpretrain's and mmengine's entries.
"""

import mmpretrain.registry as parents

# Not a child: the Runner looks collate functions up in mmengine's node, whatever the scope.
from mmengine.registry import FUNCTIONS, Registry  # noqa: F401


def _child(kind: str, room: str) -> Registry:
    parent = getattr(parents, kind)
    return Registry(parent.name, parent=parent, scope='eiclip_mm', locations=[f'eiclip_mm.{room}'])


RUNNERS = _child('RUNNERS', 'engine')
RUNNER_CONSTRUCTORS = _child('RUNNER_CONSTRUCTORS', 'engine')
LOOPS = _child('LOOPS', 'engine')
HOOKS = _child('HOOKS', 'engine')
LOG_PROCESSORS = _child('LOG_PROCESSORS', 'engine')
OPTIMIZERS = _child('OPTIMIZERS', 'engine')
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS', 'engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child('OPTIM_WRAPPER_CONSTRUCTORS', 'engine')
PARAM_SCHEDULERS = _child('PARAM_SCHEDULERS', 'engine')
DATASETS = _child('DATASETS', 'datasets')
DATA_SAMPLERS = _child('DATA_SAMPLERS', 'datasets')
TRANSFORMS = _child('TRANSFORMS', 'datasets')
TOKENIZER = _child('TOKENIZER', 'datasets')
MODELS = _child('MODELS', 'models')
MODEL_WRAPPERS = _child('MODEL_WRAPPERS', 'models')
WEIGHT_INITIALIZERS = _child('WEIGHT_INITIALIZERS', 'models')
BATCH_AUGMENTS = _child('BATCH_AUGMENTS', 'models')
TASK_UTILS = _child('TASK_UTILS', 'models')
METRICS = _child('METRICS', 'evaluation')
EVALUATORS = _child('EVALUATORS', 'evaluation')
VISUALIZERS = _child('VISUALIZERS', 'visualization')
VISBACKENDS = _child('VISBACKENDS', 'visualization')
