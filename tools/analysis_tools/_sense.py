"""Sense probe: what a name means to a model, every day or in the catalogue."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from _diagnose import (
    dataset_of,
    embed_photos,
    embed_tokens,
    entity_ids,
    holding,
    means,
    model_of,
    texts_of,
)
from mmengine.config import Config
from torch import Tensor

from eiclip_mm.evaluation.diagnostics import auc
from eiclip_mm.models import EICLIP, OpenCLIP
from eiclip_mm.utils.untrusted import read_json


def sense(cfg: Config, args: argparse.Namespace) -> tuple[dict, list]:
    """AUC of names for photos of their products and of what they mean every day."""
    dataset, after = dataset_of(cfg), model_of(cfg, args.checkpoint)
    models, vocab = dict(text=after), after.vocab
    if cfg.model.towers.get('pretrained'):  # else the heads before are drawn and mean nothing
        models = dict(before=model_of(cfg, 'none')) | models
    holds = holding(
        entity_ids(after.tokenizer, texts_of(dataset), args.type), vocab.size(args.type)
    )
    photos = embed_photos(cfg, [*models.values()], dataset)
    daily, pictures = everyday(cfg, args, [*models.values()])
    seen = [photos, pictures] if pictures else [photos]
    kinds = {
        kind: (names_as(model, args.type), *own)
        for (kind, model), *own in zip(models.items(), *seen, strict=True)
    }
    if isinstance(after, EICLIP):
        kinds['entity'] = (names_as(after, args.type, entities=True), *kinds['text'][1:])
    found = {}  # by name and kind: its measures
    for row, name in enumerate(vocab.names[args.type]):
        own = holds[:, row + 1]
        for kind, (query, photo, *picture) in kinds.items():
            values = sense_of(
                photo @ query[row], own, *(p @ query[row] for p in picture), daily=daily.get(name)
            )
            if values:
                found.setdefault(name, {})[kind] = values
    return told_senses(found, list(kinds), len(dataset))


def sense_of(
    photos: Tensor, own: Tensor, pictures: Tensor | None = None, daily: Tensor | None = None
) -> dict:
    """How one name sees photos and everyday pictures, whatever of it can be asked.

    Args:
        photos: (G,) cosines of the name with photos.
        own: (G,) bool, photos of its products.
        pictures: cosines with everyday pictures.
        daily: bool, pictures that show what the name means every day.
    """
    values = {}
    if own.any() and not own.all():
        values['products'] = auc(photos[own], photos[~own])
    if daily is not None and daily.any():
        values['everyday'] = auc(pictures[daily], pictures[~daily])
        if own.any():
            values['everyday above products'] = auc(pictures[daily], photos[own])
    return values


def names_as(model: OpenCLIP, type_: str, entities: bool = False) -> Tensor:
    """(N_k, D) the bare names of a type, as texts alone or as entities, too."""
    vocab, k = model.vocab, model.vocab.types.index(type_)
    rows = vocab.rows(type_)  # names have no row of "unknown"
    text = torch.from_numpy(model.tokenizer.encode_names())[rows.start - 1 : rows.stop - 1]
    ids = torch.zeros(len(text), len(vocab.types), model.tokenizer.max_values, dtype=torch.int64)
    if entities:
        ids[:, k, 0] = torch.arange(1, len(text) + 1)
    return embed_tokens(model, text, ids)


def everyday(
    cfg: Config, args: argparse.Namespace, models: Sequence[OpenCLIP]
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Which everyday pictures show a name's everyday sense, and what models make of them."""
    if args.truth is None:
        return {}, []
    phrases = read_truth(args.truth, 'brands', 'everyday')
    dataset = dataset_of(cfg, ann_file='general.h5', fold='all')
    captions = [fields['description'] for fields, _ in texts_of(dataset)]
    daily = {
        name: torch.tensor([phrase in caption for caption in captions])
        for name, phrase in phrases.items()
        if phrase
    }
    return daily, embed_photos(cfg, models, dataset)


def read_truth(path: str | Path, part: str, field: str) -> dict[str, str | None]:
    """A field of each name in a part of truth.json; None where it has none.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no truth.json of the mini Fashion-Gen.
    """
    if not Path(path).is_file():  # a pipe would never end
        raise FileNotFoundError(
            f'--truth: {path} is not there, or no file; give truth.json of the mini Fashion-Gen.'
        )
    truth = read_json(path)
    try:
        found = {name: about.get(field) for name, about in truth[part].items()}
    except (AttributeError, KeyError, TypeError):  # other lists and objects than ours
        found = {}
    if not found or not all(isinstance(value, str | None) for value in found.values()):
        raise ValueError(
            f'{path} names no {part} with their {field!r}; give truth.json of the mini Fashion-Gen.'
        )
    return found


def told_senses(found: Mapping, kinds: Sequence[str], photos: int) -> tuple[dict, list]:
    """Means over names, with what each name's measures are."""
    rows, measures = [['AUC', 'names', *(f'{kind} [95 %]' for kind in kinds)]], {}
    for name in ('products', 'everyday', 'everyday above products'):
        having = [own for own in found.values() if name in own['text']]
        if len(having) < 2:
            continue
        columns = {kind: torch.tensor([own[kind][name] for own in having]) for kind in kinds}
        measures[name] = means(columns)
        cells = [
            f'{m["mean"]:.3f} [{m["low"]:.3f}, {m["high"]:.3f}]' for m in measures[name].values()
        ]
        rows.append([name, str(len(having)), *cells])
    if not measures:
        raise ValueError('fewer than two known names have products here; give another --type.')
    before = (
        'before: the towers as pretrained'
        if 'before' in kinds
        else 'no "before", for the config has no model.towers.pretrained'
    )
    said = (
        f'{len(found)} names among {photos} photos; {before}, text: the name as a text, entity: '
        'with its entity. 0.5 is chance.'
    )
    return dict(said=said, means=measures, names=found), rows
