"""RetrievalMetric: what it makes of batches, in one process and in several."""

import json
import math
import re

import numpy as np
import pytest
import references
import torch
import torch.multiprocessing as mp
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import Evaluator

from eiclip_mm.evaluation import PROTOCOLS, Embeddings, RetrievalMetric, evaluate
from eiclip_mm.evaluation.metrics import merge
from eiclip_mm.registry import METRICS

FULL = ['full/first-image', 'full/product']


def samples(num_products=13, seed=0):
    """One sample for each view and caption of each product; image and text are right or not."""
    g = torch.Generator().manual_seed(seed)
    result = []
    for product in range(num_products):
        text = torch.nn.functional.normalize(torch.randn(2, 6, generator=g))
        for view in range(1 + product % 3):
            image = torch.nn.functional.normalize(
                text[0] + 0.5 * torch.randn(6, generator=g), dim=0
            )
            for caption in range(1 + product % 2):
                result.append(
                    dict(image=image, product=text[caption], product_id=100 + product, view=view,
                         caption=caption, sample_idx=len(result))
                )  # fmt: skip
    return result


def expected_of(data, protocol, ks=(1, 5, 10)):
    """The loops' answer to a list of samples."""
    images = {(s['product_id'], s['view']): s['image'].tolist() for s in data}
    texts = {(s['product_id'], s['caption']): s['product'].tolist() for s in data}
    return references.retrieval(
        [(vector, *key) for key, vector in images.items()],
        [(vector, *key) for key, vector in texts.items()],
        PROTOCOLS[protocol].views,
        PROTOCOLS[protocol].captions,
        ks,
    )


def run_metric(metric, data, batch_size=4, shuffle=False):
    """What mmengine's loop does with a dataset, in each process."""
    evaluator = Evaluator(metric)
    evaluator.dataset_meta = dict(views='all')
    indices = list(DefaultSampler(data, shuffle=shuffle, seed=3))
    for start in range(0, len(indices), batch_size):
        evaluator.process([data[i] for i in indices[start : start + batch_size]])
    return evaluator.evaluate(len(data))


def metric_process(rank, store, folder):
    """Each world of 2 and 3 processes, one after the other; what each got goes to a file."""
    torch.set_num_threads(1)  # a forked process has no others
    for world, device in ((2, 'cpu'), (3, 'gpu')):
        if rank >= world:
            continue
        torch.distributed.init_process_group(
            'gloo', f'file://{store}{world}', rank=rank, world_size=world
        )
        data, broken = samples(), samples()
        broken[0]['image'] = broken[0]['image'] * math.nan
        report = dict(indices=len(list(DefaultSampler(data, shuffle=False))))
        where = dict(collect_dir=f'{folder}/{world}') if device == 'cpu' else {}
        for shuffle in (False, True):
            metric = RetrievalMetric(
                FULL, out=f'{folder}/{world}.npz', collect_device=device, **where
            )
            report[f'shuffle={shuffle}'] = run_metric(metric, data, shuffle=shuffle)
        try:
            run_metric(RetrievalMetric(collect_device=device, **where), broken)
        except ValueError as error:
            report['error'] = str(error)
        with open(f'{folder}/{world}-{rank}.json', 'w') as file:
            json.dump(report, file)
        torch.distributed.destroy_process_group()


