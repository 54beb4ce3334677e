"""The JSON Schemas of the package, for what it writes and what it must refuse."""

import json
from importlib import resources
from pathlib import Path

import pytest

jsonschema = pytest.importorskip('jsonschema', reason="needs pip install 'eiclip_mm[dev]'")
from referencing import Registry, Resource  # noqa: E402


def schema(name: str) -> jsonschema.Draft202012Validator:
    """The one of that name, itself checked; those that it refers to lie beside it."""
    files = (resources.files('eiclip_mm') / 'schemas').iterdir()
    all_of_them = {file.name: json.loads(file.read_text('utf-8')) for file in files}
    found = all_of_them[f'{name}.json']
    jsonschema.Draft202012Validator.check_schema(found)
    beside = [(name, Resource.from_contents(content)) for name, content in all_of_them.items()]
    return jsonschema.Draft202012Validator(found, registry=Registry().with_resources(beside))


def check_conforms(path: Path, name: str) -> None:
    """A file that was written here is as its schema says, and would not be without its parts."""
    content = json.loads(path.read_text(encoding='utf-8'))
    fits = schema(name)
    fits.validate(content)
    assert not fits.is_valid([content])
    for key in fits.schema['required']:
        assert not fits.is_valid({k: v for k, v in content.items() if k != key}), key
