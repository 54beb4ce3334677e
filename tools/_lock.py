"""One process at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone_in(folder: Path, who: str) -> Iterator[None]:
    """Keep other processes that ask for the same out of a folder; it is made where missing.

    Args:
        folder: holds the file ``.lock``, free again when this process ends, however it does.
        who: does what, for the message.

    Raises:
        SystemExit: another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / '.lock').open('a') as file:
        try:
            import fcntl  # not on Windows, where nobody is kept out

            # not flock, which loader processes that outlive a kill for seconds would keep
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise SystemExit(
                f'another {who} works in {folder}; wait for it, or give another --work-dir.'
            ) from None
        except (ImportError, OSError):  # nor on a file system without locks
            pass
        yield
