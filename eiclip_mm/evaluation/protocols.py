"""Retrieval protocols as data: who is asked, among what, what counts as right.

Protocols differ by several points of R@1 on one set of embeddings, so a number is nothing without
the name of its protocol. ``docs/protocols.md`` says of each what it may be compared with.
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from .candidates import LEVELS, Candidates
from .checks import TIES


@dataclass(frozen=True)
class Protocol:
    """Who is asked, among what, and what counts as right.

    Attributes:
        name: as in configs and reports.
        source: who reports it.
        views: of the images that take part, ``'first'`` (view 0) or ``'all'``.
        captions: of the texts, ``'first'`` or ``'all'``.
        right: what counts as right: ``'product'``, any image or text of the same product, or
            ``'pair'``, one image for one text alone.
        same_text: also a product with an identical text is right.
        ties: items with the score of the right one count ``'against'`` the model, ``'for'`` it, or
            by ``'order'``, when they stand earlier.
        candidates: how the candidates of a query are drawn; ``None``: all are candidates.
        queries: random queries a direction; ``None``: all.
        unit: random i2t queries are products with a random view (``'product'``) or images.
        repeats: draws over which is averaged.
        seed: of the draws.
        split_keys, masked: defects of released evaluators, see ``as_published`` of
            :func:`get_protocol`: lists fall apart as FashionBERT's do; images and texts off the
            list have this cosine instead of none, as FAME-ViL's.
    """

    name: str
    source: str
    views: str = 'all'
    captions: str = 'first'
    right: str = 'product'
    same_text: bool = False
    ties: str = 'against'
    candidates: Candidates | None = None
    queries: int | None = None
    unit: str = 'product'
    repeats: int = 1
    seed: int = 0
    split_keys: bool = False
    masked: float | None = None

    def __post_init__(self) -> None:
        for name, allowed in (
            ('views', ('first', 'all')),
            ('captions', ('first', 'all')),
            ('right', ('product', 'pair')),
            ('unit', LEVELS),
            ('ties', TIES),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f'{name} of a protocol is one of {allowed}, got {getattr(self, name)!r}'
                )
        if self.repeats < 1 or (self.queries is not None and self.queries < 1):
            raise ValueError(
                f'a protocol needs 1 query and 1 repeat or more, got {self.queries} and '
                f'{self.repeats}'
            )
        plain = {f.name: f.default for f in fields(Protocol)}
        unused: tuple[str, ...] = ('queries', 'unit', 'repeats', 'split_keys', 'masked')
        if self.candidates is not None:
            unused = ('views', 'captions')
        ignored = [name for name in unused if getattr(self, name) != plain[name]]
        if ignored:
            kind = 'with' if self.candidates is not None else 'without'
            raise ValueError(f'{ignored} mean nothing in a protocol {kind} candidates; leave them')
        if self.same_text and self.right == 'pair':
            raise ValueError("same_text means nothing where right is 'pair'; leave one of them")


FAME = 'FashionViL (ECCV 2022), FAME-ViL (CVPR 2023)'
PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name='full/first-image',
            source="EI-CLIP's table (CVPR 2022); inferred from its numbers, not stated there",
            views='first',
        ),
        Protocol(
            name='full/product',
            source=f'{FAME}: their r@k_general; FashionSAP (CVPR 2023)',
            captions='all',
        ),
        Protocol(
            name='full/pair',
            source="one-to-one metrics, as open_clip's: to show their ceiling, not to report",
            right='pair',
            ties='order',
        ),
        Protocol(
            name='101/eiclip',
            source="a loader that looks like EI-CLIP's first author's",
            candidates=Candidates(top_up='none'),
        ),
        Protocol(
            name='101/fashionbert',
            source='FashionBERT (SIGIR 2020), Kaleido-BERT (CVPR 2021)',
            candidates=Candidates(top_up='none'),
            queries=1000,
        ),
        Protocol(
            name='101/kaleido',
            source=f'{FAME}: their r@k_kaleido',
            candidates=Candidates(top_up='others'),
            queries=1000,
            unit='image',
            repeats=5,
        ),
        Protocol(
            name='101/fashionsap',
            source='FashionSAP (CVPR 2023)',
            candidates=Candidates(top_up='mixture'),
            queries=1000,
        ),
    )
}
# What the released evaluators do beside, where it changes numbers.
AS_PUBLISHED: dict[str, dict[str, Any]] = {
    '101/fashionbert': dict(split_keys=True),
    '101/kaleido': dict(candidates=Candidates(top_up='others', level='image'), masked=-1 / 16),
    '101/fashionsap': dict(
        candidates=Candidates(top_up='mixture', own_again=True), right='pair', ties='for'
    ),
}


def get_protocol(
    name: str | Protocol, as_published: bool = False, group: str | None = None, **changes: Any
) -> Protocol:
    """The protocol of that name, changed where asked; a change is added to its name.

    Args:
        name: a name in :data:`PROTOCOLS`, or a protocol, which is changed in the same way.
        as_published: with the defects of the released evaluator, where they change numbers.
        group: the label whose value candidates share, where it is not ``subcategory``.
        **changes: other fields of :class:`Protocol`, e.g. ``queries=None`` to ask all.

    >>> get_protocol('101/kaleido', group='article_type', queries=None).name
    '101/kaleido, group article_type, all queries'
    """
    if isinstance(name, Protocol):
        protocol = name
    elif name in PROTOCOLS:
        protocol = PROTOCOLS[name]
    else:
        raise KeyError(f'unknown retrieval protocol {name!r}; there are {list(PROTOCOLS)}')
    if as_published:
        if protocol.name not in AS_PUBLISHED:
            raise ValueError(
                f'no defect that changes numbers is known of {protocol.name}; as_published is for '
                f'{list(AS_PUBLISHED)}'
            )
        protocol = replace(
            protocol, name=f'{protocol.name} as published', **AS_PUBLISHED[protocol.name]
        )
    words = []
    if group is not None:
        if protocol.candidates is None:
            raise ValueError(f'{protocol.name} has no candidates that could share {group!r}')
        if group != protocol.candidates.group:
            words.append(f'group {group}')
            protocol = replace(protocol, candidates=replace(protocol.candidates, group=group))
    words += [_in_words(k, v) for k, v in changes.items() if getattr(protocol, k, v) != v]
    return replace(protocol, **dict(name=', '.join([protocol.name, *words])) | changes)


def _in_words(field: str, value: Any) -> str:
    """A change as the name of a protocol says it."""
    if field in ('queries', 'same_text'):
        return 'same text' if value is True else f'{"all" if value is None else value} queries'
    return f'{field} {value.number if isinstance(value, Candidates) else value}'
