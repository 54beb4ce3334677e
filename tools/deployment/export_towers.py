"""Write the two towers alone: python tools/deployment/export_towers.py CHECKPOINT --out FOLDER

For programs that know CLIP and nothing of entities: a folder that open_clip opens as
'local-dir:FOLDER', or with --format hf a CLIPModel of transformers. CE-Selector and EA-Learner stay
behind; export_onnx.py writes the whole model.
"""

import argparse
import copy
import json
from pathlib import Path

from _hugging_face import write_hugging_face

import eiclip_mm
from eiclip_mm.apis import EICLIPInferencer
from eiclip_mm.models import EICLIP, merge_lora
from eiclip_mm.models.text_tower import hugging_face
from eiclip_mm.utils.whole_together import whole_folder

import open_clip  # isort: skip  (after eiclip_mm, which mends torchvision)
from safetensors import SafetensorError
from safetensors.torch import save_file

README = """\
# The towers of {name}

Image tower and text tower of a model of eiclip_mm {version}, sha256 of the checkpoint
`{sha256}`.{lora}

{how}

Pixels are divided by 255, then less {mean}, then divided by {std}. Photos were sized in
training by these steps: `{sizing}`.

{left}
"""
HOW = """\
    model = open_clip.create_model('local-dir:{folder}').eval()
    tokenizer = open_clip.get_tokenizer('local-dir:{folder}')"""
HOW_HF = """\
    model = transformers.CLIPModel.from_pretrained('{folder}').eval()

Texts are cut into sub-words by CLIP's own tokenizer, that of every CLIPModel, which is not here."""
MOVED = """

open_clip reads the architecture of the text tower from `{folder}/text`;
where the folder is moved, change `hf_model_name` in `open_clip_config.json`."""
LEFT = """\
Left out: CE-Selector, EA-Learner and the {number} entities of {types}. The text vectors of these
towers are those before entities are fused in, with which the model was not trained to search;
tools/deployment/export_onnx.py writes the whole model."""
NOTHING_LEFT = 'Nothing is left out: the model has no CE-Selector and no EA-Learner.'


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('checkpoint', type=Path, help='of tools/train.py')
    add('--out', type=Path, required=True, metavar='FOLDER', help='new, or empty')
    add('--format', choices=['open_clip', 'hf'], default='open_clip', help='default open_clip')
    args = parser.parse_args(argv)
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        parser.error(f'--out {args.out} exists and is not an empty folder; give another one')
    return args


def main(argv: list[str] | None = None) -> None:
    """Write, and open what was written."""
    args = parse_args(argv)
    try:
        encoder = EICLIPInferencer(args.checkpoint, device='cpu')
        model = encoder.model
        lora = any(hasattr(part, 'parametrizations') for part in model.towers.modules())
        merge_lora(model)
        with whole_folder(args.out) as folder:
            if args.format == 'hf':
                write_hugging_face(model, folder)
                how = HOW_HF.format(folder=args.out)
            else:
                how = write_open_clip(encoder, folder, args.out)
            (folder / 'README.md').write_text(about(encoder, how, lora), encoding='utf-8')
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        raise SystemExit(str(error)) from error
    print(f'{args.out} holds the towers; what is left out is in its README.md')


def about(encoder: EICLIPInferencer, how: str, lora: bool) -> str:
    """README.md of the folder."""
    towers, vocab = encoder.model.towers, encoder.model.vocab
    left = NOTHING_LEFT
    if isinstance(encoder.model, EICLIP):
        number = sum(vocab.size(type_) - 1 for type_ in vocab.types)
        left = LEFT.format(number=number, types=', '.join(vocab.types))
    return README.format(
        name=encoder.name,
        version=eiclip_mm.__version__,
        sha256=encoder.sha256,
        lora=' LoRA is merged into the weights.' if lora else '',
        how=how,
        mean=[round(x, 6) for x in towers.mean.flatten().tolist()],
        std=[round(x, 6) for x in towers.std.flatten().tolist()],
        sizing=json.dumps(encoder.sizing.steps),
        left=left,
    )


def write_open_clip(encoder: EICLIPInferencer, folder: Path, place: Path) -> str:
    """Fill the folder, which will lie at ``place``; returns how it is opened.

    Raises:
        ValueError: open_clip does not load what was written as it was.
    """
    towers = encoder.model.towers
    clip, text = towers.clip, getattr(towers.clip, 'text', towers.clip)
    config, how = architecture(encoder), HOW.format(folder=place)
    if (bert := hugging_face(clip)) is not None:
        settings = copy.deepcopy(text.config)
        settings.vocab_size = len(bert.get_input_embeddings().weight)  # with added tokens
        settings.save_pretrained(folder / 'text')
        encoder.tokenizer.subwords.hugging_face.save_pretrained(folder)
        config['text_cfg'] |= dict(hf_model_name=str((folder / 'text').resolve()))
        config['text_cfg'] |= dict(hf_tokenizer_name='.', hf_model_pretrained=False)
        how += MOVED.format(folder=place)
    else:
        pool = 'text_pool_type' if hasattr(text, 'text_pool_type') else 'pool_type'
        end = 'text_eos_id' if pool == 'text_pool_type' else 'eos_id'
        config['text_cfg'] |= dict(
            pool_type=getattr(text, pool),
            eos_id=getattr(text, end),
            vocab_size=len(text.token_embedding.weight),
        )
    mean, std = (getattr(towers, name).flatten().tolist() for name in ('mean', 'std'))
    whole = dict(model_cfg=config, preprocess_cfg=dict(mean=mean, std=std))
    path = folder / 'open_clip_config.json'
    path.write_text(json.dumps(whole, indent=1), encoding='utf-8')
    state = {name: value.contiguous() for name, value in clip.state_dict().items()}
    save_file(state, folder / 'open_clip_model.safetensors', metadata=dict(format='pt'))
    loaded = open_clip.create_model(f'local-dir:{folder}').state_dict()
    if loaded.keys() != state.keys() or not all(loaded[n].equal(state[n]) for n in state):
        raise ValueError(f'{folder}: open_clip loads other weights than were written.')
    if bert is not None:
        config['text_cfg']['hf_model_name'] = str((place / 'text').resolve())
        path.write_text(json.dumps(whole, indent=1), encoding='utf-8')
    return how


def architecture(encoder: EICLIPInferencer) -> dict:
    """The model in open_clip's terms.

    Raises:
        ValueError: a name that open_clip does not know without a network.
    """
    model = encoder.config.model.towers.model
    if not isinstance(model, str):
        return json.loads(json.dumps(model))
    config = open_clip.get_model_config(model) if model in open_clip.list_models() else None
    if config is None:
        raise ValueError(f'{model!r} is no model of open_clip, whose architecture would be needed.')
    return config


if __name__ == '__main__':
    main()
