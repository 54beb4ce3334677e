"""Links of our Markdown: files, anchors and pictures are there, read on a code host."""

import re
import unicodedata
from pathlib import Path

import pytest
from docs_pages import BLOCK, ROOT

WRITTEN = sorted([*ROOT.glob('*.md'), *ROOT.glob('docs/**/*.md'), *ROOT.glob('projects/**/*.md')])
LINK = re.compile(r'!?\[[^\]]*\]\(([^)\s]+)(?: "[^"]*")?\)|<img[^>]* src="([^"]+)"')
NAMED = re.compile(r'\b((?:configs|tools|eiclip_mm|docs|tests|projects|demo)/[\w./*-]*)')


def prose(path: Path) -> str:
    """A document without its code."""
    return re.sub(r'`[^`\n]*`', '', BLOCK.sub('', path.read_text(encoding='utf-8')))


def anchors(path: Path) -> set[str]:
    """Those a code host makes of headings: lower case, signs dropped, a hyphen for each space."""
    found = set()
    for heading in re.findall(r'^#+ +(.+?) *#*$', BLOCK.sub('', path.read_text()), re.MULTILINE):
        text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading).replace('`', '').lower()
        kept = (c for c in text if c in ' -_' or unicodedata.category(c)[0] in 'LNM')
        found.add(''.join(kept).strip().replace(' ', '-'))
    return found


def links(path: Path) -> list[str]:
    return [a or b for a, b in LINK.findall(prose(path))]


def test_there_are_documents_and_links():
    assert len(WRITTEN) >= 15
    assert sum(len(links(path)) for path in WRITTEN) > 50


@pytest.mark.parametrize('path', WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    lost = []
    for link in links(path):
        if re.match(r'https?:|mailto:', link):
            continue
        name, _, anchor = link.partition('#')
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize('path', WRITTEN, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_paths_named_in_text_and_commands_exist(path):
    text = path.read_text(encoding='utf-8').replace('eiclip_mm/.mim', '')  # made by an install
    named = NAMED.findall(text)
    assert sorted({n for n in named if not any(ROOT.glob(n.rstrip('./')))}) == []
