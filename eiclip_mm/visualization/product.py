"""A product as a reader sees it, and the HTML pages it stands in.

Pages take plain data, so they know neither data sets nor evaluation. Source: ours.
"""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

SIDE = 96  # pixels of the longer side of a photo
HUE = 137.5  # degrees between the colours of two types, so that no two of a few come close


@dataclass(frozen=True, eq=False)
class Product:
    """A product as a reader sees it.

    Attributes:
        product_id: its number.
        text: the description.
        entities: its metadata, for each type the names.
        photo: JPEG, as :func:`thumbnail` makes it.
        mentions: names in the text, in order and without overlap: first character, the character
            after the last, and the entity types that the name belongs to.
    """

    product_id: int
    text: str
    entities: Mapping[str, Sequence[str]]
    photo: bytes
    mentions: Sequence[tuple[int, int, Sequence[str]]] = ()

    @cached_property
    def uri(self) -> str:
        """The photo, to stand in a page."""
        return photo_uri(self.photo)

    @property
    def types(self) -> set[str]:
        """The entity types it shows."""
        mentioned = {type_ for *_, types in self.mentions for type_ in types}
        return mentioned | {type_ for type_, names in self.entities.items() if names}

    @property
    def pieces(self) -> Iterator[tuple[str, Sequence[str]]]:
        """The text, cut at its mentions; types are empty for what is none."""
        return marked(self.text, self.mentions)


def marked(
    text: str, mentions: Iterable[tuple[int, int, Sequence[str]]]
) -> Iterator[tuple[str, Sequence[str]]]:
    """A text, cut at its mentions; types are empty for what is none.

    >>> list(marked('a silk scarf', [(2, 6, ['composition'])]))
    [('a ', ()), ('silk', ['composition']), (' scarf', ())]
    """
    done = 0
    for start, end, types in mentions:
        yield text[done:start], ()
        yield text[start:end], types
        done = end
    yield text[done:], ()


def thumbnail(pixels: np.ndarray) -> bytes:
    """A photo (height, width, 3) uint8 RGB as a small JPEG, its longer side at most ``SIDE``."""
    image, file = Image.fromarray(pixels), io.BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(file, 'JPEG', quality=80, optimize=True)
    return file.getvalue()


def photo_uri(photo: bytes) -> str:
    """A JPEG, to stand in a page."""
    return 'data:image/jpeg;base64,' + base64.b64encode(photo).decode()


def hues(types: Iterable[str]) -> dict[str, int]:
    """A colour for each entity type, in degrees."""
    return {type_: round(number * HUE % 360) for number, type_ in enumerate(sorted(types))}


def render(template: str, **values: Any) -> str:
    """A page of this folder's templates: no script, nothing from outside, all text escaped."""
    # Texts come from shops: whatever is put into a template is escaped.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
