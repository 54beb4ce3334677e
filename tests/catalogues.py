"""Small catalogues on disk for the tests: Fashion-Gen files by h5py, COCO files by json and PIL."""

import json
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

SIDE = 8  # pixels of a photo; every pixel of row r, and of image r, is r
TEXTS = (
    'brand', 'category', 'composition', 'concat_description', 'department', 'description',
    'gender', 'name', 'pose', 'season', 'subcategory',
)  # fmt: skip


def write_fashiongen(path: Path, rows: list[dict]) -> str:
    """Write rows such as ``dict(productID=7, brand='Chloé')`` with all sixteen keys."""
    n = len(rows)
    with h5py.File(path, 'w') as file:
        for key in TEXTS:
            values = [[row.get(key, '').encode('latin-1')] for row in rows]
            file[f'input_{key}'] = np.array(values, 'S200').reshape(n, 1)
        file['input_productID'] = np.array([[row['productID']] for row in rows], np.int32)
        file['input_msrpUSD'] = np.zeros((n, 1), np.float32)
        file['index'], file['index_2'] = np.arange(n)[:, None], np.arange(n)
        photos = np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1)
        file.create_dataset(
            'input_image',
            data=np.tile(photos, (1, SIDE, SIDE, 3)),
            chunks=(1, SIDE, SIDE, 3) if n else None,
        )
    return str(path)


def write_coco(path: Path, images: list[dict], annotations: list[dict], photos=True) -> str:
    """Write a COCO-captions file and, if wanted, its photos."""
    path.write_text(json.dumps(dict(images=images, annotations=annotations)), encoding='utf-8')
    for image in images if photos else ():
        colour = (image['id'],) * 3
        Image.new('RGB', (SIDE, SIDE), colour).save(path.parent / image['file_name'])
    return str(path)
