"""What a report of a bug should hold, and a run rests on: python -m eiclip_mm.utils.collect_env"""

import hashlib
import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from mmengine.utils.dl_utils import collect_env as collect_base_env

from eiclip_mm import __version__
from eiclip_mm._compat import DEPENDENCIES

from .cores import usable_cores

PACKAGE = Path(__file__).resolve().parents[1]
# What those packages leave the computing to: photos, texts, towers, ranks, exported graphs.
COMPUTING = ('pillow', 'timm', 'tokenizers', 'ftfy', 'regex', 'scipy', 'triton', 'onnxruntime')
# Of mmengine's: a page of compiler flags, and a number that each run draws.
NOT_KEPT = ('PyTorch compiling details', 'numpy_random_seed')


def collect_env() -> dict[str, str]:
    """Platform, compilers and versions: mmengine's, and those of what this package stands on."""
    found = {k: str(v) for k, v in collect_base_env().items() if k not in NOT_KEPT}
    if torch.backends.cudnn.is_available():
        found['cuDNN'] = str(torch.backends.cudnn.version())
    required = [name for d in DEPENDENCIES for name in (d.name, *d.instead)]
    for name in (*required, *COMPUTING):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found | dict(eiclip_mm=__version__)


def collect_host() -> dict[str, Any]:
    """What of the machine decides sums to the last bit, as plain JSON; no names of it or users."""
    return dict(
        system=f'{platform.system()} {platform.machine()}',
        cpu=_cpu(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        gpus=[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        cores=usable_cores(),
        threads=torch.get_num_threads(),
    )


def collect_code() -> dict[str, Any]:
    """Which state of this package runs, as plain JSON.

    Returns:
        ``version``; ``sha256`` of its Python files, which names the state wherever it is
        installed; ``commit`` and ``changed``, whether files differ from it, in a checkout of git,
        else ``None``.
    """
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob('*.py')):
        name = path.relative_to(PACKAGE).as_posix()
        if not name.startswith('.mim/'):
            digest.update(f'{name}\0{path.stat().st_size}\0'.encode() + path.read_bytes())
    # An environment may lie inside the checkout of something else.
    ours = _git('ls-files', '--error-unmatch', '__init__.py') is not None
    commit = _git('rev-parse', 'HEAD') if ours else None
    changes = _git('--no-optional-locks', 'status', '--porcelain') if commit else None
    return dict(
        version=__version__,
        sha256=digest.hexdigest(),
        commit=commit,
        changed=None if changes is None else bool(changes),
    )


def _git(*arguments: str) -> str | None:
    """What git says of the package's folder, ``None`` where it does not."""
    # GIT_DIR and the like, set where a hook of git runs this, are about another repository
    env = {name: value for name, value in os.environ.items() if not name.startswith('GIT_')}
    try:
        done = subprocess.run(
            ['git', '-C', str(PACKAGE), *arguments], env=env, capture_output=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout.decode(errors='replace').strip()


def _cpu() -> str:
    """The processor's name."""
    with suppress(OSError):
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


if __name__ == '__main__':
    for part in (collect_env(), collect_host(), collect_code()):
        for name, value in part.items():
            print(f'{name}: {value}')
