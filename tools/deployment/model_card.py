"""Write what to say of a model that is handed on: a model card, from its checkpoint.

python tools/deployment/model_card.py CHECKPOINT --license LICENCE --out MODEL_CARD.md

Results and protocol cards of tools/test.py are found beside the checkpoint, or named. What a
checkpoint cannot know, such as who may use the weights, is asked or left for you to write.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import UnionType

import torch
from mmengine.config import Config

import eiclip_mm
from eiclip_mm.apis import EICLIPInferencer, open_checkpoint
from eiclip_mm.apis.checkpoint import Checkpoint
from eiclip_mm.evaluation.rows import card_part
from eiclip_mm.models import EICLIP
from eiclip_mm.utils.sentence import told
from eiclip_mm.utils.untrusted import read_json
from eiclip_mm.utils.whole_file import write_whole_text

from huggingface_hub import EvalResult, ModelCardData  # isort: skip  (open_clip brings it)

SHOWN = ('R@1', 'R@5', 'R@10', 'MRR', 'median_rank')
DIRECTIONS = dict(i2t='photo to text', t2i='text to photo')
NEEDED = dict(data=('dataset', 'file'), model=('config',))  # of a protocol card
CONFIG = ('model', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'custom_hooks')
ABOUT = dict(
    EICLIP='EI-CLIP: two CLIP towers for photos and texts of products; CE-Selector weighs the '
    "entities of a product (brand, ...), EA-Learner fuses them into the text's vector.",
    OpenCLIP='CLIP, fine-tuned on products: two towers, for photos and for texts. Entities are '
    'no input.',
)
LIMITS = """\
- A score is a cosine. It orders products; it is no probability, and no threshold fits all queries.
- Of a text the first {length} tokens are read, its start and end among them; photos are read at
  {size} pixels.
- Names outside the vocabulary are plain words to the model; their entity is unknown.
- The numbers are of one training run and of the catalogue named above. Other photos, languages and
  shops give others: measure on yours, with tools/test.py.
- What the data prefer, the model prefers; nobody has examined how it treats photos of people."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add('checkpoint', type=Path, help='of tools/train.py')
    add('--license', required=True, help="of the weights: yours to say; the code's is Apache-2.0")
    add('--out', type=Path, required=True, metavar='FILE.md', help='the card')
    add('--results', nargs='+', type=Path, metavar='FILE', help='test_results.json of a test')
    add('--cards', nargs='+', type=Path, metavar='FILE', help='protocol_cards.json of it')
    args = parser.parse_args(argv)
    if not args.license.strip():
        parser.error('--license is empty; say who may use the weights')
    for option, name in (('results', 'test_results'), ('cards', 'protocol_cards')):
        if getattr(args, option) is None:
            beside = args.checkpoint.parent / f'{name}.json'
            setattr(args, option, [beside] if beside.is_file() else [])
    return args


def main(argv: list[str] | None = None) -> None:
    """Read, write."""
    args = parse_args(argv)
    try:
        opened = open_checkpoint(args.checkpoint)
        results, cards = merged(args.results, int | float), merged(args.cards, dict)
        check_cards(results, cards, opened)
        encoder = EICLIPInferencer(args.checkpoint, device='cpu')
        text = model_card(opened, encoder, results, cards, args.license)
        with told(args.out):
            write_whole_text(args.out, text)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    print(f'{args.out} is written; read it before you hand it on')


def merged(paths: list[Path], kind: type | UnionType) -> dict:
    """The entries of several JSON files.

    Args:
        paths: of the files, each an object.
        kind: of its values.

    Raises:
        FileNotFoundError: one is not there.
        ValueError: one is no JSON, or other lists and objects.
    """
    found = {}
    for path in paths:
        if not path.is_file():  # a pipe would never end
            raise FileNotFoundError(f'{path} is not there, or no file; give one of tools/test.py.')
        content = read_json(path)
        if not isinstance(content, dict) or not all(isinstance(v, kind) for v in content.values()):
            raise ValueError(
                f'{path} is not what tools/test.py writes: --results are an object of numbers, '
                '--cards one of objects.'
            )
        found |= content
    return found


