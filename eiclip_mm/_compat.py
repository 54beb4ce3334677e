"""What stands between this package and its dependencies, all of it in this file.

First the versions are checked, from package metadata alone, so that a wrong environment is
named in one sentence before a heavy import fails somewhere inside. Then each bridge mends
one thing an upstream release broke, through that project's own extension point; its comment
says what broke and which upstream version makes the bridge unnecessary.
"""

import contextlib
import functools
import importlib.metadata
import importlib.util
import pickle  # nosec B403: for its class of error
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn


class Dependency(NamedTuple):
    """One row of :data:`DEPENDENCIES`.

    Attributes:
        name: the distribution pip installs for it.
        versions: the versions it may have; requirements/*.txt say the same (a test compares).
        instead: distributions that bring the same modules; any one of them is enough.
        optional: checked only where it is installed.
        otherwise: what follows from another version, if that is not plain.
    """

    name: str
    versions: str
    instead: tuple[str, ...] = ()
    optional: bool = False
    otherwise: str = ''


# `instead`: mmcv and mmcv-lite install the same folder, the compiled operators apart, of which
# nothing here uses any. The onedl-* forks are mmengine, mmcv and mmpretrain kept up to date.
DEPENDENCIES = (
    Dependency('packaging', '>=23'),
    Dependency('torch', '>=2.6,<3'),  # run on 2.6, 2.12, 2.13, 2.15
    Dependency('torchvision', '>=0.21,<1'),
    Dependency('numpy', '>=2,<3'),
    # before 0.10.6: KeyError "'Adafactor' is already registered" beside transformers
    Dependency('mmengine', '>=0.10.6,<1', instead=('onedl-mmengine',)),
    Dependency('mmcv-lite', '>=2.0.0,<2.4', instead=('mmcv', 'onedl-mmcv')),  # mmpretrain's own
    Dependency('mmpretrain', '>=1.2,<2', instead=('onedl-mmpretrain',)),
    Dependency('open_clip_torch', '>=3.3,<4'),  # text towers that pool by the end token's id
    Dependency('h5py', '>=3.11,<4'),  # the first with numpy 2
    Dependency('pycocotools', '>=2.0.8,<3'),
    Dependency('jinja2', '>=3.1,<4'),
    # With pycocotools and transformers both there, mmpretrain 1.2.0 imports its multimodal
    # models: "cannot import name 'GenerationMixin'" from transformers 4.52 on, "NoneType takes
    # no arguments" from 4.57 on. No mmpretrain release mends it yet.
    Dependency(
        'transformers',
        '>=4.41,<4.52',
        optional=True,
        otherwise=' (mmpretrain 1.2 cannot be imported beside it; uninstalling it serves as well)',
    ),
)


def check_dependencies(
    version_of: Callable[[str], str | None] = importlib.metadata.version,
    requires_of: Callable[[str], list[str] | None] = importlib.metadata.requires,
) -> None:
    """Raise ImportError, with the command that mends it, unless all dependencies fit.

    Args:
        version_of: installed version of a distribution, or PackageNotFoundError.
        requires_of: requirements a distribution states.
    """
    found = {d.name: _installed(d, version_of) for d in DEPENDENCIES}
    missing = [d for d in DEPENDENCIES if not found[d.name] and not d.optional]
    if missing:
        _refuse(
            f'lacks {", ".join(d.name for d in missing)}',
            [d.name + d.versions for d in missing],
        )

    from packaging.specifiers import SpecifierSet

    wrong = [
        (dependency, name, version)
        for dependency in DEPENDENCIES
        for name, version in found[dependency.name]
        if not SpecifierSet(dependency.versions).contains(version, prereleases=True)
    ]
    if wrong:
        _refuse(
            'needs '
            + ' and '.join(
                f'{name}{d.versions}, but {name} {version} is installed{d.otherwise}'
                for d, name, version in wrong
            ),
            [name + d.versions for d, name, _ in wrong],
        )

    _check_torch_pair(found['torch'][0][1], found['torchvision'][0][1], requires_of)


def _check_torch_pair(
    torch: str, torchvision: str, requires_of: Callable[[str], list[str] | None]
) -> None:
    """torchvision fits the one torch it names; others end in "operator torchvision::nms …"."""
    from packaging.requirements import Requirement

    for requirement in map(Requirement, requires_of('torchvision') or []):
        if requirement.name == 'torch' and not requirement.specifier.contains(
            torch, prereleases=True
        ):
            _refuse(
                'needs torch and torchvision of one release, but torchvision '
                f'{torchvision} goes with torch{requirement.specifier} and torch {torch} is '
                'installed',
                ['torchvision', f'torch=={torch.partition("+")[0]}'],
            )


