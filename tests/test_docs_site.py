"""The site: builds without a warning, needs no network, and its reference leaves nothing out."""

import inspect
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Browser
from docs_pages import ROOT

NEEDS = "needs pip install 'eiclip_mm[docs]'"
for name in ('mkdocs', 'material', 'mkdocstrings'):
    pytest.importorskip(name, reason=NEEDS)


@pytest.fixture(scope='module')
def site(tmp_path_factory) -> Path:
    """The built pages."""
    folder = tmp_path_factory.mktemp('site')
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--quiet', '--site-dir', str(folder)],
        cwd=ROOT, env=os.environ | dict(NO_MKDOCS_2_WARNING='1'), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, '')
    return folder


class Page(HTMLParser):
    """Ids, text, and what the browser loads by itself.

    Args:
        path: the built page.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.loaded, self.words = [], [], []
        self.feed(path.read_text(encoding='utf-8'))
        self.text = ' '.join(' '.join(self.words).split())

    def handle_starttag(self, tag, attributes):
        """Called by the parser."""
        given = dict(attributes)
        self.ids.append(given.get('id'))
        self.loaded += [given['src']] if given.get('src') else []
        if tag == 'link' and given.get('rel') in ('stylesheet', 'icon', 'preload', 'preconnect'):
            self.loaded.append(given['href'])

    def handle_data(self, data):
        """Called by the parser."""
        self.words.append(data)


def test_pages_load_nothing_from_elsewhere(site):
    pages = sorted(site.rglob('*.html'))
    assert len(pages) > 20
    for path in pages:
        away = [link for link in Page(path).loaded if re.match(r'(?:https?:)?//', link)]
        assert away == [], path
    styles = ''.join(path.read_text() for path in site.rglob('*.css'))
    assert re.findall(r'(?:url\(|@import)[ \'"]*(?:https?:)?//', styles) == []


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    """A browser, in which the pages are opened from the disk."""
    opened = Browser(tmp_path_factory.mktemp('profile'))
    yield opened
    opened.close()


def test_search_finds_from_the_disk(site, browser):
    browser.resize(1280)
    browser.open(f'{(site / "index.html").as_uri()}?q=EALearner')
    first = browser.wait('document.querySelector(".md-search-result__link")?.href')
    assert first.startswith(site.as_uri())
    assert 'EALearner' in browser.run('document.querySelector(".md-search-result").innerText')


@pytest.mark.parametrize(('width', 'dark'), [(1280, False), (390, True)])
def test_pages_fit_the_window(site, browser, width, dark):
    browser.resize(width, dark=dark)
    too_wide = {}
    for path in sorted(site.rglob('*.html')):
        browser.open(path.as_uri())
        taken = browser.run('document.documentElement.scrollWidth')
        too_wide |= {path.name: taken} if taken > width else {}
    assert too_wide == {}


@pytest.mark.parametrize(
    ('page', 'file', 'sentence'),
    [
        ('index.html', 'README.md', 'A setting that does not exist is refused'),
        ('changelog.html', 'CHANGELOG.md', 'The form is that of'),
        ('contributing.html', 'CONTRIBUTING.md', 'Imports go one way'),
    ],
)
def test_files_outside_docs_are_pages(site, page, file, sentence):
    assert sentence in (ROOT / file).read_text()
    assert sentence in Page(site / page).text


def test_every_public_name_has_its_place_in_the_api(site):
    import eiclip_mm.apis
    import eiclip_mm.datasets
    import eiclip_mm.engine
    import eiclip_mm.evaluation
    import eiclip_mm.models
    import eiclip_mm.visualization

    for room in ('apis', 'datasets', 'engine', 'evaluation', 'models', 'visualization'):
        found = Page(site / f'reference/api/{room}.html').ids
        names = getattr(eiclip_mm, room).__all__
        assert [n for n in names if f'eiclip_mm.{room}.{n}' not in found] == []
    assert 'eiclip_mm.structures.EntityVocab' in Page(site / 'reference/api/structures.html').ids


def registered() -> list[tuple[str, type]]:
    """Name and class, or function, of all that a config can name."""
    from mmengine.registry import Registry

    import eiclip_mm.apis
    import eiclip_mm.datasets
    import eiclip_mm.engine.sharded
    import eiclip_mm.evaluation
    import eiclip_mm.models
    import eiclip_mm.visualization  # noqa: F401
    from eiclip_mm import registry

    nodes = [node for node in vars(registry).values() if isinstance(node, Registry)]
    return sorted(
        {
            (n, c)
            for node in nodes
            for n, c in node.module_dict.items()
            if 'eiclip_mm' in c.__module__
        },
        key=lambda found: found[0],
    )


def test_every_component_and_argument_is_in_the_reference(site):
    # the page as text: a heading, what it is, a row for each argument
    html = (site / 'reference/configs.html').read_text(encoding='utf-8')
    parts = dict(
        re.findall(r'<h3 id="[\w-]+">(\w+)<a.*?</h3>(.*?)(?=<h[23] |</article>)', html, re.S)
    )
    components = registered()
    assert len(components) >= 30
    assert sorted(parts) == [name for name, _ in components]
    for name, made in components:
        rows = re.findall(
            r'<td><code>\**(\w+)</code></td>\n<td>.*?</td>\n<td>(.*?)</td>', parts[name]
        )
        assert [argument for argument, meaning in rows if not meaning] == [], name
        own = made.__init__ if inspect.isclass(made) else made
        wanted = [*inspect.signature(own).parameters][1:]  # after self, or after the loader's batch
        if own is object.__init__:
            wanted = []
        missing = [w for w in wanted if w not in dict(rows) and w not in ('args', 'kwargs')]
        assert missing == [], name
        assert re.search(r'In <code>eiclip_mm/[\w/]+\.py</code>', parts[name])


def test_configs_name_what_uses_them(site):
    text = Page(site / 'reference/configs.html').text
    part = text.partition('TextFeatureCache')[2]
    assert re.search(r'Used by eiclip_products\.py , \S+ , \S+ and \d+ more', part)


def test_every_tool_has_its_help(site):
    page = Page(site / 'reference/tools.html')
    scripts = [p for folder in ('tools', 'demo') for p in (ROOT / folder).rglob('*.py')]
    wanted = {p.name for p in scripts if 'parse_args(' in p.read_text() and p.name[0] != '_'}
    assert len(wanted) > 30
    assert [name for name in sorted(wanted) if f'usage: {name} ' not in page.text] == []


def test_help_is_that_of_the_tool(site):
    done = subprocess.run(
        [sys.executable, 'tools/analysis_tools/compare.py', '--help'],
        cwd=ROOT, env=os.environ | dict(COLUMNS='86', PYTHONPATH=str(ROOT)), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert ' '.join(done.stdout.split()) in Page(site / 'reference/tools.html').text
