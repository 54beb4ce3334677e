"""Cached features against the trunks themselves: values, training, and when files are reused."""

import io
import json
import os
import resource
import shutil
from functools import partial

import numpy as np
import pytest
import runs
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.dataset import ConcatDataset, RepeatDataset
from mmengine.registry import DefaultScope
from PIL import Image
from runs import LOAD, TYPES, same, weights, write_catalogue
from torch.utils.data import DataLoader

from eiclip_mm.datasets.batches import stack_products
from eiclip_mm.datasets.pack_writer import PackWriter
from eiclip_mm.datasets.synthetic import FILES
from eiclip_mm.engine import ImageFeatureCache, TextFeatureCache, feature_files
from eiclip_mm.registry import DATASETS, MODELS, TRANSFORMS

FEATURES = [dict(type='LoadImageFeature', pipeline=LOAD), dict(type='PackProduct')]
TIMM = dict(
    tiny.ARCHITECTURE,
    vision_cfg=dict(
        timm_model_name='test_efficientnet', timm_pool='avg', timm_proj='linear', image_size=32
    ),
)
IMAGE_FROZEN = dict(type='OpenCLIPTowers', model=TIMM, image_unlocked=0)
FLAT_FROZEN = dict(
    type='OpenCLIPTowers', model=tiny.ARCHITECTURE, image_unlocked=0, text_unlocked=0
)


@pytest.fixture(scope='module')
def catalogue(tmp_path_factory):
    return write_catalogue(tmp_path_factory.mktemp('mini'))


def model_and_data(
    catalogue, towers=IMAGE_FROZEN, tokenizer=None, pipeline=FEATURES, fold='select', **data
):
    """An EI-CLIP model and the products that it is chosen on, or others."""
    folder, vocab = catalogue
    torch.manual_seed(0)
    tokenizer = tiny.tokenizer(model=towers['model'], vocab=vocab) | (tokenizer or {})
    parts = dict(selector=dict(type='KeepAll'), learner=dict(type='EALearner'))
    model = MODELS.build(dict(type='EICLIP', towers=towers, tokenizer=tokenizer, **parts))
    dataset = dict(
        type='FashionGen', data_root=str(folder), ann_file=FILES['train'], fold=fold,
        entity_types=TYPES, views='first', tokenizer=tokenizer, pipeline=pipeline,
        serialize_data=False,  # it collects garbage, a third of a second a time
    )  # fmt: skip
    return model, DATASETS.build(dataset | data)


@pytest.fixture
def build(catalogue):
    return partial(model_and_data, catalogue)


@pytest.fixture
def make_runner(catalogue, tmp_path):
    """Runners whose image trunk is frozen."""

    def make(work_dir='run', towers=IMAGE_FROZEN, selector=None, **changes):
        model = dict(towers=towers, selector=selector or dict(type='KeepAll'))
        settings = dict(model=model, pipeline=FEATURES, hooks=()) | changes
        return runs.make_runner(catalogue, tmp_path / work_dir, **settings)

    return make


@pytest.fixture
def folder(tmp_path):
    return tmp_path / 'cache'


def names(folder):
    return {path.name for path in folder.glob('*.npy')}


def npy(array):
    """Content of its ``.npy`` file."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def state(folder):
    """What a second run must not touch."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


