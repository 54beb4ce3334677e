"""tools/extract_features.py: the embeddings of tools/test.py, in shards, by many processes."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from schemas import check_conforms
from small import run_in_processes, run_tool, write_data
from test_embeddings import assert_same
from test_tools import EI, ENV, ROOT, write_config

from eiclip_mm.evaluation import Embeddings
from eiclip_mm.registry import MODELS

sys.path.insert(0, str(Path(__file__).parents[1] / 'tools/dataset_converters'))
import pack_images

ITEMS = 62  # views of the 20 products of the test split


@pytest.fixture(scope='module')
def case(tmp_path_factory):
    """A folder with a config, two checkpoints and what tools/test.py makes of the first."""
    folder = tmp_path_factory.mktemp('case')
    DefaultScope.get_instance('extract', scope_name='eiclip_mm')
    config = Config.fromfile(write_config(EI, write_data(folder, 30, 20), folder))
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[loader].num_workers = 0
        config[loader].batch_size = 16
    config.dump(folder / 'config.py')
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(dict(state_dict=MODELS.build(config.model).state_dict()), folder / f'{seed}.pth')
    run_tool(
        'test', folder / 'config.py', folder / '0.pth', '--out', folder / 'dump.npz',
        '--work-dir', folder / 'work',
    )  # fmt: skip
    return folder


def extract(case: Path, *options, world: int = 1, checkpoint: str = '0.pth') -> None:
    given = (case / 'config.py', case / checkpoint, '--work-dir', case / 'work', *options)
    if world == 1:
        run_tool('extract_features', *given)
    else:
        run_in_processes(world, 'extract_features', *given)


def assert_close(found: Embeddings, expected: Embeddings) -> None:
    """Batches of other sizes round otherwise; all else is equal."""
    assert len(expected.image) == ITEMS
    for side in ('image', 'product'):
        one, other = getattr(found, side), getattr(expected, side)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        object.__setattr__(found, side, other)
    assert_same(found, expected)


@pytest.mark.parametrize('form', ['npy', 'parquet'])
def test_a_folder_of_shards_is_the_dump_of_a_test(case, tmp_path, form):
    out = tmp_path / 'shards'
    extract(case, '--out', out, '--shard-size', 20, '--format', form)
    assert_close(Embeddings.load(out), Embeddings.load(case / 'dump.npz'))
    names = [f'shard-{i:06d}' for i in range(4)]
    assert sorted(path.name for path in out.iterdir()) == [*names, 'shards.json']
    assert len(Embeddings.load(out / names[3]).image) == 2
    check_conforms(out / 'shards.json', 'shards')
    about = json.loads((out / 'shards.json').read_text())
    assert about['card']['model']['checkpoint'] == '0.pth'
    assert about['card']['data']['products'] == 20


@pytest.mark.parametrize('world', [2, 3])
def test_many_processes_write_what_one_writes(case, tmp_path, world):
    extract(case, '--out', tmp_path, '--shard-size', 16, world=world)
    found, expected = Embeddings.load(tmp_path), Embeddings.load(case / 'dump.npz')
    assert found.image.equal(expected.image)  # shards of whole batches: to the bit
    assert_same(found, expected)


def test_killed_it_goes_on_where_it_was(case, tmp_path):
    options = ('--out', tmp_path / 'out', '--shard-size', 1)
    given = [case / 'config.py', case / '0.pth', *options, '--work-dir', case / 'work']
    process = subprocess.Popen(
        [sys.executable, 'tools/extract_features.py', *map(str, given)],
        cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.time() + 100
    while len(done(tmp_path / 'out')) < 5 and time.time() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, 'it ended before it could be killed'
    finished = done(tmp_path / 'out')
    assert 5 <= len(finished) < ITEMS
    with pytest.raises(ValueError, match=r'shards are missing, e.g. .* goes on where it was'):
        Embeddings.load(tmp_path / 'out')
    extract(case, *options)
    after = done(tmp_path / 'out')
    assert {name: after[name] for name in finished} == finished
    assert len(after) == ITEMS
    assert_close(Embeddings.load(tmp_path / 'out'), Embeddings.load(case / 'dump.npz'))


def done(folder: Path) -> dict[str, int]:
    """Finished shards and when they were written."""
    return {p.name: os.stat(p).st_mtime_ns for p in folder.glob('shard-??????')}


def test_another_model_other_data_or_other_shards_are_refused(case, tmp_path):
    out = ('--out', tmp_path)
    extract(case, *out, '--shard-size', 30)
    before = done(tmp_path)
    extract(case, *out, '--shard-size', 30)
    assert done(tmp_path) == before
    for options, checkpoint, differs in (
        (('--shard-size', 30), '1.pth', 'weights'),
        (('--shard-size', 20), '0.pth', 'shard_size'),
        (('--shard-size', 30, '--split', 'val'), '0.pth', 'items'),
        (('--shard-size', 30, '--format', 'parquet'), '0.pth', 'files'),
        (('--shard-size', 30, '--cfg-options', 'tokenizer.tags=text'), '0.pth', 'data'),
    ):
        with pytest.raises(SystemExit, match=f"was begun with {{.*'{differs}'.* another --out"):
            extract(case, *out, *options, checkpoint=checkpoint)
    assert done(tmp_path) == before


@pytest.mark.parametrize(
    ('content', 'says'),
    [(b'5', "shards.json must be a JSON object, {...}, got '5'"),
     (b'[' * 10**5, 'shards.json is not JSON: '), (b'\xff', "can't decode byte 0xff"),
     (b'{}', 'was begun with ')],
)  # fmt: skip
def test_a_folder_that_was_begun_with_nothing_is_refused(case, tmp_path, content, says):
    (tmp_path / 'shards.json').write_bytes(content)
    with pytest.raises(SystemExit) as end:
        extract(case, '--out', tmp_path)
    assert says in end.value.code and 'Give another --out, or delete the folder.' in end.value.code
    assert (tmp_path / 'shards.json').read_bytes() == content


def test_photos_that_changed_are_refused(case, tmp_path):
    extract(case, '--out', tmp_path, '--shard-size', 30)
    photos = case / 'fashiongen_256_256_validation.h5'
    stat = os.stat(photos)
    os.utime(photos, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    try:
        with pytest.raises(SystemExit, match=r"was begun with \{'data': "):
            extract(case, '--out', tmp_path, '--shard-size', 30)
    finally:
        os.utime(photos, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_photos_that_were_packed_meanwhile_are_refused(case, tmp_path):
    extract(case, '--out', tmp_path, '--shard-size', 30)
    config = str(case / 'config.py')
    try:
        pack_images.main([config, '--splits', 'test', '--size', '16'])
        with pytest.raises(SystemExit, match=r"was begun with \{'data': "):
            extract(case, '--out', tmp_path, '--shard-size', 30)
    finally:
        shutil.rmtree(case / 'packed')


def test_an_error_of_one_process_reaches_all(case, tmp_path, monkeypatch):
    def told(*arguments):
        try:
            run_tool(*arguments)
        except SystemExit as error:
            (tmp_path / os.environ['RANK']).write_text(repr(error))

    monkeypatch.setattr(small, 'run_tool', told)
    (tmp_path / 'file').write_text('')
    extract(case, '--out', tmp_path / 'file/out', world=2)
    for rank in '01':
        assert 'cannot be written: ' in (tmp_path / rank).read_text()


def test_other_files_are_left_alone(case, tmp_path):
    (tmp_path / 'thesis.txt').write_text('mine')
    with pytest.raises(SystemExit, match=r'holds other files and no shards.json'):
        extract(case, '--out', tmp_path)
    with pytest.raises(SystemExit):
        extract(case, '--out', tmp_path / 'new', '--shard-size', 0)
    assert [path.name for path in tmp_path.iterdir()] == ['thesis.txt']


def test_products_of_train_are_read_as_in_a_test(case, tmp_path):
    extract(case, '--out', tmp_path / 'train', '--split', 'train')
    extract(case, '--out', tmp_path / 'val', '--split', 'val')
    train, val = Embeddings.load(tmp_path / 'train'), Embeddings.load(tmp_path / 'val')
    assert train.card['data']['fold'] == 'fit'
    assert train.card['data']['views'] == val.card['data']['views'] == 'all'
    assert len({*train.product_id.tolist(), *val.product_id.tolist()}) == 30
    assert train.image_view.max() > 0


def test_report_takes_the_folder(case, tmp_path):
    extract(case, '--out', tmp_path / 'shards', '--shard-size', 30)
    tables = {}
    for dump in (case / 'dump.npz', tmp_path / 'shards'):
        run_tool(
            'analysis_tools.report', dump, '--samples', 0, '--protocols', 'full/product',
            '--out', tmp_path / 'report',
        )  # fmt: skip
        tables[dump] = json.loads((tmp_path / 'report/report.json').read_text())['tables']
    assert len({json.dumps(table) for table in tables.values()}) == 1


def test_items_of_one_product_on_both_sides_of_a_border(tmp_path):
    """The first shard's text counts; rows come in order of ids though shards do not."""
    shards = ([5, 2], [2, 9])
    for number, ids in enumerate(shards):
        folder = tmp_path / f'shard-{number:06d}'
        folder.mkdir()
        ids = np.array(ids)
        arrays = dict(
            image=ids[:, None] + number / 2, image_product_id=ids, image_view=ids * 0 + number,
            product=ids[:, None] + number / 2, product_id=ids, product_caption=ids * 0,
        )  # fmt: skip
        for name, array in arrays.items():
            np.save(folder / f'{name}.npy', array)
    (tmp_path / 'shards.json').write_text(
        json.dumps(dict(items=4, shard_size=2, shards=2, card=dict(a=1)))
    )
    found = Embeddings.load(tmp_path)
    assert found.product_id.tolist() == [2, 5, 9]
    assert found.product.flatten().tolist() == [2, 5, 9.5]
    assert found.image_product_id.tolist() == [2, 2, 5, 9]
    assert found.image.flatten().tolist() == [2, 2.5, 5, 9.5]
    assert found.card == dict(a=1)


