"""Registry nodes of scope ``eiclip_mm``; each is a child of mmpretrain's node of that kind.

All kinds are declared, also those we add nothing to: the Runner looks every kind up in the
experiment's scope, and a missing node would hide mmpretrain's and mmengine's entries. A kind that
mmpretrain lacks is a child of mmengine's.
"""

import mmengine.registry as grandparents
import mmpretrain.registry as parents
from mmengine.registry import Registry


def _child(kind: str, room: str) -> Registry:
    parent = getattr(parents if hasattr(parents, kind) else grandparents, kind)
    node = Registry(parent.name, parent=parent, scope='eiclip_mm', locations=[f'eiclip_mm.{room}'])
    # From the root, mmengine looks for a scope among the children, not the grandchildren: without
    # this `eiclip_mm.X` is found in configs of scope mmpretrain, but not of mmdet, or of none.
    node.root.children['eiclip_mm'] = node
    return node


RUNNERS = _child('RUNNERS', 'engine')
RUNNER_CONSTRUCTORS = _child('RUNNER_CONSTRUCTORS', 'engine')
LOOPS = _child('LOOPS', 'engine')
HOOKS = _child('HOOKS', 'engine')
LOG_PROCESSORS = _child('LOG_PROCESSORS', 'engine')
STRATEGIES = _child('STRATEGIES', 'engine.sharded')
OPTIMIZERS = _child('OPTIMIZERS', 'engine')
OPTIM_WRAPPERS = _child('OPTIM_WRAPPERS', 'engine')
OPTIM_WRAPPER_CONSTRUCTORS = _child('OPTIM_WRAPPER_CONSTRUCTORS', 'engine')
PARAM_SCHEDULERS = _child('PARAM_SCHEDULERS', 'engine')
DATASETS = _child('DATASETS', 'datasets')
DATA_SAMPLERS = _child('DATA_SAMPLERS', 'datasets')
TRANSFORMS = _child('TRANSFORMS', 'datasets')
TOKENIZER = _child('TOKENIZER', 'datasets')
FUNCTIONS = _child('FUNCTIONS', 'datasets')
MODELS = _child('MODELS', 'models')
MODEL_WRAPPERS = _child('MODEL_WRAPPERS', 'engine.sharded')
WEIGHT_INITIALIZERS = _child('WEIGHT_INITIALIZERS', 'models')
BATCH_AUGMENTS = _child('BATCH_AUGMENTS', 'models')
TASK_UTILS = _child('TASK_UTILS', 'models')
METRICS = _child('METRICS', 'evaluation')
EVALUATORS = _child('EVALUATORS', 'evaluation')
VISUALIZERS = _child('VISUALIZERS', 'visualization')
VISBACKENDS = _child('VISBACKENDS', 'visualization')
INFERENCERS = _child('INFERENCERS', 'apis')
