"""Config files in either of mmengine's styles."""

from json import JSONDecodeError
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config
from mmengine.config.lazy import LazyAttr, LazyObject
from mmengine.fileio import YamlHandler, load, register_handler

from .checkpoint_file import Inflated, check_content

KINDS = ('.py', '.json', '.yml', '.yaml')
NAMES = ('type', 'constructor')  # keys whose classes a registry finds by import path


class NotPlain(ValueError):
    """YAML that names Python objects, or far more than it holds, or none at all."""


class _DataAndTuples(yaml.SafeLoader):
    """YAML's own types, and tuples."""


def _tuple(loader: yaml.SafeLoader, node: Any) -> tuple:
    return tuple(loader.construct_sequence(node, deep=True))


_DataAndTuples.add_constructor('tag:yaml.org,2002:python/tuple', _tuple)


@register_handler(['yaml', 'yml'])
class PlainYaml(YamlHandler):
    """YAML that is data: mmengine's own builds whatever Python object a file names.

    Tuples, which its dumps of configs name as Python's, are data as well.
    """

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        """See ``mmengine.fileio``."""
        try:
            text = file.read()
            loaded = yaml.load(text, Loader=_DataAndTuples)  # nosec B506: a SafeLoader
            check_content(loaded, len(text))  # lists that name each other
        except (yaml.YAMLError, RecursionError, Inflated) as error:
            raise NotPlain(' '.join(str(error).split())) from error
        return loaded


def load_config(path: str | Path) -> Config:
    """A config file whose components are named: a class as ``type`` becomes its import path.

    That is what a run dumps of a pure-Python config, and what its checkpoints hold; mmengine's own
    ``Config.fromfile`` gives the classes themselves. Other imported values, such as
    ``dtype=torch.float64``, stay what they are; but mmengine's dumps, and so checkpoints, hold
    their import paths, which are not read back: where the model has one, ``EICLIPInferencer``
    needs the config itself.

    Args:
        path: a file, or ``eiclip_mm::NAME.py`` for a config of this package.

    Raises:
        FileNotFoundError: there is none.
        OSError: a file of another kind.
        ValueError: JSON or YAML that is damaged, more than data, or no mapping.
    """
    try:
        if not str(path).startswith('eiclip_mm::'):
            _check(Path(path))
        config = Config.fromfile(path)
    except (NotPlain, JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(
            f'config {path}, or one in its _base_, is no plain YAML or JSON ({error}); mend it, or '
            'write it as a .py config.'
        ) from error
    # to_dict would make text of every imported value
    return Config(_named(config._to_lazy_dict()), filename=config.filename)


def _check(path: Path) -> None:
    """Refuse what is no config; of YAML and JSON, in which mmengine looks for names, bases too."""
    if not path.is_file():
        raise FileNotFoundError(
            f'config {path} {"is no file" if path.exists() else "does not exist"}; name a file of '
            'configs/ or your own, or eiclip_mm::NAME.py, such as '
            'eiclip_mm::eiclip_fashiongen.py'
        )
    if path.suffix not in KINDS:
        raise OSError(f'config {path} must end in one of {KINDS}, got {path.suffix!r}.')
    if path.suffix == '.py':
        return
    content = load(path)
    if not isinstance(content, dict):
        raise NotPlain(f'the top level of {path.name} is no mapping of names to settings')
    bases = content.get('_base_', [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise NotPlain(f'_base_ of {path.name} is no file name, and no list of some')
    for base in bases:
        if '::' not in base:  # else of a package; mmengine finds it
            _check(path.parent / base)


def _named(value: Any, key: str = '') -> Any:
    """Plain data, with the import paths of what stands under :data:`NAMES`."""
    if isinstance(value, dict):
        return {name: _named(inner, name) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_named(inner) for inner in value)
    if key in NAMES and isinstance(value, LazyObject | LazyAttr):
        return f'{value.module}.{value}'
    return value
