"""What comes from outside: JSON files, and texts that errors repeat."""

import json
from collections import Counter
from pathlib import Path
from typing import Any


def shown(text: object, longest: int = 200) -> str:
    """What came from outside, as an error prints it: on one line, short, nothing invisible.

    >>> shown('a\\x00b\\u202ec')
    'a\\\\x00b\\\\u202ec'
    """
    whole = str(text)
    cut = whole[:longest] + '…' * (len(whole) > longest)
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in cut)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        ValueError: it is not JSON, is nested too deep, or an object has a key twice.
        OSError: it cannot be read.
    """
    try:
        return json.loads(Path(path).read_text(encoding='utf-8-sig'), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise ValueError(
            f'{shown(path)} is not JSON in UTF-8 ({error.reason}, byte {error.start}); save it as '
            'UTF-8.'
        ) from error
    except RecursionError:
        raise ValueError(
            f'{shown(path)} is not JSON of ours: its lists or objects are nested too deep; write '
            'it anew.'
        ) from None
    except MemoryError:
        raise ValueError(f'{shown(path)} does not fit into memory; split it.') from None
    except ValueError as error:
        raise ValueError(f'{shown(path)} is not JSON: {error}; write it anew.') from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f'the key {shown(twice)!r} stands twice in one object')
    return found