def _installed(
    dependency: Dependency, version_of: Callable[[str], str | None]
) -> list[tuple[str, str]]:
    """Name and version of each installed distribution that provides the dependency."""
    found = []
    for name in (dependency.name, *dependency.instead):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append((name, version_of(name)))
    return [(name, version) for name, version in found if version]  # None: half uninstalled


def _refuse(what: str, install: list[str]) -> NoReturn:
    command = ' '.join(f'"{requirement}"' for requirement in install)
    raise ImportError(f'eiclip_mm {what}; run: {sys.executable} -m pip install {command}')


_LIBRARIES: list[Any] = []  # an operator goes when the Library that defined it is collected


def torchvision_on_cpu_torch() -> bool:
    """Let a CUDA-built torchvision be imported beside a CPU build of torch.

    Breakage: ``RuntimeError: operator torchvision::nms does not exist``. The compiled part of
    such a torchvision cannot load, and its Python part then describes two operators nobody
    defined. Declaring their schemas is enough for transforms and models; the operators
    themselves stay out of reach, and nothing here calls them. Unnecessary as soon as torch and
    torchvision are of one kind; with such a pair this does nothing, since the real extension
    defines the operators itself.

    Returns:
        Whether the schemas were declared.
    """
    import torch

    mixed = not (torch.version.cuda or torch.version.hip) and _torchvision_is_built_for_cuda()
    if not mixed or _LIBRARIES or 'torchvision' in sys.modules:
        return False
    library = torch.library.Library('torchvision', 'FRAGMENT')
    library.define('nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    library.define('qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    _LIBRARIES.append(library)
    return True


def _torchvision_is_built_for_cuda() -> bool:
    """Read from torchvision/version.py; the package metadata may lack the '+cu130'."""
    spec = importlib.util.find_spec('torchvision')
    version = Path(spec.origin).with_name('version.py') if spec and spec.origin else None
    if version is None or not version.is_file():
        return False
    return bool(re.search(r"__version__ = '[^'+]+\+cu", version.read_text(encoding='utf-8')))


def checkpoints_as_data() -> None:
    """Let mmengine read checkpoints: whole ones, and nothing in them that runs.

    It concerns resume, ``load_from`` and tools/test.py, wherever mmengine loads from.
    Breakage: mmengine leaves ``weights_only`` to torch for files, so what torch 2.6 and later
    refuse ends in a page about globals, and switches it off for URLs; it does not compare
    checksums, and on a resume it runs ``meta['config']``. Checksums and sizes are compared of files
    on disk alone. Whoever trusts a file that holds more than data, such as those of mmengine's own
    CheckpointHook (HistoryBuffer), sets torch's switch ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1``.
    Unnecessary once mmengine reads data alone; no release does (mmengine#1655).
    """
    import torch
    from mmengine.runner import checkpoint as theirs

    from .utils.checkpoint_file import CheckpointError, not_plain, read_checkpoint, trusted
    from .utils.checkpoint_file import without_code as data_of

    @theirs.CheckpointLoader.register_scheme(prefixes='', force=True)
    def load_from_local(filename: str, map_location: Any = None) -> Any:
        return read_checkpoint(filename, map_location)

    fetch, load = theirs.load_url, theirs.CheckpointLoader.load_checkpoint.__func__

    @functools.wraps(fetch)
    def fetch_data(url: str, *args: Any, **kwargs: Any) -> Any:
        return fetch(url, *args, **{'weights_only': not trusted()} | kwargs)

    @functools.wraps(load)
    def load_data(cls: type, filename: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return data_of(load(cls, filename, *args, **kwargs))
        except pickle.UnpicklingError as error:
            raise CheckpointError(not_plain(filename, error)) from error

    def load_plain(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
        return torch.load(file, map_location=map_location, weights_only=not trusted())

    theirs.load_url = fetch_data
    if hasattr(theirs, '_safe_torch_load'):  # the onedl fork's, which runs what is not data
        theirs._safe_torch_load = load_plain
    theirs.CheckpointLoader.load_checkpoint = classmethod(load_data)


def quiet_mmcv_lite() -> None:
    """Keep mmcv from warning, at each start of each tool, of an operator nothing here uses.

    mmcv-lite has no compiled operators and says so when mmpretrain imports its transformer bricks.
    Unnecessary beside mmcv itself.
    """
    warnings.filterwarnings('ignore', 'Fail to import ``MultiScaleDeformableAttention``')


def configs_formatted_once() -> None:
    """Keep mmengine from formatting one config again for each checkpoint.

    Breakage: ``Config.pretty_text`` runs yapf over the whole config, a second and more of one of
    ours, for each dump, log and checkpoint: of small runs it was most of the time. Unnecessary once
    mmengine keeps the text; no release does.
    """
    from mmengine.config import config
    from yapf.yapflib import yapf_api

    # mmengine holds the function; the onedl fork asks yapf for it each time
    theirs: Any = config if hasattr(config, 'FormatCode') else yapf_api
    format_code = theirs.FormatCode
    kept: dict[str, Any] = {}

    @functools.wraps(format_code)
    def format_once(text: str, **options: Any) -> Any:
        key = f'{options}\n{text}'
        if key not in kept:
            if len(kept) >= 8:  # a process has few configs
                kept.clear()
            kept[key] = format_code(text, **options)
        return kept[key]

    theirs.FormatCode = format_once


def locks_are_released() -> None:
    """Give mmengine's lock of its globals back where one cannot be made.

    Breakage: ``ManagerMixin.get_instance`` keeps the lock when a logger or a visualizer raises (a
    full disk), and every other thread that asks for one then waits for ever. Unnecessary once
    mmengine releases it in a ``finally``; no release does.
    """
    from mmengine.utils import manager

    lock, mixin = manager._lock, manager.ManagerMixin

    def locked(method: Any) -> Any:
        @functools.wraps(method)
        def call(cls: type, *args: Any, **kwargs: Any) -> Any:
            with lock:
                return method(cls, *args, **kwargs)

        return classmethod(call)

    manager._accquire_lock = manager._release_lock = lambda: None  # the lock is ours to hold
    for name in ('get_instance', 'get_current_instance'):
        setattr(mixin, name, locked(getattr(mixin, name).__func__))


def configs_by_name() -> None:
    """Let ``eiclip_mm::eiclip_fashiongen.py`` name a config of this package.

    It may stand in ``_base_``, and be given to Config.fromfile and to mmengine.hub.
    Breakage: ``mmengine does not support to load eiclip_mm config``. mmengine knows the packages
    of a fixed list, asks for a folder in the name, looks for an editable install in
    site-packages, and its Config.fromfile takes paths only; there is no extension point. Names of
    other packages go mmengine's way. Unnecessary once mmengine finds the configs of any package;
    no release does yet.
    """
    from mmengine import hub
    from mmengine.config import Config

    find, read, get = Config._get_cfg_path, Config.fromfile, hub.get_config

    @functools.wraps(find)
    def find_named(cfg_path: str, filename: str) -> tuple[str, str | None]:
        # None: no _scope_ in each part, which the Runner would pass on to collate functions
        return (_config_path(cfg_path), None) if _is_ours(cfg_path) else find(cfg_path, filename)

    @functools.wraps(read)
    def read_named(filename: str | Path, *args: Any, **kwargs: Any) -> Config:
        return read(_config_path(filename) if _is_ours(filename) else filename, *args, **kwargs)

    @functools.wraps(get)
    def get_named(cfg_path: str, pretrained: bool = False) -> Config:
        if not _is_ours(cfg_path):
            return get(cfg_path, pretrained)
        if pretrained:
            raise ValueError('eiclip_mm publishes no weights; leave pretrained=True out')
        return Config.fromfile(cfg_path)

    Config._get_cfg_path, Config.fromfile = staticmethod(find_named), staticmethod(read_named)
    hub.get_config = hub.hub.get_config = get_named


def _is_ours(name: str | Path) -> bool:
    return str(name).startswith('eiclip_mm::')


def _config_path(name: str | Path) -> str:
    """The file that ``eiclip_mm::NAME`` names: in the installed package, or in the checkout."""
    here, name = Path(__file__).resolve().parent, str(name).removeprefix('eiclip_mm::')
    folders = (here / '.mim' / 'configs', here.parent / 'configs')
    folder = next((folder for folder in folders if folder.is_dir()), folders[0])
    below = not Path(name).is_absolute() and '..' not in Path(name).parts
    if not below or not (folder / name).is_file():
        raise FileNotFoundError(
            f'eiclip_mm has no config {name!r}; a name is a path below {folder}, such as '
            'eiclip_mm::eiclip_fashiongen.py or eiclip_mm::baselines/clip_fashiongen.py'
        )
    return str(folder / name)


def prepare() -> None:
    """Check the dependencies, then apply every bridge; called once, by ``import eiclip_mm``."""
    check_dependencies()
    quiet_mmcv_lite()
    torchvision_on_cpu_torch()
    checkpoints_as_data()
    configs_formatted_once()
    locks_are_released()
    configs_by_name()
