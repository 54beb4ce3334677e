"""How much each entity type matters: its average causal effect on retrieval. Source: ours."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from .ei_clip import EICLIP
from .losses import log_prob_of_positives


@torch.no_grad()
def product_features(model: EICLIP, batches: Iterable[dict]) -> dict[str, Tensor]:
    """Features of products before entities enter.

    Args:
        model: an ``EICLIP`` in evaluation mode.
        batches: products, as its ``forward`` takes them.

    Returns:
        ``image`` (P, D), unit, ``text`` (P, D), ``entity_ids`` (P, K, M) and ``product_id`` (P,).
    """
    columns: dict[str, list[Tensor]] = {}
    for batch in map(model.data_preprocessor, batches):
        batch['image'] = model.encode_image(batch['image'])
        batch['text'] = model.towers.encode_text(batch['text'])
        for name in ('image', 'text', 'entity_ids', 'product_id'):
            columns.setdefault(name, []).append(batch[name])
    return {name: torch.cat(parts) for name, parts in columns.items()}


def bootstrap_interval(values: Tensor, confidence: float, seed: int) -> tuple[Tensor, Tensor]:
    """Percentile bootstrap of the mean over products: (P, K) -> two of (K,). 2,000 draws."""
    generator = torch.Generator().manual_seed(seed)
    values = values.double().cpu()
    means = torch.stack(
        [
            values[torch.randint(len(values), (len(values),), generator=generator)].mean(0)
            for _ in range(2000)
        ]
    )  # (draws, K)
    tail = (1 - confidence) / 2
    low, high = means.quantile(torch.tensor([tail, 1 - tail], dtype=means.dtype), dim=0)
    return low, high


def entity_effects(
    effects: Tensor, held: Tensor, shrinkage: float, confidence: float, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Effect of each entity of a type, shrunk towards the type's, with its bootstrap interval.

    Δ_a' = (Σ_i held_ia Δ_i + m mean(Δ)) / (Σ_i held_ia + m); the interval is over products, which
    are drawn 500 times: one whose entity is not drawn counts as its type.

    Args:
        effects: Δ (P,) of the type.
        held: (P, N) 1 where the product has the entity.
        shrinkage: m.
        confidence: of the interval.
        seed: of the draws.

    Returns:
        three of (N,): the effect, and the ends of its interval.
    """

    def shrunk(times: Tensor) -> Tensor:
        """(R, P) how often each product counts -> (R, N)."""
        mean = (times @ effects / times.sum(1))[:, None]
        return ((times * effects) @ held + shrinkage * mean) / (times @ held + shrinkage)

    number = len(effects)
    drawn = torch.randint(number, (500, number), generator=torch.Generator().manual_seed(seed))
    times = torch.zeros(500, number).scatter_add_(1, drawn, torch.ones(drawn.shape))
    tail = (1 - confidence) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=effects.dtype, device=effects.device)
    low, high = shrunk(times.to(effects)).quantile(ends, dim=0)
    return shrunk(effects.new_ones(1, number))[0], low, high


@torch.no_grad()
def causal_effects(
    encode: Callable[[Tensor], Tensor],
    image: Tensor,
    entity_ids: Tensor,
    product_id: Tensor,
    scale: float,
    draws: int = 8,
    seed: int = 0,
) -> Tensor:
    """Effect of each entity type on each product's log probability of the right match.

    "All but k" is itself an intervention: type k is drawn from P(a_k), the entities of the other
    products, whatever the text says, and the probability is averaged over the draws::

        P(y | do(x), all but k) = Σ_a P(a) P(y | x, a_k = a)

    Making type k unknown instead would ask the model about products that it hardly ever saw, and
    even a random label would seem to help. A label that carries only noise comes out at or below
    0: the average over draws evens its noise out. Both directions of retrieval are averaged.

    Args:
        encode: (P, K, M) entity ids -> (P, D) unit product embeddings, all else unchanged.
        image: (P, D) unit.
        entity_ids: (P, K, M).
        product_id: (P,).
        scale: inverse temperature exp(s).
        draws: from P(a_k), for each type.
        seed: of the draws.

    Returns:
        (P, K)
    """
    generator = torch.Generator().manual_seed(seed)
    everything = _log_prob(encode(entity_ids), image, product_id, scale)  # (2, P)
    effects = []
    for k in range(entity_ids.shape[1]):
        drawn = []
        for _ in range(draws):
            others = entity_ids.clone()
            others[:, k] = entity_ids[torch.randperm(len(entity_ids), generator=generator), k]
            drawn.append(_log_prob(encode(others), image, product_id, scale))
        without = torch.stack(drawn).logsumexp(0) - math.log(draws)  # (2, P)
        effects.append((everything - without).mean(0))
    return torch.stack(effects, dim=1)


def _log_prob(product: Tensor, image: Tensor, product_id: Tensor, scale: float) -> Tensor:
    """(2, P) log probability of the right match, from text to image and back."""
    both = []
    for query, key in ((product, image), (image, product)):
        rows = [
            log_prob_of_positives(scale * q @ key.T, i[:, None] == product_id)
            for q, i in zip(query.split(1024), product_id.split(1024), strict=True)
        ]
        both.append(torch.cat(rows))
    return torch.stack(both)
