"""Embeddings under a protocol, down to each query."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from .as_published import add_masked, split_keys
from .candidates import draw
from .embeddings import Embeddings
from .functional import both_ahead, candidate_ahead
from .manifest import DIRECTIONS, Lists, Manifest
from .measures import (
    SUM_KS,
    average_precisions,
    check_ks,
    discounted_gains,
    first_ranks,
    median_rank,
    reciprocal_ranks,
    sum_recall,
)
from .protocols import Protocol, get_protocol


@dataclass(frozen=True, eq=False)
class Ranking:
    """One direction of a result, query by query.

    Attributes:
        product_id: (Q,) the product each query belongs to.
        ahead: (Q, M) wrong items ahead of its right ones; see :mod:`.measures`.
        gallery: how many items the longest ranking has.
        wrong: (Q,) how many wrong candidates each query has; ``None``: the gallery is everybody's.
    """

    product_id: Tensor
    ahead: Tensor
    gallery: int
    wrong: Tensor | None = None

    def values(self, ks: Sequence[int] = SUM_KS) -> dict[str, Tensor]:
        """(Q,) value of every measure for each query; the measure is the mean over the queries."""
        rank = first_ranks(self.ahead)
        return (
            {f'R@{k}': 100.0 * (rank <= k).double() for k in ks}
            | {'MRR': reciprocal_ranks(self.ahead), 'mAP': average_precisions(self.ahead)}
            | {f'nDCG@{max(ks)}': discounted_gains(self.ahead, max(ks))}
            | {'mean_rank': rank.double()}
        )

    def of(self, product_ids: Tensor) -> 'Ranking':
        """The queries of these products alone."""
        rows = torch.isin(self.product_id, product_ids.to(self.product_id.device))
        wrong = None if self.wrong is None else self.wrong[rows]
        return replace(self, product_id=self.product_id[rows], ahead=self.ahead[rows], wrong=wrong)


@dataclass(frozen=True, eq=False)
class Retrieval:
    """What a model scores under one protocol, down to each query.

    Attributes:
        protocol: what was asked.
        i2t: images asking for texts.
        t2i: texts asking for images.
        num_images, num_products: images and different products that took part; with lists of
            candidates, those that asked.
        manifest: hash of the candidates' manifest, if there are any.
        card: of the embeddings.
    """

    protocol: Protocol
    i2t: Ranking
    t2i: Ranking
    num_images: int
    num_products: int
    manifest: str | None = None
    card: Mapping = field(default_factory=dict)

    def metrics(self, ks: Sequence[int] = SUM_KS) -> dict[str, float]:
        """All measures of both directions.

        Returns:
            ``i2t/R@k`` in per cent for each k, ``i2t/median_rank``, ``i2t/mean_rank``,
            ``i2t/MRR``, ``i2t/mAP``, ``i2t/nDCG@k`` for the largest k, the same for t2i;
            ``SumR`` and its mean ``meanR`` if 1, 5 and 10 are among ``ks``; ``num_images``
            and ``num_products``.
        """
        check_ks(ks)
        results: dict[str, float] = {}
        for direction in DIRECTIONS:
            ranking = getattr(self, direction)
            too_large = [k for k in ks if k > ranking.gallery]
            if too_large:
                side = 'texts' if direction == 'i2t' else 'images'
                raise ValueError(
                    f'protocol {self.protocol.name}: R@{too_large[0]} means nothing in a gallery '
                    f'of {ranking.gallery} {side}; choose ks no larger than the gallery'
                )
            values = ranking.values(ks)
            results |= {f'{direction}/{n}': float(v.mean()) for n, v in values.items()}
            results[f'{direction}/median_rank'] = median_rank(first_ranks(ranking.ahead))
        if set(SUM_KS) <= set(ks):
            results['SumR'] = sum_recall(
                *({k: results[f'{d}/R@{k}'] for k in SUM_KS} for d in DIRECTIONS)
            )
            results['meanR'] = results['SumR'] / 6
        return results | dict(num_images=self.num_images, num_products=self.num_products)

    def of(self, product_ids: Tensor) -> 'Retrieval':
        """The queries of these products, among the same galleries and candidates."""
        return replace(self, i2t=self.i2t.of(product_ids), t2i=self.t2i.of(product_ids))


def evaluate(
    embeddings: Embeddings,
    protocol: Protocol | str,
    ks: Sequence[int] = SUM_KS,
    manifest: Manifest | None = None,
) -> dict[str, float]:
    """The measures of embeddings under one protocol; see :meth:`Retrieval.metrics`."""
    return retrieve(embeddings, protocol, manifest).metrics(ks)


def retrieve(
    embeddings: Embeddings,
    protocol: Protocol | str,
    manifest: Manifest | None = None,
    shared: bool = False,
) -> Retrieval:
    """Rank embeddings under one protocol.

    Args:
        embeddings: one split; they stay on their device.
        protocol: or its name.
        manifest: candidates to take instead of drawing them; only for protocols with candidates.
        shared: share the work among all processes, all of which must call.
    """
    protocol = get_protocol(protocol)
    try:
        if protocol.candidates is None:
            if manifest is not None:
                raise ValueError('a manifest lists candidates, but here all are candidates')
            return _among_all(embeddings, protocol, shared)
        return _among_candidates(embeddings, protocol, manifest)
    except ValueError as error:
        raise ValueError(f'protocol {protocol.name}: {error}') from error


def draw_candidates(embeddings: Embeddings, protocol: Protocol | str) -> Lists:
    """The queries and candidates that :func:`retrieve` draws for a protocol."""
    protocol = get_protocol(protocol)
    if protocol.candidates is None:
        raise ValueError(f'protocol {protocol.name} ranks all; there are no candidates to draw')
    return draw(
        embeddings,
        protocol.candidates,
        protocol.queries,
        protocol.unit,
        protocol.repeats,
        protocol.seed,
    )


def _among_all(embeddings: Embeddings, protocol: Protocol, shared: bool) -> Retrieval:
    image = _selected(protocol.views, embeddings.image_product_id, embeddings.image_view, 'view')
    text = _selected(
        protocol.captions, embeddings.product_id, embeddings.product_caption, 'caption'
    )
    if protocol.right == 'pair':
        text = _texts_of(embeddings, embeddings.image_product_id[image])
        image_ids = text_ids = torch.arange(len(image), device=image.device)
    elif protocol.same_text:
        image_ids = _text_keys(embeddings, embeddings.image_product_id[image])
        text_ids = _text_keys(embeddings, embeddings.product_id[text])
    else:
        image_ids, text_ids = embeddings.image_product_id[image], embeddings.product_id[text]
    i2t, t2i = both_ahead(
        embeddings.image[image],
        embeddings.product[text],
        image_ids,
        text_ids,
        ties=protocol.ties,
        shared=shared,
    )
    product_ids = embeddings.product_id[text]
    return Retrieval(
        protocol=protocol,
        i2t=Ranking(embeddings.image_product_id[image], i2t, gallery=len(text)),
        t2i=Ranking(product_ids, t2i, gallery=len(image)),
        num_images=len(image),
        num_products=len(product_ids.unique()),
        card=embeddings.card,
    )


def _among_candidates(
    embeddings: Embeddings, protocol: Protocol, manifest: Manifest | None
) -> Retrieval:
    if manifest is None:
        lists = draw_candidates(embeddings, protocol)
        manifest = lists.manifest(embeddings, origin=asdict(protocol))
    else:
        lists = manifest.lists(embeddings)
    images = embeddings.image, embeddings.image_product_id
    texts = embeddings.product, embeddings.product_id
    rankings = dict(
        i2t=_rank_lists(embeddings, protocol, *images, *texts, lists.i2t_query, lists.i2t),
        t2i=_rank_lists(embeddings, protocol, *texts, *images, lists.t2i_query, lists.t2i),
    )
    used = [embeddings.image_product_id[torch.as_tensor(lists.i2t_query)]]
    used.append(embeddings.product_id[torch.as_tensor(lists.t2i_query)])
    return Retrieval(
        protocol=protocol,
        **rankings,
        num_images=len(np.unique(lists.i2t_query)),
        num_products=len(torch.cat(used).unique()),
        manifest=manifest.hash,
        card=embeddings.card,
    )


def _rank_lists(
    embeddings: Embeddings,
    protocol: Protocol,
    queries: Tensor,
    query_ids: Tensor,
    gallery: Tensor,
    gallery_ids: Tensor,
    query_rows: np.ndarray,
    candidates: np.ndarray,
) -> Ranking:
    rows, listed = (torch.from_numpy(x).to(queries.device) for x in (query_rows, candidates))
    asked, ids = queries[rows], query_ids[rows]
    if protocol.right == 'pair':
        right = torch.zeros_like(listed, dtype=torch.bool)
        right[:, 0] = True
    elif protocol.same_text:
        query_key, gallery_key = (_text_keys(embeddings, x) for x in (ids, gallery_ids))
        right = gallery_key[listed] == query_key[:, None]
    else:
        right = gallery_ids[listed] == ids[:, None]
    missed, wrong = None, ((listed >= 0) & ~right).sum(1)
    if protocol.split_keys:
        listed, missed = split_keys(listed, protocol.seed)
    ahead = candidate_ahead(asked, gallery, listed, right, protocol.ties)
    if protocol.masked is not None:
        add_masked(ahead, asked, ids, gallery, gallery_ids, listed, protocol.masked)
    if missed is not None:  # worse than last
        ahead = torch.cat([ahead, torch.full_like(ahead[missed], listed.shape[1])])
        ids, wrong = torch.cat([ids, ids[missed]]), torch.cat([wrong, wrong[missed]])
    return Ranking(ids, ahead, gallery=int((listed >= 0).sum(1).max()), wrong=wrong)


def _selected(which: str, ids: Tensor, numbers: Tensor, what: str) -> Tensor:
    """The rows a protocol uses: all, or number 0 of every product."""
    if which == 'all':
        return torch.arange(len(ids), device=ids.device)
    first = numbers == 0
    lost = ids[~torch.isin(ids, ids[first])].unique()
    if len(lost):
        raise ValueError(
            f'{len(lost)} products have no {what} 0, e.g. {lost[:5].tolist()}; number the '
            f'{what}s of each product from 0'
        )
    return first.nonzero().flatten()


def _texts_of(embeddings: Embeddings, ids: Tensor) -> Tensor:
    """Row of the first caption of each of these products."""
    first = (embeddings.product_caption == 0).nonzero().flatten()
    first = first[embeddings.product_id[first].argsort()]
    place = torch.searchsorted(embeddings.product_id[first], ids).clamp(max=len(first) - 1)
    lost = ids[embeddings.product_id[first[place]] != ids]
    if len(lost):
        raise ValueError(
            f'{len(lost)} of {len(ids)} images have no relevant item among the products, e.g. '
            f'those of id {lost.unique()[:5].tolist()}'
        )
    return first[place]


def _text_keys(embeddings: Embeddings, ids: Tensor) -> Tensor:
    """A number for each of these products, equal where their texts are.

    Raises:
        ValueError: the embeddings do not say which texts are equal, or a product has several.
    """
    if embeddings.product_text is None:
        raise ValueError(
            'same_text needs to know which texts are equal: add the array product_text, one '
            'integer for each text, equal where the texts are'
        )
    key = embeddings.product_text[_texts_of(embeddings, ids)]
    differ = (
        embeddings.product_text
        != embeddings.product_text[_texts_of(embeddings, embeddings.product_id)]
    )
    if differ.any():
        raise ValueError(
            f'same_text is defined for one text a product; {int(differ.sum())} further captions '
            f'differ from the first, e.g. of product {int(embeddings.product_id[differ][0])}'
        )
    return key
