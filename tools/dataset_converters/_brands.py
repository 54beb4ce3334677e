"""The brand of a product, read from its title. Source of the rule: ours.

1. *Candidate*: the 1 to 4 words before the first audience word (Men, Women's, Kids, Unisex ...).
   Spellings that differ in case, spaces and signs only are one ("Inc. 5", "INC5").
2. *Known brand*: a candidate of at least 3 train titles. Shortest first, one that extends a known
   brand is that brand if it is rare beside it (a fifth of its titles or less: "Nike Fragrances")
   or if at least 3 different words follow the brand, each in 2 titles or more (a maker with
   lines: "Turtle Check", "Turtle Solid", "Casio Enticer"). "Lee Cooper" stays beside "Lee".
3. Some brands never meet an audience word ("Colorbar"): in the train titles that have neither
   candidate nor known brand, a first word of at least 3 titles starts a brand; the brand is
   what all these titles begin with, if that is 4 words or fewer and never the whole title.
4. *The brand of a title* is the longest known brand it begins with, else its candidate, else none.
   A candidate that is not known is kept as text, so a brand of val may lie outside the vocabulary.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from eiclip_mm.structures import clean_text

MIN_TITLES = 3  # train titles that make a candidate a known brand
BRAND_WORDS = 4

# "Mr. Men" is a brand, and "Spider-Man" is not for men only; "Kids-Boys" is for kids.
_AUDIENCE = re.compile(
    r'(?<![\w-])(?<!mr\. )(?:adult|boy|gent|girl|infant|kid|kidswear|ladie|lady|man|men|teen|'
    r"toddler|unisex|woman|women)(?:['’]?s)?\b",
    re.IGNORECASE,
)


def brand_key(words: Sequence[str]) -> str:
    """Letters and digits only, case-folded: what spellings of one brand share.

    >>> brand_key(['U.S.', 'Polo', 'Assn.']) == brand_key(['U.S.Polo', 'Assn'])
    True
    """
    return re.sub(r'[\W_]', '', ''.join(words)).casefold()


def brand_candidate(title: str) -> tuple[str, ...]:
    """Words before the first audience word, or () if there is none or they are not 1 to 4.

    >>> brand_candidate('Mother Earth Women Aug Bagru Red Kurtas')
    ('Mother', 'Earth')
    >>> brand_candidate('Kids Ville Girls Pink Top')
    ('Kids', 'Ville')
    >>> brand_candidate('Lakme Eye Pencil')
    ()
    """
    found = _AUDIENCE.search(title, len(title.split(' ', 1)[0]))  # not in the first word
    if not found:
        return ()
    words = title[: found.start()].split()
    while words and (words[-1].casefold() in ('for', 'by') or not brand_key(words[-1])):
        words.pop()
    return tuple(words) if len(words) <= BRAND_WORDS else ()


class Brands:
    """The brand rule of the module docstring, with what it learned from train titles.

    >>> brands = Brands(['Turtle Men Check Shirt', 'TURTLE Men Shirt', 'Turtle Boys Shirt'])
    >>> brands.of('Turtle Leather Belt'), brands.of('Gas Men Jeans'), brands.of('Blue Belt')
    ('Turtle', 'Gas', None)
    """

    def __init__(self, train_titles: Iterable[str]):
        titles = [clean_text(title) for title in train_titles]
        spellings = defaultdict(Counter)  # key -> printed words, of candidates
        for title in titles:
            if words := brand_candidate(title):
                spellings[brand_key(words)][words] += 1
        self.names = {}  # key of a known brand -> printed name
        self._accept({key: n for key, n in spellings.items() if key})
        self._accept_without_audience(titles)

    def _accept(self, spellings: dict[str, Counter]) -> None:
        count = {key: n.total() for key, n in spellings.items()}
        printed = {key: n.most_common(1)[0][0] for key, n in spellings.items()}
        followers = defaultdict(Counter)  # brand -> the words that follow it in longer candidates
        for key, words in printed.items():
            for n in range(1, len(words)):
                if (start := brand_key(words[:n])) in count:
                    followers[start][brand_key(words[n])] += count[key]
        makers = {k for k, n in followers.items() if sum(c >= 2 for c in n.values()) >= 3}
        for key in sorted(count, key=lambda key: (len(printed[key]), key)):
            base = self._known_start(printed[key])
            is_line = base and (base in makers or count[key] <= count[base] / 5)
            if count[key] >= MIN_TITLES and not is_line:
                self.names[key] = ' '.join(printed[key])

    def _accept_without_audience(self, titles: list[str]) -> None:
        groups = defaultdict(list)
        for title in titles:
            words = title.split()
            if words and not brand_candidate(title) and not self._known_start(words):
                groups[brand_key(words[:1])].append(words)
        for first, group in groups.items():
            if not first or len(group) < MIN_TITLES:
                continue
            keys = ([brand_key([word]) for word in words] for words in group)
            columns = zip(*keys, strict=False)
            differ = (n for n, column in enumerate(columns) if len(set(column)) > 1)
            shared = next(differ, 0)  # 0: one title is the start of all others, or all are one
            if 0 < shared <= BRAND_WORDS:
                starts = Counter(tuple(words[:shared]) for words in group)
                words = starts.most_common(1)[0][0]
                self.names[brand_key(words)] = ' '.join(words)

    def _known_start(self, words: Sequence[str]) -> str | None:
        """Key of the longest known brand that the words begin with."""
        keys = (brand_key(words[:n]) for n in range(BRAND_WORDS, 0, -1))
        return next((key for key in keys if key in self.names), None)

    def of(self, title: str) -> str | None:
        """The brand of a title, known or not; None if it names none."""
        title = clean_text(title)
        if key := self._known_start(title.split()):
            return self.names[key]
        return ' '.join(brand_candidate(title)) or None
