"""How many processor cores there are to work with."""

import os


def usable_cores() -> int:
    """Cores this process may run on; where the system does not say (macOS, Windows), all."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
