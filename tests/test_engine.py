"""Hooks and optimiser wrapper in real, small runs."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from PIL import Image

from eiclip_mm.datasets import FashionGen
from eiclip_mm.datasets.synthetic import FILES, write_mini_fashiongen
from eiclip_mm.engine import CausalEffectHook, ImageFeatureCache, TowerLrConstructor
from eiclip_mm.engine.hooks import effect_table
from eiclip_mm.models.checkpoints import read_towers
from eiclip_mm.registry import OPTIM_WRAPPERS, TRANSFORMS
from eiclip_mm.structures import EntityVocab

TYPES = ('brand', 'composition')
LOAD = [
    dict(type='LoadProductImage'),
    dict(type='ResizeEdge', scale=32, edge='short'),
    dict(type='CenterCrop', crop_size=32),
]
PIXELS = [*LOAD, dict(type='EntityDropout', prob=0.3), dict(type='PackProduct')]
FEATURES = [dict(type='LoadImageFeature', pipeline=LOAD), dict(type='PackProduct')]
# draws at every step: patches that are dropped, gates
NOISY = dict(tiny.ARCHITECTURE, vision_cfg=dict(tiny.ARCHITECTURE['vision_cfg'], patch_dropout=0.5))
TIMM = dict(
    tiny.ARCHITECTURE,
    vision_cfg=dict(
        timm_model_name='test_efficientnet', timm_pool='avg', timm_proj='linear', image_size=32
    ),
)
FROZEN = dict(type='OpenCLIPTowers', model=TIMM, image_unlocked=0)


@pytest.fixture(scope='module')
def catalogue(tmp_path_factory):
    """44 products, and their vocabulary as a plain dict."""
    folder = tmp_path_factory.mktemp('mini')
    write_mini_fashiongen(folder, num_train=44, num_validation=2, num_general=2, progress=False)
    DefaultScope.get_instance('catalogue', scope_name='eiclip_mm')
    products = FashionGen(FILES['train'], TYPES, data_root=str(folder)).records()
    vocab = EntityVocab.build((p['entities'] for p in products), TYPES)
    return folder, vocab.to_dict()


@pytest.fixture
def make_runner(catalogue, tmp_path):
    """Runners of a small experiment; keyword arguments change it."""
    folder, vocab = catalogue
    made = []

    def make(
        work_dir='run', model=None, pipeline=PIXELS, fold='select', hooks=('StepSeedHook',),
        epochs=1, **changes,
    ):  # fmt: skip
        torch.manual_seed(0)
        model = dict(
            type='EICLIP',
            towers=dict(type='OpenCLIPTowers', model=NOISY),
            selector=dict(type='GatedCESelector'),
            learner=dict(type='EALearner'),
        ) | (model or {})
        tokenizer = tiny.tokenizer(model=model['towers']['model'], vocab=vocab)
        dataset = dict(
            type='FashionGen', data_root=str(folder), ann_file=FILES['train'],
            entity_types=TYPES, tokenizer=tokenizer, pipeline=pipeline,
            serialize_data=False,  # it collects garbage, a third of a second a time
        )  # fmt: skip
        loader = dict(num_workers=0, collate_fn=dict(type='default_collate'))
        settings = dict(
            model=dict(model, tokenizer=tokenizer),
            work_dir=str(tmp_path / work_dir),
            train_dataloader=dict(
                batch_size=16, drop_last=True, sampler=dict(type='ProductSampler', shuffle=True),
                dataset=dict(dataset, views='random', fold='fit'), **loader,
            ),
            val_dataloader=dict(
                batch_size=16, sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dict(dataset, views='first', fold=fold), **loader,
            ),
            val_evaluator=dict(type='RetrievalMetric', protocols=['full/first-image'], ks=(1, 5)),
            val_cfg=dict(),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.003)),
            param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=5)],
            default_hooks=dict(
                checkpoint=dict(type='CheckpointHook', interval=1, rule='greater',
                                save_best='full/first-image/i2t/R@1'),
            ),
            custom_hooks=[dict(type=h) if isinstance(h, str) else h for h in hooks],
            randomness=dict(seed=7),
            default_scope='eiclip_mm',
            log_level='ERROR',
            experiment_name=f'test{len(made)}-{tmp_path.name}',
        )  # fmt: skip
        made.append(Runner(**settings | changes))
        return made[-1]

    return make


def weights(runner):
    return {name: value.clone() for name, value in runner.model.state_dict().items()}


def same(a, b):
    return all(a[name].equal(b[name]) for name in a)


class TestResume:
    def test_a_resumed_run_repeats_the_unbroken_one(self, make_runner, tmp_path):
        hooks = ('StepSeedHook', 'PlainCheckpointHook')
        runner = make_runner('whole', epochs=3, hooks=hooks)
        runner.train()
        whole = weights(runner)
        checkpoint = str(tmp_path / 'whole/epoch_1.pth')

        def resumed(name, hooks):
            other = make_runner(name, epochs=3, hooks=hooks, load_from=checkpoint, resume=True)
            torch.manual_seed(123)  # whatever happened before
            other.train()
            assert (other.epoch, other.iter) == (3, 6)
            return weights(other)

        assert same(resumed('again', hooks), whole)
        # without the hook the gates and the dropped patches are others
        assert not same(resumed('loose', ('PlainCheckpointHook',)), whole)

        # what the hooks make of the files
        for name in ('epoch_1.pth', 'epoch_3.pth', *(p.name for p in tmp_path.glob('whole/best*'))):
            saved = torch.load(tmp_path / 'whole' / name, weights_only=True)
            assert saved['message_hub']['log_scalars'] == {}
            assert saved['meta']['dataset_meta']['views'] == 'random'
        assert list(tmp_path.glob('whole/best_full_first-image_i2t_R@1_epoch_*.pth'))
        assert torch.load(checkpoint, weights_only=True)['optimizer']['state']
        towers = read_towers(tmp_path / 'whole/epoch_3.pth')
        assert towers['text_projection'].equal(whole['towers.clip.text_projection'])
        assert towers.keys() == runner.model.towers.clip.state_dict().keys()
        assert saved['state_dict']['_extra_state'].dtype == torch.uint8

    def test_mmengine_s_own_checkpoints_need_the_hook(self, make_runner, tmp_path):
        make_runner().train()
        with pytest.raises(Exception, match='Weights only load failed'):
            torch.load(tmp_path / 'run/epoch_1.pth', weights_only=True)

    def test_seeds_are_the_same_in_every_process(self):
        """Python salts the hashes of strings, not those of numbers."""
        command = [sys.executable, '-c', 'print([hash((7, i)) % 2**63 for i in range(3)])']
        found = {
            subprocess.run(
                command, env=dict(os.environ, PYTHONHASHSEED=salt), capture_output=True, check=True
            ).stdout
            for salt in ('1', '2')
        }
        assert found == {f'{[hash((7, i)) % 2**63 for i in range(3)]}\n'.encode()}

    def test_steps_draw_differently(self, make_runner):
        runner = make_runner()
        hook = runner.hooks[[type(h).__name__ for h in runner.hooks].index('StepSeedHook')]
        draws = []
        for step in (0, 1, 0):
            runner.train_loop._iter = step
            hook.before_train_iter(runner, 0)
            draws.append(torch.rand(1).item())
        assert draws[0] == draws[2] != draws[1]


class TestCausalEffectHook:
    EFFECT = dict(selector=dict(type='EffectCESelector'))

    def test_it_chooses_once(self, make_runner, tmp_path):
        hooks = ('StepSeedHook', 'PlainCheckpointHook', dict(type='CausalEffectHook', begin=1))
        runner = make_runner(epochs=2, hooks=hooks, model=self.EFFECT)
        assert (runner.model.selector.weight == 1).all()
        runner.train()
        table = json.loads((tmp_path / 'run/causal_effects.json').read_text(encoding='utf-8'))
        assert [row['type'] for row in table] == list(TYPES)
        first = 1
        for row in table:
            assert row['low'] <= row['effect'] <= row['high'] and row['kept'] == (row['low'] > 0)
            kept, of = row['entities']
            assert runner.model.selector.weight[first : first + of].sum() == kept
            first += of
        saved = [
            torch.load(tmp_path / f'run/epoch_{n}.pth')['state_dict']['selector.weight']
            for n in (1, 2)
        ]
        assert (saved[0] == 1).all() and saved[1].equal(runner.model.selector.weight)
        assert 'brand' in effect_table(table) and runner.model.training is False

    def test_measured_with_the_model_as_it_is(self, make_runner, monkeypatch, tmp_path):
        """The batches it sees are the whole slice, as the validation loader would load it."""
        runner = make_runner(epochs=2, hooks=(), model=self.EFFECT)
        hook = CausalEffectHook(begin=1)
        hook.before_train(runner)
        hook.before_train_epoch(runner)  # epoch 0: not yet
        assert not (tmp_path / 'run/causal_effects.json').exists()
        runner.train_loop._epoch = 1
        hook.before_train_epoch(runner)
        table = json.loads((tmp_path / 'run/causal_effects.json').read_text(encoding='utf-8'))
        weight = runner.model.selector.weight.clone()
        batches = list(runner.val_dataloader)
        assert len(batches[0]['text']) == len(runner.val_dataloader.dataset) > 2
        again = runner.model.selector.choose(runner.model, batches)
        for row, other in zip(table, again, strict=True):
            assert row['effect'] == pytest.approx(other['effect'], abs=1e-6)
        assert runner.model.selector.weight.equal(weight)

    @pytest.mark.parametrize('fold', ['fit', 'all'])
    def test_other_products_are_refused(self, make_runner, fold):
        runner = make_runner(fold=fold, model=self.EFFECT, hooks=())
        with pytest.raises(ValueError, match=rf"fold='select' \(now fold='{fold}'\)"):
            CausalEffectHook(begin=1).before_train(runner)

    def test_no_validation_is_refused(self, make_runner):
        none = dict(val_dataloader=None, val_evaluator=None, val_cfg=None, default_hooks={})
        runner = make_runner(model=self.EFFECT, hooks=(), **none)
        with pytest.raises(ValueError, match='needs validation: train without --no-validate'):
            CausalEffectHook(begin=1).before_train(runner)

    def test_other_selectors_are_refused(self, make_runner):
        runner = make_runner(epochs=2, hooks=())
        with pytest.raises(ValueError, match=r"type='EffectCESelector'.*\(now GatedCESelector\)"):
            CausalEffectHook(begin=1).before_train(runner)

    def test_a_run_that_ends_before_is_refused(self, make_runner):
        runner = make_runner(epochs=2, model=self.EFFECT, hooks=())
        with pytest.raises(ValueError, match=r'before epoch 2.* ends after 2: lower begin or'):
            CausalEffectHook(begin=2).before_train(runner)
        CausalEffectHook(begin=1).before_train(runner)

    def test_an_untrained_model_is_refused(self):
        with pytest.raises(ValueError, match='an untrained model shows no effect; got 0'):
            CausalEffectHook(begin=0)


class TestImageFeatureCache:
    def runner(self, make_runner, **changes):
        model = dict(towers=FROZEN | changes.pop('towers', {}))
        return make_runner(**dict(model=model, pipeline=FEATURES, hooks=()) | changes)

    def names(self, folder):
        return {path.name for path in folder.glob('*.npy')}

    def test_values_are_the_trunk_s(self, make_runner, tmp_path):
        runner = self.runner(make_runner)
        for module in runner.model.modules():
            module.training = True  # as before the first epoch
        ImageFeatureCache(tmp_path / 'cache', batch_size=7).before_train(runner)
        assert runner.model.towers.training
        pixels = make_runner('pixels', pipeline=[*LOAD, dict(type='PackProduct')])
        seen = 0
        for name in ('train_dataloader', 'val_dataloader'):
            cached, loaded = (getattr(r, name).dataset for r in (runner, pixels))
            for dataset in (cached, loaded):
                dataset.set_epoch(0)  # the same views
            towers = runner.model.towers.eval()
            for a, b in zip(cached, loaded, strict=True):
                with torch.no_grad():
                    expected = towers.image_trunk(b['image'][None])[0]
                torch.testing.assert_close(a['image'], expected, rtol=1e-4, atol=1e-5)
                seen += 1
        assert seen == 44 and expected.std() > 0

    def test_a_run_from_files_to_metrics(self, make_runner, tmp_path):
        hook = dict(type='ImageFeatureCache', folder=str(tmp_path / 'cache'))
        runner = self.runner(make_runner, hooks=('StepSeedHook', hook))
        before = weights(runner)
        runner.train()
        after = weights(runner)
        changed = {name for name in before if not before[name].equal(after[name])}
        assert 'towers.clip.visual.head.proj.weight' in changed
        assert not [name for name in changed if 'visual.trunk' in name]
        # a second run finds the files and gives the same weights
        files = {path: path.stat().st_mtime_ns for path in (tmp_path / 'cache').iterdir()}
        assert len(files) == 2
        other = self.runner(make_runner, work_dir='again', hooks=('StepSeedHook', hook))
        other.train()
        assert {p: p.stat().st_mtime_ns for p in (tmp_path / 'cache').iterdir()} == files
        assert same(weights(other), after)

    def test_val_and_test_alone(self, make_runner, tmp_path):
        runner = self.runner(make_runner)
        hook = ImageFeatureCache(tmp_path / 'cache')
        hook.before_val(runner)
        assert len(self.names(tmp_path / 'cache')) == 1
        assert runner.val_dataloader.dataset[0]['image'].ndim == 1
        (path,) = (tmp_path / 'cache').iterdir()
        path.unlink()
        hook.before_val(runner)  # before every validation, but it looks once
        assert not self.names(tmp_path / 'cache')

    def test_the_name_says_what_went_in(self, make_runner, tmp_path):
        folder = tmp_path / 'cache'

        def added(change=None, **changes):
            runner = self.runner(make_runner, work_dir=f'run{len(made)}', **changes)
            if change is not None:
                change(runner.model.towers)
            before = self.names(folder)
            ImageFeatureCache(folder).before_val(runner)
            made.append(runner)
            return len(self.names(folder) - before)

        def trunk_weight(towers):
            next(towers.image_trunk_module().parameters()).data[0] += 1e-3

        def running_mean(towers):
            next(b for n, b in towers.clip.visual.trunk.named_buffers() if 'mean' in n).add_(1e-3)

        def head_weight(towers):
            towers.clip.visual.head.proj.weight.data += 1
            towers.clip.text_projection.data += 1

        made = []
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

    def test_a_photo_replaced_in_place_gives_a_new_name(self, make_runner, tmp_path):
        photo, folder = tmp_path / 'photo.png', tmp_path / 'cache'
        runner = self.runner(make_runner)
        dataset = runner.val_dataloader.dataset
        photos = {(str(photo),): dict(img_path=str(photo))}
        dataset.images = lambda: photos

        def fill(colour, time, size=40):
            Image.new('RGB', (size, size), colour).save(photo, compress_level=0)
            os.utime(photo, ns=(time, time))
            dataset.pipeline.transforms[0] = TRANSFORMS.build(FEATURES[0])  # as in a new run
            before = self.names(folder)
            ImageFeatureCache(folder).before_val(runner)
            return self.names(folder) - before

        second = 10**9
        (first,) = fill('red', second)
        (other,) = fill('blue', 2 * second)  # of the same size in bytes
        assert not np.array_equal(np.load(folder / first), np.load(folder / other))
        assert len(fill('blue', 2 * second, size=48)) == 1  # at the same time
        assert not fill('red', second)  # nothing that the name would tell

    def test_rests_of_a_killed_run_are_harmless(self, make_runner, tmp_path):
        runner = self.runner(make_runner)
        ImageFeatureCache(tmp_path / 'whole').before_val(runner)
        (path,) = (tmp_path / 'whole').iterdir()
        folder = tmp_path / 'cache'
        folder.mkdir()
        for name in (f'{path.stem}.tmp', f'{path.stem}.{os.getpid()}.tmp'):
            (folder / name).write_bytes(b'half a file' * 1000)
        ImageFeatureCache(folder).before_val(self.runner(make_runner, work_dir='again'))
        assert (np.load(folder / path.name) == np.load(path)).all()
        # and a run that stops half way leaves no file that looks whole
        runner = self.runner(make_runner, work_dir='stopped')
        broken = tmp_path / 'broken.h5'
        broken.write_bytes(b'no photos')
        broken = {(str(broken), 0): dict(h5_path=str(broken), row=0)}
        images = runner.val_dataloader.dataset.images() | broken
        runner.val_dataloader.dataset.images = lambda: images
        with pytest.raises(OSError, match='file signature not found'):
            ImageFeatureCache(tmp_path / 'stopped', batch_size=2).before_val(runner)
        assert list((tmp_path / 'stopped').glob('*.tmp'))  # it had begun
        assert not self.names(tmp_path / 'stopped')

    @pytest.mark.filterwarnings('ignore:Importing from timm.models.helpers:FutureWarning')
    def test_a_trunk_that_trains_is_refused(self, make_runner, tmp_path):
        for unlocked in (None, 1):
            runner = self.runner(make_runner, towers=dict(image_unlocked=unlocked))
            with pytest.raises(ValueError, match=r'towers=dict\(image_unlocked=0\), or load pix'):
                ImageFeatureCache(tmp_path / 'cache').before_train(runner)
        assert not (tmp_path / 'cache').exists()

    def test_pixels_are_left_alone(self, make_runner, tmp_path):
        ImageFeatureCache(tmp_path / 'cache').before_train(make_runner())
        assert not (tmp_path / 'cache').exists()

    def test_without_the_hook(self, make_runner):
        with pytest.raises(RuntimeError, match='LoadImageFeature has no features yet: add dict'):
            self.runner(make_runner).train()


class TestAutocast:
    def wrapper(self, model, **changes):
        config = dict(
            type='AutocastOptimWrapper', optimizer=torch.optim.SGD(model.parameters(), 0.5)
        )
        return OPTIM_WRAPPERS.build(config | changes)

    def test_bfloat16_inside_float32_outside(self):
        model = tiny.model()
        seen = []
        model.towers.clip.visual.transformer.register_forward_hook(
            lambda module, inputs, output: seen.append(module.resblocks[0].mlp(inputs[0]).dtype)
        )
        data = tiny.batch(model)
        log = model.train_step(data, self.wrapper(model))
        assert seen == [torch.bfloat16]
        assert log['loss'].dtype == torch.float32 and log['loss'].isfinite()
        assert all(p.dtype == torch.float32 for p in model.parameters())
        model(**data)
        assert seen[1:] == [torch.float32] and not torch.is_autocast_enabled('cpu')

    def test_accumulation_equals_the_mean_of_two_batches(self):
        models = [tiny.model(entity_loss_weight=0).eval() for _ in range(2)]
        data = tiny.batch(models[0]), tiny.batch(models[0], seed=1)
        wrapper = self.wrapper(models[0], accumulative_counts=2)
        wrapper.initialize_count_status(models[0], 0, 4)
        start = models[0].towers.clip.text_projection.clone()
        models[0].train_step(data[0], wrapper)
        assert models[0].towers.clip.text_projection.equal(start)
        models[0].train_step(data[1], wrapper)
        optimizer = torch.optim.SGD(models[1].parameters(), 0.5)
        for part in data:
            with torch.autocast('cpu', torch.bfloat16):
                loss = tiny.total(models[1](**part, mode='loss')) / 2
            loss.backward()
        optimizer.step()
        assert not models[0].towers.clip.text_projection.equal(start)
        for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)

    def test_in_a_run(self, make_runner):
        wrapper = dict(
            type='AutocastOptimWrapper', dtype='bfloat16', accumulative_counts=2,
            optimizer=dict(type='AdamW', lr=0.003), clip_grad=dict(max_norm=1.0),
        )  # fmt: skip
        runner = make_runner(optim_wrapper=wrapper, param_scheduler=None)
        before = weights(runner)
        runner.train()
        after = weights(runner)
        assert not same(before, after) and all(
            value.isfinite().all() for value in after.values() if value.is_floating_point()
        )


def test_rates_by_prefix_and_no_decay_for_what_is_no_weight_matrix():
    network = tiny.model()
    constructor = TowerLrConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1)),
        dict(lr_mult={'towers': 0.1, 'towers.clip.logit_scale': 0.5}),
    )
    groups = constructor(network).optimizer.param_groups
    found = {
        id(p): (group['lr'], group['weight_decay']) for group in groups for p in group['params']
    }
    named = dict(network.named_parameters())
    assert len(found) == sum(p.requires_grad for p in named.values())
    expected = {
        'towers.clip.visual.conv1.weight': (1e-4, 0.1),
        'towers.clip.visual.class_embedding': (1e-4, 0.0),
        'towers.clip.visual.positional_embedding': (1e-4, 0.0),
        'towers.clip.token_embedding.weight': (1e-4, 0.0),
        'towers.clip.transformer.resblocks.0.ln_1.weight': (1e-4, 0.0),
        'towers.clip.transformer.resblocks.0.attn.in_proj_bias': (1e-4, 0.0),
        'towers.clip.logit_scale': (5e-4, 0.0),
        'learner.hidden.weight': (1e-3, 0.1),
        'learner.hidden.bias': (1e-3, 0.0),
        'learner.learned': (1e-3, 0.0),
        'learner.unknown': (1e-3, 0.0),
    }
    for name, (rate, decay) in expected.items():
        assert found[id(named[name])] == (pytest.approx(rate), decay), name


def test_a_prefix_that_fits_nothing_is_refused():
    constructor = TowerLrConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3)),
        dict(lr_mult={'tower.clip': 0.1}),
    )
    with pytest.raises(ValueError, match=r"lr_mult \['tower.clip'\] fits no parameter"):
        constructor(tiny.model())
