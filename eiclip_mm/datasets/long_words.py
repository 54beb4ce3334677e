"""Byte-pair merges of long words: open_clip's own take a time that grows with their square."""

from collections.abc import Mapping
from heapq import heapify, heappop, heappush
from itertools import pairwise

LONG = 64  # bytes of a word; below, open_clip's way is as fast


def merged(word: str, ranks: Mapping[tuple[str, str], int]) -> str:
    """The sub-words of a word, split by spaces: what open_clip's ``bpe`` gives.

    The pair of lowest rank merges first, of equal ones the leftmost. A merge makes no pair of a
    lower rank, for a table learns pairs after their parts, so each place is visited in order.

    Args:
        word: bytes as open_clip's characters for them.
        ranks: of each pair, its place in the table of merges.
    """
    parts = [*word[:-1], word[-1] + '</w>']
    before, after = list(range(-1, len(parts) - 1)), list(range(1, len(parts) + 1))
    pairs = enumerate(pairwise(parts))
    heap = [(ranks[pair], i, pair) for i, pair in pairs if pair in ranks]
    heapify(heap)
    while heap:
        _, i, pair = heappop(heap)
        j = after[i]
        if j == len(parts) or (parts[i], parts[j]) != pair:  # a part has merged since
            continue
        parts[i], parts[j] = parts[i] + parts[j], ''
        after[i] = after[j]
        if after[i] < len(parts):
            before[after[i]] = i
        for left, right in ((before[i], i), (i, after[i])):
            if left >= 0 and right < len(parts):
                new = parts[left], parts[right]
                if new in ranks:
                    heappush(heap, (ranks[new], left, new))
    return ' '.join(filter(None, parts))
