"""Texts per CPU-second: sub-words, the whole first pass, rows in training, and names in texts.

python tools/analysis_tools/benchmark_text.py [--texts 100000 --names 4600]

Each way runs in a process of its own. The texts are drawn from a seed, about as long as
Fashion-Gen's descriptions: a median of 46 tokens, one in a hundred beyond 77; every second one
holds a name, one in twenty signs beyond ASCII. Slow ways take the first of them (column "texts");
what ways make of the texts that they share is compared.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from tempfile import TemporaryDirectory

import numpy as np
import torch
from _benchmark import Meter, add_options, run, table

MODEL = 'ViT-B-32'
COMPARED = 200  # texts whose results are compared
BATCH = 256
SIGNS = ('appliqués', 'Chloé’s', 'Tencel™', '“heritage”', '½-zip', 'Levi&#039;s')
TOKENS = {  # way: share of the texts that it takes
    'open_clip': 0.05,
    'Hugging Face': 0.05,
    'sub-words': 1,
    'first pass': 1,
    'rows': 0.1,
    'batches': 0.1,
}
MENTIONS = {'alternation': 0.005, 'each name': 0.005, 'matcher': 1}


def parse_args() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--texts', type=int, default=100_000)
    parser.add_argument('--names', type=int, default=4600)
    parser.add_argument('--seed', type=int, default=0)
    add_options(parser, (*TOKENS, *MENTIONS), repeats=1)
    return parser.parse_args()


def main() -> None:
    """Run every way in turn and print texts per CPU-second."""
    args = parse_args()
    found = run({way: partial(measure, way) for way in (*TOKENS, *MENTIONS)}, args)
    print(f'{args.texts} texts, {args.names} names, median of {args.repeats}\n')
    for ways, what in ((TOKENS, 'ids'), (MENTIONS, 'mentions')):
        rows = {way: row for way, row in found.items() if way in ways}
        if not rows:
            continue
        first = next(iter(rows.values()))
        columns = {
            'texts': lambda row: f'{row["texts"]:,}',
            'texts per CPU-s': lambda row: f'{row["texts"] / row["cpu"]:,.0f}',
            'CPU-s for all': lambda row: f'{row["cpu"] / row["texts"] * args.texts:.2f}',
            f'{what} of the first way': lambda row, right=first['digest']: (
                'yes' if row['digest'] == right else 'NO'
            ),
        }
        print(table(rows, columns), end='\n\n')


def measure(way: str, args: argparse.Namespace) -> dict:
    """One way: CPU and wall seconds, peak memory in MB, and a digest of what it made."""
    import eiclip_mm  # noqa: F401  before anything imports torchvision
    from eiclip_mm.structures import clean_text

    share = (TOKENS | MENTIONS)[way]
    number = max(COMPARED, int(args.texts * share))
    names = make_names(args.names, args.seed)
    texts = make_texts(number, names, args.seed)
    if way in MENTIONS:
        texts = [clean_text(text) for text in texts]
    work = globals()[f'make_{way.replace(" ", "_").replace("-", "_").lower()}'](texts, names)
    with Meter(args.device) as used:
        result = work(texts)
    compared = [plain(row, way in TOKENS) for row in result[:COMPARED]]
    return used.result | dict(texts=number, digest=sha256(repr(compared).encode()).hexdigest())


def plain(row: Sequence, is_ids: bool) -> list:
    """A row of ids up to the end token, whatever the padding; spans as they are."""
    if not is_ids:
        return [tuple(span) for span in row]
    ids = [int(i) for i in row]
    return ids[: ids.index(49407) + 1]


# ------------------------------------------------------------------------------- the texts


def known_words() -> np.ndarray:
    """Words of open_clip's own list, the frequent ones first."""
    from open_clip import SimpleTokenizer

    words = [piece[:-4] for piece in SimpleTokenizer().encoder if piece.endswith('</w>')]
    return np.array([w for w in words if w.isascii() and w.isalpha() and len(w) > 2][:12_000])


def make_names(number: int, seed: int) -> list[str]:
    """Names of one to three rare words."""
    rng, known = np.random.default_rng((seed, 0)), known_words()
    names: dict[str, str] = {}
    while len(names) < number:
        name = ' '.join(known[rng.integers(5000, len(known), rng.integers(1, 4))]).title()
        names.setdefault(name.casefold(), name)
    return list(names.values())


def make_texts(number: int, names: Sequence[str], seed: int) -> list[str]:
    """Descriptions of sentences of seven words; fewer are the first of more."""
    draw_words, draw_lengths, draw = (np.random.default_rng((seed, i)) for i in (1, 2, 3))
    known = known_words()
    share = 1 / np.arange(20, len(known) + 20)
    words = iter(draw_words.choice(known, number * 64, p=share / share.sum()).tolist())
    lengths = draw_lengths.normal(38, 11.5, number).clip(4, 64).astype(int).tolist()
    texts = []
    for length in lengths:
        own = [next(words) for _ in range(length)]
        place, other, name, sign = draw.integers(2**31, size=4).tolist()
        if name % 2:
            own[place % length] = names[name % len(names)]
        if sign % 20 == 0:
            own[other % length] = SIGNS[sign % len(SIGNS)]
        sentences = [' '.join(own[i : i + 7]) for i in range(0, length, 7)]
        texts.append(' '.join(f'{s[0].upper()}{s[1:]}.' for s in sentences))
    return texts


