"""Slow references for retrieval protocols: loops over lists, nothing from eiclip_mm.

Rows are those of a small split: images ``Image(vector, product, number)`` and texts
``Text(vector, product, number, text, subcategory)``, where equal ``text`` means equal words.
"""

import math
import random
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import torch
from references import dot


class Image(NamedTuple):
    vector: tuple
    product: int
    number: int


class Text(NamedTuple):
    vector: tuple
    product: int
    number: int
    text: int = 0
    subcategory: str = ''


# name: views, captions, one image for one text alone, ties
FULL = {
    'full/first-image': ('first', 'first', False, 'against'),
    'full/product': ('all', 'all', False, 'against'),
    'full/pair': ('all', 'first', True, 'order'),
}


def random_split(seed, dim=3, most=8, captions=2, lengths='any'):
    """A small split: odd ids, one to three views, a sub-category of 3 and one of 1, equal vectors.

    Vectors hold small integers, so that many scores are exactly equal; with ``lengths='equal'``
    they hold 1 and -1.
    """
    rng = random.Random(seed)
    values = (-1, 1) if lengths == 'equal' else (-2, -1, 0, 1, 2)
    images, texts = [], []
    ids = rng.sample(range(-50, 50), rng.randint(4, most))
    for place, product in enumerate(ids):
        subcategory = 'aaab'[place] if place < 4 else rng.choice('cd')
        words = rng.randrange(4)

        def vector():
            return tuple(rng.choice(values) for _ in range(dim))

        images += [Image(vector(), product, n) for n in range(rng.randint(1, 3))]
        texts += [
            Text(vector(), product, n, words, subcategory) for n in range(rng.randint(1, captions))
        ]
    rng.shuffle(images)
    rng.shuffle(texts)
    return images, texts


def arrays(images, texts):
    """The same as the arguments of ``Embeddings``."""
    return dict(
        image=torch.tensor([i.vector for i in images]).float(),
        image_product_id=torch.tensor([i.product for i in images]),
        image_view=torch.tensor([i.number for i in images]),
        product=torch.tensor([t.vector for t in texts]).float(),
        product_id=torch.tensor([t.product for t in texts]),
        product_caption=torch.tensor([t.number for t in texts]),
        product_text=torch.tensor([t.text for t in texts]),
        labels=dict(subcategory=np.array([t.subcategory for t in texts])),
    )


def length(vector):
    return math.sqrt(dot(vector, vector))


def ahead(query, gallery, right, ties='against'):
    """How many wrong items stand ahead of each right one, fewest first.

    Args:
        query: a vector.
        gallery: vectors.
        right: for each of them, whether it is right.
        ties: who wins among equal scores.
    """
    tolerance = 1e-6 * length(query) * max(map(length, gallery))
    scores = [dot(query, item) for item in gallery]
    counts = []
    for place in range(len(gallery)):
        if not right[place]:
            continue
        count = 0
        for other in range(len(gallery)):
            lead = scores[other] - scores[place]
            if right[other] or lead < -tolerance:
                continue
            equal = lead <= tolerance
            count += not equal or ties == 'against' or (ties == 'order' and other < place)
        counts.append(count)
    return sorted(counts)


def full(name, images, texts, same_text=False, ties=None):
    """(product, ahead) of every query of both directions, where all are candidates."""
    views, captions, pair, default_ties = FULL[name]
    if views == 'first':
        images = [image for image in images if image.number == 0]
    if captions == 'first':
        texts = [text for text in texts if text.number == 0]
    words = {text.product: text.text for text in texts}
    if pair:
        text_of = {text.product: text for text in texts}
        texts = [text_of[image.product] for image in images]
    result = {}
    for direction, asked, gallery in (('i2t', images, texts), ('t2i', texts, images)):
        result[direction] = []
        for row, query in enumerate(asked):
            right = []
            for place, item in enumerate(gallery):
                if pair:
                    right.append(place == row)
                elif same_text:
                    right.append(words[item.product] == words[query.product])
                else:
                    right.append(item.product == query.product)
            vectors = [item.vector for item in gallery]
            counts = ahead(query.vector, vectors, right, ties or default_ties)
            result[direction].append((query.product, counts))
    return result


def listed(images, texts, lists, same_text=False, pair=False, ties='against', masked=None):
    """(product, ahead) of every query of both directions, where each has its list.

    Args:
        lists: for each direction, (query, candidates) by (product, number); the right one first.
        pair: the first candidate alone is right.
        masked: the cosine that all items off the list have, if they compete.
    """
    words = {text.product: text.text for text in texts}
    result = {}
    for direction, asked, gallery in (('i2t', images, texts), ('t2i', texts, images)):
        query_of = {(row.product, row.number): row for row in asked}
        item_of = {(row.product, row.number): row for row in gallery}
        result[direction] = []
        for name, candidates in lists[direction]:
            query = query_of[name]
            items = [item_of[candidate] for candidate in candidates]
            if pair:
                right = [place == 0 for place in range(len(items))]
            elif same_text:
                right = [words[item.product] == words[query.product] for item in items]
            else:
                right = [item.product == query.product for item in items]
            counts = ahead(query.vector, [item.vector for item in items], right, ties)
            if masked is not None:
                counts = masked_ahead(query, gallery, set(candidates), masked, counts)
            result[direction].append((query.product, counts))
    return result