def check_cards(results: Mapping, cards: Mapping, opened: Checkpoint) -> None:
    """Refuse numbers of another checkpoint, or of which nobody knows what they rest on."""
    for name, card in cards.items():
        sha256 = card_part(card, 'model').get('checkpoint_sha256')
        if sha256 != opened.sha256:
            raise ValueError(
                f'the protocol card of {name} is of another checkpoint: sha256 {sha256!s:.12}, '
                f'here {opened.sha256:.12}. Test this one with tools/test.py, or give its '
                '--results and --cards.'
            )
        parts = ((part, key) for part, keys in NEEDED.items() for key in keys)
        lost = [f'{part}.{key}' for part, key in parts if key not in card_part(card, part)]
        if lost:
            raise ValueError(f'the protocol card of {name} lacks {lost}; test anew: tools/test.py.')
    bare = [key for key in results if not key.startswith(tuple(f'{name}/' for name in cards))]
    if bare:
        raise ValueError(f'results {bare[:3]} have no protocol card; give --cards of the test.')


def model_card(
    opened: Checkpoint, encoder: EICLIPInferencer, results: Mapping, cards: Mapping, licence: str
) -> str:
    """The card, Markdown with a YAML head."""
    model, config = encoder.model, opened.config
    size = encoder.sizing(torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()).shape[1:]
    length = encoder.tokenizer.subwords.context_length
    parts = [
        f'---\n{head(encoder, results, cards, licence)}\n---',
        f'# {title(opened, cards)}',
        ABOUT.get(type(model).__name__, type(model).__name__),
        '## Use\n\n' + use(encoder),
        '## Training\n\n' + training(opened, model),
        '## Entities\n\n' + entities(encoder),
        '## Numbers\n\n' + numbers(results, cards),
        '## Limits\n\n' + LIMITS.format(length=length, size=' x '.join(map(str, size))),
        f'## Licence\n\nWeights: {licence}. Code (eiclip_mm): Apache-2.0.',
        '## Config\n\n```python\n' + settings(config).strip() + '\n```',
    ]
    return '\n\n'.join(parts) + '\n'


def head(encoder: EICLIPInferencer, results: Mapping, cards: Mapping, licence: str) -> str:
    """The YAML that model hubs read."""
    found = [
        EvalResult(
            task_type='image-text-retrieval',
            dataset_type=card['data']['dataset'],
            dataset_name=f'{card["data"]["file"]}, {name}',
            dataset_config=name,  # else hubs take several protocols for one
            metric_type=measure,
            metric_value=round(results[f'{name}/{measure}'], 2),
        )
        for name, card in cards.items()
        for measure in ('i2t/R@1', 't2i/R@1', 'SumR')
        if f'{name}/{measure}' in results
    ]
    data = ModelCardData(
        license=licence,
        library_name='eiclip_mm',
        pipeline_tag='feature-extraction',
        tags=['image-text-retrieval', 'clip', 'e-commerce'],
        **(dict(model_name=encoder.name, eval_results=found) if found else {}),
    )
    return data.to_yaml().strip()


def title(opened: Checkpoint, cards: Mapping) -> str:
    """The experiment where a test says which, else the file."""
    names = {str(card['model']['config']) for card in cards.values()}
    return ', '.join([*sorted(names), opened.path.name])


def use(encoder: EICLIPInferencer) -> str:
    """Lines that run."""
    vocab, fields = encoder.tokenizer.vocab, encoder.text_fields
    product = {field: 'a red tee' for field in fields}
    if isinstance(encoder.model, EICLIP):
        product['entities'] = {type_: [names[0]] for type_, names in vocab.names.items()}
        shown = [type_ for type_ in vocab.types if type_ not in encoder.tokenizer.text_types]
        product['entities'] = {type_: product['entities'][type_] for type_ in shown}
    return '\n'.join(
        [
            '```python',
            'from eiclip_mm.apis import EICLIPInferencer',
            '',
            f'encoder = EICLIPInferencer({encoder.name!r})  # eiclip_mm {eiclip_mm.__version__}',
            f"photos = encoder.encode_images(['photo.jpg'])  # (1, {encoder.dim}) unit vectors",
            f'products = encoder.encode_products([{product!r}])',
            "queries = encoder.encode_queries(['red tee'])",
            'scores = queries @ photos.T',
            '```',
        ]
    )