class TestImages:
    def test_values_are_the_trunk_s(self, build, folder):
        model, cached = build(fold='all')
        for module in model.modules():
            module.training = True  # as before the first epoch
        ImageFeatureCache(folder, batch_size=7).fill(model.towers, cached)
        assert model.towers.training
        towers = model.towers.eval()
        loaded = build(pipeline=[*LOAD, dict(type='PackProduct')], fold='all')[1]
        for a, b in zip(cached, loaded, strict=True):
            with torch.no_grad():
                expected = towers.image_trunk(b['image'][None])[0]
            torch.testing.assert_close(a['image'], expected, rtol=1e-4, atol=1e-5)
        assert len(cached) == 44 and expected.std() > 0

    def test_a_run_from_files_to_metrics(self, make_runner, folder):
        hook = dict(type='ImageFeatureCache', folder=str(folder))
        runner = make_runner(hooks=('StepSeedHook', hook))
        before = weights(runner)
        runner.train()
        after = weights(runner)
        changed = {name for name in before if not before[name].equal(after[name])}
        assert 'towers.clip.visual.head.proj.weight' in changed
        assert not [name for name in changed if 'visual.trunk' in name]
        # a second run finds the files and gives the same weights
        files = state(folder)
        assert len(files) == 2
        other = make_runner('again', hooks=('StepSeedHook', hook))
        other.train()
        assert state(folder) == files and same(weights(other), after)

    def test_val_and_test_alone(self, make_runner, folder):
        runner = make_runner()
        hook = ImageFeatureCache(folder)
        hook.before_val(runner)
        assert len(names(folder)) == 1
        assert runner.val_dataloader.dataset[0]['image'].ndim == 1
        (path,) = folder.iterdir()
        path.unlink()
        hook.before_val(runner)  # before every validation, but it looks once
        assert not names(folder)

    def test_the_name_says_what_went_in(self, build, folder):
        def added(change=None, towers=None, **changes):
            model, dataset = build(IMAGE_FROZEN | (towers or {}), **changes)
            if change is not None:
                change(model.towers)
            before = names(folder)
            ImageFeatureCache(folder).fill(model.towers, dataset)
            return len(names(folder) - before)

        def trunk_weight(towers):
            next(towers.image_trunk_module().parameters()).data[0] += 1e-3

        def running_mean(towers):
            next(b for n, b in towers.clip.visual.trunk.named_buffers() if 'mean' in n).add_(1e-3)

        def head_weight(towers):
            towers.clip.visual.head.proj.weight.data += 1
            towers.clip.text_projection.data += 1

        wide = [LOAD[0], dict(LOAD[1], scale=36), LOAD[2]]
        wide = [dict(FEATURES[0], pipeline=wide), FEATURES[1]]
        other_pool = dict(TIMM, vision_cfg=dict(TIMM['vision_cfg'], timm_pool='max'))
        assert added() == 1
        assert added() == 0
        assert added(head_weight) == 0  # is no part of the features
        assert added(trunk_weight) == 1
        assert added(running_mean) == 1
        assert added(pipeline=wide) == 1
        assert added(fold='all') == 1
        assert added(towers=dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))) == 1
        assert added(towers=dict(std=(0.5, 0.5, 0.5))) == 1
        assert added(towers=dict(model=other_pool)) == 1
        # equal weights, other heads
        for width in (16, 8):
            narrow = dict(tiny.ARCHITECTURE['vision_cfg'], head_width=width)
            assert added(towers=dict(model=dict(tiny.ARCHITECTURE, vision_cfg=narrow))) == 1, width

    def test_a_photo_replaced_in_place_gives_a_new_name(self, build, tmp_path, folder):
        photo = tmp_path / 'photo.png'
        model, dataset = build()
        photos = {(str(photo),): dict(img_path=str(photo))}
        dataset.images = lambda: photos

        def fill(colour, time, size=40):
            Image.new('RGB', (size, size), colour).save(photo, compress_level=0)
            os.utime(photo, ns=(time, time))
            dataset.pipeline.transforms[0] = TRANSFORMS.build(FEATURES[0])  # as in a new run
            before = names(folder)
            ImageFeatureCache(folder).fill(model.towers, dataset)
            return names(folder) - before

        second = 10**9
        (first,) = fill('red', second)
        (other,) = fill('blue', 2 * second)  # of the same size in bytes
        assert not np.array_equal(np.load(folder / first), np.load(folder / other))
        assert len(fill('blue', 2 * second, size=48)) == 1  # at the same time
        assert not fill('red', second)  # nothing that the name would tell

    def test_a_pack_made_anew_gives_a_new_name(self, build, tmp_path, folder):
        packed, image = tmp_path / 'packed', dict(img_path=str(tmp_path / 'gone.png'))
        model, dataset = build()
        dataset.images = lambda: {(image['img_path'],): image}
        load = [dict(LOAD[0], packed=str(packed)), *LOAD[1:]]

        def fill(side):
            shutil.rmtree(packed, ignore_errors=True)
            writer = PackWriter(packed, 'train', [image], side)
            writer.add(image, np.full((side, side, 3), side, np.uint8))
            writer.finish()
            writer.close()
            dataset.pipeline.transforms[0] = TRANSFORMS.build(dict(FEATURES[0], pipeline=load))
            before = names(folder)
            ImageFeatureCache(folder).fill(model.towers, dataset)
            return names(folder) - before

        (first,), (other,) = fill(32), fill(48)
        assert not np.array_equal(np.load(folder / first), np.load(folder / other))

    @pytest.mark.filterwarnings('ignore:Importing from timm.models.helpers:FutureWarning')
    def test_a_trunk_that_trains_is_refused(self, build, folder):
        for unlocked in (None, 1):
            model, dataset = build(dict(IMAGE_FROZEN, image_unlocked=unlocked))
            with pytest.raises(ValueError, match=r'towers=dict\(image_unlocked=0\), or load pix'):
                ImageFeatureCache(folder).fill(model.towers, dataset)
        assert not folder.exists()

    @pytest.mark.parametrize(
        'drawing',
        [
            dict(type='RandomResizedCrop', scale=32),
            dict(type='RandomFlip', prob=0.5),
            dict(type='ColorJitter', brightness=0.5),
        ],
        ids=lambda t: t['type'],
    )
    def test_a_pipeline_that_draws_is_refused(self, build, folder, drawing):
        pipeline = [dict(FEATURES[0], pipeline=[*LOAD, drawing]), FEATURES[1]]
        model, dataset = build(pipeline=pipeline)
        with pytest.raises(ValueError, match=rf'draws at random.*{drawing["type"]}'):
            ImageFeatureCache(folder).fill(model.towers, dataset)
        assert not folder.exists()

    def test_pixels_are_left_alone(self, make_runner, folder):
        ImageFeatureCache(folder).before_train(make_runner(pipeline=runs.PIXELS))
        assert not folder.exists()

    @pytest.mark.parametrize('kind', [ImageFeatureCache, TextFeatureCache])
    def test_wrappers_are_refused(self, make_runner, build, folder, kind):
        runner, dataset = make_runner(), build()[1]
        for wrapper in (
            RepeatDataset(dataset, 2),
            ConcatDataset([dataset] * 2, False, 'retrieval'),
        ):
            says = f'not support wrappers of data sets, such as {type(wrapper).__name__}: give'
            with pytest.raises(ValueError, match=says):
                kind(folder)._fill(runner, DataLoader(wrapper))

    def test_without_the_hook(self, make_runner):
        with pytest.raises(RuntimeError, match='LoadImageFeature has no features yet: add dict'):
            make_runner().train()


