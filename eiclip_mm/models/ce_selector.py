"""CE-Selector: which entities are intervened on.

Every selector takes the text features t (B, D) and the entity ids (B, K, M) and gives weights
w (B, K, M) in [0, 1]: 1, the entity enters EA-Learner; 0, it is treated as unknown.

Source: that a selector picks the entities that matter is the poster's ("meta data contributes
unevenly"); each way to pick them below is ours.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eiclip_mm.registry import MODELS
from eiclip_mm.structures import EntityVocab

from .causal_effects import (
    bootstrap_interval,
    causal_effects,
    entity_effects,
    product_features,
)
from .ei_clip import EICLIP
from .entity_table import EntityTable


class CESelector(nn.Module):
    """What selectors share; a subclass says how much each entity counts.

    Args:
        vocab: the entities.
    """

    def __init__(self, vocab: EntityVocab):
        super().__init__()
        self.vocab = vocab
        self.table = EntityTable(vocab)

    def forward(self, text: Tensor, entity_ids: Tensor) -> Tensor:
        """(B, D) text features and (B, K, M) entity ids -> (B, K, M) weights in [0, 1]."""
        raise NotImplementedError

    def penalty(self) -> Tensor | None:
        """() expected share of entities kept (L_0), where a selector learns by a price."""
        return None


@MODELS.register_module()
class KeepAll(CESelector):
    """Every entity is intervened on: row 4 of the poster's table."""

    def forward(self, text: Tensor, entity_ids: Tensor) -> Tensor:
        """See :class:`CESelector`."""
        return text.new_ones(entity_ids.shape)


@MODELS.register_module()
class KeepNone(CESelector):
    """No entity is intervened on: EA-Learner sees every entity as unknown."""

    def forward(self, text: Tensor, entity_ids: Tensor) -> Tensor:
        """See :class:`CESelector`."""
        return text.new_zeros(entity_ids.shape)


@MODELS.register_module()
class KeepTypes(CESelector):
    """The entities of some types are intervened on, all others are unknown.

    Args:
        vocab: the entities.
        types: the types to keep.
    """

    keep: Tensor

    def __init__(self, vocab: EntityVocab, types: Sequence[str]):
        super().__init__(vocab)
        unknown = set(types) - set(vocab.types)
        if unknown or not types:
            raise ValueError(f'types must name some of {vocab.types}, got {tuple(types)}.')
        keep = torch.tensor([[float(type_ in types)] for type_ in vocab.types])  # (K, 1)
        self.register_buffer('keep', keep, persistent=False)

    def forward(self, text: Tensor, entity_ids: Tensor) -> Tensor:
        """See :class:`CESelector`."""
        return self.keep.to(text.dtype).expand(entity_ids.shape)


@MODELS.register_module()
class GatedCESelector(CESelector):
    """A hard-concrete gate for each type and each entity, trained with the loss under an L0 price.

    A gate is clamp(s (ζ - γ) + γ, 0, 1) with s a relaxed Bernoulli variable of logit
    log α_type + log α_entity (Louizos et al., ICLR 2018). Source of its use here: ours.

    Args:
        vocab: the entities.
        init_logit: first value of log α of a type; above 0, gates start open.
    """

    BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1

    def __init__(self, vocab: EntityVocab, init_logit: float = 2.0):
        super().__init__(vocab)
        self.type_logit = nn.Parameter(torch.full((len(vocab.types),), float(init_logit)))
        self.entity_logit = nn.Parameter(torch.zeros(self.table.num_rows))

    def logits(self) -> Tensor:
        """(N + 1,) log α of every entity."""
        return self.type_logit[self.table.type_of_row] + self.entity_logit

    def gates(self) -> Tensor:
        """(N + 1,) gates in [0, 1]: drawn while training, the mean's clamp in evaluation."""
        logits = self.logits()
        if self.training:
            noise = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = (logits + noise.logit()) / self.BETA
        return (logits.sigmoid() * (self.ZETA - self.GAMMA) + self.GAMMA).clamp(0, 1)

    def forward(self, text: Tensor, entity_ids: Tensor) -> Tensor:
        """See :class:`CESelector`."""
        return self.gates()[self.table.rows(entity_ids)]

    def penalty(self) -> Tensor:
        """See :class:`CESelector`."""
        shift = self.BETA * math.log(-self.GAMMA / self.ZETA)
        return (self.logits()[1:] - shift).sigmoid().mean()


