"""What a tool says where its result cannot be written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def told(path: str | Path) -> Iterator[None]:
    """End the program with a sentence where the block, which writes ``path``, cannot.

    Raises:
        SystemExit: the disk is full, the folder may not be written, and the like.
    """
    try:
        yield
    except OSError as error:
        raise SystemExit(
            f'{path} cannot be written: {error.strerror or error}. What stood there is as it was.'
        ) from error
