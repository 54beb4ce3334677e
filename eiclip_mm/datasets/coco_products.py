"""Any other catalogue, as COCO-captions JSON with entities; the format is docs/data_format.md."""

import contextlib
import io
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from eiclip_mm.registry import DATASETS
from eiclip_mm.structures import clean_text, is_type_name
from eiclip_mm.utils.untrusted import read_json, shown

from .bad_rows import BadRows
from .product_dataset import ProductDataset


@DATASETS.register_module()
class CocoProducts(ProductDataset):
    """Products from a COCO-captions file; COCO captions itself loads too (no entities).

    Args:
        ann_file: the JSON file, relative to ``data_root``.
        image_root: folder of the photos; the JSON file's own when not given. Names are relative
            to it, and lead out of it only where it is the JSON file's. Links are followed.
        **kwargs: see :class:`ProductDataset`.
    """

    def __init__(self, ann_file: str, image_root: str | None = None, **kwargs: Any):
        self.image_root = image_root
        super().__init__(ann_file=ann_file, **kwargs)

    def load_records(self) -> list[dict]:
        """Read the JSON file; one record a product, in order of its first image."""
        path = Path(self.ann_file)
        if not os.path.isfile(path):  # a Path's own raises where the name is too long
            problem = 'is no file' if os.path.exists(path) else 'does not exist'
            raise FileNotFoundError(
                f'catalogue {shown(path)} {problem}; docs/data_format.md says how to write one.'
            )
        coco, lost = _read(path, self.bad)
        root = self.image_root or str(path.parent)
        records: dict[int, dict] = {}
        for image in coco.dataset['images']:
            product_id = image.get('product_id', image['id'])
            record = records.setdefault(
                product_id, dict(product_id=product_id, images=[], texts=[], entities={})
            )
            if self._may_be_read(image, path):
                photo = os.path.join(root, image['file_name'])
                record['images'].append(dict(img_path=photo))
            for annotation in coco.imgToAnns.get(image['id'], ()):
                record['texts'].append(dict(description=clean_text(annotation['caption'])))
                for type_, names in _entities(annotation).items():
                    known = record['entities'].setdefault(type_, [])
                    known.extend(name for name in names if name not in known)
        # A product whose bad caption is listed is not listed again: one fault is one row.
        images = coco.dataset['images']
        listed = {i.get('product_id', i['id']) for i in images if i['id'] in lost}
        for record in records.values():
            if not record['texts'] and record['product_id'] not in listed:
                why = (
                    f'{path}: product {record["product_id"]} has no caption; every product needs '
                    'at least one annotation.'
                )
                self.bad.add(path, f'product {record["product_id"]}', why)
        return [r for r in records.values() if r['texts'] and r['images']]

    def _may_be_read(self, image: dict, path: Path) -> bool:
        """Whether a photo's name leads to where photos are."""
        name = image['file_name']
        root = self.image_root or path.parent
        # Converters name photos that stay where they are as seen from the JSON file's folder.
        if not leads_out(name) or (not os.path.isabs(name) and _same_folder(root, path.parent)):
            return True
        folder = shown(root)
        id_ = shown(image['id'])
        self.bad.add(
            path,
            f'image {id_}',
            f'{path}: image {id_}: file_name {shown(name)!r} must be relative to {folder}.',
        )
        return False


def leads_out(name: str) -> bool:
    """Whether a name leads out of the folder that it is relative to; links inside may.

    >>> [leads_out(name) for name in ('a/../b.png', 'a/../../b.png', '/b.png')]
    [False, True, True]
    """
    return os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir


def _same_folder(one: str | Path, other: str | Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _read(path: Path, bad: BadRows) -> tuple[COCO, set]:
    """The rows that can be used, and the ids of the images that others were captions of."""
    dataset = read_json(path)
    if not isinstance(dataset, dict):
        raise ValueError(
            f'{path} is not COCO-captions JSON: expected an object, got a {type(dataset).__name__}.'
        )
    for key in ('images', 'annotations'):
        if not isinstance(dataset.get(key), list) or not dataset[key]:
            raise ValueError(f'{path}: "{key}" is missing or empty; expected a list.')
    images, unusable = _sound(path, 'images', 'id', dataset['images'], _problem_of_image, bad)
    ids = Counter(image['id'] for image in images)
    if len(ids) < len(images):  # whose captions they are nobody can say
        twice = shown(ids.most_common(1)[0][0])
        raise ValueError(f'{path}: image id {twice} occurs twice in "images".')

    def problem_of_annotation(row: Any) -> str | None:
        problem = _problem_of_caption(row)
        # One of an image that is listed already goes with it.
        if not problem and row['image_id'] not in ids and row['image_id'] not in unusable:
            problem = f' names an image that is not in "images": image_id {shown(row["image_id"])}'
        return problem

    rows = dataset['annotations']
    annotations, lost = _sound(path, 'annotations', 'image_id', rows, problem_of_annotation, bad)
    # Not COCO(path): it reads in the locale's encoding and asks for a category in every caption
    # of a file that has "categories".
    coco = COCO()
    coco.dataset = dict(images=images, annotations=annotations)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco.createIndex()
    return coco, lost


def _sound(
    path: Path,
    key: str,
    image: str,
    rows: list,
    problem_of: Callable[[Any], str | None],
    bad: BadRows,
) -> tuple[list[dict], set]:
    """The rows without a problem; of the others, which go to ``bad``, the ids under ``image``."""
    sound, images = [], set()
    for number, row in enumerate(rows):
        if problem := problem_of(row):
            bad.add(path, f'{key}[{number}]', f'{path}: {key}[{number}]{problem}.')
            if isinstance(row, dict) and _is_id(row.get(image)):
                images.add(row[image])
        else:
            sound.append(row)
    return sound, images


def _problem_of_image(row: Any) -> str | None:
    if not isinstance(row, dict) or not _is_id(row.get('id')):
        return f" must have an integer 'id', got {shown(row)!r}"
    name, product_id = row.get('file_name'), row.get('product_id', row['id'])
    if not isinstance(name, str) or not _is_file_name(name):
        return f'.file_name must be str that can name a file, got {shown(name)!r}'
    if not _is_id(product_id) or isinstance(product_id, str):
        return f'.product_id must be an integer of 64 bits, got {shown(product_id)!r}'
    return None


def _problem_of_caption(row: Any) -> str | None:
    for key in ('id', 'image_id'):
        if not isinstance(row, dict) or not _is_id(row.get(key)):
            return f' must have an integer {key!r}, got {shown(row)!r}'
    if not isinstance(row.get('caption'), str):
        return f'.caption must be str, got {shown(row.get("caption"))!r}'
    entities = row.get('entities', {})
    if not isinstance(entities, dict) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names)
        for names in entities.values()
    ):
        return f'.entities must be like {{"brand": ["Diesel"]}}, got {shown(entities)}'
    odd = [type_ for type_ in entities if not is_type_name(type_)]
    return f'.entities has a type of an odd name: {shown(odd[0])!r}' if odd else None


def _is_id(value: Any) -> bool:
    """Whether it is an integer that arrays hold, or a text."""
    if isinstance(value, str):
        return True
    return type(value) is int and -(2**63) <= value < 2**63


def _is_file_name(name: str) -> bool:
    try:
        return bool(name) and b'\0' not in os.fsencode(name)
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _entities(annotation: dict) -> dict[str, list[str]]:
    entities = annotation.get('entities', {})
    return {t: [clean_text(name) for name in names] for t, names in entities.items()}