# -------------------------------------------------------------------------------- the ways


def make_open_clip(texts, names) -> Callable:
    """SimpleTokenizer."""
    import open_clip

    return open_clip.get_tokenizer(MODEL)


def make_hugging_face(texts, names) -> Callable:
    """The same sub-words in Hugging Face's tokenizer, as open_clip calls it."""
    import json
    from pathlib import Path

    import open_clip
    from transformers import CLIPTokenizerFast

    simple = open_clip.get_tokenizer(MODEL)
    special = {'<start_of_text>': '<|startoftext|>', '<end_of_text>': '<|endoftext|>'}
    with TemporaryDirectory() as folder:
        vocab, merges = Path(folder, 'vocab.json'), Path(folder, 'merges.txt')
        vocab.write_text(json.dumps({special.get(k, k): v for k, v in simple.encoder.items()}))
        merges.write_text('\n'.join(['#version: 0.2', *map(' '.join, simple.bpe_ranks)]))
        CLIPTokenizerFast(str(vocab), str(merges)).save_pretrained(folder)
        return open_clip.tokenizer.HFTokenizer(folder, context_length=77, clean='lower')


def make_sub_words(texts, names) -> Callable:
    """Ours, the sub-words alone."""
    from eiclip_mm.datasets.subwords import SubWords

    own = SubWords(MODEL)
    return lambda texts: [[own.start, *ids[:75], own.end] for ids in own.encode_all(texts)]


def make_first_pass(texts, names) -> Callable:
    """Ours when a data set is loaded: text composed and cleaned, names found, ids and hashes."""
    from eiclip_mm.datasets import EntityTokenizer

    tokenizer = EntityTokenizer(MODEL, vocab_of(names), ('description',))
    return lambda texts: tokenizer.encode_all((dict(description=t), None) for t in texts).text


def make_rows(texts, names) -> Callable:
    """Ours in training, one product at a time in random order."""
    encoded, order = encode(texts, names)

    def work(texts):
        for i in order:
            torch.from_numpy(encoded.text[i].astype(np.int64))
            torch.from_numpy(encoded.entity_ids[i].astype(np.int64))
        return encoded.text

    return work


def make_batches(texts, names) -> Callable:
    """Ours in training, a batch at a time, as long as its longest text."""
    encoded, order = encode(texts, names)

    def work(texts):
        for i in range(0, len(order), BATCH):
            rows = order[i : i + BATCH]
            length = -(-encoded.length[rows].max() // 8) * 8
            torch.from_numpy(encoded.text[rows, :length].astype(np.int64))
            torch.from_numpy(encoded.entity_ids[rows].astype(np.int64))
        return encoded.text

    return work


def encode(texts, names) -> tuple:
    """All texts as arrays, and an order to take them in."""
    from eiclip_mm.datasets import EntityTokenizer

    tokenizer = EntityTokenizer(MODEL, vocab_of(names), ('description',))
    encoded = tokenizer.encode_all((dict(description=text), None) for text in texts)
    return encoded, np.random.default_rng(0).permutation(len(texts))


def vocab_of(names):
    """The names as one entity type."""
    from eiclip_mm.structures import EntityVocab

    return EntityVocab(dict(brand=tuple(names)), dict(brand=(1,) * len(names)))


def make_alternation(texts, names) -> Callable:
    """One regular expression of all names, the longest first."""
    names = sorted(map(re.escape, names), key=len, reverse=True)
    pattern = re.compile(rf'(?<!\w)(?:{"|".join(names)})(?!\w)', re.IGNORECASE)
    return lambda texts: [[m.span() for m in pattern.finditer(text)] for text in texts]


def make_each_name(texts, names) -> Callable:
    """Every name looked for with ``in``, and checked where it stands."""
    patterns = {n.lower(): re.compile(rf'(?<!\w){re.escape(n.lower())}(?!\w)') for n in names}

    def find(text):
        low = text.lower()
        spans = [m.span() for n, p in patterns.items() if n in low for m in p.finditer(low)]
        kept, end = [], 0
        for start, stop in sorted(spans, key=lambda span: (span[0], -span[1])):
            if start >= end:
                kept.append((start, stop))
                end = stop
        return kept

    return lambda texts: [find(text) for text in texts]


def make_matcher(texts, names) -> Callable:
    """Ours."""
    from eiclip_mm.datasets import EntityMatcher

    find = EntityMatcher(vocab_of(names)).find
    return lambda texts: [[(m.start, m.end) for m in find(text)] for text in texts]


if __name__ == '__main__':
    main()
