"""A page of each module's public names, to be filled in by mkdocstrings."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = ('apis', 'datasets', 'engine', 'evaluation', 'models', 'structures', 'visualization')


def pages() -> dict[str, str]:
    """Path in the site's source -> Markdown."""
    return {f'reference/api/{name}.md': page(name) for name in MODULES}


def page(module: str) -> str:
    """The Markdown of one module: its docstring's first lines, then each name."""
    docstring = ast.get_docstring(_tree(module)) or ''
    names = public_names(module)
    summary = docstring.partition('\n\n')[0]
    listed = '\n\n'.join(f'::: eiclip_mm.{module}.{name}' for name in names)
    return f'# eiclip_mm.{module}\n\n{summary}\n\n{listed}\n'


def public_names(module: str) -> list[str]:
    """``__all__`` of a package; of a plain module the classes and functions without underscore."""
    names = []
    for node in _tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__all__':
            return ast.literal_eval(node.value)
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith('_'):
            names.append(node.name)
    return names


def _tree(module: str) -> ast.Module:
    path = ROOT / 'eiclip_mm' / module
    path = path / '__init__.py' if path.is_dir() else path.with_suffix('.py')
    return ast.parse(path.read_text(encoding='utf-8'))
