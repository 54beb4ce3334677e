"""Slow references of the model's formulas: loops over numbers, nothing from eiclip_mm.

Where a gradient is compared, the numbers are 0-d tensors of float64.
"""

import math

import torch


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def info_nce(image, product, prior, scale, product_id, text_id=None):
    """Symmetric loss of N pairs, each text in C versions.

    For a text i, -log Σ_c P(c|i) Σ_{j positive} softmax_j(scale <x_ci, y_j>); for an image i the
    same with texts as candidates and the mean of P(c|j) over the texts j as P(c).

    Args:
        image: N vectors.
        product: C lists of N vectors.
        prior: C lists of N probabilities.
        text_id: where equal, pairs are positives too.
    """
    n, c = len(image), len(product)

    def positive(i, j):
        same_text = text_id is not None and text_id[i] == text_id[j]
        return product_id[i] == product_id[j] or same_text

    def mass(i, scores):
        exponentials = [torch.exp(scale * score) for score in scores]
        return sum(e for j, e in enumerate(exponentials) if positive(i, j)) / sum(exponentials)

    total = 0
    for i in range(n):
        t2i = [
            prior[z][i] * mass(i, [dot(product[z][i], image[j]) for j in range(n)])
            for z in range(c)
        ]
        i2t = [
            sum(prior[z]) / n * mass(i, [dot(image[i], product[z][j]) for j in range(n)])
            for z in range(c)
        ]
        total = total - torch.log(sum(t2i)) - torch.log(sum(i2t))
    return total / (2 * n)


def mean_of_known(table, ids, weights=None):
    """Mean of w_m table[a_m] over a type's ids a_m other than 0 (row 0 unused); else zeros."""
    weights = weights or [1] * len(ids)
    known = [(i, w) for i, w in zip(ids, weights, strict=True) if i != 0]
    width = len(table[0])
    return [sum(w * table[i][d] for i, w in known) / max(len(known), 1) for d in range(width)]


def gelu(x):
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def linear(weight, bias, x):
    return [dot(row, x) + b for row, b in zip(weight, bias, strict=True)]


def fuse(text, values, unknown, hidden, out, skip):
    """t + W_s e + W_o GELU(W_1 [t; e]) with e = [e_1; ...; e_K], for one product.

    e_k is the mean of u_k + w (z - u_k) over the type's known values, u_k where none is known.

    Args:
        values: K lists of (z, w), one for each known value of the type.
        hidden, out: (weight, bias).
        skip: weight.
    """
    entities = []
    for known, u in zip(values, unknown, strict=True):
        mixed = [[ud + w * (zd - ud) for zd, ud in zip(z, u, strict=True)] for z, w in known]
        mixed = mixed or [u]
        entities += [sum(column) / len(mixed) for column in zip(*mixed, strict=True)]
    change = linear(*out, [gelu(x) for x in linear(*hidden, [*text, *entities])])
    return [t + dot(w, entities) + c for t, w, c in zip(text, skip, change, strict=True)]


def entity_loss(image, heads, tables, entity_ids):
    """Σ_k mean over products with a value of type k of their mean cross-entropy."""
    total = 0
    for k, (head, table) in enumerate(zip(heads, tables, strict=True)):
        losses = []
        for v, ids in zip(image, entity_ids, strict=True):
            known = [i for i in ids[k] if i != 0]
            if not known:
                continue
            h = linear(*head, v)
            scores = [dot(h, row) for row in table[1:]]
            log_sum = math.log(sum(math.exp(s) for s in scores))
            losses.append(sum(log_sum - scores[i - 1] for i in known) / len(known))
        if losses:
            total += sum(losses) / len(losses)
    return total


def open_probability(logit, beta=2 / 3, gamma=-0.1, zeta=1.1):
    """P(gate > 0) of a hard-concrete gate, by summing over its noise (not the closed form)."""
    steps = 20_000
    count = 0
    for i in range(steps):
        u = (i + 0.5) / steps
        s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + logit) / beta))
        count += s * (zeta - gamma) + gamma > 0
    return count / steps


def match_probabilities(product, image, product_id, scale):
    """P(y_i | x_i) of every i, then P(x_i | y_i) of every i; positives by id."""
    result = []
    for queries, keys in ((product, image), (image, product)):
        for i, same in enumerate(product_id):
            e = [math.exp(scale * dot(queries[i], key)) for key in keys]
            right = sum(x for x, other in zip(e, product_id, strict=True) if other == same)
            result.append(right / sum(e))
    return result


def causal_effects(encode, image, entity_ids, product_id, scale, orders):
    """log P(y | all) - log mean over orders of P(y | type k as in that order), for every i and k.

    Args:
        encode: lists of entity ids -> lists of vectors.
        orders: for each type k, the permutations of the products from which type k is taken.
    """
    n = len(image)
    everything = match_probabilities(encode(entity_ids), image, product_id, scale)
    columns = []
    for k, permutations in enumerate(orders):
        average = [0] * (2 * n)
        for order in permutations:
            mixed = [
                [entity_ids[other][j] if j == k else ids for j, ids in enumerate(row)]
                for row, other in zip(entity_ids, order, strict=True)
            ]
            drawn = match_probabilities(encode(mixed), image, product_id, scale)
            average = [a + p / len(permutations) for a, p in zip(average, drawn, strict=True)]
        logs = [math.log(p / q) for p, q in zip(everything, average, strict=True)]
        columns.append([(logs[i] + logs[n + i]) / 2 for i in range(n)])
    return [list(row) for row in zip(*columns, strict=True)]


def shrunken(effects, entity_ids, k, entity, m):
    """(Σ of the effects on the entity's products + m times the type's mean) / (n + m)."""
    own = [e[k] for e, ids in zip(effects, entity_ids, strict=True) if entity in ids[k]]
    mean = sum(e[k] for e in effects) / len(effects)
    return (sum(own) + m * mean) / (len(own) + m)
