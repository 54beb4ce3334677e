"""Photos as plain pixels in one memory-mapped file a split: nothing to decode, nothing to open.

A pack is two files. ``NAME.photos`` holds the pixels, (height, width, 3) uint8 RGB, one photo after
the other. ``NAME.index`` holds JSON lines: a head; for each photo its source's name, its HDF5 row
or null, height, width and the CRC-32 of its pixels; an end. Sources are named relative to the
pack's folder, so data and pack may move together. ``pack_writer.py`` writes packs.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from eiclip_mm.utils.untrusted import shown

FORMAT = 'eiclip_mm.packed_photos/1'
REMEDY = 'Delete the pack and run tools/dataset_converters/pack_images.py again.'


class PackedPhotos:
    """All packs of a folder; of a folder that does not exist, none.

    Args:
        folder: where ``pack_images.py`` wrote.

    Raises:
        ValueError: a pack is cut off, of another version, or older than its HDF5 file.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.packs = [Pack(path) for path in sorted(self.folder.glob('*.index'))]
        self._folders: dict[str, str] = {}

    def __reduce__(self) -> tuple[type, tuple]:
        return PackedPhotos, (self.folder,)  # map the files anew in each process

    @property
    def state(self) -> list[tuple[str, int, int]]:
        """Name, size and time of each index: a pack that changed, or was made anew, has others."""
        stats = [(pack.index.name, pack.index.stat()) for pack in self.packs]
        return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]

    def get(self, image: Mapping) -> np.ndarray | None:
        """(height, width, 3) uint8, a read-only view of the file; None if no pack has the photo."""
        path = image['h5_path'] if 'h5_path' in image else image['img_path']
        folder, file = os.path.split(path)
        if folder not in self._folders:  # finding the way takes longer than reading the photo
            self._folders[folder] = os.path.relpath(folder or '.', self.folder)
        name = f'{self._folders[folder]}/{file}'
        for pack in self.packs:
            if (number := pack.find(name, image.get('row'))) is not None:
                return pack[number]
        return None


class Pack:
    """One pack: photos by their number.

    Args:
        index: its ``.index`` file.
    """

    def __init__(self, index: str | Path):
        self.index = Path(index)
        self.data = self.index.with_suffix('.photos')
        head, photos, end = read_index(self.index)
        if head is None or end is None or not photos or end.get('photos') != len(photos):
            raise ValueError(f'{self.index} is cut off: its end is missing. {REMEDY}')
        self.head = head
        # Arrays, not lists: forked workers share them without copying.
        self._shapes = np.array([(height, width, 3) for _, _, height, width, _ in photos])
        sizes = self._shapes.prod(1)
        self._ends = sizes.cumsum()
        self._starts = self._ends - sizes
        self._check()
        # As a plain array: slicing a numpy.memmap takes several times as long.
        self._pixels = np.asarray(np.memmap(self.data, np.uint8, 'r'))
        self._files = {name: i for i, (name, row, *_) in enumerate(photos) if row is None}
        self._rows = {name: _numbers(photos, name) for name in self.head['sources']}

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, number: int) -> np.ndarray:
        """(height, width, 3) uint8, read-only."""
        pixels = self._pixels[self._starts[number] : self._ends[number]]
        return pixels.reshape(self._shapes[number])

    def find(self, name: str, row: int | None) -> int | None:
        """Number of the photo of this source (and HDF5 row); None if it is not here."""
        if row is None:
            return self._files.get(name)
        rows, numbers = self._rows.get(name, ((), ()))
        i = int(np.searchsorted(rows, row))
        return int(numbers[i]) if i < len(rows) and rows[i] == row else None

    def damaged(self) -> list[str]:
        """Names of the photos whose pixels are not those that were packed; reads them all."""
        _, photos, _ = read_index(self.index)
        return [
            name if row is None else f'{name}, row {row}'
            for i, (name, row, _, _, crc) in enumerate(photos)
            if zlib.crc32(self[i].data) != crc
        ]

    def _check(self) -> None:
        """What can be known without reading pixels."""
        size = self.data.stat().st_size if self.data.is_file() else 0
        if size < self._ends[-1]:
            raise ValueError(
                f'{self.data} has {size} bytes, but {self.index.name} tells of {self._ends[-1]}: '
                f'it is cut off. {REMEDY}'
            )
        for name, packed in self.head['sources'].items():
            source = self.index.parent / name
            # a Path's own raises where the name is too long
            if os.path.isfile(source) and source.stat().st_size != packed:
                raise ValueError(
                    f'{source} has {source.stat().st_size} bytes, but had {packed} when '
                    f'{self.data} was packed: it is another file now. {REMEDY}'
                )


def _numbers(photos: list[list], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The rows of an HDF5 file that are here, in order, and the numbers of their photos."""
    found = sorted(
        (row, i) for i, (source, row, *_) in enumerate(photos) if source == name and row is not None
    )
    rows, numbers = np.array(found, dtype=np.int64).reshape(-1, 2).T
    return rows, numbers


def read_index(path: Path) -> tuple[dict | None, list[list], dict | None]:
    """Head, photos and end of an index; what is not there yet is None.

    Raises:
        ValueError: it is no index, or one of another version.
    """
    if not os.path.isfile(path):  # a pipe would be waited for
        raise ValueError(f'{path} is no regular file. {REMEDY}')
    try:
        lines = path.read_text(encoding='utf-8').split('\n')[:-1]  # a line without its end is torn
        head, *rest = json.loads(f'[{",".join(lines)}]') or [None]
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f'{path} is damaged: {shown(error)}. {REMEDY}') from error
    if head is not None and (not isinstance(head, dict) or head.get('format') != FORMAT):
        got = head.get('format') if isinstance(head, dict) else type(head).__name__
        raise ValueError(f'{path} is of format {got!r}, expected {FORMAT!r}. {REMEDY}')
    if head is not None and not isinstance(head.get('sources'), dict):
        raise ValueError(f'{path} is damaged: its head names no sources. {REMEDY}')
    end = rest.pop() if rest and isinstance(rest[-1], dict) else None
    for number, line in enumerate(rest, 2):
        if not _is_photo(line):
            raise ValueError(
                f'{path} is damaged: line {number} is no photo: {shown(line, 80)}. {REMEDY}'
            )
    return head, rest, end


def _is_photo(line: object) -> bool:
    """Whether it is [source, row or null, height, width, CRC-32]."""
    if not isinstance(line, list) or len(line) != 5 or not isinstance(line[0], str):
        return False
    _, row, height, width, crc = line
    if not all(type(n) is int for n in (height, width, crc, 0 if row is None else row)):
        return False
    return (row is None or 0 <= row < 2**40) and 0 < height < 2**16 and 0 < width < 2**16