class TestTexts:
    """On open_clip's flat CLIP, all frozen: its features are the tower's output."""

    @pytest.mark.parametrize('batched', [False, True])
    def test_values_are_the_trunk_s(self, build, folder, batched):
        brands = dict(fields=('brand',))  # of one word and of more
        model, dataset = build(FLAT_FROZEN, brands, runs.PIXELS, fold='all', batched=batched)
        tokens, length = torch.from_numpy(dataset.encoded.text).long(), dataset.encoded.length
        assert length.min() < length.max() < tokens.shape[1]
        with torch.no_grad():
            expected = model.towers.encode_text(tokens)
        TextFeatureCache(folder, batch_size=3).fill(model.towers, dataset)
        batch = next(iter(DataLoader(dataset, 44, collate_fn=stack_products)))
        assert batch['text'].dtype == torch.float32 and batch['text'].shape == expected.shape
        torch.testing.assert_close(batch['text'], expected, rtol=1e-4, atol=1e-5)
        assert model.towers.encode_text(batch['text']).equal(batch['text'])
        assert expected.std(0).min() > 0  # texts differ

    def test_what_is_written_to_a_text_does_not_reach_the_file(self, build, folder):
        model, dataset = build(FLAT_FROZEN)
        TextFeatureCache(folder).fill(model.towers, dataset)
        (path,) = folder.iterdir()
        before = path.read_bytes()
        dataset.encoded.text[:] = 7
        dataset.encoded.text.flush()
        assert path.read_bytes() == before

    def test_the_name_says_what_went_in(self, build, catalogue, folder):
        def added(change=None, towers=FLAT_FROZEN, **changes):
            model, dataset = build(towers, **changes)
            if change is not None:
                change(model.towers.clip)
            before = names(folder)
            TextFeatureCache(folder).fill(model.towers, dataset)
            return len(names(folder) - before)

        def image_tower(clip):
            clip.visual.proj.data += 1

        def shifted(name):
            return lambda clip: clip.get_parameter(name).data.add_(1e-3)

        narrow = dict(tiny.ARCHITECTURE, text_cfg=dict(tiny.ARCHITECTURE['text_cfg'], heads=4))
        vocab = json.loads(json.dumps(catalogue[1]))
        vocab['names']['brand'].append('Qwzx')  # which no text mentions
        vocab['counts']['brand'].append(1)
        assert added() == 1
        assert added() == 0
        assert added(image_tower) == 0  # is no part of the features
        for name in (
            'text_projection', 'positional_embedding', 'token_embedding.weight',
            'ln_final.weight', 'transformer.resblocks.0.mlp.c_fc.weight',
        ):  # fmt: skip
            assert added(shifted(name)) == 1, name
        assert added(towers=dict(FLAT_FROZEN, model=narrow)) == 1  # equal weights, other heads
        both_ways = dict(tiny.ARCHITECTURE['text_cfg'], no_causal_mask=True)
        for custom in (False, True):
            model = dict(tiny.ARCHITECTURE, custom_text=custom)
            assert added(towers=dict(FLAT_FROZEN, model=model)) == int(custom)  # flat: see above
            assert added(towers=dict(FLAT_FROZEN, model=dict(model, text_cfg=both_ways))) == 1
        assert added(fold='all') == 1  # other texts
        assert added(tokenizer=dict(fields=('brand', 'description'))) == 1  # another reading
        assert added(tokenizer=dict(vocab=vocab)) == 0  # the texts are read as before
        # entities that are tokens have rows in the trunk
        assert added(tokenizer=dict(mention='cut')) == 1
        assert added(tokenizer=dict(mention='cut', vocab=vocab)) == 1
        assert added(tokenizer=dict(mention='token', vocab=vocab)) == 1

    @pytest.mark.parametrize(
        'change',
        [dict(text_unlocked=None), dict(text_unlocked=1), dict(lora=dict(rank=2))],
        ids=str,
    )
    def test_a_trunk_that_trains_is_refused(self, build, folder, change):
        model, dataset = build(FLAT_FROZEN | change)
        with pytest.raises(ValueError, match=r'towers=dict\(text_unlocked=0\), or leave dict'):
            TextFeatureCache(folder).fill(model.towers, dataset)
        assert not folder.exists()

    def test_data_without_encoded_texts_is_refused(self, build, folder):
        model, dataset = build(FLAT_FROZEN)
        dataset.encoded = None
        with pytest.raises(ValueError, match='no encoded texts in FashionGen: give the data set'):
            TextFeatureCache(folder).fill(model.towers, dataset)

    def test_no_batch_is_refused(self):
        with pytest.raises(ValueError, match='batch_size must be at least 1, got 0'):
            TextFeatureCache(batch_size=0)