class TestMetric:
    @pytest.mark.parametrize('batch_size', [1, 4, 100])
    def test_one_process_agrees_with_loops(self, batch_size):
        data = samples()
        metric = METRICS.build(dict(type='RetrievalMetric', protocols=FULL))
        found = run_metric(metric, data, batch_size)
        for name in FULL:
            for key, value in expected_of(data, name).items():
                assert found[f'{name}/{key}'] == value
        assert 0 < found['full/product/i2t/R@1'] < 100
        assert found['full/product/num_images'] == len({(s['product_id'], s['view']) for s in data})
        assert not metric.results  # ready for the next epoch

    def test_processes_and_padding_change_nothing(self, tmp_path):
        data = samples()
        path = tmp_path / '1.npz'
        expected = run_metric(RetrievalMetric(FULL, out=path), data)
        given = tmp_path / 'store', tmp_path
        mp.start_processes(metric_process, given, nprocs=3, start_method='fork')
        padded = 0
        for world in (2, 3):
            for rank in range(world):
                report = json.loads((tmp_path / f'{world}-{rank}.json').read_text())
                padded += report['indices'] * world > len(data)
                assert report['shuffle=False'] == report['shuffle=True'] == expected
                assert report['error'].startswith(
                    'protocol full/first-image: images hold NaN or infinity in 1 of 13 rows'
                )
            one, many = np.load(path), np.load(tmp_path / f'{world}.npz')
            assert all((one[name] == many[name]).all() for name in one.files)
        assert padded > 0

    def test_tensors_of_any_kind_as_a_model_gives_them(self):
        data = samples()
        given = [
            {k: torch.tensor(v) if isinstance(v, int) else v.clone().requires_grad_()
             for k, v in s.items()}
            for s in data
        ]  # fmt: skip
        assert run_metric(RetrievalMetric(), given) == run_metric(RetrievalMetric(), data)
        given = [
            s | dict(image=s['image'].bfloat16(), view=torch.tensor([s['view']])) for s in data
        ]
        rounded = [s | dict(image=s['image'].bfloat16().float()) for s in data]
        assert run_metric(RetrievalMetric(), given) == run_metric(RetrievalMetric(), rounded)

    def test_first_of_repeated_samples_is_kept(self):
        """A text is embedded once a view; padding may embed it again, in another batch."""
        data = [
            dict(image=torch.tensor([1.0 + i, 0]), product=torch.tensor([0, 1.0 + i]),
                 product_id=p, view=v, caption=0, sample_idx=i)
            for i, (p, v) in enumerate([(9, 1), (9, 0), (4, 0)])
        ]  # fmt: skip
        metric = RetrievalMetric()
        metric.process(None, data[1:])
        metric.process(None, [data[0], data[1] | dict(image=torch.tensor([7.0, 7]))])
        found = merge(metric.results, size=3)
        assert found.image.tolist() == [[3, 0], [2, 0], [1, 0]]
        assert found.image_product_id.tolist() == [4, 9, 9]
        assert found.image_view.tolist() == [0, 0, 1]
        assert found.product.tolist() == [[0, 3], [0, 1]]
        assert found.product_id.tolist() == [4, 9]

    def test_dump_scores_alike(self, tmp_path):
        found = run_metric(RetrievalMetric(out=tmp_path / 'new' / 'dump.npz'), samples())
        loaded = evaluate(Embeddings.load(tmp_path / 'new' / 'dump.npz'), 'full/first-image')
        assert found == {f'full/first-image/{key}': value for key, value in loaded.items()}

    def test_dump_survives_a_failing_protocol(self, tmp_path):
        data = samples()[:3]
        with pytest.raises(ValueError, match='R@5 means nothing'):
            run_metric(RetrievalMetric(out=str(tmp_path / 'dump.npz')), data)
        assert len(Embeddings.load(tmp_path / 'dump.npz').product) == 3

    def test_prefix_comes_first(self, capsys):
        found = run_metric(RetrievalMetric(ks=[1]), samples())
        assert all(key.startswith('full/first-image/') for key in found)
        assert {key[-7:] for key in found if 'R@' in key} == {'i2t/R@1', 't2i/R@1'}
        found = run_metric(RetrievalMetric('full/product', prefix='seen'), samples())
        assert all(key.startswith('seen/full/product/') for key in found)
        out = ''.join(capsys.readouterr())
        assert 'prefix is not set' not in out

    def test_table_is_logged(self, monkeypatch):
        lines = []
        monkeypatch.setattr(
            'eiclip_mm.evaluation.metrics.print_log', lambda text, logger: lines.append(text)
        )
        run_metric(RetrievalMetric(), samples())
        assert re.search(r'I2T R@1 .*SumR \|\n.*\n\| full/first-image \| +\d+\.\d\d', lines[0])

    def test_dataset_without_all_views_is_refused(self):
        metric = RetrievalMetric(['full/first-image', 'full/product'])
        with pytest.raises(ValueError, match=r"full/product scores every .* with views='all'"):
            Evaluator(metric).dataset_meta = dict(views='first')
        Evaluator(RetrievalMetric()).dataset_meta = dict(views='first')
        for meta in (dict(views='all'), dict(classes=['a']), None):
            metric.dataset_meta = meta
            assert metric.dataset_meta == meta

    def test_a_split_smaller_than_a_recall_is_refused(self):
        texts = dict(product_id=np.array([1, 1, 2, 3, 4, 5, 6]), labels=dict(brand=None))
        meta = dict(retrieval=dict(texts=texts))
        with pytest.raises(ValueError, match=r'among 6 products, where R@10 .* ks=\(1, 5\) .*save'):
            Evaluator(RetrievalMetric()).dataset_meta = meta
        with pytest.raises(ValueError, match=r'R@7 means nothing.* ks=\(2,\) in the evaluator\.$'):
            Evaluator(RetrievalMetric(ks=(2, 7))).dataset_meta = meta
        for protocol in ('full/product', dict(name='101/kaleido', group='brand')):
            Evaluator(RetrievalMetric([protocol])).dataset_meta = meta  # they count otherwise
        Evaluator(RetrievalMetric(ks=(1, 6))).dataset_meta = meta

    def test_lost_samples_are_an_error(self):
        data = samples()
        metric = RetrievalMetric()
        num = len(data)
        for size, message in (
            (num + 1, rf'{num - 1} different .* has {num + 1} .*; 2 missing, e.g. \[3, {num}\]'),
            (5, f'{num - 1} different sample_idx were collected but the dataset has 5'),
        ):
            metric.process(None, data[:3] + data[4:])
            with pytest.raises(ValueError, match=message):
                metric.evaluate(size)
            assert not metric.results
        with pytest.raises(ValueError, match='no sample was collected but the dataset has 5'):
            metric.evaluate(5)

    def test_a_protocol_twice_is_refused(self):
        """They would share their keys; changed ones have names of their own."""
        with pytest.raises(ValueError, match='RetrievalMetric has a protocol twice among'):
            RetrievalMetric(['full/product', dict(name='full/product')])
        metric = RetrievalMetric(['101/kaleido', dict(name='101/kaleido', group='brand')])
        assert [p.name for p in metric.protocols] == ['101/kaleido', '101/kaleido, group brand']
        with pytest.raises(ValueError, match='recall needs whole numbers ks'):
            RetrievalMetric(ks=[1.5])

    def test_constructor_and_sample_errors(self):
        with pytest.raises(KeyError, match=r"unknown retrieval protocol 'full'.*full/first-image"):
            RetrievalMetric(['full'])
        with pytest.raises(ValueError, match=r'RetrievalMetric needs a protocol, got \[\]'):
            RetrievalMetric([])
        with pytest.raises(ValueError, match=r'recall needs ks of 1 or more, got \(\)'):
            RetrievalMetric(ks=[])
        with pytest.raises(ValueError, match=r'written as .npz, got the path .dump.pkl'):
            RetrievalMetric(out='dump.pkl')
        sample = samples()[0]
        del sample['product_id'], sample['product']
        with pytest.raises(KeyError, match=r"\['product', 'product_id'\] missing among \['image'"):
            RetrievalMetric().process(None, [sample])
