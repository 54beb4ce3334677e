"""Every component that a config can name: its arguments, where it is, which configs use it."""

import importlib
import inspect
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from griffe import Docstring, DocstringSectionKind
from roles import plain

ROOT = Path(__file__).resolve().parents[2]
MODULES = ('apis', 'datasets', 'engine', 'engine.sharded', 'evaluation', 'models', 'visualization')
NO_DEFAULT = inspect.Parameter.empty
INTRODUCTION = """# Configs

What a config can name as `type=`, by registry. The scope is `eiclip_mm`: in a config of this scope
the short name is enough, in any other write `eiclip_mm.NAME`. What mmpretrain and mmengine register
can be named as well; their documents say how.
"""


def page() -> str:
    """The Markdown of the reference page."""
    kinds, used = registered(), used_by()
    text = [INTRODUCTION]
    for kind, components in kinds.items():
        text.append(f'## {kind}\n')
        text += [entry(name, made, used.get(name, [])) for name, made in components.items()]
    return '\n'.join(text)


@cache
def registered() -> dict[str, dict[str, Callable]]:
    """Registry -> name -> class or function, of this package alone."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of libraries that are imported here
        for name in MODULES:
            importlib.import_module(f'eiclip_mm.{name}')
    from mmengine.registry import Registry

    import eiclip_mm.registry

    found = {}
    for kind, registry in vars(eiclip_mm.registry).items():
        if isinstance(registry, Registry):
            ours = {n: c for n, c in registry.module_dict.items() if _is_ours(c)}
            found |= {kind: dict(sorted(ours.items()))} if ours else {}
    return found


def entry(name: str, made: Callable, configs: list[str]) -> str:
    """One component."""
    documented = _sections(made)
    text = [f'### {name}', '', *documented['text'], '']
    rows = [
        f'| `{argument}` | {default} | {meaning} |'
        for argument, default, meaning in arguments(made)
    ]
    if rows:
        text += ['| argument | default | meaning |', '|---|---|---|', *rows, '']
    source = Path(inspect.getsourcefile(made)).resolve().relative_to(ROOT).as_posix()
    shown = ', '.join(f'`{config}`' for config in configs[:3])
    more = f' and {len(configs) - 3} more' * (len(configs) > 3)
    text += [f'In `{source}`. Used by {shown + more if configs else "no shipped config"}.', '']
    return '\n'.join(text)


def arguments(made: Callable) -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of each argument, those handed on to a parent of ours included."""
    owners = _owners(made)
    meanings = {}
    for owner in owners:
        meanings = _sections(owner)['arguments'] | meanings
    seen = set()
    for parameter in _parameters(made, owners):
        if parameter.name in seen:
            continue
        seen.add(parameter.name)
        stars = {parameter.VAR_POSITIONAL: '*', parameter.VAR_KEYWORD: '**'}
        name = stars.get(parameter.kind, '') + parameter.name
        default = '' if parameter.default is NO_DEFAULT else f'`{parameter.default!r}`'
        if parameter.default is NO_DEFAULT and parameter.kind not in stars:
            default = 'required'
        yield name, _cell(default), _cell(meanings.get(name, ''))


def _owners(made: Callable) -> list:
    """Who says what the arguments mean: classes of ours, or all parents where those build it."""
    if not inspect.isclass(made):
        return [made]
    parents = inspect.getmro(made)[:-1]
    ours = [parent for parent in parents if _is_ours(parent)]
    return ours if any('__init__' in vars(parent) for parent in ours) else list(parents)


def _parameters(made: Callable, owners: list) -> Iterator[inspect.Parameter]:
    """Of the constructors, up to the first that hands nothing on; ``**kwargs`` come last."""
    if not inspect.isclass(made):  # a collate function: its first argument is the loader's
        _, *own = inspect.signature(made).parameters.values()
        yield from own
        return
    last = None
    for owner in owners:
        if '__init__' not in vars(owner):
            continue
        _, *own = inspect.signature(owner.__init__).parameters.values()
        last = next((p for p in own if p.kind is p.VAR_KEYWORD), None)
        yield from (p for p in own if p.kind is not p.VAR_KEYWORD)
        if last is None:
            return
    if last is not None:
        yield last


@cache
def _sections(made: Callable) -> dict:
    """``text``, the docstring's paragraphs, and ``arguments``, name -> meaning."""
    found = dict(text=[], arguments={})
    doc = Docstring(plain(inspect.cleandoc(vars(made).get('__doc__') or made.__doc__ or '')))
    if inspect.isclass(made) and '__init__' in vars(made) and made.__init__.__doc__:
        init = Docstring(plain(inspect.cleandoc(made.__init__.__doc__)))
    else:
        init = Docstring('')
    for section in (*doc.parse('google', warnings=False), *init.parse('google', warnings=False)):
        if section.kind is DocstringSectionKind.text and not found['arguments']:
            found['text'] += [section.value, '']
        elif section.kind is DocstringSectionKind.parameters:
            for parameter in section.value:  # "towers, tokenizer, loss: ..." is three
                for name in parameter.name.split(','):
                    found['arguments'][name.strip()] = parameter.description
    return found


@cache
def used_by() -> dict[str, list[str]]:
    """Name of a component -> the shipped configs that name it, shallow folders first."""
    from mmengine.config import Config

    found = defaultdict(list)
    paths = sorted((ROOT / 'configs').rglob('*.py'), key=lambda p: (len(p.parts), p.name))
    for path in paths:
        if '_base_' not in path.parts:
            for name in sorted(set(_types(Config.fromfile(path).to_dict()))):
                found[name].append(path.relative_to(ROOT / 'configs').as_posix())
    return found


def _types(value) -> Iterator[str]:
    if isinstance(value, dict):
        kind = value.get('type')
        if kind is not None:  # a name, or the class itself in a config of pure Python
            yield getattr(kind, '__name__', str(kind)).rpartition('.')[2]
        value = list(value.values())
    if isinstance(value, list | tuple):
        for part in value:
            yield from _types(part)


def _is_ours(made: Callable) -> bool:
    return made.__module__.partition('.')[0] == 'eiclip_mm'


def _cell(text: str) -> str:
    return ' '.join(text.split()).replace('|', r'\|')