def training(opened: Checkpoint, model) -> str:
    """Data, start, length and choice, as config and checkpoint say."""
    config, meta = opened.config, opened.meta
    data = config.get('train_dataloader', {}).get('dataset', {})
    towers = config.model.towers
    start = {key: towers[key] for key in ('pretrained', 'image_weights') if towers.get(key)}
    if isinstance(towers.model, Mapping) and 'hf_model_name' in towers.model.get('text_cfg', {}):
        start['text'] = towers.model['text_cfg']['hf_model_name']
    chosen = meta.get('chosen_on')
    rows = {
        'data': f'{data.get("type")}, {Path(data.get("ann_file", "?")).name}, '
        f'fold {data.get("fold", "all")}',
        'products of its vocabulary': model.vocab.source or 'not said',
        'towers start from': ', '.join(f'{k}: {v}' for k, v in start.items()) or 'random weights',
        'parameters': f'{sum(p.numel() for p in model.parameters()):,}',
        'epoch': meta.get('epoch', 'not said'),
        'seed': meta.get('seed', 'not said'),
        'chosen on': plain(chosen) if chosen else 'the last epoch, or not said',
        'sha256': opened.sha256,
    }
    return '\n'.join(['| | |', '|:--|:--|', *(f'| {k} | {v} |' for k, v in rows.items())])


@torch.no_grad()
def entities(encoder: EICLIPInferencer) -> str:
    """How many of each type the vocabulary has, and how many CE-Selector keeps."""
    model, vocab = encoder.model, encoder.tokenizer.vocab
    if not isinstance(model, EICLIP):
        return 'None: the model reads texts alone.'
    lines = ['| type | entities | kept by CE-Selector | e.g. |', '|:--|--:|--:|:--|']
    for k, (type_, names) in enumerate(vocab.names.items()):
        ids = torch.zeros(len(names), len(vocab.types), encoder.tokenizer.max_values).long()
        ids[:, k, 0] = torch.arange(1, len(names) + 1)
        weights = model.selector(torch.zeros(len(names), encoder.dim), ids)[:, k, 0]
        some = ', '.join(names[:3])
        lines.append(f'| {type_} | {len(names)} | {int((weights > 0).sum())} | {some} |')
    return '\n'.join(lines)


def numbers(results: Mapping, cards: Mapping) -> str:
    """A table and a card for each protocol."""
    if not results:
        return 'Not measured yet: run tools/test.py and write this card again.'
    parts = []
    for name, card in cards.items():
        lines = [f'| {name} | ' + ' | '.join(SHOWN) + ' |', '|:--|' + '--:|' * len(SHOWN)]
        for key, said in DIRECTIONS.items():
            values = [results.get(f'{name}/{key}/{measure}') for measure in SHOWN]
            shown = ['' if value is None else f'{value:.4g}' for value in values]
            lines.append(f'| {said} | ' + ' | '.join(shown) + ' |')
        total = results.get(f'{name}/SumR')
        said = '' if total is None else f'SumR {total:.1f}. '
        rest = [f'- {key}: {plain(value)}' for key, value in card.items() if value is not None]
        parts.append('\n'.join([*lines, '', f'{said}What the numbers rest on:', '', *rest]))
    return '\n\n'.join(parts)


def plain(value) -> str:
    """A value of a card in a line."""
    if isinstance(value, Mapping):
        return ', '.join(f'{k} {plain(v)}' for k, v in value.items() if v is not None)
    if isinstance(value, bool):
        return 'yes' if value else 'no'
    if isinstance(value, (list, tuple)):
        return ' '.join(map(plain, value))
    return str(value)


def settings(config: Config) -> str:
    """What of the config made the weights."""
    return Config({key: config[key] for key in CONFIG if key in config}).pretty_text


if __name__ == '__main__':
    main()
