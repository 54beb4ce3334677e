"""What a report of a bug should hold: python -m eiclip_mm.utils.collect_env"""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from mmengine.utils.dl_utils import collect_env as collect_base_env

from eiclip_mm import __version__
from eiclip_mm._compat import DEPENDENCIES


def collect_env() -> dict[str, str]:
    """Machine, compilers and versions: mmengine's, and those of what this package stands on."""
    found = collect_base_env()
    found.pop('PyTorch compiling details', None)  # a page of compiler flags
    for dependency in DEPENDENCIES:
        for name in (dependency.name, *dependency.instead):
            with suppress(PackageNotFoundError):
                found[name] = version(name)
    return found | dict(eiclip_mm=__version__)


if __name__ == '__main__':
    for name, value in collect_env().items():
        print(f'{name}: {value}')
