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


def ahead(query, items, right, ties):
    """How many wrong items stand ahead of each right one, the best first.

    Args:
        query: vector.
        items: vectors in the order of the gallery.
        right: for each of them, whether it is right.
        ties: 'against', 'for' or 'order': equal scores count against the right item, for it, or
            by who comes first.
    """
    longest = max(math.sqrt(dot(item, item)) for item in items)
    tolerance = 1e-6 * math.sqrt(dot(query, query)) * longest
    scores = [dot(query, item) for item in items]
    result = []
    for place in range(len(items)):
        if not right[place]:
            continue
        count = 0
        for other in range(len(items)):
            difference = scores[other] - scores[place]
            if right[other]:
                continue
            if abs(difference) <= tolerance:
                count += ties == 'against' or (ties == 'order' and other < place)
            else:
                count += difference > 0
        result.append(count)
    return sorted(result)


def padded(rows):
    """Rows of one length, -1 at their ends."""
    longest = max(map(len, rows))
    return [row + [-1] * (longest - len(row)) for row in rows]


def gallery_ahead(queries, gallery, query_ids, gallery_ids, ties):
    """:func:`ahead` of every query among the whole gallery."""
    return padded(
        [
            ahead(query, gallery, [item_id == query_id for item_id in gallery_ids], ties)
            for query, query_id in zip(queries, query_ids, strict=True)
        ]
    )


def list_ahead(queries, gallery, candidates, right, ties):
    """:func:`ahead` of every query among its own rows of the gallery; row -1 is no item."""
    rows = []
    for query, row, marks in zip(queries, candidates, right, strict=True):
        listed = [(gallery[i], mark) for i, mark in zip(row, marks, strict=True) if i != -1]
        rows.append(ahead(query, *zip(*listed, strict=True), ties))
    return padded(rows)


def average_precision(ranking):
    """Mean over the right places of a ranking (best first, True is right) of precision there."""
    precisions = []
    for place, right in enumerate(ranking, 1):
        if right:
            precisions.append(sum(ranking[:place]) / place)
    return sum(precisions) / len(precisions)


def reciprocal_rank(ranking):
    return 1 / (ranking.index(True) + 1)


def ndcg(ranking, k):
    def dcg(ranking):
        return sum(right / math.log2(1 + place) for place, right in enumerate(ranking[:k], 1))

    return dcg(ranking) / dcg(sorted(ranking, reverse=True))
