"""What each tool takes: its own --help, read from its parser without running it."""

import argparse
import contextlib
import os
import runpy
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]


def page() -> str:
    """The Markdown of the reference page."""
    text = ['# Tools', '', 'Run them in a checkout; every page names those it needs.', '']
    folder = None
    for path in tools():
        if path.parent != folder:
            folder = path.parent
            text += [f'## {folder.relative_to(ROOT)}/', '']
        text += [f'### {path.name}', '', '```text', help_of(path).rstrip(), '```', '']
    return '\n'.join(text)


def tools() -> list[Path]:
    """Every script with a command line, in the order of the page."""
    folders = (ROOT / 'tools', *sorted(p for p in (ROOT / 'tools').iterdir() if p.is_dir()))
    found = [p for f in (*folders, ROOT / 'demo') for p in sorted(f.glob('*.py'))]
    return [p for p in found if not p.name.startswith('_') and 'ArgumentParser' in p.read_text()]


def help_of(path: Path) -> str:
    """What ``python PATH --help`` prints on a terminal of 86 columns."""
    with patch.dict(os.environ, COLUMNS='86'):
        return parser_of(path).format_help()


def parser_of(path: Path, arguments: list[str] | None = None) -> argparse.ArgumentParser:
    """The parser of a script, caught as the script is about to use it.

    Args:
        path: the script.
        arguments: a command line that the parser has to accept; by default it reads none.

    Raises:
        SystemExit: it refuses them; stderr says why.
    """
    caught = []
    parse = argparse.ArgumentParser.parse_known_args

    def catch(parser, args=None, namespace=None):
        if arguments is not None:
            with patch.object(argparse.ArgumentParser, 'parse_known_args', parse):  # sub-commands
                _, unknown = parse(parser, arguments)
            if unknown:
                parser.error(f'unrecognized arguments: {" ".join(unknown)}')
        caught.append(parser)
        raise _Caught

    before = sys.path[:], sys.argv
    sys.path.insert(0, str(path.parent))
    sys.argv = [str(path), *(arguments or [])]
    try:
        with (
            patch.object(argparse.ArgumentParser, 'parse_known_args', catch),
            contextlib.suppress(_Caught),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter('ignore')  # of libraries that a tool imports
            runpy.run_path(str(path), run_name='__main__')
    finally:
        sys.path[:], sys.argv = before
    return caught[0]


class _Caught(BaseException):
    """Ends a script at its command line."""