def test_more_shards_than_files_may_be_open(tmp_path):
    for number in range(60):
        folder = tmp_path / f'shard-{number:06d}'
        folder.mkdir()
        ids = np.array([number])
        arrays = dict(
            image=ids[:, None] / 2, image_product_id=ids, image_view=ids * 0,
            product=ids[:, None] / 3, product_id=ids, product_caption=ids * 0,
        )  # fmt: skip
        for name, array in arrays.items():
            np.save(folder / f'{name}.npy', array)
    (tmp_path / 'shards.json').write_text(
        json.dumps(dict(items=60, shard_size=1, shards=60, card={}))
    )
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = max(map(int, os.listdir('/proc/self/fd'))) + 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, limits[1]))
    try:
        found = Embeddings.load(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert found.product_id.tolist() == found.image_product_id.tolist() == list(range(60))
    torch.testing.assert_close(found.image.flatten() * 2, torch.arange(60).to(found.image))


@pytest.fixture(scope='module')
def shards(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp('shards')
    extract(case, '--out', folder, '--shard-size', 20)
    return folder


@pytest.mark.parametrize(
    ('name', 'change', 'says'),
    [
        ('image', lambda a: a[:5], r'arrays of shard-000001 differ in length: .*\(5,\)'),
        ('product_caption', lambda a: a[:-1], 'arrays of shard-000001 differ in length'),
        ('image', lambda a: a.ravel()[0], 'arrays of shard-000001 differ in length'),
        ('image', lambda a: a[:, :1], r"rows of 'image' are \(1,\) in shard-000001, \(\d+,\)"),
    ],
)
def test_an_array_that_is_not_of_its_shard(shards, tmp_path, name, change, says):
    folder = shutil.copytree(shards, tmp_path / 'out')
    path = folder / f'shard-000001/{name}.npy'
    np.save(path, change(np.load(path)))
    with pytest.raises(ValueError, match=says):
        Embeddings.load(folder)


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        (dict(shards=2), '62 items in 2 shards of 20; expected integers from 1'),
        (dict(shards=2, items=40), "says 2 shards, but there are also e.g. .'shard-000002'"),
        (dict(shards=999999999), 'in 999999999 shards of 20; expected'),
        (
            dict(shards=10**9, items=10**9, shard_size=1),
            "999999996 of its 1000000000 shards are missing, e.g. .'shard-000004'",
        ),
        (dict(shards=-4, items=-62), 'expected integers from 1'),
        (dict(shards='4'), "in '4' shards of 20; expected integers"),
        (dict(shard_size=0), 'shards of 0; expected integers from 1'),
    ],
    ids=str,
)
def test_shards_that_are_not_those_of_the_file(shards, tmp_path, changes, says):
    folder = shutil.copytree(shards, tmp_path / 'out')
    about = json.loads((folder / 'shards.json').read_text()) | changes
    (folder / 'shards.json').write_text(json.dumps(about))
    with pytest.raises(ValueError, match=says):
        Embeddings.load(folder)


def test_a_shard_copied_over_another(shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / 'out')
    (folder / '.shard-000002.7.parts').mkdir()  # of a call that was killed
    assert len(Embeddings.load(folder).image) == ITEMS
    shutil.rmtree(folder / 'shard-000002')
    shutil.copytree(folder / 'shard-000000', folder / 'shard-000002')
    with pytest.raises(ValueError, match='shard-000002 has the ids of shard-000000'):
        Embeddings.load(folder)
