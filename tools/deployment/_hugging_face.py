"""CLIP's own towers as a ``CLIPModel`` of transformers: read_towers backwards."""

from pathlib import Path

import torch
from torch import Tensor, nn

from eiclip_mm.models import OpenCLIP
from eiclip_mm.models.checkpoints import HF_LAYER_NAMES, HF_NAMES

import open_clip  # isort: skip  (after eiclip_mm, which mends torchvision)

TOLERANCE = 1e-5  # of the largest output


@torch.no_grad()
def write_hugging_face(model: OpenCLIP, folder: Path) -> None:
    """Fill a folder with the towers of a model as a ``CLIPModel``.

    Raises:
        ValueError: the towers are not CLIP's own.
        ImportError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError("--format hf needs pip install 'eiclip_mm[hf]'") from error
    clip, subwords = model.towers.clip, model.tokenizer.subwords
    check_clip(clip)
    width, end = clip.text_projection.shape[1], dict(eos_token_id=subwords.end)
    config = transformers.CLIPConfig(
        text_config=dict(
            sizes(clip.transformer), **end, bos_token_id=subwords.start, pad_token_id=subwords.pad,
            vocab_size=len(clip.token_embedding.weight), projection_dim=width,
            max_position_embeddings=len(clip.positional_embedding),
        ),
        vision_config=dict(
            sizes(clip.visual.transformer), image_size=clip.visual.image_size[0],
            patch_size=clip.visual.patch_size[0], projection_dim=width,
        ),
        projection_dim=width,
    )  # fmt: skip
    found = transformers.CLIPModel(config).eval()
    found.load_state_dict(to_hugging_face(clip.state_dict()))
    check_same(model, found)
    found.save_pretrained(folder)


def check_clip(clip: nn.Module) -> None:
    """Refuse towers that a ``CLIPModel`` cannot hold."""
    visual, text = clip.visual, getattr(clip, 'text', clip)
    if type(clip) is open_clip.CLIP and isinstance(visual, open_clip.transformer.VisionTransformer):
        height, width = visual.image_size
        names = clip.state_dict()
        top = {name for name in names if '.resblocks.' not in name}
        inner = {name.rpartition('.')[0] for name in map(name_in_block, names.keys() - top)}
        known = {*HF_LAYER_NAMES.values(), 'attn'}  # query, key and value lie in attn itself
        if height == width and top == {*HF_NAMES.values()} and inner == known:
            return
    raise ValueError(
        "--format hf writes a CLIPModel of transformers, which holds CLIP's own two transformers "
        f'alone, a square photo and a causal text; these are a {type(visual).__name__} and a '
        f'{type(text).__name__} of another build. Take --format open_clip.'
    )


def name_in_block(name: str) -> str:
    """'visual.transformer.resblocks.0.ln_1.weight' -> 'ln_1.weight'."""
    return name.partition('.resblocks.')[2].partition('.')[2]


def sizes(transformer: nn.Module) -> dict:
    """Of one of the two, in the words of transformers."""
    block = transformer.resblocks[0]
    return dict(
        hidden_size=block.attn.embed_dim,
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        hidden_act='gelu' if isinstance(block.mlp.gelu, nn.GELU) else 'quick_gelu',
    )


def to_hugging_face(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename open_clip's names and layouts to a ``CLIPModel``'s: from_hugging_face backwards."""
    top = {ours: theirs for theirs, ours in HF_NAMES.items()}
    inner = {ours: theirs for theirs, ours in HF_LAYER_NAMES.items()}
    converted = {}
    for key, value in state.items():
        if key in top:
            transposed = top[key].endswith('projection.weight')
            converted[top[key]] = (value.T if transposed else value).contiguous()
            continue
        side = 'vision' if key.startswith('visual.') else 'text'
        number = key.partition('.resblocks.')[2].partition('.')[0]
        layer, name = f'{side}_model.encoder.layers.{number}', name_in_block(key)
        if name.startswith('attn.in_proj_'):
            for part, own in zip('qkv', value.chunk(3), strict=True):
                kind = name.removeprefix('attn.in_proj_')
                converted[f'{layer}.self_attn.{part}_proj.{kind}'] = own.contiguous()
        else:
            stem, _, kind = name.rpartition('.')
            converted[f'{layer}.{inner[stem]}.{kind}'] = value
    return converted


def check_same(model: OpenCLIP, found: nn.Module) -> None:
    """Refuse a ``CLIPModel`` that gives something else."""
    towers, generator = model.towers, torch.Generator().manual_seed(0)
    size = towers.clip.visual.image_size
    pixels = torch.randint(256, (2, 3, *size), generator=generator, dtype=torch.uint8)
    names = [dict.fromkeys(model.tokenizer.text_fields, text) for text in ('a red tee', 'silk')]
    text = torch.stack([torch.from_numpy(model.tokenizer(own).text) for own in names])
    theirs = (
        found.get_image_features((pixels / 255 - towers.mean) / towers.std),
        found.get_text_features(text),
    )
    ours = towers.encode_image(pixels), towers.encode_text(text)
    for a, b in zip(ours, theirs, strict=True):
        difference = float(((a - b).abs() / a.abs().max()).max())
        if not difference <= TOLERANCE:
            raise ValueError(
                f'as a CLIPModel the towers give something else: {difference:.1e} of the largest '
                'output. Take --format open_clip.'
            )
