"""Entities added to a trained model: a new brand is served without training again.

A new entity gets a row in every table. What its name means to the text tower of the checkpoint is
its general sense and the start of its learned ones; photos of its products, where there are some,
can start the learned senses instead. CE-Selector keeps it if it keeps entities of its type. The
rows of all other entities, and with them all other products' embeddings, stay as they are. Source:
ours.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eiclip_mm.structures import EntityVocab

from .ce_selector import CESelector, EffectCESelector, EntityTable, GatedCESelector
from .ea_learner import EALearner
from .ei_clip import EICLIP


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
def add_entities(model: EICLIP, tokenizer, photos: Tensor | None = None) -> None:
    """Give ``model``, in place, the entities that ``tokenizer`` has and its own lacks.

    An optimiser made before knows nothing of the new tables: make it afterwards. A checkpoint saved
    afterwards is loaded with a config whose vocabulary is the new one.

    Args:
        model: a trained ``EICLIP``.
        tokenizer: an ``EntityTokenizer`` that differs from the model's in its vocabulary alone,
            which :func:`extended` made.
        photos: (n, D) for each new entity, in the order of the vocabulary, the mean embedding of
            photos of its products: the start of its learned senses instead of its name, with the
            length that senses of its table have.

    Raises:
        TypeError: a selector whose tables are not known here.
        ValueError: the tokenizer differs in more, entities are tokens, or photos do not fit.
    """
    _check(model, tokenizer)
    learner, vocab = model.learner, tokenizer.vocab
    kept, added = _rows(model.vocab, vocab)
    sense = _name_features(model, tokenizer, added)  # (n, D)
    start = sense
    if photos is not None:
        if photos.shape != sense.shape:
            raise ValueError(
                f'photos must be {tuple(sense.shape)}, one row for each new entity, got '
                f'{tuple(photos.shape)}.'
            )
        lengths = learner.learned[:, 1:].norm(dim=-1, keepdim=True)  # (S', N, 1)
        start = F.normalize(photos.to(sense), dim=-1) * lengths.mean(1, keepdim=True)  # (S', n, D)
    trains = learner.learned.requires_grad
    learner.general = _grown(learner.general, kept, added, sense)
    learner.learned = nn.Parameter(_grown(learner.learned, kept, added, start), trains)
    _grow_selector(model.selector, vocab, kept, added)
    _renumber(learner, vocab)
    model.tokenizer = tokenizer


def _check(model: EICLIP, tokenizer) -> None:
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
    tables = set(model.selector.state_dict())
    if tables - {'weight', 'type_logit', 'entity_logit'}:
        raise TypeError(
            f'{type(model.selector).__name__} has tables {sorted(tables)}; add_entities does not '
            'know how they grow. Take a selector of ce_selector.py.'
        )


def _rows(old: EntityVocab, new: EntityVocab) -> tuple[Tensor, Tensor]:
    """Rows of the new table: (N + 1,) of what the old one has, in its order; (n,) of the rest."""
    first = EntityTable(new).first.tolist()
    kept, added = [0], []
    for start, type_ in zip(first, new.types, strict=True):
        known, now = len(old.names[type_]), len(new.names[type_])
        kept += range(start + 1, start + known + 1)
        added += range(start + known + 1, start + now + 1)
    return torch.tensor(kept), torch.tensor(added, dtype=torch.int64)


def _name_features(model: EICLIP, tokenizer, added: Tensor) -> Tensor:
    """(n, D) what the text tower makes of the new names."""
    training = model.training
    model.eval()
    names = torch.from_numpy(tokenizer.encode_names())[added - 1]  # (n, L)
    features = model.towers.encode_text(names.to(model.learner.learned.device))
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
    elif isinstance(selector, EffectCESelector):
        weight = _grown(selector.weight[:, None], kept, added, 0.0)[:, 0]
        rows = torch.arange(1, len(weight), device=weight.device)
        for own in rows.split([len(names) for names in vocab.names.values()]):
            # An entity that was not measured counts as its type, which is kept if any of it is.
            new = own[torch.isin(own, added.to(own.device))]
            weight[new] = weight[own].max()
        selector.weight = weight
    selector.vocab = vocab
    _renumber(selector, vocab)


def _renumber(module: CESelector | EALearner, vocab: EntityVocab) -> None:
    """Tables that say which row is whose, made anew for the vocabulary."""
    device = module.table.first.device
    module.table = EntityTable(vocab).to(device)
    sizes = torch.tensor([0, *module.table.sizes])[1:]
    if hasattr(module, 'type_of_row'):
        types = torch.arange(len(sizes)).repeat_interleave(sizes)
        module.type_of_row = F.pad(types, (1, 0)).to(device)
    if hasattr(module, 'fixed_prior'):
        module.fixed_prior = module._fixed_prior(vocab).to(device)
