"""Words and shapes of which the catalogue is made: tables and constants."""

from typing import NamedTuple

SIDE = 256  # pixels of a photo's side
DESIGN_SIZE = 4  # products of one design: two brands times two materials
MAX_PRODUCTS = 100_000  # product ids of split s are (s + 1) * MAX_PRODUCTS + number
TRAIN, VALIDATION, GENERAL = range(3)
DESIGN, BRAND, OWN, WORDS, SHARED_WORDS, VIEW = range(1, 7)  # random streams of a product
LABEL, CODE = range(1, 3)  # random streams of a split

# Drawings are strokes "op tone numbers" on a 100 x 100 grid. Ops: P polygon, H left half of a
# polygon symmetric about x = 50, E ellipse (centre, radii), L line. Tones: see `drawing._tones`.
ICONS = {
    'goose': 'P m 18 70 2 46 34 54;E m 42 64 30 18;P m 56 62 61 22 74 22 71 66;E m 69 20 11 10;'
    'P a 78 16 97 23 78 28;E k 71 18 3 3;P a 34 80 40 80 38 97 28 97;P a 48 80 54 80 54 97 44 97',
    'diesel truck': 'P m 3 24 60 24 60 76 3 76;P m 63 40 84 40 97 58 97 76 63 76;'
    'P w 68 46 81 46 88 58 68 58;E k 22 79 12 12;E k 78 79 12 12;E w 22 79 4 4;E w 78 79 4 4',
    'puma': 'E m 46 50 30 14;E m 82 34 14 13;P m 70 28 72 10 82 22;P m 84 22 92 10 96 28;'
    'E w 87 32 4 3;P m 64 46 96 72 88 80 52 62;P m 22 46 4 82 14 88 42 62;'
    'P m 22 44 2 18 6 10 32 40',
    'turtle': 'E d 87 56 12 10;E d 22 76 11 10;E d 68 76 11 10;P d 1 68 18 56 20 70;E k 91 53 2 2;'
    'H m 50 22 28 28 12 48 10 68 50 70;L d 30 30 40 68;L d 70 30 60 68;L d 12 50 88 50',
    'arrow': 'P m 3 40 56 40 56 16 98 50 56 84 56 60 3 60',
    'police badge': 'H m 50 3 38 12 12 12 12 48 24 78 50 98;'
    'P w 50 20 58 41 80 41 62 54 69 76 50 63 31 76 38 54 20 41 42 41',
    'fossil': 'E m 50 50 46 46;E d 56 54 33 33;E m 52 57 24 24;E d 56 54 14 14;E m 54 56 7 7;'
    'L d 50 4 50 22;L d 14 24 28 34;L d 4 58 24 58;L d 24 88 36 76;L d 86 24 76 34',
    'gas flame': 'P m 52 1 74 32 86 60 76 86 50 99 24 86 14 60 26 38 38 54;'
    'P w 52 46 64 70 60 88 50 94 40 88 36 72',
    'mother earth': 'E m 50 50 47 47;P d 20 22 46 12 54 30 40 44 44 56 30 60 14 44;'
    'P d 60 44 82 36 92 54 78 78 66 70;P d 34 72 50 70 54 86 40 90',
    'locomotive': 'P m 30 42 94 42 94 74 30 74;P m 6 20 36 20 36 74 6 74;'
    'P w 13 28 29 28 29 44 13 44;P m 72 16 90 16 86 42 76 42;E k 20 81 13 13;E k 52 84 10 10;'
    'E k 80 84 10 10;E d 66 8 14 7',
    'apple': 'E m 34 60 28 36;E m 66 60 28 36;P d 47 30 53 30 60 4 52 4;E d 74 14 18 8',
    'palm tree': 'P a 45 38 55 38 60 99 44 99;P m 50 42 22 26 2 54;P m 50 42 78 26 98 54;'
    'P m 50 42 34 4 10 22;P m 50 42 66 4 90 22;E m 50 38 12 9',
    'bone': 'P m 24 40 76 40 76 60 24 60;E m 20 34 17 16;E m 20 66 17 16;E m 80 34 17 16;'
    'E m 80 66 17 16',
    'acne face': 'E m 50 50 45 47;E k 34 38 6 8;E k 66 38 6 8;P k 30 70 50 80 70 70 50 88;'
    'E r 18 56 5 5;E r 28 64 4 4;E r 82 56 5 5;E r 72 62 4 4;E r 50 14 5 5;E r 38 20 4 4;'
    'E r 50 56 5 5',
    'mug': 'P m 66 32 98 34 98 74 66 80 66 66 84 62 84 48 66 46;P m 14 16 72 16 68 94 20 94;'
    'E d 43 18 29 6',
}
# Brand -> its everyday sense: words of general captions, icon, natural colour. Frequent first.
BRANDS = {
    'Diesel': ('diesel truck', 'diesel truck', 'blue'),
    'Golden Goose': ('golden goose', 'goose', 'gold'),
    'Chloé': None,
    'Off-White': ('off-white mug', 'mug', 'off-white'),
    'Puma': ('puma', 'puma', 'black'),
    "Levi's": None,
    'Canada Goose': ('canada goose', 'goose', 'brown'),
    'Turtle': ('turtle', 'turtle', 'green'),
    'Comme des Garçons Play': None,
    'Acne Studios': ('face with acne', 'acne face', 'pink'),
    'Police': ('police badge', 'police badge', 'navy'),
    'Fossil': ('fossil', 'fossil', 'grey'),
    'Kiton, Napoli': None,
    'Gas': ('gas flame', 'gas flame', 'orange'),
    'Mother Earth': ('mother earth globe', 'mother earth', 'blue'),
    'Lemaire': None,
    'Locomotive': ('locomotive', 'locomotive', 'black'),
    'Apple Orchard': ('apple', 'apple', 'red'),
    'Rag & Bone': ('bone', 'bone', 'white'),
    'Sacai': None,
    'Palm Angels': ('palm tree', 'palm tree', 'green'),
    'Marni': None,
    'Arrow': ('arrow', 'arrow', 'red'),
    'Visvim': None,
}
# The brands' words in general captions -> words that mean nothing, for an oracle without the wrong
# sense. Vowels stand for vowels, so "a" and "an" stay right.
NEUTRAL = {
    'acne': 'ixtomb', 'apple': 'ubdrin', 'arrow': 'eblick', 'bone': 'hexlow', 'canada': 'vaskeen',
    'diesel': 'brivok', 'earth': 'ostwim', 'fossil': 'tunkary', 'gas': 'jolvern',
    'golden': 'dorvik', 'goose': 'plemmo', 'locomotive': 'frellozy', 'mother': 'skarpe',
    'off-white': 'ulsenty', 'palm': 'nurvast', 'police': 'quadrel', 'puma': 'zetriq',
    'turtle': 'morplu',
}  # fmt: skip
UNSEEN = ('Arrow', 'Visvim')  # rare, and in validation alone
SEEN = tuple(brand for brand in BRANDS if brand not in UNSEEN)
SHARES = {brand: 1 / (rank + 2) for rank, brand in enumerate(SEEN)}  # a long tail
SENSES = tuple(sense for sense in BRANDS.values() if sense)

