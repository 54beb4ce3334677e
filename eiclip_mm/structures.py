"""The nouns every room shares.

Shape alphabet, used in comments and docstrings of the whole package and defined nowhere else:

    B  products in a batch          K  entity types             Q  queries
    L  tokens                       M  values of one type       G  gallery items
    D  embedding width              S  senses of an entity      P  products
    C  combinations of senses       N  entities of all types    F  features of a frozen trunk
    T  texts

``a_ik`` is the entity of type k of product i; id 0 of every type means "none or unknown".
"""

import html
import importlib.util
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from eiclip_mm.utils.untrusted import read_json, shown
from eiclip_mm.utils.whole_file import write_whole_text

UNKNOWN = 0  # entity id of "none or unknown", in every type


_CONTROL = re.compile(r'[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff]')
MARKS = 30  # on one letter, as in Unicode's stream-safe text format (UAX #15)


def is_plain(text: str) -> bool:
    """Printable ASCII without ``&``: cleaning, ours as open_clip's, touches only its spaces."""
    return text.isascii() and '&' not in text and text.isprintable()


def clean_text(text: str) -> str:
    """Text as a reader sees it: HTML entities decoded, Unicode NFC, single spaces.

    Control characters go, and half a surrogate pair, which no file could hold, becomes U+FFFD.

    >>> clean_text('Levi&#039;s  jeans')
    "Levi's jeans"
    """
    if is_plain(text):
        return ' '.join(text.split())
    text = _unescaped(text)
    text = text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    # Not NFKC, which would make "Nike™" the word "NikeTM"; names are compared in NFKC.
    text = unicodedata.normalize('NFC', _few_marks(_CONTROL.sub('', text)))
    return ' '.join(text.split())


def _unescaped(text: str) -> str:
    try:
        # Twice, as open_clip does: shops escape what is escaped already.
        return html.unescape(html.unescape(text))
    except ValueError:  # a number of thousands of digits, which is no character
        return text.replace('&', ' ')


def _few_marks(text: str) -> str:
    """No letter with more than :data:`MARKS` marks: the time to sort them grows as a square."""
    if len(text) <= MARKS or text.isascii():
        return text
    runs = groupby(text, lambda character: unicodedata.combining(character) > 0)
    return ''.join(c for marks, run in runs for c in (islice(run, MARKS) if marks else run))


def is_type_name(name: object) -> bool:
    """Whether it can name an entity type: a text of 1 to 100 printable characters."""
    return isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable()


