"""Write a model as ONNX graphs: python tools/deployment/export_onnx.py CHECKPOINT --out FOLDER

The folder holds all that a program in any language needs: image.onnx, product.onnx, sub-words and
vocabulary as plain data (model.json), and read_texts.py, which says how texts become ids.
eiclip_mm.apis.OnnxEncoder opens it.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import eiclip_mm
from eiclip_mm.apis import EICLIPInferencer, Encoder
from eiclip_mm.apis.onnx import FORMAT, OnnxEncoder
from eiclip_mm.models import EICLIP, merge_lora
from eiclip_mm.utils.whole_together import whole_folder

try:
    import onnxruntime  # noqa: F401
    from _check import Sample, Vectors, made_up, sample
    from _graphs import quantise, write_graphs
except ImportError as error:
    raise SystemExit(f"export needs pip install 'eiclip_mm[onnx]': {error}") from error

TOLERANCE = 1e-4  # of an entry of a unit vector
MISSING = object()
CALIBRATION = 256  # photos


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('checkpoint', type=Path, help='of tools/train.py')
    add('--out', type=Path, required=True, metavar='FOLDER', help='new, or empty')
    add('--opset', type=int, default=20, help='version of the ONNX operators, from 18, default 20')
    add(
        '--check', nargs='?', type=Path, const=MISSING, metavar='CATALOGUE',
        help='compare vectors, recall and speed on its products; by default the test split of the '
        'config in the checkpoint. Without --check, vectors of noise alone are compared',
    )  # fmt: skip
    add('--number', type=int, default=1000, help='products to compare on, default 1000')
    add(
        '--int8', nargs='?', type=Path, const=MISSING, metavar='CATALOGUE',
        help='write FOLDER/int8 too; convolutions are calibrated on its photos, by default on the '
        'train split of the config in the checkpoint',
    )  # fmt: skip
    args = parser.parse_args(argv)
    if args.number < 1:
        parser.error(f'--number must be at least 1, got {args.number}')
    if args.opset < 18:
        parser.error(f'--opset must be at least 18, got {args.opset}')
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        parser.error(f'--out {args.out} exists and is not an empty folder; give another one')
    return args


def main(argv: list[str] | None = None) -> None:
    """Write, then compare with what was written."""
    args = parse_args(argv)
    try:
        encoder = EICLIPInferencer(args.checkpoint, device='cpu')
        # read first: writing takes a minute
        products = taken(encoder, args.check, 'test', args.number)
        with whole_folder(args.out) as folder:  # it is there once it is known to be the model
            write(encoder, folder, args.opset)
            threads = torch.get_num_threads()
            models = {'torch': encoder, 'onnx': OnnxEncoder(folder, threads=threads)}
            if args.int8 is not None:
                write_int8(encoder, folder, args.int8)
                models['onnx, int8'] = OnnxEncoder(folder / 'int8', threads=threads)
            compare(models, products)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error


def compare(models: dict[str, Encoder], products: Sample | None) -> None:
    """Print how models differ from the one named "torch".

    Args:
        models: by name.
        products: to compare on; noise and names by default.

    Raises:
        SystemExit: the one named "onnx" is another model.
    """
    if products is None:
        found = {name: made_up(models['torch']).embedded(model) for name, model in models.items()}
    else:
        found = {name: products.embedded(model) for name, model in models.items()}
        print(f'{len(products.photos)} products')
        print(table(found))
    difference = found['torch'].difference(found['onnx'])
    print(f'largest difference of an entry, onnx from torch: {difference:.1e}')
    if not difference <= TOLERANCE:  # nan is none
        raise SystemExit(f'the graphs are not the model: entries differ by more than {TOLERANCE}')


def taken(encoder: EICLIPInferencer, option, split: str, number: int) -> Sample | None:
    """Products of the catalogue that an option names, ``None`` where it was not given."""
    if option is None:
        return None
    return sample(encoder, None if option is MISSING else option, encoder.config, split, number)


def write(encoder: EICLIPInferencer, folder: Path, opset: int) -> None:
    """Fill the folder."""
    model = encoder.model
    merge_lora(model)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    pixels = encoder.sizing(noise)
    encoded = encoder.read(['a tee', 'two red tees'])
    text, ids = (torch.from_numpy(x).long() for x in (encoded.text, encoded.entity_ids))
    write_graphs(model, torch.stack([pixels] * 2), text, ids, folder, opset)
    about = dict(
        format=FORMAT,
        name=encoder.name,
        sha256=encoder.sha256,
        dim=encoder.dim,
        entities=isinstance(model, EICLIP),
        eiclip_mm=eiclip_mm.__version__,
        opset=opset,
        image=dict(size=list(pixels.shape[1:]), sizing=encoder.sizing.steps),
        text=reading(encoder, write_subwords(encoder, folder)),
        vocab=encoder.tokenizer.vocab.to_dict(),
    )
    write_about(folder, about)
    shutil.copy(Path(__file__).with_name('read_texts.py'), folder)


def write_about(folder: Path, about: dict) -> None:
    """Write model.json."""
    text = json.dumps(about, ensure_ascii=False, indent=1)
    (folder / 'model.json').write_text(text, encoding='utf-8')


def reading(encoder: Encoder, subwords: str) -> dict:
    """How a product becomes ids; with sub-words and vocabulary all that a reader needs."""
    own, config = encoder.tokenizer, dict(encoder.config.model.tokenizer)
    return dict(
        fields=list(own.fields),
        mention=own.mention,
        mention_types=config.get('mention_types'),
        tags=own.tags,
        text_types=list(own.text_types),
        max_values=own.max_values,
        subwords=subwords,
        context_length=own.subwords.context_length,
        start=own.subwords.start,
        end=own.subwords.end,
        pad=own.subwords.pad,
        size=own.subwords.size,
    )


def write_subwords(encoder: Encoder, folder: Path) -> str:
    """Write the sub-words as data; the name of the file that a reader needs.

    Raises:
        ValueError: sub-words that are not known as data.
    """
    subwords = encoder.tokenizer.subwords
    clean = '_clean_lower' if subwords.hugging_face is None else '_clean_whitespace'
    if subwords.clean.__name__ != clean:
        raise ValueError(
            f'the tokenizer cleans texts by {subwords.clean.__name__} of open_clip; read_texts.py '
            f'knows {clean} alone.'
        )
    if subwords.hugging_face is not None:
        if not subwords.hugging_face.is_fast:
            raise ValueError(
                f'{type(subwords.hugging_face).__name__} has no tokenizer.json; take a model with '
                'one.'
            )
        subwords.hugging_face.save_pretrained(folder / 'tokenizer')
        return 'tokenizer/tokenizer.json'
    inner = subwords.open_clip
    data = dict(
        tokens=sorted(inner.encoder, key=inner.encoder.get),
        merges=[list(pair) for pair in sorted(inner.bpe_ranks, key=inner.bpe_ranks.get)],
        bytes=''.join(inner.byte_encoder[byte] for byte in range(256)),
        special=[inner.decoder[id_] for id_ in inner.all_special_ids],
        pattern=inner.pat.pattern,
    )
    (folder / 'bpe.json').write_text(json.dumps(data, ensure_ascii=False), encoding='utf-8')
    return 'bpe.json'


def write_int8(encoder: EICLIPInferencer, folder: Path, catalogue) -> None:
    """A folder of its own inside the folder; the option names photos, where some are needed."""
    target = folder / 'int8'
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns('*.onnx*'))
    about = json.loads((folder / 'model.json').read_text(encoding='utf-8'))

    def photos() -> Iterator[np.ndarray]:
        for photo in taken(encoder, catalogue, 'train', CALIBRATION).photos:
            yield encoder.sizing(photo).numpy()

    for name in ('image.onnx', 'product.onnx'):
        how = quantise(folder / name, target / name, photos())
        sizes = [(place / name).stat().st_size / 1e6 for place in (folder, target)]
        print(f'{name} in 8 bits: {how}; {sizes[0]:.1f} MB -> {sizes[1]:.1f} MB')
    write_about(target, about | dict(name=f'{about["name"]} (int8)'))


def table(found: dict[str, Vectors]) -> str:
    """Recall and speed of each model, and how far its vectors are from torch's."""
    columns = ('I2T R@1', 'R@5', 'R@10', 'T2I R@1', 'R@5', 'R@10', 'cosine', 'ms/photo', 'ms/text')
    lines = ['| | ' + ' | '.join(columns) + ' |', '|:--|' + '--:|' * len(columns)]
    for name, own in found.items():
        recall = [f'{value:.1f}' for value in own.recall()]
        cosine = own.mean_cosine(found['torch'])
        speed = [f'{1000 * seconds:.2f}' for seconds in own.seconds]
        lines.append(f'| {name} | ' + ' | '.join([*recall, f'{cosine:.4f}', *speed]) + ' |')
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
