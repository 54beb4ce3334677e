"""Entity swap: does a product's query follow its entity to the photos of another one?"""

import argparse
import random
from collections.abc import Mapping

import torch
from _diagnose import (
    dataset_of,
    embed_photos,
    embed_texts,
    entity_ids,
    holding,
    mean_rows,
    means,
    model_of,
    texts_of,
)
from mmengine.config import Config

from eiclip_mm.datasets import EntityTokenizer
from eiclip_mm.evaluation.diagnostics import swap_effects
from eiclip_mm.structures import clean_text


def swap(cfg: Config, args: argparse.Namespace) -> tuple[dict, list]:
    """Exchange one entity of each product for another one of the gallery."""
    dataset, model = dataset_of(cfg), model_of(cfg, args.checkpoint)
    texts, vocab = texts_of(dataset), model.vocab
    ids = entity_ids(model.tokenizer, texts, args.type)
    held = sorted({id_ for own in ids for id_ in own})
    draw = random.Random(args.seed)
    pairs = {  # row of the product: old entity, new entity
        row: (own[0], draw.choice(others))
        for row, own in enumerate(ids)
        if own and (others := [id_ for id_ in held if id_ not in own])
    }
    if len(pairs) < 2:
        raise ValueError(f'a swap needs products of two known {args.type}s, got {len(held)}.')
    own, swapped = torch.tensor(list(pairs)), torch.tensor(list(pairs.values()))
    new_texts = [
        exchanged(texts[row], model.tokenizer, args.type, *pair) for row, pair in pairs.items()
    ]
    before = embed_texts(model, [texts[row] for row in pairs])
    (image,) = embed_photos(cfg, [model], dataset)
    holds = holding(ids, vocab.size(args.type))
    columns = swap_effects(before, embed_texts(model, new_texts), image, own, holds, swapped)
    measures = means(columns)
    median = {k: float(columns[k].median()) for k in ('rank_before', 'rank_after', 'rank')}
    said = (
        f'{len(pairs)} of {len(texts)} products ask among {len(image)} photos, '
        f'{len(held)} known names. Median rank of the own photo: {median["rank_before"]:g} before, '
        f'{median["rank_after"]:g} after; median change {median["rank"]:+g}.'
    )
    return dict(said=said, queries=len(pairs), means=measures, medians=median), mean_rows(measures)


def exchanged(
    text: tuple[Mapping, Mapping], tokenizer: EntityTokenizer, type_: str, old: int, new: int
) -> tuple[dict, dict]:
    """A product's text and entities with one for another, also where the text names it."""
    fields, tags = text
    vocab, name = tokenizer.vocab, tokenizer.vocab.names[type_][new - 1]
    column = vocab.types.index(type_)
    new_fields = {}
    for field, value in fields.items():
        value = clean_text(value)
        for mention in reversed(tokenizer.matcher.find(value)):
            if (column, old) in mention.entities:
                value = value[: mention.start] + name + value[mention.end :]
        new_fields[field] = value
    own = [name if vocab.id(type_, n) == old else n for n in tags[type_]]
    return new_fields, dict(tags, **{type_: own})
