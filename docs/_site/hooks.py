"""What mkdocs calls while it builds: pages that are made, and links that leave docs/."""

import sys
from pathlib import Path

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))

import api
import components
import outside
import tools_help

SOURCES: dict[str, str] = {}  # page -> file of the repository it shows


def on_files(files, config):
    """Add the home page, what links lead to, and the reference."""
    documents = {f'docs/{f.src_uri}': f.content_string for f in files.documentation_pages()}
    SOURCES.update({outside.place(path): path for path in documents})
    for path, text in outside.pages(documents).items():
        SOURCES[outside.place(path)] = path
        files.append(File.generated(config, outside.place(path), content=text))
    reference = {
        **api.pages(),
        'reference/configs.md': components.page(),
        'reference/tools.md': tools_help.page(),
    }
    for place, text in reference.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Lead links to the pages of the site."""
    place = page.file.src_uri
    if place not in SOURCES:
        return markdown
    return outside.rewritten(markdown, SOURCES[place], place)
