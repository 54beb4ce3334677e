"""Links that leave docs/: they hold on a code host, and here lead to a page that is made for them.

README.md is the home page, another Markdown file a page, code a page that shows it, a folder a page
that lists it.
"""

import ast
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    'README.md': 'index.md',
    'CHANGELOG.md': 'changelog.md',
    'CONTRIBUTING.md': 'contributing.md',
}
CODE = re.compile(r'^ *(```|~~~).*?^ *\1[`~]*$|`[^`\n]*`', re.MULTILINE | re.DOTALL)
LINK = re.compile(r'(?<=\]\()(?!\w+:|#)([^)\s#]+)')
LANGUAGES = {'.py': 'python', '.sh': 'shell', '.yml': 'yaml', '.toml': 'toml', '.json': 'json'}


def links(markdown: str, source: str) -> set[str]:
    """Files and folders that a file names in links, as paths of the repository.

    Args:
        markdown: its text.
        source: its path in the repository.
    """
    found = LINK.findall(CODE.sub('', markdown))
    return {_resolved(target, source) for target in found}


def rewritten(markdown: str, source: str, page: str) -> str:
    """The text with its links as the site needs them.

    Args:
        markdown: text of ``source``.
        source: path of the file in the repository.
        page: path of its page in the site's source.
    """

    def moved(link: re.Match) -> str:
        target = place(_resolved(link[1], source))
        return posixpath.relpath(target, posixpath.dirname(page) or '.')

    parts, end = [], 0
    for code in CODE.finditer(markdown):  # what looks like a link in code is none
        parts += [LINK.sub(moved, markdown[end : code.start()]), code[0]]
        end = code.end()
    return ''.join([*parts, LINK.sub(moved, markdown[end:])])


def place(path: str) -> str:
    """The page of a file or folder of the repository, as a path of the site's source."""
    if path.startswith('docs/'):
        return path.removeprefix('docs/')
    if path in PAGES:
        return PAGES[path]
    if (ROOT / path).is_dir():
        return f'elsewhere/{path}/index.md'
    return f'elsewhere/{path}' + '.md' * (not path.endswith('.md'))


def pages(documents: dict[str, str]) -> dict[str, str]:
    """Files outside docs/ that need a page: those linked from ``documents``, and on from there.

    Args:
        documents: path in the repository -> text, of every page that is there already.

    Returns:
        Path in the repository -> Markdown. What does not exist is left out: mkdocs names the link.
    """
    made = {path: (ROOT / path).read_text(encoding='utf-8') for path in PAGES}
    waiting = [documents, dict(made)]
    while waiting:
        for source, text in waiting.pop().items():
            new = {p for p in links(text, source) if not p.startswith('docs/')} - made.keys()
            found = {path: shown(ROOT / path) for path in sorted(new) if (ROOT / path).exists()}
            made |= found
            waiting.append(found) if found else None
    return made


def shown(path: Path) -> str:
    """A file or folder as Markdown."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        if (path / 'README.md').is_file():
            return f'# {name}\n\n[README.md](README.md)\n'
        rows = [f'| `{child.name}` | {_first_line(child)} |' for child in sorted(path.glob('*.py'))]
        return '\n'.join([f'# {name}', '', '| file | what |', '|---|---|', *rows, ''])
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.md':
        return text
    return f'# {name}\n\n````{LANGUAGES.get(path.suffix, "text")}\n{text.rstrip()}\n````\n'


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    return docstring.partition('\n')[0].replace('|', r'\|')


def _resolved(target: str, source: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