def _folded(text: str) -> str:
    """What is compared: compatible characters, cases and apostrophes are one."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize('NFKC', text).casefold().replace('’', "'")


def entity_key(name: str) -> str:
    """What two spellings of one entity have in common.

    >>> entity_key('LEVI&#039;S') == entity_key("Levi's")
    True
    """
    return _folded(clean_text(name))


@dataclass(frozen=True)
class EntityVocab:
    """The entities of each type, numbered from 1; 0 is :data:`UNKNOWN`.

    It is built on training products alone, kept as JSON beside the data and stored in every
    checkpoint, so that ids mean the same wherever a model goes. Source: ours.

    Attributes:
        names: for each entity type, the printed names; entity id = position + 1.
        counts: for each entity type, in how many training products each name occurs.
        source: free text that says which data the vocabulary was built on.

    >>> products = [{'brand': ["Levi's"]}, {'brand': ['LEVI&#039;S', 'Puma']}]
    >>> vocab = EntityVocab.build(products, types=['brand'])
    >>> vocab.names, vocab.counts
    ({'brand': ("Levi's", 'Puma')}, {'brand': (2, 1)})
    >>> vocab.id('brand', 'PUMA'), vocab.id('brand', 'Nike')
    (2, 0)
    """

    names: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, tuple[int, ...]]
    source: str = field(default='', compare=False)

    def __post_init__(self) -> None:
        for type_, names in self.names.items():
            if not names:
                raise ValueError(f'entity type {type_!r} has no names; leave the type out.')
            keys = Counter(entity_key(name) for name in names)
            twice = [key for key, n in keys.items() if n > 1 or not key]
            if twice:
                raise ValueError(
                    f'entity type {type_!r} has names that are empty or occur twice after '
                    f'case-folding: {twice[:5]}. Keep one spelling of each.'
                )
            if len(self.counts.get(type_, ())) != len(names):
                raise ValueError(
                    f'entity type {type_!r} has {len(names)} names but '
                    f'{len(self.counts.get(type_, ()))} counts; there must be one for each.'
                )

    @property
    def types(self) -> tuple[str, ...]:
        """The K entity types, in the order of the columns of ``entity_ids``."""
        return tuple(self.names)

    def size(self, type_: str) -> int:
        """Rows of the type's table: its names and the unknown row."""
        return len(self.names[type_]) + 1

    def rows(self, type_: str) -> range:
        """The type's rows in a table of all entities: type by type, behind row 0, "unknown".

        >>> EntityVocab(dict(a=('x', 'y'), b=('z',)), dict(a=(1, 1), b=(1,))).rows('b')
        range(3, 4)
        """
        count = len(self.names[type_])
        before = self.types[: self.types.index(type_)]
        first = 1 + sum(len(self.names[t]) for t in before)
        return range(first, first + count)

    @cached_property
    def _ids(self) -> dict[str, dict[str, int]]:
        return {
            type_: {entity_key(name): i for i, name in enumerate(names, 1)}
            for type_, names in self.names.items()
        }

    def id(self, type_: str, name: str) -> int:
        """Entity id of a name in any spelling, :data:`UNKNOWN` if the vocabulary lacks it."""
        if type_ not in self._ids:
            raise KeyError(
                f'entity type {type_!r} is not in the vocabulary; it has {list(self.types)}. '
                'Rebuild it with tools/dataset_converters/build_entities.py.'
            )
        return self._ids[type_].get(entity_key(name), UNKNOWN)

    @classmethod
    def build(
        cls,
        products: Iterable[Mapping[str, Sequence[str]]],
        types: Sequence[str],
        min_count: int = 1,
        source: str = '',
    ) -> 'EntityVocab':
        """Count the entities of training products; most frequent first, then by name.

        Args:
            products: for each product, the values of each entity type, e.g.
                ``{'brand': ['Diesel'], 'composition': ['cotton', 'silk']}``.
            types: the entity types to keep, in this order.
            min_count: names seen in fewer products become unknown.
            source: see the class.
        """
        products_of: dict[str, Counter[str]] = {type_: Counter() for type_ in types}
        spellings: dict[str, dict[str, Counter[str]]] = {type_: {} for type_ in types}
        for product in products:
            for type_ in types:
                values = product.get(type_, ())
                if isinstance(values, str):
                    raise TypeError(
                        f'entity type {type_!r} of a product must be a list, got {values!r}.'
                    )
                # The key of the printed name, so that names of the vocabulary differ in key.
                by_key = {entity_key(name): name for name in map(clean_text, values)}
                by_key.pop('', None)
                products_of[type_].update(by_key.keys())
                for key, name in by_key.items():
                    spellings[type_].setdefault(key, Counter())[name] += 1
        kept = {
            type_: sorted((-n, key) for key, n in counter.items() if n >= min_count)
            for type_, counter in products_of.items()
        }
        empty = [type_ for type_, names in kept.items() if not names]
        if empty:
            raise ValueError(
                f'no product has a value of entity type {empty} at least {min_count} time(s); '
                'leave the type out or lower min_count.'
            )
        return cls(
            names={
                t: tuple(spellings[t][key].most_common(1)[0][0] for _, key in kept[t])
                for t in types
            },
            counts={t: tuple(-n for n, _ in kept[t]) for t in types},
            source=source,
        )

    def to_dict(self) -> dict:
        """JSON form; :meth:`from_dict` is its inverse."""
        return dict(
            format='eiclip_mm.entity_vocab/1',
            source=self.source,
            names={t: list(v) for t, v in self.names.items()},
            counts={t: list(v) for t, v in self.counts.items()},
        )

    @classmethod
    def from_dict(cls, data: dict, where: str = 'the vocabulary') -> 'EntityVocab':
        """Inverse of :meth:`to_dict`; ``where`` is named in errors."""
        if not isinstance(data, dict) or data.get('format') != 'eiclip_mm.entity_vocab/1':
            got = data.get('format') if isinstance(data, dict) else type(data).__name__
            raise ValueError(
                f'{where} is not an entity vocabulary: its "format" is {_brief(got)}, expected'
                " 'eiclip_mm.entity_vocab/1'. Write one with "
                'tools/dataset_converters/build_entities.py.'
            )
        try:
            return cls(
                names={_type(t): tuple(map(_name, _list(v))) for t, v in data['names'].items()},
                counts={_type(t): tuple(map(_count, _list(v))) for t, v in data['counts'].items()},
                source=str(data.get('source', '')),
            )
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f'{where} is damaged ({type(error).__name__}: {shown(error, 500)}); rebuild it '
                'with tools/dataset_converters/build_entities.py.'
            ) from error

    def save(self, path: str | Path) -> None:
        """Write the vocabulary as JSON; a file that was there stays until all is written."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole_text(path, json.dumps(self.to_dict(), ensure_ascii=False, indent=1))

    @classmethod
    def load(cls, path: str | Path) -> 'EntityVocab':
        """Read a vocabulary written by :meth:`save`."""
        if not os.path.isfile(path):  # a Path's own raises where the name is too long
            problem = 'is no file' if os.path.exists(path) else 'does not exist'
            raise FileNotFoundError(
                f'entity vocabulary {shown(path)} {problem}. Write the data first (README.md), '
                'then python tools/dataset_converters/build_entities.py CONFIG; the converter of '
                'fashion products writes both.'
            )
        return cls.from_dict(read_json(path), where=shown(path))


def _brief(value: Any) -> str:
    return shown(repr(value), 80)


def _type(name: Any) -> str:
    if not is_type_name(name):
        raise ValueError(f'an entity type must be a short printable text, got {shown(name)!r}')
    return name


def _list(values: Any) -> Sequence:
    if not isinstance(values, (list, tuple)):
        raise TypeError(f'names and counts must be lists, got {shown(values, 80)!r}')
    return values


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f'a name must be a text, got {shown(name, 80)!r}')
    name.encode()  # half a surrogate pair, which no file could hold, is a ValueError
    return name


def _count(count: Any) -> int:
    if type(count) is not int or not 0 <= count < 2**40:
        raise ValueError(f'a count must be an integer of 0 or more, got {shown(count, 80)!r}')
    return count


_WORD = re.compile(r'\w+|[^\w\s]')


def words(text: str) -> list[tuple[str, int, int]]:
    """Case-folded words of a clean text with their character spans.

    A word is a run of letters and digits or one sign, so names match on word boundaries.

    >>> words("Off-White tee")
    [('off', 0, 3), ('-', 3, 4), ('white', 4, 9), ('tee', 10, 13)]
    """
    return [(_folded(m.group()), *m.span()) for m in _WORD.finditer(text)]


def resolve_path(path: str | Path) -> str:
    """A local path; ``package:name/inner/path`` is a file that an installed package ships."""
    path = str(path)
    if not path.startswith('package:'):
        return path
    name, _, inner = path.removeprefix('package:').partition('/')
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            f'{path}: package {name} is not installed. Install the pretrained parts with '
            "pip install 'eiclip_mm[hf]'."
        )
    return str(Path(spec.origin).parent / inner)
