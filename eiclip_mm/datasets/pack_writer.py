"""Writes packs of photos, see ``packed.py``; ``tools/dataset_converters/pack_images.py`` does."""

import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from eiclip_mm.utils.whole_file import write_whole_text

from .packed import FORMAT, REMEDY, read_index

FLUSH = 1024  # photos between two moments from which a killed run can go on


class PackWriter:
    """Adds photos to a pack; a run that was killed, or a catalogue that grew, goes on from there.

    Until :meth:`finish` the index is called ``NAME.index.part``, and readers see the pack as it
    was. One process writes at a time.

    Args:
        folder: where the pack goes.
        name: of the pack.
        images: all photos it is to hold, as records name them.
        side: pixels of the shorter edge; None as they are.

    Raises:
        ValueError: another process writes here, or the pack holds something else.
    """

    def __init__(self, folder: str | Path, name: str, images: list[dict], side: int | None = None):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.index, self.part = self.folder / f'{name}.index', self.folder / f'{name}.index.part'
        files = {image['h5_path'] for image in images if 'h5_path' in image}
        sources = {source_name(f, self.folder): os.stat(f).st_size for f in sorted(files)}
        self.head = dict(format=FORMAT, side=side, sources=sources)
        self._data = open(self.index.with_suffix('.photos'), 'ab')  # noqa: SIM115  see close
        try:
            self._done, size = self._resume()
        except BaseException:
            self._data.close()
            raise
        self._data.truncate(size)
        self._lines: list[str] = []

    def _resume(self) -> tuple[set, int]:
        """The photos that are here already, and how many bytes they take."""
        import fcntl  # not on Windows, where packs can be read

        try:
            fcntl.flock(self._data, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f'another process is packing into {self._data.name} now.') from None
        here = self.part if self.part.is_file() else self.index
        head, photos, _ = read_index(here) if here.is_file() else (None, [], None)
        if head is not None and head != self.head:
            differ = [key for key in self.head if head.get(key) != self.head[key]]
            raise ValueError(
                f'{here} was packed with other {" and ".join(differ)}: '
                f'{[head.get(key) for key in differ]}, now {[self.head[key] for key in differ]}. '
                'Delete the pack or choose another --out.'
            )
        size = sum(3 * height * width for _, _, height, width, _ in photos)
        if os.fstat(self._data.fileno()).st_size < size:
            raise ValueError(f'the photos beside {here} are cut off. {REMEDY}')
        # Whole or not at all: a part of it would make the next run forget photos readers know of.
        lines = [json.dumps(line) + '\n' for line in (self.head, *photos)]
        write_whole_text(self.part, ''.join(lines))
        self._kept = self.part.stat().st_size
        return {(name, row) for name, row, *_ in photos}, size

    def __len__(self) -> int:
        return len(self._done)

    def __contains__(self, image: Mapping) -> bool:
        return self._key(image) in self._done

    def _key(self, image: Mapping) -> tuple[str, int | None]:
        path = image['h5_path'] if 'h5_path' in image else image['img_path']
        return source_name(path, self.folder), image.get('row')

    def add(self, image: Mapping, pixels: np.ndarray) -> None:
        """Append one photo, (height, width, 3) uint8."""
        pixels = np.ascontiguousarray(pixels)
        self._data.write(pixels.data)
        self._done.add(self._key(image))
        height, width, _ = pixels.shape
        self._lines.append(json.dumps([*self._key(image), height, width, zlib.crc32(pixels.data)]))
        if len(self._lines) == FLUSH:
            self.flush()

    def flush(self) -> None:
        """Make the photos so far last: first their pixels, then what tells of them."""
        self._data.flush()
        os.fsync(self._data.fileno())
        if self._lines:
            self._kept = write_lines(self.part, self._kept, self._lines)
        self._lines = []

    def finish(self) -> None:
        """Let readers see all of it."""
        self._lines.append(json.dumps(dict(photos=len(self._done))))
        self.flush()
        os.replace(self.part, self.index)

    def close(self) -> None:
        """Keep what can be kept, and let another process write."""
        with suppress(OSError):  # whoever closes after a full disk has said so
            self.flush()
        with suppress(OSError):
            self._data.close()


def write_lines(path: Path, start: int, lines: list[str]) -> int:
    """Write lines from byte ``start`` on; they are on the disk when this returns their end.

    What a full disk let an earlier call write is overwritten.
    """
    with open(path, 'r+b') as file:
        file.truncate(start)
        file.seek(start)
        file.write(''.join(line + '\n' for line in lines).encode())
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def source_name(path: str | Path, folder: str | Path) -> str:
    """A source's name in a pack of ``folder``."""
    directory, file = os.path.split(path)
    return f'{os.path.relpath(directory or ".", folder)}/{file}'
