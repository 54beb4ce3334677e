"""What is wrong, or cannot be known, about a result: read it before comparing numbers.

Every check is ours, each after a defect seen in a released evaluator or a number misprinted in a
paper.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath

import torch
from torch import Tensor

from .embeddings import Embeddings
from .manifest import DIRECTIONS
from .retrieval import Retrieval

VALIDATION = 'fashiongen_256_256_validation.h5'  # what papers call test
VALIDATION_IMAGES, VALIDATION_PRODUCTS = 32528, 7519
# Counts that papers misprint, and what the Fashion-Gen files hold.
TYPOS = {
    ('images', 35528): VALIDATION_IMAGES,
    ('images', 260480): 260490,
    ('subcategories', 121): 122,
}
DISJOINT = {'fit', 'select'}  # folds of one file that share no product
NEEDED = {
    ('data', 'file'): 'which file is reported',
    ('text', 'vocab_source'): 'which split the vocabulary is from',
    ('model', 'chosen_on'): 'which split the checkpoint was chosen on',
}
SAMPLE = 1000  # rows of which the mean cosine is taken
COLLAPSED = 0.99  # mean cosine
LONG = 1000  # times the median length


def lint(
    embeddings: Embeddings,
    retrieval: Retrieval | None = None,
    duplicates: Mapping | None = None,
) -> list[str]:
    """What a reader of a result should know.

    Args:
        embeddings: with their card; what the card does not say is not checked, and said so.
        retrieval: of these embeddings; without it nothing about a protocol is checked.
        duplicates: what tools/analysis_tools/find_duplicates.py wrote, instead of the card's
            ``data.near_duplicates``.

    Returns:
        A sentence for each finding: what, how much, what to do.
    """
    card = embeddings.card
    return [
        *_unchecked(embeddings),
        *_counts(embeddings),
        *_vocabulary(card),
        *_choice(card),
        *_near_duplicates(card, duplicates),
        *_same_texts(embeddings, retrieval),
        *_same_images(embeddings),
        *_collapsed(embeddings),
        *_lengths(embeddings),
        *(() if retrieval is None else (*_ceiling(retrieval), *_queries(embeddings, retrieval))),
    ]


def _unchecked(embeddings: Embeddings) -> Iterator[str]:
    card = embeddings.card
    lost = {
        f'card {part}.{key}': what
        for (part, key), what in NEEDED.items()
        if not isinstance(card.get(part), Mapping)
        or key not in card[part]  # None is an answer: nothing was chosen
    }
    if embeddings.product_text is None:
        lost['array product_text'] = 'which texts are equal'
    if lost:
        start = 'these' if embeddings.card else 'they have no card: these'
        yield (
            f'The embeddings do not say everything, {start} cannot be checked: '
            + ', '.join(f'{what} ({where})' for where, what in lost.items())
            + '; write them anew with tools/test.py --out, or add what is missing.'
        )


def _counts(embeddings: Embeddings) -> Iterator[str]:
    data = _at(embeddings.card, 'data')
    if _at(data, 'dataset') not in (None, 'FashionGen'):
        return
    images, products = len(embeddings.image), len(embeddings.product_id.unique())
    for (name, wrong), right in TYPOS.items():
        if _at(data, name) == wrong or (name, images) == ('images', wrong):
            yield (
                f'{wrong:,} {name} is a misprint that papers repeat, Fashion-Gen has {right:,}; '
                'correct the number, or count the rows of the file.'
            )
    if _name(_at(data, 'file')) != VALIDATION or _at(data, 'fold') not in (None, 'all'):
        return
    wanted = VALIDATION_PRODUCTS if _at(data, 'views') == 'first' else VALIDATION_IMAGES
    if (images, products) != (wanted, VALIDATION_PRODUCTS):
        yield (
            f'{VALIDATION} has {wanted:,} images of {VALIDATION_PRODUCTS:,} products, these '
            f'embeddings have {images:,} of {products:,}: the file is not complete, so do not '
            'compare with published numbers.'
        )


def _vocabulary(card: Mapping) -> Iterator[str]:
    file, source = _name(_at(card, 'data', 'file')), _text(_at(card, 'text', 'vocab_source'))
    # the whole name: val.json is not in "my_val.json"
    if file and source and re.search(rf'(?<![\w.-]){re.escape(file)}(?!\w)', source):
        yield (
            f'The entity vocabulary was built on the reported file ({source}), so it knows names '
            'that training never saw; build it on train with '
            'tools/dataset_converters/build_entities.py.'
        )


def _choice(card: Mapping) -> Iterator[str]:
    data, chosen = _at(card, 'data'), _at(card, 'model', 'chosen_on')
    file = _name(_at(data, 'file'))
    same_file = file is not None and _name(_at(chosen, 'file')) == file
    folds = {_text(_at(part, 'fold')) or 'all' for part in (data, chosen)}
    if _at(chosen, 'reported') is True or (same_file and folds != DISJOINT):
        yield (
            f'The checkpoint was chosen on the reported split ({file or "says the card"}), so its '
            "numbers are too high; choose it on a slice of train (fold='select'), or take the "
            'last one.'
        )


def _near_duplicates(card: Mapping, duplicates: Mapping | None) -> Iterator[str]:
    found = _at(card, 'data', 'near_duplicates') if duplicates is None else duplicates
    file, other = _name(_at(card, 'data', 'file')), _name(_at(found, 'test_file'))
    if file and other and file != other:
        yield (
            f'The near-duplicates given are those of {other}, but {file} is reported; run '
            'tools/analysis_tools/find_duplicates.py with the config of this result.'
        )
        return
    images, products = (_at(found, name) for name in ('images', 'products'))
    of = _at(found, 'of_products') or _at(found, 'of')
    if images and all(isinstance(count, int) for count in (images, products)):
        yield (
            f'{images:,} images of {products:,} products'
            + (f', of {of:,},' if isinstance(of, int) else '')
            + f' have a near-duplicate in train (hashes at most {_at(found, "distance")} bits '
            'apart); report the numbers without these products beside those with them.'
        )


def _same_texts(embeddings: Embeddings, retrieval: Retrieval | None) -> Iterator[str]:
    protocol = retrieval and retrieval.protocol
    allowed = protocol and protocol.same_text and protocol.right == 'product'
    if embeddings.product_text is None or allowed:
        return
    text, ids = (x.cpu() for x in (embeddings.product_text, embeddings.product_id))
    shared = _of_several(text, ids)
    if shared.any():
        number, total = int(shared.sum()), len(shared)
        yield (
            f'{number:,} of {total:,} texts ({100 * number / total:.1f} %) are identical to the '
            'text of another product, which counts as wrong although no model can tell them '
            'apart; report same_text=True beside.'
        )


def _same_images(embeddings: Embeddings) -> Iterator[str]:
    seen: dict[bytes, int] = {}
    rows = embeddings.image.detach().cpu().float().numpy()
    key = torch.tensor([seen.setdefault(row.tobytes(), len(seen)) for row in rows])
    ids = embeddings.image_product_id.cpu()
    shared = _of_several(key, ids)
    if shared.any():
        example = ids[key == key[shared][0]].unique()[:2].tolist()
        yield (
            f'{int(shared.sum()):,} of {len(shared):,} image embeddings are equal to one of '
            f'another product, e.g. of products {example[0]} and {example[1]}: one photo given '
            'twice, or photos left blank; look at them with tools/misc/verify_dataset.py.'
        )


def _of_several(key: Tensor, ids: Tensor) -> Tensor:
    """(N,) bool, the rows whose key belongs to more than one id.

    >>> _of_several(torch.tensor([0, 0, 1, 1]), torch.tensor([7, 8, 9, 9])).tolist()
    [True, True, False, False]
    """
    keys = torch.stack([key, ids], 1).unique(dim=0)[:, 0]
    values, count = keys.unique(return_counts=True)
    return torch.isin(key, values[count > 1])


def _collapsed(embeddings: Embeddings) -> Iterator[str]:
    for side in ('image', 'product'):
        rows = getattr(embeddings, side)
        sample = rows[torch.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).long()]
        unit = torch.nn.functional.normalize(sample.double(), dim=1)
        pairs = len(unit) * (len(unit) - 1)
        mean = float(unit.sum(0).square().sum() - unit.square().sum()) / max(pairs, 1)
        if mean > COLLAPSED:
            yield (
                f'The {side} embeddings are nearly all equal (mean cosine of {len(unit):,} of '
                f'them: {mean:.4f}), so their order is rounding; check that the right checkpoint '
                'was loaded, or lower the learning rate.'
            )


def _lengths(embeddings: Embeddings) -> Iterator[str]:
    for side, ids in (('image', embeddings.image_product_id), ('product', embeddings.product_id)):
        length = torch.linalg.vector_norm(getattr(embeddings, side).double(), dim=1)
        longest, median = float(length.max()), float(length.median())
        if longest > LONG * median > 0:
            yield (
                f'The longest of the {side} embeddings, of product {int(ids[length.argmax()])}, '
                f'is {longest / median:,.0f} times as long as the median one; the tolerance for '
                'ties grows with it, so many items may tie, which counts as wrong; normalise the '
                'embeddings.'
            )


def _ceiling(retrieval: Retrieval) -> Iterator[str]:
    protocol, images = retrieval.protocol, retrieval.num_images
    limited = protocol.right == 'pair' and protocol.candidates is None and protocol.ties != 'for'
    if limited and retrieval.num_products < images:
        best = 100 * retrieval.num_products / images
        yield (
            f'{protocol.name} counts one text for one image: with {images:,} images of '
            f'{retrieval.num_products:,} products a perfect model reaches at most {best:.1f} % '
            'R@1; report full/product instead.'
        )


def _queries(embeddings: Embeddings, retrieval: Retrieval) -> Iterator[str]:
    """Too few queries, and lists that are short or hold nothing wrong."""
    protocol = retrieval.protocol
    if protocol.candidates is None:
        return
    asked = (protocol.queries or len(embeddings.product_id.unique())) * protocol.repeats
    for direction in DIRECTIONS:
        got = len(getattr(retrieval, direction).product_id)
        if got < asked:
            yield (
                f'{protocol.name} asks {asked:,} queries in {direction}, here are {got:,}; take '
                'the whole split, or name the number beside the result.'
            )
        wrong = getattr(retrieval, direction).wrong
        short, bare = int((wrong < protocol.candidates.number).sum()), int((wrong == 0).sum())
        if short:
            yield (
                f'{short:,} of {len(wrong):,} {direction} queries have fewer than '
                f'{protocol.candidates.number} wrong candidates ({protocol.candidates.group} too '
                'small), which makes them easier'
                + (f', and {bare:,} have none, so they always score 100 %' if bare else '')
                + '; compare only within this protocol.'
            )


def _at(card: object, *path: str) -> object:
    """The value at a path of nested dicts, None where there is none."""
    for name in path:
        card = card.get(name) if isinstance(card, Mapping) else None
    return card


def _text(value: object) -> str | None:
    """The value if it is a string; a foreign card may have anything there."""
    return value if isinstance(value, str) else None


def _name(path: object) -> str | None:
    """The last part of a path; cards name files, not folders."""
    return PurePath(path).name if isinstance(path, str) else None
