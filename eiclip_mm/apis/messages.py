"""What the service is asked and answers: its JSON, and its limits."""

from dataclasses import dataclass
from math import inf
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

MAX_CHARS = 10_000  # of a text; models read some tens of words of it
Text = Annotated[str, Field(max_length=MAX_CHARS)]
Filter = Annotated[str, Field(max_length=1000)]
Names = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=64)]
Base64 = Annotated[str, Field(description='bytes of a JPEG, PNG, WebP, GIF, BMP or AVIF file')]
BRAND: JsonDict = dict(brand=['Golden Goose'])


@dataclass(frozen=True)
class Limits:
    """What one process takes on.

    Attributes:
        max_batch: photos, or texts, that are encoded at a time; 64 or more suit a GPU, more than 16
            slow a CPU down with photos (docs/serving.md).
        max_wait_ms: how long a batch that is not full waits for more, in milliseconds.
        max_queue: requests at a time, photos at a time, and texts at a time; beyond it, 503.
        max_body_mb: MiB of a body; beyond it, 413.
        timeout_s: seconds to an answer; beyond it, 504. Also to the end of the headers, and for a
            client to go on reading; beyond it, the connection is cut.
        max_items: photos or texts of one request; beyond it, 422.
        max_pixels: of a photo as it is sent; beyond it, 422, and it is not decoded.
        max_connections: at a time; beyond it, they are cut.
        max_rate: requests a second from one address, on the mean; beyond it, 429. 0: any.
    """

    max_batch: int = 16
    max_wait_ms: float = 5
    max_queue: int = 512
    max_body_mb: float = 8
    timeout_s: float = 10
    max_items: int = 256
    max_pixels: int = 25_000_000
    max_connections: int = 1000
    max_rate: float = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < inf or (value == 0 and name not in ('max_wait_ms', 'max_rate')):
                raise ValueError(f'{name} must be positive, got {value}.')
        if self.max_queue < self.max_items:
            raise ValueError(
                f'max_queue={self.max_queue} has no room for one request of '
                f'max_items={self.max_items}; raise the one or lower the other.'
            )


class Strict(BaseModel):
    """Refuses what it does not know: a key that is mistyped."""

    model_config = ConfigDict(extra='forbid')


class Product(BaseModel):
    """A product as the model reads it: its text fields, and entities by type."""

    model_config = ConfigDict(
        extra='allow',
        json_schema_extra=dict(examples=[dict(description='low sneakers', entities=BRAND)]),
    )
    __pydantic_extra__: dict[str, Text] = Field(init=False)
    entities: dict[str, Names] = Field({}, description='names for each entity type')


class SearchRequest(Strict):
    """A query or a photo."""

    model_config = ConfigDict(
        json_schema_extra=dict(
            examples=[dict(query='brown golden goose sneakers', k=3, filters=['price<=400'])]
        )
    )
    query: Text | None = None
    photo: Base64 | None = None
    k: int = Field(10, ge=1, le=1000, description='hits')
    filters: list[Filter] = Field(
        [], max_length=32, description="all must hold: 'brand=Puma,Nike', 'price<=100'"
    )
    entities: bool = Field(True, description='false: the query without the intervention')
    side: Literal['image', 'product'] = Field('image', description='search photos, or texts')

    @model_validator(mode='after')
    def _one(self) -> Self:
        return _one_of(self, 'query', 'photo')


class EmbedRequest(Strict):
    """Photos, products or queries."""

    model_config = ConfigDict(
        json_schema_extra=dict(
            examples=[
                dict(queries=['brown golden goose sneakers']),
                dict(products=[dict(description='low sneakers', entities=BRAND)]),
            ]
        )
    )
    photos: list[Base64] | None = None
    products: list[Text | Product] | None = None
    queries: list[Text] | None = None

    @model_validator(mode='after')
    def _one(self) -> Self:
        return _one_of(self, 'photos', 'products', 'queries')


def _one_of(asked: BaseModel, *names: str) -> Any:
    given = [name for name in names if getattr(asked, name) is not None]
    if len(given) != 1:
        raise ValueError(f'give one of {", ".join(names)}; got {", ".join(given) or "none"}.')
    return asked


class EntityFound(BaseModel):
    """An entity of a query; ``start`` and ``end`` are its characters in the text."""

    type: str
    name: str
    weight: float = Field(description="CE-Selector's, 0 to 1; 0: left out of the intervention")
    count: int = Field(description='products of train that have it')
    start: int | None
    end: int | None


class ReadingFound(BaseModel):
    """How a query was read."""

    text: str
    entities: list[EntityFound]


class HitFound(BaseModel):
    """A product that was found; ``score`` is the cosine, ``payload.photo`` whether it has one."""

    id: str
    score: float
    payload: dict[str, Any]


class SearchResponse(BaseModel):
    """Best first."""

    reading: ReadingFound | None = Field(description='null of a photo')
    hits: list[HitFound]
    took_ms: float


class EmbedResponse(BaseModel):
    """Unit vectors, in the order of what was sent."""

    embeddings: list[list[float]]
    dim: int
    model: str


class HealthResponse(BaseModel):
    """What runs; ``products`` is null where there is no index."""

    ok: bool
    model: str
    dim: int
    products: int | None
    version: str


class ErrorDetail(BaseModel):
    """What went wrong, for programs and for people."""

    code: str
    message: str


class ErrorResponse(BaseModel):
    """Every answer that is not 200."""

    model_config = ConfigDict(
        json_schema_extra=dict(
            examples=[dict(error=dict(code='invalid', message='k: Input should be at least 1'))]
        )
    )
    error: ErrorDetail
