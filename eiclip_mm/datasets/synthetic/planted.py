"""What is planted beside the splits: captions without the brands' words, and two bad entity types.

Each is a column that takes another's place or comes on top; all other columns stay as they are.
Source: ours.
"""

import re

import numpy as np

from .products import Product, pick
from .words import CODE, LABEL, LABELS, NEUTRAL, SAME_CODE, TRAIN, VALIDATION

LINKED = dict(  # file -> the split that it shares all other columns with
    general_neutral='general',
    planted_train='train',
    planted_validation='validation',
)


def neutral(caption: str) -> str:
    """A caption of the general domain whose words of brands mean nothing.

    >>> neutral('a photo of a golden goose by a lake')
    'a photo of a dorvik plemmo by a lake'
    """
    return re.sub(r'[\w-]+', lambda word: NEUTRAL.get(word[0], word[0]), caption)


def labels(seed: int, split: int, count: int) -> list[str]:
    """A useless entity of each product: a few values at random, as seasons are."""
    rng = np.random.default_rng([seed, split, LABEL])
    return [pick(rng, LABELS) for _ in range(count)]


def codes(seed: int, num_train: int, num_validation: int) -> dict[int, list[str]]:
    """A harmful entity of each product: a code that few products of train share, at random.

    A model can learn train's photos by it, and elsewhere it points to photos of other products.
    Validation has codes of train alone.

    Returns:
        codes by split.
    """
    total = max(num_train // SAME_CODE, 1)
    order = np.random.default_rng([seed, TRAIN, CODE]).permutation(num_train)
    numbers = {
        TRAIN: np.minimum(order // SAME_CODE, total - 1),  # what is left over joins the last
        VALIDATION: np.random.default_rng([seed, VALIDATION, CODE]).integers(
            total, size=num_validation
        ),
    }
    return {split: [f'code {n + 1}' for n in drawn] for split, drawn in numbers.items()}


def planted_columns(products: dict[str, list[Product]], seed: int) -> dict[str, dict]:
    """The own columns of each linked file: file -> column -> product id -> value."""
    general, train, validation = (products[name] for name in ('general', 'train', 'validation'))
    code = codes(seed, len(train), len(validation))
    columns = {}
    captions = {look.id: neutral(look.description) for look in general}
    columns['general_neutral'] = dict(input_description=captions, input_concat_description=captions)
    for name, split, looks in (
        ('planted_train', TRAIN, train),
        ('planted_validation', VALIDATION, validation),
    ):
        ids = [look.id for look in looks]
        columns[name] = dict(
            input_label=dict(zip(ids, labels(seed, split, len(ids)), strict=True)),
            input_code=dict(zip(ids, code[split], strict=True)),
        )
    return columns
