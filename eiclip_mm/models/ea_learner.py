"""EA-Learner: each entity has an encoder of its own.

An entity a has S senses g(a, b): b = 0 is what its name means in the general domain, the frozen
pretrained text tower's feature of the name; b >= 1 are learned from products. With P(b | a) a prior
that never looks at the text X,

    z̄_k = Σ_b P(b | a_k) g(a_k, b)
    e  = [u_1 + w_1 (z̄_1 - u_1); ...; u_K + w_K (z̄_K - u_K)]
    t' = t + W_s e + W_o GELU(W_1 [t; e])

where w are CE-Selector's weights and u_k stands for an unknown entity of type k; a type with
several values is the mean of u + w (z̄ - u) over them. W_s, W_o and u start at zero: at step 0 the
model is CLIP to the bit. W_s adds entities linearly, whatever t is.

Source: that entities get encoders of their own is the poster's ("entity-aware learning"), that
metadata and text must not share one encoder is the patent abstract's; senses, prior, fusion with
its two paths and the unknown row are ours.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from mmengine.dist import get_world_size
from torch import Tensor, nn

from eiclip_mm.registry import MODELS
from eiclip_mm.structures import UNKNOWN, EntityVocab

from .entity_table import EntityTable
from .losses import mean_over_processes, sum_over_processes

PRIORS = ('uniform', 'frequency', 'learned')
EXPECTATIONS = ('nwgm', 'exact')


@MODELS.register_module()
class EALearner(nn.Module):
    """See the top of this file.

    Args:
        vocab: the entities; N in all.
        dim: embedding width D.
        general: whether the general-domain sense b = 0 is among the senses.
        num_learned: number of learned senses; S = general + num_learned.
        prior: ``'uniform'``; ``'learned'``, one distribution a type; ``'frequency'``, learned
            senses weigh n_a / (n_a + 10) with n_a the entity's training products, so rare
            entities lean on what their name means.
        hidden_dim: width of the fusion layer; 2 D by default.
        expectation: ``'nwgm'`` takes the expectation over senses inside the softmax, which
            leaves one vector a product; ``'exact'`` trains on the mixture of softmaxes itself.
            Retrieval uses the one vector in both.
        max_combinations: with ``'exact'``, the S^K combinations of senses are enumerated up to
            this number; beyond it, so many are drawn from the prior.
        classify: build the heads of :meth:`entity_loss`.
    """

    general: Tensor
    fixed_prior: Tensor

    def __init__(
        self,
        vocab: EntityVocab,
        dim: int,
        general: bool = True,
        num_learned: int = 1,
        prior: str = 'uniform',
        hidden_dim: int | None = None,
        expectation: str = 'nwgm',
        max_combinations: int = 16,
        classify: bool = True,
    ):
        super().__init__()
        for name, value, allowed in (
            ('prior', prior, PRIORS), ('expectation', expectation, EXPECTATIONS)
        ):  # fmt: skip
            if value not in allowed:
                raise ValueError(f'{name}={value!r} is not known; choose one of {allowed}.')
        if num_learned < 0 or general + num_learned < 1:
            raise ValueError(
                f'an entity needs a sense: general={general}, num_learned={num_learned}.'
            )
        if max_combinations < 1:
            raise ValueError(f'max_combinations must be at least 1, got {max_combinations}.')
        self.prior, self.expectation = prior, expectation
        self.max_combinations = max_combinations
        self.table = EntityTable(vocab)
        rows, num_types = self.table.num_rows, len(vocab.types)
        self.num_senses = general + num_learned
        self.register_buffer('general', torch.zeros(int(general), rows, dim))
        # without learned senses it is empty, and DistributedDataParallel must not wait for it
        self.learned = nn.Parameter(torch.zeros(num_learned, rows, dim), num_learned > 0)
        self.unknown = nn.Parameter(torch.zeros(num_types, dim))
        if prior == 'learned':
            self.prior_logit = nn.Parameter(torch.zeros(num_types, self.num_senses))
        else:
            self.register_buffer('fixed_prior', self._fixed_prior(vocab), persistent=False)
        hidden_dim = hidden_dim or 2 * dim
        self.hidden = nn.Linear((num_types + 1) * dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.skip = nn.Linear(num_types * dim, dim, bias=False)
        nn.init.zeros_(self.skip.weight)
        self.heads = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_types * classify))

    def _fixed_prior(self, vocab: EntityVocab) -> Tensor:
        uniform = torch.full((self.table.num_rows, self.num_senses), 1 / self.num_senses)
        num_learned = len(self.learned)
        if self.prior == 'uniform' or not len(self.general) or not num_learned:
            return uniform
        counts = [0] + [n for counts in vocab.counts.values() for n in counts]
        seen = torch.tensor(counts, dtype=torch.float32)
        learned = seen / (seen + 10)  # (N + 1,)
        return torch.stack([1 - learned] + [learned / num_learned] * num_learned, dim=1)

    @torch.no_grad()
    def set_general_sense(self, features: Tensor) -> None:
        """Start every sense from what the names mean in the general domain.

        Args:
            features: (N, D) text features of the entities' names, type by type.
        """
        self.general[:, 1:] = features
        self.learned[:, 1:] = features
        if len(self.learned) > 1:  # equal senses would have equal gradients for ever
            noise = torch.randn(
                self.learned[1:, 1:].shape, generator=torch.Generator().manual_seed(0)
            )
            self.learned[1:, 1:] += 0.1 * features.std() * noise.to(features.device)

    def forward(self, text: Tensor, entity_ids: Tensor, weights: Tensor) -> Tensor:
        """Fuse entities into the text, expectation over senses inside (nwgm).

        Args:
            text: (B, D) t.
            entity_ids: (B, K, M).
            weights: (B, K, M) of CE-Selector.

        Returns:
            (B, D) t', not normalised.
        """
        # (N + 1, D): Σ_b P(b | a) g(a, b) once an entity instead of once a product
        tables = (*self.general, *self.learned)  # S of (N + 1, D)
        expected = sum(p[:, None] * t for p, t in zip(self._priors().T, tables, strict=True))
        mean = self.table.mean(expected, entity_ids, weights)
        return self._fuse(text, mean, entity_ids, weights)

    def expand(self, text: Tensor, entity_ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What the loss averages over: t' for C combinations of senses, and their log prior.

        Returns:
            (C, B, D) t' and (C, B) log P(z); C = 1 with ``expectation='nwgm'``.
        """
        if self.expectation == 'nwgm':
            return self(text, entity_ids, weights)[None], text.new_zeros(1, len(text))
        senses, prior = self.senses(entity_ids, weights)  # (B, K, S, D), (B, K, S)
        num_types = entity_ids.shape[1]
        enumerate_all = self.num_senses**num_types <= self.max_combinations
        if enumerate_all:
            choices = itertools.product(range(self.num_senses), repeat=num_types)
            combos = torch.tensor(list(choices), device=text.device)  # (C, K)
            combos = combos[:, None].expand(-1, len(text), -1)  # (C, B, K)
        else:
            # one draw a row: of several, torch has no deterministic way on a GPU
            rows = prior.expand(self.max_combinations, *prior.shape).flatten(0, 2)
            drawn = torch.multinomial(rows, 1)
            combos = drawn.reshape(self.max_combinations, len(text), num_types)  # (C, B, K)
        chosen = torch.stack(
            [
                senses.gather(2, c[..., None, None].expand(-1, -1, 1, senses.shape[-1]))
                for c in combos
            ]
        )[..., 0, :]  # (C, B, K, D)
        log_prior = torch.stack(
            [prior.gather(2, c[..., None])[..., 0].log().sum(1) for c in combos]
        )  # (C, B)
        if not enumerate_all:
            # draws count alike; the gradient is P(z)'s, which a learned prior needs
            log_prior = log_prior - log_prior.detach() - math.log(self.max_combinations)
        products = torch.stack([self._fuse(text, z, entity_ids, weights) for z in chosen])
        return products, log_prior

    def senses(self, entity_ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Senses w g (B, K, S, D) and prior P(b | a) (B, K, S); several values are averaged."""
        tables = (*self.general, *self.learned)  # S of (N + 1, D)
        senses = torch.stack([self.table.mean(t, entity_ids, weights) for t in tables], dim=2)
        if self.prior == 'uniform':
            prior = senses.new_full(senses.shape[:3], 1 / self.num_senses)
        elif self.prior == 'learned':
            prior = self.prior_logit.softmax(-1).expand(len(senses), -1, -1)
        else:
            prior = self.table.mean(self.fixed_prior, entity_ids, weights)
            total = prior.sum(-1, keepdim=True)  # the share that CE-Selector keeps
            prior = torch.where(total > 0, prior / total.clamp(min=1e-6), 1 / self.num_senses)
        return senses, prior

    def _priors(self) -> Tensor:
        """(N + 1, S) P(b | a) of every entity; the row of "unknown" counts nowhere."""
        if self.prior == 'learned':
            return self.prior_logit.softmax(-1)[self.table.type_of_row]
        return self.fixed_prior

    def _fuse(self, text: Tensor, sense: Tensor, entity_ids: Tensor, weights: Tensor) -> Tensor:
        kept = (self.table.share(entity_ids) * weights).sum(-1, keepdim=True)  # (B, K, 1)
        entities = sense + (1 - kept.to(sense.dtype)) * self.unknown  # (B, K, D)
        entities = entities.flatten(1)
        hidden = self.hidden(torch.cat([text, entities], dim=1))
        return text + self.skip(entities) + self.out(F.gelu(hidden))

    def entity_loss(self, image: Tensor, entity_ids: Tensor) -> Tensor:
        """L_ent: images classify their entities, so rare entities learn from photos too.

        Σ_k CE(softmax(<h_k(v), E_k>), a_k) with E_k the type's senses of highest number; a
        product with several values of a type has them as equal targets, one without is left
        out.

        Args:
            image: (B, D) unit image embeddings v.
            entity_ids: (B, K, M).

        Returns:
            () mean over all processes' labelled products, summed over types.
        """
        table = (self.learned if len(self.learned) else self.general)[-1]
        loss = image.new_zeros(())
        for k, head in enumerate(self.heads):
            rows = self.table.of_type[k]
            classes = table[rows.start : rows.stop]  # (N_k, D)
            log_prob = (head(image) @ classes.T).float().log_softmax(-1)  # (B, N_k)
            known = entity_ids[:, k] != UNKNOWN  # (B, M)
            values = log_prob.gather(1, (entity_ids[:, k] - 1).clamp(min=0)) * known  # (B, M)
            per_product = -values.sum(1) / known.sum(1).clamp(min=1)  # (B,)
            labelled = sum_over_processes(known.any(1).sum())
            loss = loss + per_product.sum() / labelled.clamp(min=1) * get_world_size()
        return mean_over_processes(loss)
