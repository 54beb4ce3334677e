"""Files: splits in Fashion-Gen's form, some linked to others, and the truth planted in them."""

import json
import multiprocessing
import signal
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from eiclip_mm.utils.cores import usable_cores
from eiclip_mm.utils.whole_together import whole_files

from ..fashiongen import KEYS
from .drawing import draw
from .h5_files import new_h5
from .planted import LINKED, planted_columns
from .products import Product, make_picture, make_product, signature
from .words import BRANDS, MAX_PRODUCTS, SAID, SIDE, TRAIN, UNSEEN, VALIDATION

VERSION = 1  # of what is drawn and written; raise it with every change of either
FILES = dict(
    train='fashiongen_256_256_train.h5',
    validation='fashiongen_256_256_validation.h5',
    general='general.h5',
    **{name: f'{name}.h5' for name in LINKED},
)


def _rows(products: list[Product], scatter: bool) -> list[tuple[Product, int]]:
    """(product, view) of each row; ``scatter`` moves some products' last rows to the end."""
    late = set([look.id for look in products if look.num_views > 1][::25] if scatter else ())
    rows = [(look, view) for look in products for view in range(look.num_views)]
    return sorted(rows, key=lambda row: row[0].id in late and row[1] == row[0].num_views - 1)


def _write_split(path: str, rows: list[tuple[Product, int]], made_with: str, bar: tqdm) -> None:
    """One HDF5 file with Fashion-Gen's sixteen keys."""
    strings = [dict(look.strings, input_pose=f'id_gridfs_{view + 1}') for look, view in rows]
    with new_h5(path) as (file, disk):
        file.attrs['mini_fashiongen'] = made_with
        for key in strings[0]:
            file[key] = np.array([[row[key].encode('latin-1')] for row in strings])
        file['input_productID'] = np.array([[look.id] for look, _ in rows], np.int32)
        file['input_msrpUSD'] = np.array([[look.price] for look, _ in rows], np.float32)
        file['index'] = np.arange(len(rows))[:, None]
        file['index_2'] = np.arange(len(rows))
        photo = (SIDE, SIDE, 3)
        images = file.create_dataset(
            'input_image', (len(rows), *photo), np.uint8, chunks=(1, *photo), compression='lzf'
        )
        for i, image in enumerate(_drawn(rows)):
            images[i] = image
            disk.check()
            bar.update()


def _write_linked(
    path: str, source: str, rows: list[tuple[Product, int]], columns: dict, made_with: str
) -> None:
    """The split in the file ``source`` beside it, but for ``columns``; photos are not repeated."""
    with new_h5(path) as (file, _):
        file.attrs['mini_fashiongen'] = made_with
        for key, values in columns.items():
            file[key] = np.array([[values[look.id].encode('latin-1')] for look, _ in rows])
        for key in KEYS:
            if key not in columns:
                file[key] = h5py.ExternalLink(source, key)


def _drawn(rows: list[tuple[Product, int]]) -> Iterator[np.ndarray]:
    """The photos in order; a photo depends on its row alone, so many are drawn on all cores."""
    if len(rows) < 500:
        yield from (draw(*row) for row in rows)
        return
    # Ctrl-C is for this process: a worker that it ends leaves the others waiting
    with multiprocessing.Pool(usable_cores(), _ignore_interrupts) as pool:
        yield from pool.imap(_draw, rows, chunksize=16)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _draw(row: tuple[Product, int]) -> np.ndarray:
    return draw(*row)


def _ceiling(products: list[Product], *fields: str) -> float:
    """R@1 of a reader to whom products differ in design and in ``fields`` alone."""
    fields = ('garment', 'colour', 'pattern', 'motif', 'motif_colour', *fields)
    groups = {tuple(getattr(product, field) for field in fields) for product in products}
    return round(len(groups) / len(products), 3)  # mean of 1 / size of one's group


def _truth(products: dict[str, list[Product]], rows: dict[str, list], arguments: dict) -> dict:
    """What was planted, as JSON; ``in_description`` is a share of descriptions."""

    def planted(role: str, visible: str, in_description: float, trace: str) -> dict:
        return dict(role=role, visible=visible, in_description=in_description, trace=trace)

    def count(name: str, brand: str) -> int:
        return sum(product.brand == brand for product in products[name])

    brands = {
        brand: dict(
            everyday=sense and sense[0],
            icon=sense and sense[1],
            signature=signature(brand),
            unseen=brand in UNSEEN,
            products={name: count(name, brand) for name in ('train', 'validation')},
        )
        for brand, sense in BRANDS.items()
    }
    test = products['validation']
    return dict(
        arguments=arguments,
        files={
            file: dict(products=len(products[name]), rows=len(rows[name]))
            for name, file in FILES.items()
        },
        types=dict(
            brand=planted('confounder', 'yes', SAID, 'emblem and trim stripe'),
            composition=planted('informative', 'yes', SAID, 'fabric texture'),
            category=planted('redundant', 'yes', 1.0, 'silhouette'),
            subcategory=planted('redundant', 'yes', 1.0, 'silhouette'),
            department=planted('redundant', 'yes', 1.0, 'silhouette'),
            gender=planted('weak', 'weakly', 0.0, 'width of the garment'),
            season=planted('useless', 'no', 0.0, 'none'),
            label=planted('useless', 'no', 0.0, 'none'),
            code=planted('harmful', 'no', 0.0, 'none'),
        ),
        brands=brands,
        validation_ceiling={
            'design': _ceiling(test),
            'design+brand': _ceiling(test, 'brand'),
            'design+composition': _ceiling(test, 'material'),
            'design+brand+composition': _ceiling(test, 'brand', 'material'),
        },
    )


