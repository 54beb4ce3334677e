"""CE-Selector beside brute force: values against loops, choices where the answer is known."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import runs
import tiny
import torch
import torch.nn.functional as F
from mmengine.config import Config

from eiclip_mm.datasets import FashionGen
from eiclip_mm.datasets.synthetic import FILES, write_mini_fashiongen
from eiclip_mm.models import causal_effects
from eiclip_mm.registry import MODELS
from eiclip_mm.structures import EntityVocab

sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools/analysis_tools'))
import selection_study as tool

ROOT = Path(__file__).resolve().parents[1]
PLANTED = ROOT / 'configs/ablations/eiclip-planted_fashiongen_mini.py'
TYPES = ('composition', 'subcategory', 'brand', 'season', 'label', 'code')


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


class TestValues:
    def world(self, P=7, K=3):
        """Products whose vectors mix one of four random vectors a type."""
        table, own, image = unit(K, 4, 5), unit(P, 5, seed=1), unit(P, 5, seed=2)
        ids = torch.randint(4, (P, K, 1), generator=torch.Generator().manual_seed(3))

        def encode(entity_ids):
            return F.normalize(own + table[torch.arange(K), entity_ids[..., 0]].sum(1), dim=-1)

        return encode, image, ids, torch.tensor([0, 1, 1, 2, 3, 4, 5])

    def test_equal_loops(self):
        encode, image, ids, product_id = self.world()
        found = tool.subset_values(encode, image, ids, product_id, 3.0, draws=2, seed=5)
        assert found.shape == (7, 8)
        generator = torch.Generator().manual_seed(5)
        orders = [[torch.randperm(7, generator=generator) for _ in range(2)] for _ in range(3)]
        for column, subset in enumerate(tool.subsets(3)):
            probability = np.zeros((2, 7))
            for draw in range(2):
                mixed = ids.clone()
                for k in range(3):
                    if not subset[k]:
                        mixed[:, k] = ids[orders[k][draw], k]
                scores = 3.0 * (encode(mixed) @ image.T).double().numpy()
                for way, logits in enumerate((scores, scores.T)):
                    for i in range(7):
                        mass = np.exp(logits[i])
                        right = product_id.numpy() == product_id[i].item()
                        probability[way, i] += mass[right].sum() / mass.sum() / 2
            expected = torch.from_numpy(np.log(probability).mean(0)).float()
            torch.testing.assert_close(found[:, column], expected)

    def test_all_less_all_but_one_is_the_causal_effect(self):
        world = self.world()
        values = tool.subset_values(*world, 4.0, draws=3, seed=1)
        effects = causal_effects(*world, 4.0, draws=3, seed=1)
        assert effects.abs().min() > 1e-4
        column = {subset: i for i, subset in enumerate(tool.subsets(3))}
        for k in range(3):
            but_k = tuple(i != k for i in range(3))
            difference = values[:, column[True, True, True]] - values[:, column[but_k]]
            torch.testing.assert_close(difference, effects[:, k], atol=1e-5, rtol=1e-4)

    def test_subsets(self):
        assert tool.subsets(2) == [(False, False), (False, True), (True, False), (True, True)]


class TestBruteForce:
    def test_keeps_what_helps_alone(self):
        """Type 0 names the photo, 1 shifts nothing, 2 points at another product's photo."""
        P = 40
        image = torch.eye(P)
        order = torch.randperm(P, generator=torch.Generator().manual_seed(0))
        ids = torch.stack([torch.arange(P), torch.arange(P), order], dim=1)[..., None]

        def encode(entity_ids):
            named, wrong = image[entity_ids[:, 0, 0]], image[entity_ids[:, 2, 0]]
            return F.normalize(named + 0.9 * wrong + 0.1, dim=-1)

        values = tool.subset_values(encode, image, ids, torch.arange(P), 10.0)
        found = {name: tool.subsets(3)[i] for name, i in tool.brute_force(values, 0.95).items()}
        assert found['smallest'] == (True, False, False)
        assert found['best'][0] and not found['best'][2]

    def test_a_smaller_subset_may_be_worse_by_chance_alone(self):
        noise = torch.randn(200, generator=torch.Generator().manual_seed(0))
        none, one, other = noise - 1, noise + 1, noise + 1.01 * torch.ones(200)
        other[::2] -= 0.2
        other[1::2] += 0.2  # the better by 0.01, with an interval of 0.03 either way
        values = torch.stack([none, one, one - 3, other], dim=1)  # {}, {1}, {0}, {0, 1}
        assert tool.brute_force(values, 0.95) == dict(best=3, smallest=1)
        values[:, 1] -= 0.5
        assert tool.brute_force(values, 0.95) == dict(best=3, smallest=3)

    def test_of_equal_sizes_the_better(self):
        values = torch.zeros(9, 4)
        values[:, 0] = -1
        values[::2, 1] = 0.01
        values[1::2, 3] = 0.01
        assert tool.brute_force(values, 0.95)['smallest'] == 1