class TestFiles:
    def count(self, model, monkeypatch, then=lambda seen: None):
        """Photos that the trunk sees, in batches; ``then`` is called before each."""
        trunk, seen = model.towers.image_trunk, []

        def counted(batch):
            seen.append(len(batch))
            then(seen)
            return trunk(batch)

        monkeypatch.setattr(model.towers, 'image_trunk', counted)
        return seen

    def test_a_killed_run_is_taken_up(self, build, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(ImageFeatureCache, 'CHUNK', 2)
        model, dataset = build(fold='all')
        ImageFeatureCache(tmp_path / 'whole').fill(model.towers, dataset)
        (path,) = (tmp_path / 'whole').iterdir()
        assert len(np.load(path)) == 44

        def stop(seen):
            if len(seen) == 6:
                raise KeyboardInterrupt

        model, dataset = build(fold='all')
        self.count(model, monkeypatch, stop)
        with pytest.raises(KeyboardInterrupt):
            ImageFeatureCache(folder, batch_size=1).fill(model.towers, dataset)
        assert not names(folder)
        (parts,) = folder.iterdir()
        assert len(list(parts.glob('*.npy'))) == 2
        (parts / '4.half').write_bytes(b'half a file' * 1000)  # killed while it wrote
        model, dataset = build(fold='all')
        seen = self.count(model, monkeypatch)
        ImageFeatureCache(folder).fill(model.towers, dataset)
        assert sum(seen) == 40  # 4 were there
        np.testing.assert_allclose(np.load(folder / path.name), np.load(path), rtol=1e-4, atol=1e-5)
        assert [p.name for p in folder.iterdir()] == [path.name]

    @pytest.mark.parametrize('when', ['computing', 'writing', 'joining'])
    def test_another_run_finishes_first(self, build, folder, monkeypatch, when):
        """And takes the parts away; this one uses its file and leaves nothing behind."""
        monkeypatch.setattr(ImageFeatureCache, 'CHUNK', 2)
        model, dataset = build(fold='all')
        ImageFeatureCache(folder).fill(model.towers, dataset)
        (path,) = folder.iterdir()
        content = path.read_bytes()
        path.unlink()

        def other_run(*_):
            shutil.rmtree(path.with_suffix('.parts'))
            path.write_bytes(content)

        model, dataset = build(fold='all')
        computing, join, save = when == 'computing', feature_files.join, np.save
        seen = self.count(
            model, monkeypatch, lambda seen: other_run() if computing and len(seen) == 3 else None
        )
        if when == 'writing':
            monkeypatch.setattr(np, 'save', lambda *a, **k: [save(*a, **k), other_run()])
        if when == 'joining':
            monkeypatch.setattr(feature_files, 'join', lambda *a: [other_run(), join(*a)])
        ImageFeatureCache(folder).fill(model.towers, dataset)
        assert len(seen) == dict(computing=3, writing=1, joining=22)[when]
        assert [p.name for p in folder.iterdir()] == [path.name]
        assert path.read_bytes() == content
        assert (dataset[1]['image'].numpy() == np.load(path)[1]).all()

    def test_two_runs_write_one_part_at_once(self, build, folder, monkeypatch):
        """In containers that share a folder both may have one process id, as here."""
        compute, save, given = ImageFeatureCache._compute, np.save, []

        def beside(file, arr):
            monkeypatch.setattr(np, 'save', save)
            compute(*given)
            save(file, arr)

        def recorded(*args):
            given.extend(args)
            compute(*args)

        monkeypatch.setattr(ImageFeatureCache, '_compute', recorded)
        monkeypatch.setattr(np, 'save', beside)
        model, dataset = build()
        ImageFeatureCache(folder).fill(model.towers, dataset)
        (path,) = folder.iterdir()
        assert np.load(path).std() > 0

    @pytest.mark.parametrize('chunk', [2, 44], ids=['joining', 'computing'])
    def test_a_full_disk_is_an_error_and_leaves_nothing_half(
        self, build, folder, tmp_path, monkeypatch, chunk
    ):
        monkeypatch.setattr(ImageFeatureCache, 'CHUNK', chunk)
        model, dataset = build(fold='all')
        ImageFeatureCache(tmp_path / 'whole').fill(model.towers, dataset)
        (path,) = (tmp_path / 'whole').iterdir()
        model, dataset = build(fold='all')
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size - 1, limits[1]))
        try:
            with pytest.raises(OSError):
                ImageFeatureCache(folder).fill(model.towers, dataset)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert not names(folder)
        left = [file.suffix for file in (folder / f'{path.stem}.parts').iterdir()]
        assert left == ['.npy'] * (22 if chunk == 2 else 0)

    DAMAGES = dict(
        cut=lambda a, content: content[:-1],
        longer=lambda a, content: content + b'0',
        empty=lambda a, content: b'',
        other=lambda a, content: b'<html>' + content,
        rows=lambda a, content: npy(a[1:]),
        width=lambda a, content: npy(a[0]),
        dtype=lambda a, content: npy(a.astype(np.float64)),
    )

    @pytest.mark.parametrize('damage', DAMAGES)
    def test_a_damaged_file_is_named(self, build, folder, damage):
        model, dataset = build(FLAT_FROZEN)
        TextFeatureCache(folder).fill(model.towers, dataset)
        (path,) = folder.iterdir()
        content = path.read_bytes()
        path.write_bytes(self.DAMAGES[damage](np.load(path), content))
        model, dataset = build(FLAT_FROZEN)
        with pytest.raises(ValueError, match=rf'{path.name} are damaged: .*Delete it'):
            TextFeatureCache(folder).fill(model.towers, dataset)
        path.unlink()
        TextFeatureCache(folder).fill(model.towers, dataset)
        assert path.read_bytes() == content

    def test_damaged_parts_are_computed_again(self, build, folder, monkeypatch):
        monkeypatch.setattr(ImageFeatureCache, 'CHUNK', 2)
        model, dataset = build(fold='all')
        ImageFeatureCache(folder).fill(model.towers, dataset)
        (path,) = folder.iterdir()
        features = np.load(path)
        path.unlink()
        parts = path.with_suffix('.parts')
        parts.mkdir()
        for i, damage in enumerate([lambda a, content: content, *self.DAMAGES.values()]):
            part = features[2 * i : 2 * i + 2]
            (parts / f'{2 * i}.npy').write_bytes(damage(part, npy(part)))
        model, dataset = build(fold='all')
        seen = self.count(model, monkeypatch)
        ImageFeatureCache(folder).fill(model.towers, dataset)
        assert sum(seen) == 42  # 2 were there
        np.testing.assert_allclose(np.load(path), features, rtol=1e-4, atol=1e-5)
        assert [p.name for p in folder.iterdir()] == [path.name]

    def test_a_part_that_is_lost_is_an_error(self, build, folder, monkeypatch):
        join = feature_files.join
        monkeypatch.setattr(
            feature_files, 'join', lambda parts, *a: [parts[0].unlink(), join(parts, *a)]
        )
        model, dataset = build()
        with pytest.raises(FileNotFoundError):
            ImageFeatureCache(folder).fill(model.towers, dataset)
        assert not names(folder)