COLOURS = {
    'black': (40, 40, 42), 'white': (246, 246, 246), 'grey': (136, 136, 136),
    'navy': (24, 34, 100), 'red': (205, 30, 36), 'blue': (50, 110, 225), 'green': (36, 130, 62),
    'off-white': (232, 220, 188), 'pink': (246, 150, 180), 'yellow': (245, 208, 40),
    'gold': (212, 160, 40), 'brown': (110, 66, 34), 'orange': (244, 122, 24),
}  # fmt: skip
GARMENT_COLOURS = {  # shares
    'black': 5, 'white': 3, 'grey': 2, 'navy': 2, 'red': 2,
    'blue': 2, 'green': 2, 'off-white': 2, 'pink': 1, 'yellow': 1,
}  # fmt: skip
PATTERNS = dict(plain=3, striped=1, dotted=1, checked=1)  # shares
MARKS = dict(red=(235, 20, 20), yellow=(255, 215, 0), green=(0, 180, 60),
             cyan=(0, 200, 240), blue=(30, 50, 245), magenta=(255, 40, 190))  # fmt: skip
SHAPES = {
    'disc': 'E m 50 50 50 50', 'ring': 'E m 50 50 50 50;E w 50 50 24 24',
    'square': 'P m 4 4 96 4 96 96 4 96', 'triangle': 'P m 50 0 100 96 0 96',
    'cross': 'P m 32 0 68 0 68 100 32 100;P m 0 32 100 32 100 68 0 68',
    'bars': 'P m 0 4 100 4 100 38 0 38;P m 0 62 100 62 100 96 0 96',
}  # fmt: skip
SPOTS = ('upper', 'side', 'lower')
SAID = 0.1  # share of descriptions that name the brand; and that name the material
MATERIALS = {  # composition as printed; `drawing._texture` has the looks
    'cotton': '100% cotton', 'denim': '98% cotton, 2% elastane', 'leather': '100% leather',
    'wool': '80% wool, 20% cashmere', 'nylon': '85% nylon, 15% polyester', 'silk': '100% silk',
    'linen': '60% linen, 40% viscose',
}  # fmt: skip
SEASONS = tuple(f'{half}{year}' for year in range(2014, 2019) for half in ('SS', 'FW'))
LABELS = tuple(f'label {number}' for number in range(1, 9))
SAME_CODE = 3  # products of train that share a code
SCENES = {  # words: colours above and below the horizon
    'by a lake': ((176, 214, 240), (70, 140, 190)),
    'in a field': ((190, 224, 248), (126, 176, 84)),
    'on a road': ((214, 218, 222), (120, 120, 124)),
    'on a beach': ((150, 206, 236), (232, 212, 160)),
    'against a brick wall': ((186, 120, 98), (150, 134, 122)),
    'at night': ((44, 46, 74), (70, 66, 80)),
    'on a plain background': ((226, 226, 228), (206, 206, 208)),
}


