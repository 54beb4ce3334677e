"""The record of a run: what it was made from, what came of it, and what is not in it."""

import hashlib
import json
import logging
import os
import shutil
import time
from pathlib import Path

import pytest
import runs
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from eiclip_mm.datasets import CocoProducts
from eiclip_mm.engine.fingerprints import file_state, named_files, photos_state, weights_sha256
from eiclip_mm.engine.record_file import RECORD, put_start, read_record
from eiclip_mm.utils import load_config

HOOKS = ('StepSeedHook', 'PlainCheckpointHook', 'RunRecordHook')


@pytest.fixture(scope='module', autouse=True)
def from_configs():
    """Runners as the tools make them: with a config."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, 'Runner', lambda **settings: Runner.from_cfg(Config(settings)))
        yield


@pytest.fixture(scope='module')
def catalogue(tmp_path_factory):
    return runs.write_catalogue(tmp_path_factory.mktemp('catalogue'))


@pytest.fixture(scope='module')
def finished(catalogue, tmp_path_factory):
    """A work dir of one epoch, and the weights it left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SHOP_TOKEN', 'very-secret')
        patch.setenv('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
        runner = runs.make_runner(catalogue, tmp_path_factory.mktemp('work'), hooks=HOOKS)
        runner.train()
    return runner


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_training_is_recorded(finished, catalogue):
    work = finished.work_dir
    (start,) = read_record(work)
    assert (start['kind'], start['seed'], start['world_size']) == ('train', 7, 1)
    assert start['began'] == dict(epoch=0, iter=0)
    h5 = catalogue[0] / 'fashiongen_256_256_train.h5'
    assert start['files'][str(h5)] == dict(size=h5.stat().st_size, sha256=sha256(h5), rule='whole')
    assert start['photos']['train']['count'] == 0  # they are in the HDF5 file
    result = start['result']
    assert result['epoch'] == 1 and result['iter'] == finished.iter > 0
    assert result['metrics']['full/first-image/i2t/R@1'] == result['best']['best_score']
    left = weights_sha256(finished.model.state_dict())
    assert start['weights'] != left
    assert [c['role'] for c in result['checkpoints']] == ['best_ckpt', 'last_ckpt']
    assert {c['weights'] for c in result['checkpoints']} == {left}


def test_the_kept_config_is_the_one_that_ran(finished):
    work = finished.work_dir
    (start,) = read_record(work)
    kept = Path(work, start['config']['file'])
    assert sha256(kept) == start['config']['sha256']
    assert load_config(kept).to_dict() == finished.cfg.to_dict()


def test_two_starts_of_one_second_keep_a_config_each(catalogue, tmp_path, monkeypatch):
    monkeypatch.setattr(time, 'strftime', lambda *_: '20260101_000000')
    for epochs in (1, 2):
        runs.make_runner(catalogue, tmp_path, hooks=HOOKS, epochs=epochs).train()
    starts = read_record(tmp_path)
    kept = [tmp_path / start['config']['file'] for start in starts]
    assert [sha256(path) for path in kept] == [start['config']['sha256'] for start in starts]
    assert [load_config(path).train_cfg.max_epochs for path in kept] == [1, 2]


def test_the_environment_is_recorded_by_a_short_list(finished):
    text = Path(finished.work_dir, RECORD).read_text(encoding='utf-8')
    assert 'very-secret' not in text and 'SHOP_TOKEN' not in text
    assert json.loads(text)['starts'][0]['variables']['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'


def test_a_run_without_a_config_is_recorded_as_such(catalogue, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, 'Runner', Runner)
    runs.make_runner(catalogue, tmp_path, hooks=HOOKS).train()
    (start,) = read_record(tmp_path)
    assert start['files'] == {} and start['result']['epoch'] == 1
    assert load_config(tmp_path / start['config']['file']).to_dict() == {}


def test_each_start_is_seen(finished, catalogue, tmp_path):
    """One that was killed has no result; the resume says where it went on."""

    class Killed(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                raise KeyboardInterrupt

    work = tmp_path / 'work'
    runner = runs.make_runner(catalogue, work, hooks=HOOKS, epochs=2)
    runner.register_hook(Killed())
    with pytest.raises(KeyboardInterrupt):
        runner.train()
    assert read_record(work)[0]['result'] is None
    resumed = runs.make_runner(catalogue, work, hooks=HOOKS, epochs=2, resume=True)
    resumed.train()
    killed, start = read_record(work)
    assert killed['result'] is None and killed['began']['iter'] == 0
    assert start['began'] == dict(epoch=1, iter=resumed.iter // 2)
    assert start['result']['epoch'] == 2
    assert killed['config'] != start['config']


def test_a_damaged_record_is_kept_beside_a_new_one(finished, tmp_path, caplog):
    (start,) = read_record(finished.work_dir)
    (tmp_path / RECORD).write_text('{"format": "eiclip')
    with caplog.at_level(logging.WARNING):
        put_start(tmp_path, start, logging.getLogger())
    assert 'not JSON' in caplog.text and 'unreadable' in caplog.text
    assert (tmp_path / f'{RECORD}.unreadable').read_text() == '{"format": "eiclip'
    assert read_record(tmp_path) == [start]
    put_start(tmp_path, dict(start, seed=8), logging.getLogger())  # the same start, later
    put_start(tmp_path, dict(start, time='later'), logging.getLogger())
    assert [s['seed'] for s in read_record(tmp_path)] == [8, 7]


def damaged(**changes):
    return lambda record: record['starts'][0].update(changes)


@pytest.mark.parametrize(
    ('damage', 'says'),
    [
        (lambda record: record.update(format='x'), 'no record of runs'),
        (lambda record: record.update(version=2), 'version 2, this eiclip_mm reads 1'),
        (lambda record: record.update(starts={}), 'no list of starts'),
        (lambda record: record['starts'].append(3), 'start 2 has no usable kind'),
        (damaged(config=dict(file=1)), 'start 1 has no usable config'),
        (damaged(files=dict(a=1)), 'no usable files'),
        (damaged(began=None), 'no usable began'),
        (damaged(result=dict(metrics=[])), 'no usable result'),
        (damaged(host=None), 'no usable host'),
    ],
)
def test_a_record_of_another_kind_is_refused(finished, tmp_path, damage, says):
    record = json.loads(Path(finished.work_dir, RECORD).read_bytes())
    damage(record)
    (tmp_path / RECORD).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=says):
        read_record(tmp_path)


def test_a_work_dir_without_a_record_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='RunRecordHook'):
        read_record(tmp_path / 'nowhere')


def test_large_files_are_sampled_and_say_so(tmp_path):
    path = tmp_path / 'large.h5'
    size, mib = 200 * 2**20 + 5, 2**20
    with open(path, 'wb') as file:
        file.truncate(size)
        for i in range(64):  # what lies where it is sampled
            file.seek((size - mib) * i // 63)
            file.write(bytes([i]))
    expected = hashlib.sha256()
    with open(path, 'rb') as file:
        for i in range(64):
            file.seek((size - mib) * i // 63)
            expected.update(file.read(mib))
    found = file_state(path, whole=2**20)
    assert found['sha256'] == expected.hexdigest() and found['rule'].startswith('64 samples')
    assert found['modified'] == int(path.stat().st_mtime) and found['size'] == size
    with open(path, 'r+b') as file:  # the very last byte
        file.seek(size - 1)
        file.write(b'x')
    assert file_state(path, whole=2**20)['sha256'] != expected.hexdigest()


def test_the_files_a_config_names_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('data/train.json', 'data/vocab.json', 'data/packed/a.index', 'train.json',
                 'data/packed/a.photos', 'w/towers.pt', 'w/folder/x.bin', 'demo/a'):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    dataset = dict(
        data_root='data/', ann_file='train.json', fold='demo', other='data',
        tokenizer=dict(vocab='data/vocab.json'),
        pipeline=[dict(type='LoadProductImage', packed='data/packed')],
    )  # fmt: skip
    cfg = dict(
        model=dict(mode='demo', towers=dict(pretrained='w/towers.pt', text=['w/folder'])),
        train_dataloader=dict(dataset=dataset),
        test_dataloader=dict(dataset=dict(ann_file='data/vocab.json')),
        load_from=None,
    )
    found = named_files(cfg, ['train'])
    assert found == {
        name: name
        for name in ('w/towers.pt', 'w/folder/x.bin', 'data/train.json', 'data/vocab.json',
                     'data/packed/a.index')
    }  # fmt: skip


def test_photos_are_named_by_place_size_and_time(tmp_path):
    images = [dict(id=i, product_id=i, file_name=f'{i}.jpg') for i in range(3)]
    texts = [dict(id=i, image_id=i, caption='a shirt') for i in range(3)]
    catalogue = tmp_path / 'a' / 'train.json'
    catalogue.parent.mkdir()
    catalogue.write_text(json.dumps(dict(images=images, annotations=texts)))
    for i in range(2):  # the third is in a pack alone
        (catalogue.parent / f'{i}.jpg').write_bytes(b'photo')
        os.utime(catalogue.parent / f'{i}.jpg', (100, 100))

    def state(folder='a'):
        root = str(tmp_path / folder)
        return photos_state(CocoProducts('train.json', data_root=root, views='all'), ())

    first = state()
    assert (first['count'], first['missing'], first['bytes']) == (2, 1, 10)
    shutil.copytree(tmp_path / 'a', tmp_path / 'b')  # elsewhere, with its times
    assert state('b') == first
    os.utime(tmp_path / 'a' / '0.jpg', (200, 200))
    touched = state()
    assert touched['times'] != first['times']
    assert dict(touched, times=None) == dict(first, times=None)
    (tmp_path / 'a' / '0.jpg').write_bytes(b'other photo')
    assert state()['names_and_sizes'] != first['names_and_sizes']


def test_the_digest_of_weights_sees_names_types_shapes_and_bits():
    weights = dict(b=torch.ones(2, 3), a=torch.tensor(1.5), c=torch.ones(2, dtype=torch.bfloat16))
    first = weights_sha256(weights)
    again = {name: weights[name].clone() for name in ('a', 'c', 'b')}  # order does not matter
    assert weights_sha256(again) == first
    assert weights_sha256(dict(weights, b=torch.ones(3, 2).T)) == first  # nor how it lies in memory
    for other in (
        dict(weights, a=torch.tensor(1.5).nextafter(torch.tensor(2.0))),
        dict(weights, b=torch.ones(3, 2)),
        dict(weights, c=torch.ones(2, dtype=torch.float16)),
        {('d' if k == 'a' else k): v for k, v in weights.items()},
    ):
        assert weights_sha256(other) != first