def process(rank, folder, catalogue):
    """Fill both caches as one of two processes; the texts of both have one file, of many parts."""
    DefaultScope.get_instance('process', scope_name='eiclip_mm')
    torch.set_num_threads(1)  # threads do not survive a fork
    dist.init_process_group('gloo', f'file://{folder}/rendezvous', rank=rank, world_size=2)
    model, dataset = model_and_data(catalogue, FLAT_FROZEN, fold='all')
    seen = dict(image=0, text=0)

    def counted(name, trunk):
        def count(batch):
            seen[name] += len(batch)
            return trunk(batch)

        return count

    for name in seen:
        trunk = f'{name}_trunk'
        setattr(model.towers, trunk, counted(name, getattr(model.towers, trunk)))
    for kind in (ImageFeatureCache, TextFeatureCache):
        kind.CHUNK = 6
        kind(folder / 'cache').fill(model.towers, dataset)
    batch = next(iter(DataLoader(dataset, 44)))
    torch.save((seen, batch['image'], batch['text']), folder / f'{rank}.pt')
    dist.destroy_process_group()


def test_two_processes_share_the_work(build, catalogue, tmp_path):
    # forked: two new interpreters would import everything again
    mp.start_processes(process, (tmp_path, catalogue), nprocs=2, start_method='fork')
    model, dataset = build(FLAT_FROZEN, fold='all')
    files = state(tmp_path / 'cache')
    assert len(files) == 2
    for kind in (ImageFeatureCache, TextFeatureCache):
        kind(tmp_path / 'alone').fill(model.towers, dataset)
        kind(tmp_path / 'cache').fill(model.towers, dataset)
    assert state(tmp_path / 'cache') == files  # one process finds what two have written
    assert names(tmp_path / 'alone') == set(files)
    batch = next(iter(DataLoader(dataset, 44)))
    for rank, rows in enumerate((6 * 4, 6 * 3 + 2)):
        seen, image, text = torch.load(tmp_path / f'{rank}.pt')
        assert seen == dict(image=rows, text=rows)
        torch.testing.assert_close(image, batch['image'], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(text, batch['text'], rtol=1e-4, atol=1e-5)


def steps(model, dataset):
    """Losses and gradients of a few steps of training."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()
    found = []
    for batch in DataLoader(dataset, 11, collate_fn=stack_products):
        torch.manual_seed(len(found))  # of dropout, where a side trains
        optimizer.zero_grad()
        losses = model(**batch, mode='loss')
        tiny.total(losses).backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append((losses, gradients))
        optimizer.step()
    return found


class TestTraining:
    """From features as from pixels and tokens."""

    PIXELS = [*LOAD, dict(type='PackProduct')]
    KINDS = dict(image=ImageFeatureCache, text=TextFeatureCache)

    def check(self, build, folder, towers, frozen, heads):
        plain, cached = (
            build(towers, pipeline=pipeline, fold='all', batched=True)
            for pipeline in (self.PIXELS, FEATURES if 'image' in frozen else self.PIXELS)
        )
        for side in frozen:
            self.KINDS[side](folder).fill(cached[0].towers, cached[1])
            # what is cached is not asked again
            setattr(cached[0].towers, f'{side}_trunk', None)
        compared = 0
        for (losses, grads), (found, found_grads) in zip(
            steps(*plain), steps(*cached), strict=True
        ):
            for name, value in losses.items():
                assert found[name].item() == pytest.approx(value.item(), rel=1e-5), name
            assert grads.keys() == found_grads.keys() and heads <= grads.keys()
            for name, grad in grads.items():
                scale = grad.abs().max().item()
                torch.testing.assert_close(
                    found_grads[name], grad, rtol=1e-3, atol=1e-4 * scale + 1e-9
                )
                compared += scale > 1e-6
        assert compared > 4 * 5  # gradients that are no zeros

    def test_flat_clip(self, build, folder):
        heads = {'learner.out.weight', 'towers.clip.logit_scale'}
        self.check(build, folder, FLAT_FROZEN, ('image', 'text'), heads)

    @pytest.mark.parametrize('frozen', [('image', 'text'), ('text',), ('image',)], ids='-'.join)
    def test_hugging_face_text_and_timm_image(self, build, folder, tmp_path_factory, frozen):
        model = tiny.bert_architecture(tmp_path_factory) | dict(vision_cfg=TIMM['vision_cfg'])
        towers = dict(
            type='OpenCLIPTowers', model=model, **{f'{side}_unlocked': 0 for side in frozen}
        )
        heads = {'towers.clip.text.proj.weight', 'towers.clip.visual.head.proj.weight'}
        self.check(build, folder, towers, frozen, heads)

    def test_pooling_is_part_of_the_trunk(self, build, folder, tmp_path_factory):
        model = tiny.bert_architecture(tmp_path_factory)
        for pooler in ('mean_pooler', 'cls_last_hidden_state_pooler'):
            text = dict(model['text_cfg'], hf_pooler_type=pooler)
            towers = dict(type='OpenCLIPTowers', model=dict(model, text_cfg=text), text_unlocked=0)
            made, dataset = build(towers, pipeline=self.PIXELS)
            TextFeatureCache(folder).fill(made.towers, dataset)
        first, other = (np.load(folder / name) for name in names(folder))
        assert not np.allclose(first, other, atol=1e-2)

    def test_a_run_that_chooses_entities_and_is_taken_up(self, make_runner, folder, tmp_path):
        hooks = (
            'StepSeedHook', 'PlainCheckpointHook', dict(type='CausalEffectHook', begin=1),
            dict(type='ImageFeatureCache', folder=str(folder)),
            dict(type='TextFeatureCache', folder=str(folder)),
        )  # fmt: skip
        settings = dict(
            towers=FLAT_FROZEN, hooks=hooks, epochs=2, data=dict(batched=True),
            selector=dict(type='EffectCESelector'),
        )  # fmt: skip
        runner = make_runner('whole', **settings)
        before = weights(runner)
        runner.train()
        after, files = weights(runner), state(folder)
        changed = {name for name in after if not before[name].equal(after[name])}
        assert 'learner.out.weight' in changed
        assert {n for n in changed if n.startswith('towers')} == {'towers.clip.logit_scale'}
        assert len(files) == 4  # photos and texts, of training and of choosing
        checkpoint = str(tmp_path / 'whole/epoch_1.pth')
        other = make_runner('again', **settings, load_from=checkpoint, resume=True)
        other.train()
        assert same(weights(other), after) and state(folder) == files