@MODELS.register_module()
class AttentionCESelector(CESelector):
    """A weight for each entity of each product, by how it goes with the product's text.

    w = σ(α_k + ⟨t / |t|, e_a⟩), with α_k of the type and e_a of the entity, trained with the loss.
    Entities do not compete, so this is attention without a softmax. Source: ours.

    Args:
        vocab: the entities.
        dim: D of the text features.
        init_logit: first value of α; all e_a begin at 0, so that the text has no say at first.
    """

    def __init__(self, vocab: EntityVocab, dim: int, init_logit: float = 2.0):
        super().__init__(vocab)
        self.type_logit = nn.Parameter(torch.full((len(vocab.types),), float(init_logit)))
        self.entity_embedding = nn.Parameter(torch.zeros(self.table.num_rows, dim))

    def forward(self, text: Tensor, entity_ids: Tensor) -> Tensor:
        """See :class:`CESelector`."""
        dim = self.entity_embedding.shape[1]
        if text.shape[-1] != dim:
            raise ValueError(f'text features have {text.shape[-1]} numbers, not dim={dim}.')
        keys = self.entity_embedding[self.table.rows(entity_ids)]  # (B, K, M, D)
        fit = torch.einsum('bd,bkmd->bkm', F.normalize(text, dim=-1).to(keys.dtype), keys)
        return (self.type_logit[:, None] + fit).sigmoid()


@MODELS.register_module()
class EffectCESelector(CESelector):
    """Keeps the entities whose measured causal effect on retrieval is positive.

    Until :meth:`select` is called every entity is kept, so the model trains as row 4. The hook
    ``CausalEffectHook`` then measures, on a slice held out of train, the average causal effect
    of each type k (:func:`causal_effects`)::

        Δ_k = mean_i [ log P(y_i | do(x_i), all entities) - log P(y_i | do(x_i), all but k) ]

    A type is kept when the bootstrap interval of Δ_k over products lies above 0; within it, an
    entity a when Δ_ka' = (n_a Δ_ka + m Δ_k) / (n_a + m) is above 0. Source: ours.

    Args:
        vocab: the entities.
        shrinkage: m, the number of products a type's mean counts as.
        confidence: of the interval, in (0, 1).
    """

    weight: Tensor

    def __init__(self, vocab: EntityVocab, shrinkage: float = 10.0, confidence: float = 0.95):
        super().__init__(vocab)
        if not 0 < confidence < 1 or shrinkage <= 0:
            raise ValueError(
                'confidence must lie in (0, 1) and shrinkage above 0, got '
                f'{confidence} and {shrinkage}.'
            )
        self.shrinkage, self.confidence = shrinkage, confidence
        self.register_buffer('weight', torch.ones(self.table.num_rows))

    def forward(self, text: Tensor, entity_ids: Tensor) -> Tensor:
        """See :class:`CESelector`."""
        return self.weight[self.table.rows(entity_ids)]

    @torch.no_grad()
    def choose(self, model: EICLIP, batches: Iterable[dict]) -> list[dict]:
        """Measure the effects on held-out products and choose; see :meth:`select`.

        Args:
            model: the ``EICLIP`` this selector belongs to.
            batches: held-out products, as the model's ``forward`` takes them.
        """
        training = model.training
        model.eval()
        self.weight.fill_(1)  # measured with all entities kept, also by a model that chose before
        data = product_features(model, batches)

        def encode(entity_ids: Tensor) -> Tensor:
            weights = self(data['text'], entity_ids)
            return F.normalize(model.learner(data['text'], entity_ids, weights), dim=-1)

        scale = model.towers.log_scale.exp().item()
        effects = causal_effects(
            encode, data['image'], data['entity_ids'], data['product_id'], scale
        )
        model.train(training)
        return self.select(effects, data['entity_ids'])

    @torch.no_grad()
    def select(self, effects: Tensor, entity_ids: Tensor, seed: int = 0) -> list[dict]:
        """Choose entities by their effects, and return the table of effects.

        Args:
            effects: (P, K) of held-out products.
            entity_ids: (P, K, M) their entities.
            seed: of the bootstrap.

        Returns:
            one dict a type: ``type, effect, low, high, kept, entities`` (kept of all), ``names``
            (the effect Δ_ka' of each entity seen), ``intervals`` (of each of these).
        """
        lows, highs = bootstrap_interval(effects, self.confidence, seed)
        rows = self.table.rows(entity_ids)  # (P, K, M)
        table = []
        for k, type_ in enumerate(self.vocab.types):
            effect, low, high = (x[k].item() for x in (effects.mean(0), lows, highs))
            own = self.table.of_type[k]
            in_type = torch.arange(own.start, own.stop, device=rows.device)
            held = (rows[:, k, :, None] == in_type).any(1).to(effects.dtype)  # (P, N_k)
            shrunk, *ends = entity_effects(
                effects[:, k], held, self.shrinkage, self.confidence, seed
            )  # (N_k,) each
            keep = (shrunk > 0) & (low > 0)
            self.weight[in_type] = keep.to(self.weight.dtype)
            seen = held.any(0).nonzero()[:, 0].tolist()
            names = self.vocab.names[type_]
            table.append(
                dict(
                    type=type_, effect=effect, low=low, high=high, kept=low > 0,
                    entities=[int(keep.sum()), len(keep)],
                    names={names[a]: shrunk[a].item() for a in seen},
                    intervals={names[a]: [end[a].item() for end in ends] for a in seen},
                )
            )  # fmt: skip
        return table
