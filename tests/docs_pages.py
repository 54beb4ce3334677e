"""The code blocks of our Markdown: where they stand, in which language, and which are not run."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md']
    + [path for folder in ('docs', 'projects') for path in ROOT.glob(f'{folder}/**/*.md')]
)
BLOCK = re.compile(
    r'(?:<!-- not run: (?P<reason>[^>]+?) -->\s*)?^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n'
    r'(?P<text>.*?)^(?P=indent)```$',
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: path of the document, relative to the repository.
        line: number of its first line of text.
        language: what stands behind the fence; nothing means commands.
        text: without indentation.
        reason: why it is not run, '' if it is.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f'{self.page}:{self.line}'


def blocks(path: Path) -> list[Block]:
    """All fenced blocks of a document."""
    text = path.read_text(encoding='utf-8')
    return [
        Block(
            page=path.relative_to(ROOT).as_posix(),
            line=text.count('\n', 0, found.start('text')) + 1,
            language=found['language'] or 'shell',
            text=re.sub(f'^{found["indent"]}', '', found['text'], flags=re.MULTILINE),
            reason=(found['reason'] or '').strip(),
        )
        for found in BLOCK.finditer(text)
    ]


def commands(block: Block) -> str:
    """What a block of the shell runs; of a console, what stands behind its prompts."""
    if block.language != 'console':
        return block.text
    lines, goes_on = [], False
    for line in block.text.splitlines():
        if line.startswith('$ ') or goes_on:
            lines.append(line if goes_on else line[2:])
            goes_on = line.endswith('\\')
    return '\n'.join(lines)
