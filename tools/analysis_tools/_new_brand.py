"""Entities taken out of a trained model and added again, without training."""

import argparse
import random
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from _diagnose import (
    PROTOCOL,
    dataset_of,
    difference_rows,
    embed_photos,
    embed_texts,
    embeddings,
    entity_ids,
    holding,
    model_of,
    plain,
    product_ids,
    texts_of,
    tokenizer_of,
)
from mmengine.config import Config
from torch import Tensor

from eiclip_mm.evaluation import compare, retrieve
from eiclip_mm.models import EICLIP, OpenCLIP, add_entities, drop_entities, extended
from eiclip_mm.structures import EntityVocab


def new_brand(cfg: Config, args: argparse.Namespace) -> tuple[dict, list]:
    """Products of entities that are unknown, added without training, and trained."""
    dataset, trained = dataset_of(cfg), model_of(cfg, args.checkpoint)
    if not isinstance(trained, EICLIP):
        raise ValueError(
            f'{args.config} has no entities to add: it builds a {type(trained).__name__}.'
        )
    texts, ids = texts_of(dataset), product_ids(dataset)
    own = entity_ids(trained.tokenizer, texts, args.type)
    chosen = chosen_entities(args, trained.vocab, own)
    names = [trained.vocab.names[args.type][id_ - 1] for id_ in chosen]
    unknown = deepcopy(trained)
    drop_entities(unknown, tokenizer_of(cfg, vocab=taken_out(trained.vocab, args.type, chosen)))
    added, new = deepcopy(unknown), extended(unknown.vocab, {args.type: names})
    photos = mean_photos(cfg, args.type, new, trained) if args.from_images else None
    add_entities(added, tokenizer_of(cfg, vocab=new), photos)
    (image,) = embed_photos(cfg, [trained], dataset)
    theirs = ids[torch.tensor([bool(set(chosen) & set(i)) for i in own])]
    runs = {
        name: retrieve(embeddings(image, embed_texts(model, texts), ids), PROTOCOL).of(theirs)
        for name, model in dict(unknown=unknown, added=added, trained=trained).items()
    }
    found = {
        f'{b} - {a}': compare(runs[a], runs[b])
        for a, b in (('unknown', 'added'), ('added', 'trained'), ('unknown', 'trained'))
    }
    start = 'photos of train' if args.from_images else 'names alone'
    said = (
        f'{len(theirs)} products of {len(names)} names ask among {len(ids)}; senses from '
        f'{start}: {", ".join(names)}.'
    )
    measures = {name: plain(own) for name, own in found.items()}
    return dict(said=said, names=names, measures=measures), difference_rows(found)


def chosen_entities(args: argparse.Namespace, vocab: EntityVocab, ids: Sequence) -> list[int]:
    """The entities to take out: those named, or a random share of those in the gallery."""
    held = sorted({id_ for own in ids for id_ in own})
    if args.names:
        chosen = sorted({vocab.id(args.type, name) for name in args.names})
        if set(chosen) - set(held):
            raise ValueError(
                f'--names {args.names}: not all are known and in the gallery, which has '
                f'{[vocab.names[args.type][id_ - 1] for id_ in held]}.'
            )
        return chosen
    number = round(args.share * len(held))
    if not 0 < number < len(held):
        raise ValueError(
            f'--share {args.share} of {len(held)} known names takes out {number}; choose another.'
        )
    return sorted(random.Random(args.seed).sample(held, number))


def taken_out(vocab: EntityVocab, type_: str, ids: Sequence[int]) -> EntityVocab:
    """The vocabulary without these names."""
    kept = [row for row in range(len(vocab.names[type_])) if row + 1 not in ids]
    return replace(
        vocab,
        names={**vocab.names, type_: tuple(vocab.names[type_][row] for row in kept)},
        counts={**vocab.counts, type_: tuple(vocab.counts[type_][row] for row in kept)},
    )


def mean_photos(cfg: Config, type_: str, vocab: EntityVocab, model: OpenCLIP) -> Tensor:
    """(N, D) mean embedding of the photos that train has of each entity of a type, else NaN."""
    dataset = dataset_of(cfg, 'train', fold='fit')
    (image,) = embed_photos(cfg, [model], dataset)
    own = entity_ids(tokenizer_of(cfg, vocab=vocab), texts_of(dataset), type_)
    holds = holding(own, vocab.size(type_))[:, 1:].float()  # (P, N_k)
    means = (holds.T @ image) / holds.sum(0)[:, None]
    parts = [
        means if t == type_ else torch.full((len(names), image.shape[1]), torch.nan)
        for t, names in vocab.names.items()
    ]
    return torch.cat(parts)
