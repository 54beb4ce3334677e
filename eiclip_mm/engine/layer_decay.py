"""How far each parameter of a tower lies below its head, counted in layers.

mmpretrain's ``LearningRateDecayOptimWrapperConstructor`` was considered: it needs a model with
``get_layer_depth(name)`` and knows one tower and one rate, where two towers differ in both.
"""

from timm.models import group_parameters
from torch import nn

EMBEDDINGS = (
    'conv1', 'class_embedding', 'positional_embedding', 'ln_pre',  # open_clip, image
    'token_embedding', 'cls_emb',  # open_clip, text
    'transformer.embeddings',  # Hugging Face
)  # fmt: skip


def layers_below_head(module: nn.Module) -> dict[str, int]:
    """For each parameter of a tower, or of a CLIP of two, how many layers lie above it.

    Layer 0 are the embeddings, the last is the head with the final norm, at distance 0 here.

    Args:
        module: a CLIP of open_clip, or its ``visual`` or ``text``: ViT, text transformer, timm
            model or BERT of Hugging Face.

    Raises:
        ValueError: a structure whose layers are not known.
    """
    if hasattr(module, 'visual'):
        return _of_clip(module)
    trunk = getattr(module, 'trunk', None)
    if trunk is not None:  # timm numbers its own layers
        groups = group_parameters(trunk, trunk.group_matcher(coarse=False))
        layer = {f'trunk.{name}': i for i, names in groups.items() for name in names}
        head = max(groups) + 1
        return {name: head - layer.get(name, head) for name, _ in module.named_parameters()}
    path, depth = _stack(module)
    return {name: _distance(name, path, depth) for name, _ in module.named_parameters()}


def _of_clip(clip: nn.Module) -> dict[str, int]:
    """Both towers; beside them stand temperature and bias, at the heads."""
    found = {name: 0 for name, _ in clip.named_parameters()}
    for side in ('visual', 'text'):
        if hasattr(clip, side):
            below = layers_below_head(getattr(clip, side))
            found.update({f'{side}.{name}': distance for name, distance in below.items()})
    if not hasattr(clip, 'text'):  # open_clip.CLIP holds its text tower flat
        path, depth = _stack(clip)
        flat = [name for name in found if not name.startswith('visual.')]
        found.update({name: _distance(name, path, depth) for name in flat})
    return found


def _stack(module: nn.Module) -> tuple[str, int]:
    """Where the equal layers of a transformer stand, and how many they are."""
    for path in ('transformer.resblocks', 'transformer.encoder.layer'):
        try:
            return path, len(list(module.get_submodule(path).children()))
        except AttributeError:
            continue
    raise ValueError(
        f'layer_decay does not know the layers of {type(module).__name__}: it has neither '
        'transformer.resblocks (open_clip), trunk (timm) nor transformer.encoder.layer '
        '(BERT). Give it a rate with lr_mult.'
    )


def _distance(name: str, path: str, depth: int) -> int:
    if name.startswith(f'{path}.'):
        return depth - int(name.removeprefix(f'{path}.').split('.')[0])
    embeds = any(name == part or name.startswith(f'{part}.') for part in EMBEDDINGS)
    return depth + 1 if embeds else 0
