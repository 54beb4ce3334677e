"""Any other catalogue, as COCO-captions JSON with entities; the format is docs/data_format.md."""

import contextlib
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from eiclip_mm.registry import DATASETS
from eiclip_mm.structures import clean_text

from .product_dataset import ProductDataset


@DATASETS.register_module()
class CocoProducts(ProductDataset):
    """Products from a COCO-captions file; COCO captions itself loads too (no entities).

    Args:
        ann_file: the JSON file, relative to ``data_root``.
        image_root: folder of the photos; the JSON file's own folder when not given.
        **kwargs: see :class:`ProductDataset`.
    """

    def __init__(self, ann_file: str, image_root: str | None = None, **kwargs: Any):
        self.image_root = image_root
        super().__init__(ann_file=ann_file, **kwargs)

    def load_records(self) -> list[dict]:
        """Read the JSON file; one record a product, in order of its first image."""
        path = Path(self.ann_file)
        if not path.is_file():
            raise FileNotFoundError(
                f'catalogue {path} does not exist; docs/data_format.md says how to write one.'
            )
        coco = _read(path)
        root = Path(self.image_root) if self.image_root else path.parent
        records: dict[int, dict] = {}
        for number, image in enumerate(coco.dataset['images']):
            file_name = _field(image, 'file_name', str, f'{path}: images[{number}]')
            product_id = image.get('product_id', image['id'])
            if isinstance(product_id, bool) or not isinstance(product_id, int):
                raise ValueError(
                    f'{path}: images[{number}].product_id must be an integer, got {product_id!r}.'
                )
            record = records.setdefault(
                product_id, dict(product_id=product_id, images=[], texts=[], entities={})
            )
            record['images'].append(dict(img_path=str(root / file_name)))
            for annotation in coco.imgToAnns.get(image['id'], ()):
                where = f'{path}: annotation {annotation.get("id")!r}'
                caption = _field(annotation, 'caption', str, where)
                record['texts'].append(dict(description=clean_text(caption)))
                for type_, names in _entities(annotation, where).items():
                    known = record['entities'].setdefault(type_, [])
                    known.extend(name for name in names if name not in known)
        bare = [r['product_id'] for r in records.values() if not r['texts']]
        if bare:
            raise ValueError(
                f'{path}: {len(bare)} products have no caption, e.g. product {bare[0]}; every '
                'product needs at least one annotation.'
            )
        return list(records.values())


def _read(path: Path) -> COCO:
    try:
        dataset = json.loads(path.read_text(encoding='utf-8-sig'))
    except ValueError as error:
        raise ValueError(f'{path} is not JSON: {error}') from error
    if not isinstance(dataset, dict):
        raise ValueError(
            f'{path} is not COCO-captions JSON: expected an object, got a {type(dataset).__name__}.'
        )
    for key, needed in (('images', ['id']), ('annotations', ['id', 'image_id'])):
        rows = dataset.get(key)
        if not isinstance(rows, list) or not rows:
            raise ValueError(f'{path}: "{key}" is missing or empty; expected a list.')
        for number, row in enumerate(rows):
            for name in needed:
                if not isinstance(row, dict) or not isinstance(row.get(name), (int, str)):
                    raise ValueError(
                        f'{path}: {key}[{number}] must have an integer {name!r}, got {row!r:.100}.'
                    )
    # Not COCO(path): it reads in the locale's encoding and asks for a category in every caption
    # of a file that has "categories".
    coco = COCO()
    coco.dataset = {key: dataset[key] for key in ('images', 'annotations')}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco.createIndex()
    if len(coco.imgs) != len(dataset['images']):
        ids = Counter(image['id'] for image in dataset['images'])
        raise ValueError(f'{path}: image id {ids.most_common(1)[0][0]} occurs twice in "images".')
    stray = [a['image_id'] for a in coco.dataset['annotations'] if a['image_id'] not in coco.imgs]
    if stray:
        raise ValueError(
            f'{path}: {len(stray)} annotations name an image that is not in "images", '
            f'e.g. image_id {stray[0]!r}.'
        )
    return coco


def _field(row: dict, key: str, type_: type, where: str) -> Any:
    if not isinstance(row.get(key), type_):
        raise ValueError(f'{where}.{key} must be {type_.__name__}, got {row.get(key)!r}.')
    return row[key]


def _entities(annotation: dict, where: str) -> dict[str, list[str]]:
    entities = annotation.get('entities', {})
    if not isinstance(entities, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in entities.values()
    ):
        raise ValueError(
            f'{where}.entities must be like {{"brand": ["Diesel"]}}, got {entities!r}.'
        )
    return {t: [clean_text(name) for name in names] for t, names in entities.items()}
