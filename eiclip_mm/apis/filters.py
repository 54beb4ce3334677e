"""What a search may be narrowed to: 'brand=Puma,Nike', 'price<=100'.

An item is found by its texts (names of entities, attributes that are text) and by its numbers.
Texts compare by :func:`~eiclip_mm.structures.entity_key`, so case and spelling do not matter.
"""

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from eiclip_mm.structures import entity_key

TEXTS, NUMBERS = 'texts', 'numbers'  # what a field holds; both are written into each point
OPS = ('=', '!=', '<', '<=', '>', '>=')
BOUNDS = {'<': 'lt', '<=': 'lte', '>': 'gt', '>=': 'gte'}
HOW = "write FIELD=VALUE, e.g. 'brand=Puma,Nike' (any of them), 'colour!=red' or 'price<=100'"
# spaces are left to strip(): a pattern that shares them out takes the cube of their number
_CONDITION = re.compile(r'([^=!<>]+)(!=|<=|>=|=|<|>)([^=<>].*)', re.DOTALL)


@dataclass(frozen=True)
class Condition:
    """What an item must be.

    Attributes:
        field: an entity type or an attribute.
        op: ``'='``: one of the values; ``'!='``: none of them, as an item without the field;
            ``'<'``, ``'<='``, ``'>'``, ``'>='``: a number on that side of the one value.
        values: texts or numbers; a number as text means the same.

    Raises:
        ValueError: another op, no value, or no number where one is needed.
    """

    field: str
    op: str
    values: tuple

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise ValueError(f'op={self.op!r} of a filter is not known; choose one of {OPS}.')
        if not self.values or isinstance(self.values, str):
            raise ValueError(
                f'a filter of {self.field!r} needs values, got {self.values!r}; {HOW}.'
            )
        if self.op in BOUNDS and (len(self.values) > 1 or number(self.values[0]) is None):
            raise ValueError(f'{self.field}{self.op} needs one number, got {self.values!r}; {HOW}.')


def parse_filters(texts: Sequence[str]) -> list[Condition]:
    """Conditions as people write them; a value with a comma stands in double quotes.

    >>> parse_filters(['brand=Puma, "Dolce, Gabbana"'])
    [Condition(field='brand', op='=', values=('Puma', 'Dolce, Gabbana'))]

    Raises:
        ValueError: a text that is no condition, and how to write one.
    """
    if isinstance(texts, str):
        texts = [texts]
    found = []
    for text in texts:
        match = _CONDITION.fullmatch(text)
        field, op, right = map(str.strip, match.groups()) if match else ('', '', '')
        if not field:
            raise ValueError(f'filter {text!r} is not understood; {HOW}.')
        try:
            (row,) = csv.reader([re.sub(r'[\r\n]', ' ', right)], skipinitialspace=True)
        except csv.Error as error:
            raise ValueError(f'filter {text!r:.200} cannot be read: {error}; {HOW}.') from error
        values = tuple(value.strip() for value in row)
        if not values or '' in values:
            raise ValueError(f'filter {text!r} has an empty value; {HOW}.')
        found.append(Condition(field, op, values))
    return found


def number(value: Any) -> float | None:
    """A finite number, also one written as text; else None."""
    if isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def key(value: object) -> str:
    """What is compared of a text; ``True`` is the text 'true'."""
    return entity_key(str(value))


def searchable(payload: Mapping) -> dict[str, dict[str, list]]:
    """Texts and numbers of an item by field: ``{'texts': {...}, 'numbers': {...}}``.

    Raises:
        ValueError: an attribute that is no text, number, boolean or list of them, or whose name
            Qdrant cannot hold.
    """
    found: dict[str, dict[str, list]] = {TEXTS: {}, NUMBERS: {}}
    for field, values in _fields(payload):
        if not field or '"' in field:
            raise ValueError(f'the name of a field must be a text without ", got {field!r}.')
        for value in values:
            if isinstance(value, (str, bool)):
                if text := key(value):
                    found[TEXTS].setdefault(field, []).append(text)
            elif (amount := number(value)) is not None:
                found[NUMBERS].setdefault(field, []).append(amount)
            else:
                raise ValueError(
                    f'attribute {field!r} must be a text, a finite number, a boolean or a list of '
                    f'them, got {value!r:.80}.'
                )
    return found


def spelling(payload: Mapping, field: str, text: str) -> str:
    """How an item prints a text of a field that is known by its key."""
    values = (value for name, values in _fields(payload) if name == field for value in values)
    return next((str(value) for value in values if key(value) == text), text)


def _fields(payload: Mapping) -> Iterable[tuple[str, Iterable]]:
    yield from (payload.get('entities') or {}).items()
    for field, value in (payload.get('attributes') or {}).items():
        if value is not None:
            yield field, value if isinstance(value, (list, tuple)) else [value]


def path(kind: str, field: str) -> str:
    """Where a point holds a field, as Qdrant names it.

    >>> path(TEXTS, 'base colour')
    'texts."base colour"'
    """
    return f'{kind}."{field}"'


def build(where: Sequence[Condition], known: Mapping[str, set[str]], models: ModuleType) -> Any:
    """Conditions as a Qdrant filter; None if there are none.

    Args:
        where: all of them must hold.
        known: for each field of the index what it holds, ``TEXTS`` or ``NUMBERS`` or both.
        models: ``qdrant_edge`` or ``qdrant_client.models``, whose classes have the same names.

    Raises:
        ValueError: a field that the index lacks, or a text where the field holds numbers.
    """
    must, must_not = list[Any](), list[Any]()
    for condition in where:
        kinds = known.get(condition.field)
        if kinds is None:
            raise ValueError(
                f'no item has {condition.field!r}; filters can name '
                f'{sorted(known) or "nothing yet, the index is empty"}.'
            )
        (must_not if condition.op == '!=' else must).append(_any_of(condition, kinds, models))
    return models.Filter(must=must, must_not=must_not) if must or must_not else None


def _any_of(condition: Condition, kinds: set[str], models: ModuleType) -> Any:
    """The filter that one condition asks for, ``!=`` as ``=``."""
    field, range_ = condition.field, getattr(models, 'RangeFloat', None) or models.Range
    ranges, texts = [], []
    if condition.op in BOUNDS:
        if NUMBERS not in kinds:
            raise ValueError(f'{field!r} is text, {condition.op} needs numbers; {HOW}.')
        ranges = [{BOUNDS[condition.op]: number(condition.values[0])}]
    else:
        numbers = [number(value) for value in condition.values]
        if NUMBERS in kinds:
            ranges = [dict(gte=value, lte=value) for value in numbers if value is not None]
        if TEXTS in kinds:
            texts = [key(value) for value in condition.values]
        elif None in numbers:
            raise ValueError(f'{field!r} is a number, got {condition.values!r}; {HOW}.')
    should = [models.FieldCondition(key=path(NUMBERS, field), range=range_(**r)) for r in ranges]
    if texts:
        match = models.MatchAny(any=texts)
        should.append(models.FieldCondition(key=path(TEXTS, field), match=match))
    return models.Filter(should=should)
