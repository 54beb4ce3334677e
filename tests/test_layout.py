"""Imports go down only: tools, rooms, structures and registry; rooms never import each other."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / 'eiclip_mm'
ROOMS = ('datasets', 'models', 'evaluation', 'engine', 'visualization')


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module)
    return [name for name in names if name.split('.')[0] == 'eiclip_mm']


def test_rooms_do_not_import_each_other():
    files = [path for room in ROOMS for path in (PACKAGE / room).glob('**/*.py')]
    assert len(files) > 15
    for path in files:
        room = path.relative_to(PACKAGE).parts[0]
        others = [f'eiclip_mm.{other}' for other in ROOMS if other != room]
        for name in imported(path):
            assert not name.startswith(tuple(others)), f'{path} imports {name}'


def test_shared_nouns_import_nothing_of_ours_but_how_files_are_read_and_written():
    names = imported(PACKAGE / 'structures.py')
    assert set(names) <= {'eiclip_mm.utils.untrusted', 'eiclip_mm.utils.whole_file'}
    assert imported(PACKAGE / 'utils/whole_file.py') == []
    assert imported(PACKAGE / 'registry.py') == []