ROLES = dict(a='confounder', b='informative', c='redundant', d='weak', e='useless', f='harmful')


class TestAgreement:
    def test_counts_by_hand(self):
        runs = [
            dict(kept=['a', 'c', 'e'], smallest=['a', 'b']),
            dict(kept=['a', 'b', 'd'], smallest=['a', 'd']),
        ]
        found = tool.agreement(runs, ROLES)
        brute = dict(right=3, wrong=3, missed=1, precision=0.5, recall=0.75)
        assert found['brute force'] == brute
        planted = dict(right=3, wrong=1, missed=1, precision=0.75, recall=0.75)
        assert found['what is planted'] == planted

    def test_nothing_kept(self):
        found = tool.agreement([dict(kept=[], smallest=[])], {})
        nothing = dict(right=0, wrong=0, missed=0, precision=None, recall=None)
        assert found == {'brute force': nothing}


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Data with the planted types, a config of a tiny model, checkpoints of rows 5 and 4."""
    folder = tmp_path_factory.mktemp('study')
    write_mini_fashiongen(folder, 150, 2, 2, progress=False)
    data = FashionGen(FILES['planted_train'], TYPES, data_root=str(folder))
    vocab = EntityVocab.build((r['entities'] for r in data.records()), TYPES)
    vocab.save(folder / 'entities.json')
    cfg = Config.fromfile(PLANTED)
    tokenizer = dict(
        cfg.model.tokenizer, model=tiny.ARCHITECTURE, vocab=str(folder / 'entities.json')
    )
    cfg.model.tokenizer = tokenizer
    cfg.model.towers = dict(type='OpenCLIPTowers', model=tiny.ARCHITECTURE)
    dataset = cfg.val_dataloader.dataset
    dataset.data_root, dataset.tokenizer = str(folder), tokenizer
    dataset.pipeline = [*runs.LOAD, dict(type='PackProduct')]
    dataset.batched = False
    cfg.val_dataloader.collate_fn = dict(type='default_collate')
    for row, selector in (('row5', 'EffectCESelector'), ('row4', 'KeepAll')):
        cfg.model.selector = dict(type=selector)
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        tiny.randomised(model.learner, 0.3)
        if row == 'row5':
            model.selector.weight[::2] = 0  # chose before; it is opened again
        torch.save(dict(state_dict=model.state_dict()), folder / f'{row}.pth')
        cfg.dump(str(folder / f'{row}.py'))
    return folder


class TestTool:
    def run(self, folder, row, *arguments) -> dict:
        out = folder / 'out' / 'study.json'
        tool.main([str(folder / f'{row}.py'), *arguments, '--out', str(out)])
        return json.loads(out.read_text(encoding='utf-8'))

    def test_from_files_to_tables(self, folder, capsys):
        checkpoint = str(folder / 'row5.pth')
        truth = ('--truth', str(folder / 'truth.json'))
        found = self.run(folder, 'row5', checkpoint, checkpoint, *truth)
        printed = capsys.readouterr().out
        assert '| code' in printed and 'harmful' in printed and 'precision' in printed
        assert found['roles']['brand'] == 'confounder' and set(found['roles']) == set(TYPES)
        one, other = found['runs']
        assert one == other and one['products'] > 8 and len(one['values']) == 64
        values = {tuple(row['types']): row['value'] for row in one['values']}
        assert len(values) == 64 and max(values.values()) == values[tuple(one['best'])]
        for type_, (effect, low, high) in one['effects'].items():
            others = tuple(t for t in TYPES if t != type_)
            assert effect == pytest.approx(values[TYPES] - values[others], abs=1e-4)
            assert low < effect < high and (type_ in one['kept']) == (low > 0)
            assert abs(effect) > 1e-5  # also of what the checkpoint had closed
        assert sum(found['agreement']['brute force'][k] for k in ('right', 'missed')) == 2 * len(
            one['smallest']
        )

    def test_a_model_of_row_4_is_studied_as_one_of_row_5(self, folder):
        row5 = self.run(folder, 'row5', str(folder / 'row5.pth'))
        row4 = self.run(folder, 'row4', str(folder / 'row4.pth'))
        assert row4['roles'] == {} and list(row4['agreement']) == ['brute force']
        for found in (row4, row5):
            found['runs'][0].pop('checkpoint')
        assert row4['runs'] == row5['runs']

    def test_features_that_are_cached(self, folder, tmp_path):
        cfg = Config.fromfile(folder / 'row5.py')
        cfg.model.towers.image_unlocked = 0
        cached = dict(type='LoadImageFeature', pipeline=runs.LOAD)
        cfg.val_dataloader.dataset.pipeline = [cached, dict(type='PackProduct')]
        hook = dict(type='ImageFeatureCache', folder=str(tmp_path / 'features'))
        cfg.custom_hooks = [dict(type='TextFeatureCache'), hook]
        cfg.dump(str(tmp_path / 'cached.py'))
        checkpoint = str(folder / 'row5.pth')
        pixels, features = (self.run(f, n, checkpoint) for f, n in (
            (folder, 'row5'), (tmp_path, 'cached')
        ))  # fmt: skip
        (one,), (other,) = pixels['runs'], features['runs']
        assert list((tmp_path / 'features').iterdir()) and one['kept'] == other['kept']
        values = [[row['value'] for row in run['values']] for run in (one, other)]
        assert values[0] == pytest.approx(values[1], abs=1e-4)

    def test_the_config_stays_as_it_is(self, folder):
        cfg = Config.fromfile(folder / 'row5.py')
        for name in ('pretrained', 'image_weights'):  # not read: the checkpoint holds all
            cfg.model.towers[name] = 'gone.pth'
        before = cfg.to_dict()
        tool.trained(cfg, str(folder / 'row5.pth'))
        assert cfg.to_dict() == before

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(checkpoint='none.pth'), 'checkpoint .*none.pth does not exist'),
            (dict(checkpoint='row4.pth'), 'row4.pth is of another model than the config'),
            (dict(fold='fit'), "fold='fit'; entities are chosen on fold='select'"),
            (dict(model='OpenCLIP'), 'the model is OpenCLIP, which has no entities to choose'),
            (dict(truth='{"types": {"brand": {}}}'), r"tells nothing of \['composition', "),
            (dict(truth='{"types": {"code": {"role": "weak"}}}'), r"'label'\], only of \['code'\]"),
            (dict(truth='{"a": 1}'), "names no types with their 'role'; give truth.json"),
            (dict(truth='[' * 10**5), 'truth.json is not JSON of ours: '),
        ],
    )
    def test_what_cannot_be_studied(self, folder, tmp_path, change, message):
        cfg = Config.fromfile(folder / 'row5.py')
        cfg.val_dataloader.dataset.fold = change.get('fold', 'select')
        if 'model' in change:
            cfg.model = dict(
                type='OpenCLIP', towers=cfg.model.towers, tokenizer=cfg.model.tokenizer
            )
        cfg.dump(str(tmp_path / 'config.py'))
        truth = tmp_path / 'truth.json'
        truth.write_text(change.get('truth', (folder / 'truth.json').read_text()))
        checkpoint = folder / change.get('checkpoint', 'row5.pth')
        with pytest.raises(SystemExit, match=message):
            tool.main([str(tmp_path / 'config.py'), str(checkpoint), '--truth', str(truth)])
