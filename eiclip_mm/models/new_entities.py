"""Entities added to a trained model: a new brand is served without training again.

A new entity gets a row in every table. Its general sense is what the other rows' would be for its
name: a ridge regression from what the checkpoint's text tower makes of the other names to their
rows, which were made by the tower before it trained. Its learned senses are the mean of those of
its type; or, where there are photos of its products, a ridge regression from the photos of the
other entities of its type to their rows. CE-Selector keeps it if it keeps entities of its type. The
rows of all other entities, and with them all other products' embeddings, stay as they are. Source:
ours; that the tower's own reading of a name, or the photos as they are, serve worse than an unknown
entity is measured in docs/experiments.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eiclip_mm.structures import EntityVocab

from .ce_selector import AttentionCESelector, CESelector, EffectCESelector, GatedCESelector
from .ea_learner import EALearner
from .ei_clip import EICLIP, read_names
from .entity_table import EntityTable

STRENGTHS = [10.0**power for power in range(-6, 3)]  # of ridge, times the largest squared size


def extended(vocab: EntityVocab, names: Mapping[str, Sequence[str]]) -> EntityVocab:
    """The vocabulary with new names behind the others of their type, so that old ids stay.

    Args:
        vocab: of the trained model.
        names: new ones by type; they occur in 0 training products.

    Raises:
        KeyError: a type that the vocabulary lacks.
        ValueError: a name that it has.

    >>> vocab = EntityVocab(names={'brand': ('Diesel',)}, counts={'brand': (9,)})
    >>> extended(vocab, {'brand': ['Puma']}).names['brand']
    ('Diesel', 'Puma')
    """
    missing = [type_ for type_ in names if type_ not in vocab.types]
    if missing:
        raise KeyError(f'entity types {missing} are not in the vocabulary; it has {vocab.types}.')
    return EntityVocab(
        names={t: (*own, *names.get(t, ())) for t, own in vocab.names.items()},
        counts={t: (*own, *[0] * len(names.get(t, ()))) for t, own in vocab.counts.items()},
        source=vocab.source,
    )


@torch.no_grad()
def add_entities(model: EICLIP, tokenizer: Any, photos: Tensor | None = None) -> None:
    """Give ``model``, in place, the entities that ``tokenizer`` has and its own lacks.

    An optimiser made before knows nothing of the new tables: make it afterwards. A checkpoint saved
    afterwards is loaded with a config whose vocabulary is the new one.

    Args:
        model: a trained ``EICLIP``.
        tokenizer: an ``EntityTokenizer`` that differs from the model's in its vocabulary alone,
            which :func:`extended` made.
        photos: (N, D) for each entity of the new vocabulary, type by type, the mean embedding of
            photos of its products, NaN where there are none. Those of trained entities teach what
            those of new ones mean: without them, photos of new ones are of no use.

    Raises:
        TypeError: a selector whose tables are not known here.
        ValueError: the tokenizer differs in more, entities are tokens, or photos do not fit.
    """
    _check(model, tokenizer)
    learner, vocab = model.learner, tokenizer.vocab
    kept, added = _rows(model.vocab, vocab)
    names = _name_features(model, tokenizer)  # (N, F)
    if photos is None:
        photos = names.new_full((len(names), learner.learned.shape[-1]), torch.nan)
    elif photos.shape != (len(names), learner.learned.shape[-1]):
        raise ValueError(
            f'photos must be {(len(names), learner.learned.shape[-1])}, one row for each entity of '
            f'the new vocabulary, got {tuple(photos.shape)}.'
        )
    old = kept[1:]
    general = [regressed(names[old - 1], g[1:], names[added - 1]) for g in learner.general]
    learned = _learned(learner.learned, vocab, kept, added, photos.to(names))
    trains = learner.learned.requires_grad
    learner.general = _grown(learner.general, kept, added, _stacked(general, learner.general))
    learner.learned = nn.Parameter(_grown(learner.learned, kept, added, learned), trains)
    _grow_selector(model.selector, vocab, kept, added)
    _renumber(learner, vocab)
    model.tokenizer = tokenizer


@torch.no_grad()
def drop_entities(model: EICLIP, tokenizer: Any) -> None:
    """The inverse: leave out, in place, the entities that ``tokenizer`` lacks.

    Args:
        model: a trained ``EICLIP``.
        tokenizer: one that differs from the model's in names that its vocabulary lacks.

    Raises:
        ValueError: its vocabulary has other types, or names that the model lacks.
        TypeError: see :func:`add_entities`.
    """
    vocab, learner, selector = tokenizer.vocab, model.learner, model.selector
    new = [(t, n) for t, names in vocab.names.items() for n in names if not model.vocab.id(t, n)]
    if new or vocab.types != model.vocab.types:
        raise ValueError(
            f'the tokenizer must have types {model.vocab.types} and names of the model alone, it '
            f'has types {vocab.types} and new names {new[:5]}.'
        )
    _check_selector(selector)
    kept = [0]
    for type_, names in vocab.names.items():
        rows = model.vocab.rows(type_)
        kept += [rows[model.vocab.id(type_, name) - 1] for name in names]
    learner.general = learner.general[:, kept]
    learner.learned = nn.Parameter(learner.learned[:, kept], learner.learned.requires_grad)
    if isinstance(selector, GatedCESelector):
        logit = selector.entity_logit
        selector.entity_logit = nn.Parameter(logit[kept], logit.requires_grad)
    elif isinstance(selector, AttentionCESelector):
        vectors = selector.entity_embedding
        selector.entity_embedding = nn.Parameter(vectors[kept], vectors.requires_grad)
    elif isinstance(selector, EffectCESelector):
        selector.weight = selector.weight[kept]
    selector.vocab = vocab
    _renumber(selector, vocab)
    _renumber(learner, vocab)
    model.tokenizer = tokenizer


def regressed(x: Tensor, y: Tensor, new: Tensor) -> Tensor:
    """Ridge regression of y (n, D) on x (n, F), at new (m, F) -> (m, D).

    As strong as leaving out one row at a time asks; where x says nothing of y, the mean of y.
    """
    x, new = (F.normalize(rows.double(), dim=-1) for rows in (x, new))
    mean, middle = x.mean(0), y.double().mean(0)
    left, size, right = torch.linalg.svd(x - mean, full_matrices=False)
    target = left.T @ (y.double() - middle)
    best, chosen = torch.inf, torch.zeros_like(size)
    for share in STRENGTHS if len(x) > 2 and size[0] > 1e-9 else ():
        shrink = size**2 / (size**2 + share * size[0] ** 2)
        hat = (left**2 * shrink).sum(1) + 1 / len(x)  # how far a row decides its own value
        residual = y - middle - left @ (shrink[:, None] * target)
        error = (residual / (1 - hat).clamp(min=1e-6)[:, None]).square().sum()
        if error < best:
            best, chosen = error, shrink / size
    return ((new - mean) @ right.T @ (chosen[:, None] * target) + middle).to(y)


def _learned(
    table: Tensor, vocab: EntityVocab, kept: Tensor, added: Tensor, photos: Tensor
) -> Tensor:
    """(S', n, D) learned senses of new entities: what those of their type are, as photos tell."""
    start = table.new_empty(len(table), len(added), table.shape[-1])
    row = torch.full((int(kept.max()) + len(added) + 1,), -1)
    row[kept] = torch.arange(len(kept))  # of the old table
    seen = ~photos.isnan().any(1).cpu()  # as all numbers of rows here
    for rows in EntityTable(vocab).of_type:
        own = torch.arange(rows.start, rows.stop)
        old, new = own[row[own] >= 0], torch.isin(added, own)
        for sense, values in zip(start, table, strict=True):
            sense[new] = values[row[old]].mean(0)
            told, asked = old[seen[old - 1]], new & seen[added - 1]
            if len(told) > 2 and asked.any():
                x, at = photos[told - 1], photos[added[asked] - 1]
                sense[asked] = regressed(x, values[row[told]], at)
    return start


def _stacked(rows: Sequence[Tensor], like: Tensor) -> Tensor:
    """(S', n, D), also of no senses."""
    return torch.stack(list(rows)) if rows else like[:, :0].new_zeros(0, 1, like.shape[-1])


def _check(model: EICLIP, tokenizer: Any) -> None:
    old, new = model.vocab, tokenizer.vocab
    if new.types != old.types or any(
        new.names[t][: len(own)] != own for t, own in old.names.items()
    ):
        raise ValueError(
            'the new vocabulary must hold all types and names of the old one in their order, new '
            'names behind them: make it with extended().'
        )
    if tokenizer.reading != model.tokenizer.reading:
        raise ValueError(
            f'the new tokenizer reads texts as {tokenizer.reading}, the model was trained on '
            f'{model.tokenizer.reading}; change the vocabulary alone.'
        )
    if model.tokenizer.mention == 'token':
        raise ValueError(
            "with mention='token' entities are tokens of the text tower, which cannot grow; take a "
            "model trained with mention='keep' or 'cut'."
        )
    _check_selector(model.selector)


def _check_selector(selector: CESelector) -> None:
    tables = set(selector.state_dict())
    if tables - {'weight', 'type_logit', 'entity_logit', 'entity_embedding'}:
        raise TypeError(
            f'{type(selector).__name__} has tables {sorted(tables)}; which row is whose in them is '
            'not known here. Take a selector of ce_selector.py.'
        )


def _rows(old: EntityVocab, new: EntityVocab) -> tuple[Tensor, Tensor]:
    """Rows of the new table: (N + 1,) of what the old one has, in its order; (n,) of the rest."""
    kept, added = [0], list[int]()
    for type_, known in old.names.items():
        rows = new.rows(type_)
        kept += rows[: len(known)]
        added += rows[len(known) :]
    return torch.tensor(kept), torch.tensor(added, dtype=torch.int64)


def _name_features(model: EICLIP, tokenizer: Any) -> Tensor:
    """(N, F) what the text tower's trunk makes of every name."""
    training = model.training
    model.eval()
    device = model.learner.learned.device
    features = read_names(tokenizer, lambda part: model.towers.text_trunk(part.to(device)))
    model.train(training)
    return features


def _grown(table: Tensor, kept: Tensor, added: Tensor, start: Tensor | float) -> Tensor:
    """(..., N + 1, E) with rows for the new entities among the others."""
    grown = table.new_empty(*table.shape[:-2], len(kept) + len(added), table.shape[-1])
    grown[..., kept, :] = table
    grown[..., added, :] = start
    return grown


def _grow_selector(selector: CESelector, vocab: EntityVocab, kept: Tensor, added: Tensor) -> None:
    if isinstance(selector, GatedCESelector):
        logit = _grown(selector.entity_logit[:, None], kept, added, 0.0)[:, 0]  # the type's own
        selector.entity_logit = nn.Parameter(logit, selector.entity_logit.requires_grad)
    elif isinstance(selector, AttentionCESelector):
        vectors = _grown(selector.entity_embedding, kept, added, 0.0)  # the type's own
        trained = selector.entity_embedding.requires_grad
        selector.entity_embedding = nn.Parameter(vectors, trained)
    elif isinstance(selector, EffectCESelector):
        weight = _grown(selector.weight[:, None], kept, added, 0.0)[:, 0]
        for rows in EntityTable(vocab).of_type:
            own = torch.arange(rows.start, rows.stop)
            # An entity that was not measured counts as its type, which is kept if any of it is.
            weight[own[torch.isin(own, added)]] = weight[own].max()
        selector.weight = weight
    selector.vocab = vocab
    _renumber(selector, vocab)


def _renumber(module: CESelector | EALearner, vocab: EntityVocab) -> None:
    """What says which row is whose, made anew for the vocabulary."""
    device = module.table.first.device
    module.table = EntityTable(vocab).to(device)
    if isinstance(module, EALearner) and module.prior != 'learned':
        module.fixed_prior = module._fixed_prior(vocab).to(device)
