"""Slow references: loops over lists, written from the definitions, nothing from eiclip_mm."""

import math


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def rank(query, right, wrong):
    """One more than the wrong items as near as the best right one; equal scores are as near."""
    longest = max(math.sqrt(dot(item, item)) for item in right + wrong)
    tolerance = 1e-6 * math.sqrt(dot(query, query)) * longest
    best = max(dot(query, item) for item in right)
    return 1 + sum(dot(query, item) >= best - tolerance for item in wrong)


def ranks(queries, gallery, query_ids, gallery_ids):
    """Rank of the best item of the query's id, for every query."""
    result = []
    for query, query_id in zip(queries, query_ids, strict=True):
        right, wrong = [], []
        for item, item_id in zip(gallery, gallery_ids, strict=True):
            (right if item_id == query_id else wrong).append(item)
        result.append(rank(query, right, wrong))
    return result


def retrieval(images, texts, views, captions, ks):
    """Recalls in per cent of both directions under a protocol.

    Args:
        images: (vector, product id, view number) of each image.
        texts: (vector, product id, caption number) of each text.
        views, captions: 'first' or 'all'.
        ks: the recalls.
    """
    if views == 'first':
        images = [image for image in images if image[2] == 0]
    if captions == 'first':
        texts = [text for text in texts if text[2] == 0]
    result = {}
    for name, queries, gallery in (('i2t', images, texts), ('t2i', texts, images)):
        found = ranks(
            [query[0] for query in queries],
            [item[0] for item in gallery],
            [query[1] for query in queries],
            [item[1] for item in gallery],
        )
        for k in ks:
            result[f'{name}/R@{k}'] = 100 * sum(r <= k for r in found) / len(found)
        middle = sorted(found)
        half = len(middle) // 2
        result[f'{name}/median_rank'] = (middle[half] + middle[-half - 1]) / 2
    return result