def _made_with(path: Path) -> str | None:
    """What this module wrote into a split's attributes; None for any other file."""
    if not h5py.is_hdf5(path):
        return None
    with h5py.File(path) as file:
        return file.attrs.get('mini_fashiongen')


def _made_by(arguments: dict) -> str:
    """What :func:`_made_with` finds in files that these arguments give."""
    return json.dumps(dict(version=VERSION, **arguments))


def is_written(folder: str | Path, **arguments: int) -> bool:
    """Whether the folder holds all that these arguments give, see :func:`write_mini_fashiongen`."""
    made_with = _made_by(arguments)
    paths = [Path(folder, name) for name in FILES.values()]
    done = all(path.exists() and _made_with(path) == made_with for path in paths)
    return done and Path(folder, 'truth.json').exists()


def write_mini_fashiongen(
    folder: str | Path,
    num_train: int = 1200,
    num_validation: int = 300,
    num_general: int = 4000,
    seed: int = 0,
    progress: bool = True,
    force: bool = False,
) -> dict:
    """Write the splits of :data:`FILES` and ``truth.json``; return what ``truth.json`` says.

    What the folder holds already with the same arguments is kept, so that a folder of an earlier
    release gets what is new. Files get their names when all are complete. Each brand but
    :data:`UNSEEN` occurs in the first 44 training products; with fewer, validation may hold more
    brands that train lacks.

    Args:
        folder: where to write; made if it does not exist.
        num_train: products in train, about three photos each.
        num_validation: products in validation, likewise; none of them is in train.
        num_general: captioned pictures of the general domain.
        seed: the same seed gives the same products, whatever the numbers.
        progress: show a progress bar.
        force: write again, also over files of other arguments; other people's files are kept.
    """
    arguments = dict(
        num_train=num_train, num_validation=num_validation, num_general=num_general, seed=seed
    )
    for name, value in arguments.items():
        low, high = (0, 2**31 - 1) if name == 'seed' else (1, MAX_PRODUCTS)
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f'{name} is {value!r}; it must be an integer from {low} to {high}.')
    folder, made_with = Path(folder), _made_by(arguments)
    if is_written(folder, **arguments) and not force:
        return json.loads((folder / 'truth.json').read_text(encoding='utf-8'))
    missing = _missing(folder, made_with, force)
    products = dict(
        train=[make_product(seed, TRAIN, i) for i in range(num_train)],
        validation=[make_product(seed, VALIDATION, i) for i in range(num_validation)],
        general=[make_picture(seed, i) for i in range(num_general)],
    )
    columns = planted_columns(products, seed)
    products |= {name: products[source] for name, source in LINKED.items()}
    rows = {name: _rows(split, 'validation' in name) for name, split in products.items()}
    truth = _truth(products, rows, arguments)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = sum(len(rows[name]) for name in missing if name not in LINKED)
    names = [FILES[name] for name in missing]
    with (
        whole_files(*(folder / name for name in (*names, 'truth.json'))) as (*files, about),
        tqdm(total=drawn, unit='img', disable=not (progress and drawn)) as bar,
    ):
        for name, file in zip(missing, files, strict=True):
            bar.set_description(name)
            if name in LINKED:
                path = FILES[LINKED[name]]
                _write_linked(file.name, path, rows[name], columns[name], made_with)
            else:
                _write_split(file.name, rows[name], made_with, bar)
        about.write(json.dumps(truth, ensure_ascii=False, indent=1).encode())
    return truth


def _missing(folder: Path, made_with: str, force: bool) -> list[str]:
    """Names of the files to write; all of them with ``force``.

    Raises:
        FileExistsError: a file stands there that is of other arguments or not of this module.
    """
    there = []
    for name, path in ((name, folder / file_name) for name, file_name in FILES.items()):
        if not path.exists():
            continue
        found = _made_with(path)
        if found is None:
            raise FileExistsError(f'{path} was not written here; choose another folder.')
        if found != made_with and not force:
            raise FileExistsError(f'{path} is of {found}; pass force to replace it.')
        there.append(name)
    return [name for name in FILES if force or name not in there]
