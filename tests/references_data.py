"""Slow references for texts and items: loops over characters, nothing from eiclip_mm."""

import unicodedata


def split_words(text):
    """(folded word, start, end): runs of letters, digits and _, and every other sign alone."""
    parts, i = [], 0
    while i < len(text):
        j = i + 1
        if text[i].isalnum() or text[i] == '_':
            while j < len(text) and (text[j].isalnum() or text[j] == '_'):
                j += 1
        if not text[i].isspace():
            word = unicodedata.normalize('NFKC', text[i:j]).casefold().replace('’', "'")
            parts.append((word, i, j))
        i = j
    return parts


def find_mentions(text, names):
    """Leftmost longest names as (start, end, entities), tried one by one at every word.

    Args:
        names: for each entity type, its names.
    """
    parts, found, i = split_words(text), [], 0
    while i < len(parts):
        length, entities = 0, []
        for type_number, type_names in enumerate(names):
            for number, name in enumerate(type_names, 1):
                wanted = [word for word, _, _ in split_words(name)]
                here = [word for word, _, _ in parts[i : i + len(wanted)]]
                if not any(c.isalnum() for c in name) or wanted != here or len(wanted) < length:
                    continue
                if len(wanted) > length:
                    length, entities = len(wanted), []
                entities.append((type_number, number))
        if length:
            found.append((parts[i][1], parts[i + length - 1][2], tuple(entities)))
        i += max(length, 1)
    return found


def fitted(tokens, room, kept):
    """Tokens that fit: from the end go those not ``kept``, and only then the others."""
    tokens = list(tokens)
    for may_go in (lambda token: token not in kept, lambda token: True):
        i = len(tokens) - 1
        while len(tokens) > room and i >= 0:
            if may_go(tokens[i]):
                del tokens[i]
            i -= 1
    return tokens


def grouped(ids):
    """Product -> its rows, both in order of appearance."""
    groups = []
    for row, id_ in enumerate(ids):
        for known, rows in groups:
            if known == id_:
                rows.append(row)
                break
        else:
            groups.append((id_, [row]))
    return groups


def items(num_images, num_texts, views):
    """(view, caption) of each item of a product."""
    if views == 'first':
        return [(0, 0)]
    pairs, view, caption = [], 0, 0
    while len(pairs) < num_images or len(pairs) < num_texts:
        pairs.append((view, caption))
        view, caption = view + 1, caption + 1
        if view == num_images:
            view = 0
        if caption == num_texts:
            caption = 0
    return pairs