def masked_ahead(query, gallery, candidates, masked, counts):
    """The same where items off the list compete with one fixed cosine.

    Only the best right item is counted, and only where the right candidate is not above the mask:
    above it, nothing changes but the places of right items off the list.
    """
    scores = []
    for item in gallery:
        cosine = dot(query.vector, item.vector) / length(query.vector) / length(item.vector)
        on_list = (item.product, item.number) in candidates
        scores.append((item.product == query.product, cosine if on_list else masked, on_list))
    if max(score for right, score, on_list in scores if right and on_list) > masked + 1e-6:
        return counts
    best = max(score for right, score, _ in scores if right)
    return [sum(not right and score >= best - 1e-6 for right, score, _ in scores)]


def lists_of(manifest):
    """A manifest as plain lists for :func:`listed`."""
    return {
        direction: [
            (tuple(query), [tuple(c) for c in candidates if c[1] >= 0])
            for query, candidates in zip(
                getattr(manifest, f'{direction}_query').tolist(),
                getattr(manifest, f'{direction}_candidates').tolist(),
                strict=True,
            )
        ]
        for direction in ('i2t', 't2i')
    }


def measures(result, ks):
    """All measures of both directions, each list walked from its top as trec_eval does."""
    found = {}
    for direction, queries in result.items():
        values = defaultdict(list)
        for _, counts in queries:
            places = {count + m + 1 for m, count in enumerate(counts)}
            hits, precisions, gain, best = 0, 0.0, 0.0, 0.0
            for place in range(1, max(*places, *ks) + 1):
                right = place in places
                hits += right
                precisions += hits / place if right else 0
                gain += 1 / math.log2(1 + place) if right and place <= max(ks) else 0
                best += 1 / math.log2(1 + place) if place <= min(len(places), max(ks)) else 0
            for k in ks:
                values[f'R@{k}'].append(100 * (min(places) <= k))
            values['MRR'].append(1 / min(places))
            values['mAP'].append(precisions / len(places))
            values[f'nDCG@{max(ks)}'].append(gain / best)
            values['mean_rank'].append(min(places))
        for name, numbers in values.items():
            found[f'{direction}/{name}'] = sum(numbers) / len(numbers)
        ranks = sorted(values['mean_rank'])
        half = len(ranks) // 2
        found[f'{direction}/median_rank'] = (ranks[half] + ranks[-half - 1]) / 2
    if {1, 5, 10} <= set(ks):
        found['SumR'] = sum(v for name, v in found.items() if name[4:] in ('R@1', 'R@5', 'R@10'))
        found['meanR'] = found['SumR'] / 6
    return found


def faults(lists, texts, images, number, top_up='none', level='product', own_again=False):
    """What is wrong with drawn lists, straight from the definition; an empty list if nothing is."""
    group = {text.product: text.subcategory for text in texts}
    views = defaultdict(list)
    for image in images:
        views[image.product].append((image.product, image.number))
    found = []
    for direction, queries in lists.items():
        things = views if direction == 't2i' and level == 'image' else {p: [p] for p in group}
        for (product, _), candidates in queries:
            right, wrong = candidates[0], candidates[1:]
            products = [p for p, _ in wrong]
            again = own_again and direction == 't2i'

            def fault(what, product=product, direction=direction):
                found.append(f'{direction} of {product}: {what}')

            if right[0] != product:
                fault('the first candidate is not right')
            if direction == 'i2t' and any(caption for _, caption in candidates):
                fault('a caption that is not the first')
            if product in products and not again:
                fault('its own product is wrong')
            once = wrong if things is views else products
            if len(set(once)) < len(once) and not again:
                fault('a candidate twice')
            own = sum(len(things[p]) for p in group if p != product and group[p] == group[product])
            others = sum(len(things[p]) for p in group if group[p] != group[product])
            same = sum(group[p] == group[product] for p in products)
            if top_up == 'none' and (same, len(wrong)) != (min(own, number),) * 2:
                fault('not as many of its own sub-category as there are')
            if top_up == 'others' and same != min(own, number):
                fault('its own sub-category is not exhausted first')
            if top_up != 'none' and not again and len(wrong) != min(own + others, number):
                fault('not as many as there are')
            if top_up == 'mixture' and own >= number and same != number:
                fault('mixed without need')
    return found
