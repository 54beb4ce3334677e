"""See why a photo and a text match: which parts of the photo, which words and entities.

python tools/visualization/explain_match.py CHECKPOINT PHOTO "text" --out picture.png

Of the photo: by how much the cosine drops where a cell is covered (occlusion), or Grad-CAM on the
image tower's last feature map, faster and a guess; with --image both, how far they agree. Of the
product: by how much the cosine drops without each word and each entity, computed anew.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.apis import EICLIPInferencer
from eiclip_mm.evaluation.report import check_writable
from eiclip_mm.utils.sentence import told
from eiclip_mm.utils.whole_file import write_whole_text
from eiclip_mm.visualization.left_out import LeftOut, left_out
from eiclip_mm.visualization.saliency import agreement, grad_cam, occlusion

METHODS = ('occlusion', 'grad-cam')
FORMATS = ('.png', '.svg')


def main(argv: list[str] | None = None) -> None:
    """Embed, leave out, write."""
    args = parse_args(argv)
    try:
        for path in filter(None, (args.out, args.json)):
            check_writable(path)
        inferencer = EICLIPInferencer(args.checkpoint, device=args.device)
        product = described(inferencer, args.text, args.entities)
        pixels = inferencer.sizing(args.photo)
        maps = image_maps(inferencer, pixels, product, args.image, args.cells)
        cosine, parts = left_out(inferencer, product, inferencer.encode_images(args.photo)[0])
        text = inferencer.explain(product)[0].text
        print(table(text, cosine, parts))
        if len(maps) == 2:
            print(f'\nocclusion and Grad-CAM correlate by {agreement(*maps.values()):.2f}')
        if args.out:
            title = f'cosine {cosine:.3f}: {text}'
            draw(args.out, pixels.permute(1, 2, 0).numpy(), maps, parts, title)
        if args.json:
            write_json(args.json, args, cosine, text, parts, maps)
    except (ValueError, OSError, ImportError) as error:
        raise SystemExit(str(error)) from error


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('checkpoint', metavar='CHECKPOINT', help='of tools/train.py')
    parser.add_argument('photo', metavar='PHOTO', help='an image file')
    parser.add_argument('text', metavar='TEXT', help='a description or a query')
    parser.add_argument(
        '--entities',
        nargs='+',
        default=[],
        metavar='TYPE=NAME',
        help='metadata; without any, entities are read from the text',
    )
    parser.add_argument('--out', type=Path, metavar='FILE', help='a picture, .png or .svg')
    parser.add_argument('--json', type=Path, metavar='FILE.json', help='all numbers')
    parser.add_argument(
        '--image', choices=[*METHODS, 'both'], default='occlusion', help='default occlusion'
    )
    parser.add_argument('--cells', type=int, default=8, help='of a side, for occlusion; default 8')
    parser.add_argument('--device', help="e.g. 'cpu'")
    args = parser.parse_args(argv)
    if args.out and args.out.suffix not in FORMATS:
        parser.error(f'--out must end in one of {FORMATS}, got {args.out}')
    return args


def described(inferencer: EICLIPInferencer, text: str, entities: Sequence[str]) -> dict:
    """The product of a text and of metadata such as ``brand=Puma``.

    Raises:
        ValueError: metadata of another form, or of a type or name that the model does not know.
    """
    vocab, found = inferencer.tokenizer.vocab, {}
    for given in entities:
        type_, _, name = given.partition('=')
        if not name or type_ not in vocab.types:
            raise ValueError(
                f'--entities {given}: must be TYPE=NAME with one of the types {vocab.types}, e.g. '
                'brand=Puma.'
            )
        if not vocab.id(type_, name):
            raise ValueError(
                f'--entities {given}: the vocabulary has no such {type_}; it has e.g. '
                f'{vocab.names[type_][:5]}. Leave it out: the model would get nothing of it.'
            )
        found.setdefault(type_, []).append(name)
    return {inferencer.text_fields[-1]: text, 'entities': found}


def image_maps(
    inferencer: EICLIPInferencer, pixels, product: dict, which: str, cells: int
) -> dict[str, np.ndarray]:
    """By the name of the method, what each part of the photo does for the match."""
    vector = inferencer.encode_products(product)[0].to(inferencer.device)
    pixels, towers, maps = pixels.to(inferencer.device), inferencer.model.towers, {}
    if which != 'grad-cam':
        maps['occlusion'] = occlusion(inferencer.embed_pixels, pixels, vector, cells)
    if which != 'occlusion':
        maps['grad-cam'] = grad_cam(towers.clip.visual, towers.encode_image, pixels, vector)
    return maps


def table(text: str, cosine: float, parts: Sequence[LeftOut]) -> str:
    """The product's side in Markdown, what matters most first."""
    rows = ['| left out | | weight | drop of the cosine |', '|---|---|--:|--:|']
    for part in sorted(parts, key=lambda part: -part.drop):
        name = part.name if part.type is None else f'{part.type}: {part.name}'
        kind = dict(both='entity and name', entities='all').get(part.kind, part.kind)
        weight = '' if part.weight is None else f'{part.weight:.2f}'
        rows.append(f'| {name} | {kind} | {weight} | {part.drop:+.4f} |')
    return '\n'.join([f'cosine {cosine:.4f}: {text}', '', *rows])


def draw(path: Path, pixels: np.ndarray, maps: Mapping, parts: Sequence, title: str) -> None:
    """Write the picture."""
    try:
        from eiclip_mm.visualization.match_figure import match_figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'eiclip_mm[report]'") from error
    with told(path):
        match_figure(pixels, maps, parts, title if len(title) < 100 else title[:99] + '…', path)
    print(f'\nthe picture is in {path}')


def write_json(
    path: Path,
    args: argparse.Namespace,
    cosine: float,
    text: str,
    parts: Sequence[LeftOut],
    maps: Mapping[str, np.ndarray],
) -> None:
    """Write all numbers."""
    result = dict(
        checkpoint=Path(args.checkpoint).name,
        photo=Path(args.photo).name,
        text=text,
        cosine=cosine,
        left_out=[asdict(part) for part in parts],
        image={name: values.tolist() for name, values in maps.items()},
    )
    with told(path):
        write_whole_text(path, json.dumps(result, indent=1, ensure_ascii=False) + '\n')


if __name__ == '__main__':
    main()
