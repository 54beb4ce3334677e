"""Rows that cannot be used: the first is an error, or all are left out, counted and listed."""

import logging
from pathlib import Path

from mmengine.logging import print_log

from eiclip_mm.utils.untrusted import shown

ON_ERROR = ('raise', 'skip')
MAX_BAD = 0.01  # share of the rows: with more something else is wrong than rows
FIRST = 5  # of those left out, in the log


class BadRows:
    """What is done with rows that cannot be used. It depends on the files alone.

    Args:
        on_error: ``'raise'``, the first is an error; ``'skip'``, they are left out.
        max_bad: with ``'skip'``, the share of rows above which they are an error all the same.

    Attributes:
        skipped: of each that was left out, ``file``, ``row`` (where in the file) and ``why``.
    """

    def __init__(self, on_error: str = 'raise', max_bad: float = MAX_BAD):
        if on_error not in ON_ERROR:
            raise ValueError(f'on_error={on_error!r} is not known; choose one of {ON_ERROR}.')
        if not 0 <= max_bad <= 1:
            raise ValueError(f'max_bad must lie in [0, 1], got {max_bad}.')
        self.on_error, self.max_bad = on_error, max_bad
        self.skipped: list[dict[str, str]] = []

    def add(self, file: str | Path, row: str, why: str) -> None:
        """Leave out a row.

        Raises:
            ValueError: rows are not left out.
        """
        if self.on_error == 'raise':
            raise ValueError(
                f"{why.rstrip('.')}. Mend it, or leave such rows out with on_error='skip'."
            )
        self.skipped.append(dict(file=shown(file, 1000), row=shown(row), why=shown(why, 500)))

    def check(self, file: str | Path, rows: int) -> None:
        """Say what was left out of ``rows`` rows.

        Raises:
            ValueError: they are too many.
        """
        bad = len(self.skipped)
        if not bad:
            return
        lines = [f'  {skipped["row"]}: {skipped["why"]}' for skipped in self.skipped[:FIRST]]
        first = '\n'.join([*lines, *(['  ...'] if bad > FIRST else [])])
        what = f'{shown(file)}: {bad:,} of {rows:,} rows cannot be used'
        if bad > self.max_bad * rows:
            raise ValueError(
                f'{what}, more than max_bad={self.max_bad:g} of them:\n{first}\nMend the data, or '
                'raise max_bad; tools/misc/verify_dataset.py CONFIG --list-bad OUT.json lists all.'
            )
        print_log(f'{what} and are left out:\n{first}', logger='current', level=logging.WARNING)
