"""Bad files for the tests, and a child process in which they may neither hang nor fill memory."""

import io
import multiprocessing
import os
import resource
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from catalogues import write_fashiongen
from PIL import Image, PngImagePlugin

SECONDS = 120  # no test waits for it: only what hangs does


def contained(function: Callable, *args, room: int = 2**30):
    """What ``function`` returns in a child of ``room`` more bytes, or what it raises, as
    ``(type name, message)``; a child that hangs or dies fails the test."""
    context = multiprocessing.get_context('fork')
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_in_child, args=(there, room, function, args))
    child.start()
    there.close()
    try:
        assert here.poll(SECONDS), f'{function} {args} takes more than {SECONDS} s'
        return here.recv()
    except EOFError:
        child.join()
        raise AssertionError(f'{function} {args}: the child died, {child.exitcode}') from None
    finally:
        child.kill()
        child.join()


def _in_child(pipe, room: int, function: Callable, args: tuple) -> None:
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    limit = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        pipe.send(function(*args))
    except BaseException as error:
        pipe.send((type(error).__name__, str(error)))


def encoded(kind: str, size=(24, 16), mode='RGB', **options) -> bytes:
    """An image file of grey noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, chunks: bytes = b'') -> bytes:
    """A PNG that declares its size and holds little."""
    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    parts = [_chunk(b'IHDR', head), chunks, _chunk(b'IDAT', pixels), _chunk(b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def _tiff(width: int, height: int) -> bytes:
    entries = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 8), (278, height)]
    entries += [(279, 8)]
    body = b''.join(struct.pack('<HHII', tag, 4, 1, value) for tag, value in entries)
    return b'II*\0' + struct.pack('<IH', 8, len(entries)) + body + bytes(4)


def _with_text() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text('Comment', 'x' * 2**26, zip=True)  # PIL reads 64 MiB of text in all
    info.add_text('More', 'x' * 2**20, zip=True)
    return encoded('PNG', pnginfo=info)


JPEG, PNG, GIF = encoded('JPEG', (200, 200)), encoded('PNG', (200, 200)), encoded('GIF', (200, 200))
CONTENTS = {
    'empty': b'',
    'text': b'no photo',
    'zeros': bytes(10_000),
    'svg': b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    'html': b'<!DOCTYPE html><title>404</title>',
    'pdf': b'%PDF-1.4\n%\xe2\xe3\xcf\xd3\n',
    'eps': encoded('EPS'),
    'icon': encoded('ICO'),
    'zip': b'PK\x03\x04' + bytes(30),
    'npy': b'\x93NUMPY\x01\x00' + bytes(100),
    'jpeg cut': JPEG[: len(JPEG) // 2],
    'jpeg head alone': JPEG[:30],
    'png cut': PNG[: len(PNG) // 2],
    'png head alone': PNG[:20],
    'gif cut': GIF[: len(GIF) // 4],
    'tiff cut': encoded('TIFF', (200, 200))[:5000],
    'webp cut': encoded('WEBP', (200, 200))[:300],
    'bmp cut': encoded('BMP', (200, 200))[:300],
    'png of text': _with_text(),
    'png 60000': png(60_000, 60_000),
    'png 12000': png(12_000, 12_000),  # between PIL's warning and its error
    'png 2 billion': png(2**31 - 1, 2**31 - 1),
    'gif 60000': b'GIF89a' + struct.pack('<HH', 60_000, 60_000) + GIF[10:],
    'bmp 60000': b'BM' + bytes(8) + struct.pack('<IIiiHH', 54, 40, 60_000, 60_000, 1, 24)
    + bytes(24),
    'tiff 60000': _tiff(60_000, 60_000),
    'ppm 60000': b'P6 60000 60000 255\n' + bytes(100),
    'no pixels': png(0, 5),
    'thin': encoded('PNG', (3000, 2)),
    'tall': encoded('JPEG', (2, 3000)),
}  # fmt: skip


def write_special(kind: str, folder: Path) -> str:
    """A path at which no photo is."""
    path = folder / 'photo.png'
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'socket':
        at = os.getcwd()
        os.chdir(folder)  # the name of a socket must be short
        try:
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(path.name)
        finally:
            os.chdir(at)
    elif kind == 'link to a device':
        path.symlink_to('/dev/zero')
    elif kind == 'link to itself':
        path.symlink_to(path)
    elif kind == 'link to nothing':
        path.symlink_to(folder / 'none.png')
    elif kind == 'below a file':
        path.write_bytes(PNG)
        return str(path / 'photo.png')
    return dict(
        {'device': '/dev/zero', 'NUL': f'{folder}/a\0b.png', 'surrogate': f'{folder}/a\ud800.png'},
        **{'long name': f'{folder}/{"x" * 300}.png'},
    ).get(kind, str(path))


SPECIAL = (
    'folder', 'pipe', 'socket', 'link to a device', 'link to itself', 'link to nothing',
    'below a file', 'device', 'NUL', 'surrogate', 'long name', 'nothing',
)  # fmt: skip
MISSING = ('link to nothing', 'nothing')
SOUND = {
    'cmyk': encoded('JPEG', mode='CMYK'),
    'grey': encoded('PNG', mode='L'),
    'grey and alpha': encoded('PNG', mode='LA'),
    'palette': encoded('PNG', mode='P'),
    'palette, clear': encoded('PNG', mode='P', transparency=0),
    'one bit': encoded('PNG', mode='1'),
    '16 bits': encoded('PNG', mode='I;16'),
    '32 bits': encoded('TIFF', mode='I'),
    'floats': encoded('TIFF', mode='F'),
    'lab': encoded('TIFF', mode='LAB'),
    'animated': encoded('GIF', save_all=True, append_images=[Image.new('RGB', (24, 16), 'red')]),
    'exif': encoded('JPEG', (16, 24), exif=b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0'
                    b'\x06\0\0\0\0\0\0\0'),
    'odd bytes behind': encoded('JPEG') + b'<?php ?>',
}  # fmt: skip
ROWS = [dict(productID=i, brand='Gas', description=f'product {i}') for i in range(1, 9)]


def damaged_h5(folder: Path, key: str, row: int) -> str:
    """A file of which one cell's checksum is wrong."""
    path = write_fashiongen(folder / 'train.h5', ROWS)
    with h5py.File(path, 'a') as file:
        values = file[key][...]
        del file[key]
        column = file.create_dataset(key, data=values, chunks=(1, 1), fletcher32=True)
        file.flush()
        at = column.id.get_chunk_info_by_coord((row, 0)).byte_offset
    with open(path, 'r+b') as file:
        file.seek(at)
        file.write(b'\xff')
    return path
