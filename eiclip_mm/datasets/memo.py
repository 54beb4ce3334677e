"""Results for strings that come again and again, such as the words of a catalogue."""

from collections.abc import Callable
from typing import Any

LONGEST = 64  # characters of a string that is remembered


class Memo(dict):
    """``memo[string]`` is ``function(string)``, computed once.

    A plain dict, since ``functools.lru_cache`` takes twice the time for a hit and does not travel
    to other processes. It starts over when ``size`` strings are in it, so its memory is bounded.

    >>> memo = Memo(str.split)
    >>> memo['a b'] is memo['a b']
    True
    """

    def __init__(self, function: Callable[[str], Any], size: int = 2**16):
        super().__init__()
        self.function, self.size = function, size

    def __missing__(self, key: str) -> Any:
        value = self.function(key)
        if len(key) <= LONGEST:
            if len(self) >= self.size:
                self.clear()
            self[key] = value
        return value

    def __reduce__(self) -> tuple[type, tuple]:
        return type(self), (self.function, self.size)