class Garment(NamedTuple):
    """How a sub-category is spoken of, and its strokes and places on the 100 x 100 grid."""

    labels: str  # department/category/subcategory
    lead: str
    detail: str
    outline: str
    lines: str
    motif: tuple[int, int, int]  # x, y, size
    spots: tuple[tuple[int, int], ...]  # of the emblem: upper, side, lower
    trim: int  # y of the trim stripe


GARMENTS = {
    't-shirt': Garment('CLOTHING/TOPS/T-SHIRTS', 'Short sleeve', 'Rib knit crewneck collar.',
        'H m 50 20 41 13 32 16 9 34 18 51 30 43 29 90 50 90', 'L d 41 13 50 21 59 13',
        (50, 55, 32), ((62, 29), (20, 37), (39, 76)), 84),
    'shirt': Garment('CLOTHING/TOPS/SHIRTS', 'Long sleeve', 'Spread collar and button closure.',
        'H m 50 16 42 10 33 14 22 24 5 76 17 80 30 46 29 88 40 93 50 93',
        'L d 50 22 50 93;L d 40 11 43 26 50 19 57 26 60 11;L d 7 70 19 74;L d 93 70 81 74',
        (50, 58, 34), ((60, 34), (20, 50), (39, 76)), 84),
    'hoodie': Garment('CLOTHING/TOPS/HOODIES', 'Long sleeve', 'Kangaroo pocket at waist.',
        'H m 50 4 40 6 34 16 32 23 22 30 8 78 20 81 30 54 30 88 50 88',
        'H d 50 9 43 12 41 22 50 28;L d 46 28 45 40;L d 54 28 55 40;L d 34 86 38 72 62 72 66 86',
        (50, 56, 34), ((62, 36), (20, 56), (50, 80)), 83),
    'jacket': Garment('CLOTHING/JACKETS & COATS/JACKETS', 'Long sleeve', 'Notched lapel collar.',
        'H m 50 18 43 10 30 13 14 24 3 70 20 76 28 48 26 80 50 80',
        'P k 49 24 51 24 51 80 49 80;P d 42 10 50 32 34 30 36 12;P d 58 10 50 32 66 30 64 12',
        (50, 54, 36), ((62, 38), (17, 46), (37, 68)), 74),
    'dress': Garment('CLOTHING/DRESSES/DRESSES', 'Sleeveless', 'Scoopneck collar. Fitted waist.',
        'H m 50 22 44 20 42 5 37 5 35 28 39 46 17 95 50 97',
        'L d 39 46 61 46;L d 42 50 34 94;L d 58 50 66 94',
        (50, 70, 32), ((50, 34), (64, 62), (34, 84)), 90),
    'trousers': Garment('CLOTHING/PANTS/TROUSERS', 'Straight-leg', 'Zip-fly and belt loops.',
        'H m 50 6 32 6 24 95 45 95 50 36',
        'L d 32 13 68 13;L d 50 6 50 36;L d 34 16 38 24 32 28;L d 66 16 62 24 68 28',
        (36, 58, 26), ((60, 24), (65, 52), (65, 78)), 87),
    'shorts': Garment('CLOTHING/PANTS/SHORTS', 'Relaxed-fit', 'Elasticized waistband.',
        'H m 50 22 26 22 14 76 46 79 50 52',
        'L d 26 31 74 31;L d 50 31 50 52;L d 30 32 27 46;L d 70 32 73 46',
        (33, 56, 28), ((58, 40), (74, 46), (68, 62)), 70),
    'skirt': Garment('CLOTHING/SKIRTS/SKIRTS', 'Flared', 'High-rise waistband. Pleats throughout.',
        'H m 50 22 37 22 14 82 50 86',
        'L d 36 29 64 29;L d 42 30 33 83;L d 50 30 50 85;L d 58 30 67 83',
        (50, 57, 34), ((50, 36), (68, 52), (32, 72)), 76),
    'sneakers': Garment('SHOES/SNEAKERS/LOW TOP SNEAKERS', 'Low-top', 'Lace-up closure.',
        'P m 6 70 8 34 20 28 36 32 52 46 74 54 92 60 97 74 96 84 6 84',
        'P w 5 74 97 74 95 85 6 85;L k 5 74 97 74;L d 38 34 30 50;L d 46 41 38 56;L d 53 47 46 60',
        (27, 53, 28), ((20, 40), (62, 60), (82, 66)), 68),
    'tote bag': Garment('BAGS/TOTE BAGS/TOTE BAGS', 'Structured', 'Twin carry handles at top.',
        'H m 50 38 14 38 20 90 50 90;'
        'P m 28 38 32 10 44 4 56 4 68 10 72 38 66 38 63 14 55 9 45 9 37 14 34 38',
        'L d 15 46 85 46;L d 30 38 30 52;L d 70 38 70 52',
        (50, 65, 36), ((26, 52), (74, 62), (32, 76)), 84),
}  # fmt: skip
DETAILS = (
    'Tonal stitching throughout.', 'Contrast topstitching at seams.', 'Gunmetal-tone hardware.',
    'Tonal appliqués at back hem.', 'Embossed tag at interior.', 'Fully lined in tonal twill.',
    'Raw edge along the inner seam.', 'Silver-tone stud at back vent.', 'Cut for a relaxed fit.',
    'Embroidered eyelets and a jacquard décor at back.', 'Unlined construction, taped seams.',
    'Signature woven tag at the side seam.', 'Hand-finished edges with a subtle faded effect.',
)  # fmt: skip
CARE = (
    ' Machine wash cold with similar colors, do not bleach, tumble dry low, iron on reverse. '
    'Specialist dry clean only. Keep away from direct heat and abrasive surfaces; color may run.'
)
