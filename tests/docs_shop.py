"""The reader's own files: a catalogue of drawn products, as Kaggle has them and as a table."""

import csv
import io
import random
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

BRANDS = ('Puma', 'Nike', 'Fila', 'Oakley', 'Turtle', 'Lee Cooper')
# of some products, in train (below 200) too few to be in the vocabulary
RARE = {2: 'Pacific Gold', 202: 'Pacific Gold', 3: 'Saint James', 203: 'Saint James'}
RARE |= {204: 'Canada Goose', 205: 'Canada Goose'}
COLOURS = dict(Black=(10, 10, 10), White=(240, 240, 240), Red=(220, 20, 30), Blue=(30, 40, 200))
KINDS = ('Casual Shoes', 'Sports Shoes', 'Dupatta', 'Tshirts')


def write_shop(folder: Path) -> None:
    """``styles.csv`` and ``images.zip`` as Kaggle has them, a CSV catalogue, single photos."""
    draw = random.Random(0)
    rows, photos = [], {}
    for i in range(240):
        brand = RARE.get(i, BRANDS[i % 6])
        colour, kind = draw.choice(list(COLOURS)), KINDS[i // 6 % 4]
        number, split = (10000 + 5 * (i - 200), 'val') if i >= 200 else (i + 1, 'train')
        title = f'{brand} Men {draw.choice(["Running", "Classic", "Street"])} {colour} {kind}'
        usage = draw.choice(['Casual', 'Sports', 'Formal'])
        rows.append(dict(
            id=number, masterCategory='Apparel', subCategory='All', articleType=kind,
            baseColour=colour, usage=usage, productDisplayName=title, split=split,
        ))  # fmt: skip
        photos[number] = _photo(COLOURS[colour], i)
    _write_csv(folder / 'styles.csv', rows)
    with zipfile.ZipFile(folder / 'images.zip', 'w') as file:
        for number, photo in photos.items():
            file.writestr(f'images/{number}.jpg', photo)
    for name, number in dict(a=1, b=2, photo=3).items():
        (folder / f'{name}.jpg').write_bytes(photos[number])
    (folder / 'photos').mkdir()
    for number, photo in photos.items():
        (folder / f'photos/{number}.jpg').write_bytes(photo)
    shop = [dict(
        id=row['id'], image=f'{row["id"]}.jpg', description=row['productDisplayName'],
        brand=row['productDisplayName'].partition(' Men')[0], colour=row['baseColour'],
        price=20 + i,
    ) for i, row in enumerate(rows)]  # fmt: skip
    _write_csv(folder / 'shop.csv', shop)
    _write_csv(folder / 'catalogue.csv', [row | dict(image='') for row in shop[:60]])


def _photo(colour: tuple[int, int, int], seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(-20, 20, (80, 60, 3))
    file = io.BytesIO()
    Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(file, 'JPEG')
    return file.getvalue()


def _write_csv(path: Path, rows: list[dict]) -> None:
    with path.open('w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
