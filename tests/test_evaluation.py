import json
import math
import re
from dataclasses import fields, replace

import numpy as np
import pytest
import references
import torch
import torch.multiprocessing as mp
from mmengine.dataset import DefaultSampler
from mmengine.evaluator import Evaluator

from eiclip_mm.evaluation import (
    PROTOCOLS,
    Embeddings,
    Protocol,
    RetrievalMetric,
    both_ranks,
    evaluate,
    functional,
    median_rank,
    ranks,
    recall_at,
    recall_table,
    sum_recall,
)
from eiclip_mm.evaluation.metrics import merge
from eiclip_mm.registry import METRICS


def circle(steps, num_products):
    """Unit vectors on the circle; product p stands at step p of num_products."""
    angle = torch.as_tensor(steps, dtype=torch.float64) * 2 * math.pi / num_products
    return torch.stack((angle.cos(), angle.sin()), 1)


def catalogue(offsets, num_products=20):
    """Product p has its text at step p and view v at step p + offsets[v]: every rank is known.

    The texts nearer to a view than its own are those of the 2 * offset steps in front of it, an
    equally near one included, so its rank is 1 + floor(2 * offset).
    """
    ids = torch.arange(num_products)
    views = torch.arange(len(offsets)).repeat(num_products)
    image_ids = ids.repeat_interleave(len(offsets))
    return Embeddings(
        image=circle(image_ids + torch.tensor(offsets, dtype=torch.float64)[views], num_products),
        image_product_id=image_ids,
        image_view=views,
        product=circle(ids, num_products),
        product_id=ids,
    )


def random_sides(seed):
    """A small random case: several items an id, equal vectors, negative scores, odd ids."""
    g = torch.Generator().manual_seed(seed)

    def draw(low, high, *shape):
        return torch.randint(low, high, shape, generator=g)

    dim, num_ids = int(draw(1, 5)), int(draw(1, 6))
    ids = draw(-50, 50, 20).unique()[:num_ids]
    ids = ids[torch.randperm(len(ids), generator=g)]
    sides = []
    for _ in range(2):
        own = torch.cat((ids, ids[draw(0, len(ids), int(draw(0, 9)))]))
        own = own[torch.randperm(len(own), generator=g)]
        if seed % 2:  # few different values, so many scores are equal
            vectors = draw(-2, 3, len(own), dim).float()
        else:
            vectors = torch.randn(len(own), dim, generator=g)
        sides.append((vectors, own))
    return *sides, int(draw(1, 8))


class TestRanks:
    def test_agree_with_loops(self):
        tied = 0
        for seed in range(400):
            (a, a_ids), (b, b_ids), chunk = random_sides(seed)
            i2t = references.ranks(a.tolist(), b.tolist(), a_ids.tolist(), b_ids.tolist())
            t2i = references.ranks(b.tolist(), a.tolist(), b_ids.tolist(), a_ids.tolist())
            both = both_ranks(a, b, a_ids, b_ids, chunk=chunk)
            assert [r.tolist() for r in both] == [i2t, t2i], seed
            assert ranks(a, b, a_ids, b_ids, chunk=chunk).tolist() == i2t, seed
            assert ranks(b, a, b_ids, a_ids).tolist() == t2i, seed
            assert both[0].dtype == both[1].dtype == torch.int64
            scores = a @ b.T
            tied += len(scores.unique()) < scores.numel()
        assert tied > 150  # or the cases would not test what they say

    def test_gallery_may_hold_distractors(self):
        queries, gallery = circle([0, 5], 20), circle([0, 4.9, 5.2], 20)
        found = ranks(queries, gallery, torch.tensor([3, 4]), torch.tensor([3, 9, 4]))
        assert found.tolist() == [1, 2]

    def test_ties_count_against_the_model(self):
        """A collapsed model scores 0, whatever the shapes of the tiles do to the last bits."""
        vector = torch.nn.functional.normalize(
            torch.randn(512, generator=torch.manual_seed(0)), dim=0
        )
        for scale in (1, 30, 1e-6):
            for size, chunk in ((300, 128), (301, 37), (257, 256)):
                same, ids = scale * vector.repeat(size, 1), torch.arange(size)
                for found in both_ranks(same, same, ids, ids, chunk=chunk):
                    assert found.eq(size).all()

    def test_the_best_of_several_relevant_items_counts(self):
        query, gallery = circle([0], 20), circle([9, 1, 2, 3], 20)
        assert ranks(query, gallery, torch.tensor([5]), torch.tensor([5, 6, 5, 5])).tolist() == [2]

    def test_negative_scores_count(self):
        query, gallery = torch.tensor([[1.0, 0]]), torch.tensor([[-0.1, 1], [-0.2, 1], [-0.3, 1]])
        assert ranks(query, gallery, torch.tensor([1]), torch.tensor([1, 2, 3])).tolist() == [1]
        assert ranks(query, gallery, torch.tensor([3]), torch.tensor([1, 2, 3])).tolist() == [3]

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
    def test_other_types_and_autocast_are_computed_in_float32(self, dtype):
        g = torch.Generator().manual_seed(1)
        a, b = (torch.randn(200, 64, generator=g).to(dtype) for _ in range(2))
        ids = torch.arange(200)
        plain = ranks(a.float(), b.float(), ids, ids)
        assert ranks(a, b, ids, ids).equal(plain)
        with torch.autocast('cpu', torch.bfloat16):
            assert ranks(a.float(), b.float(), ids, ids).equal(plain)

    def test_scale_changes_nothing(self):
        for seed in range(40):
            (a, a_ids), (b, b_ids), _ = random_sides(seed)
            expected = both_ranks(a, b, a_ids, b_ids)
            scaled = both_ranks(1024 * a, b / 4096, a_ids, b_ids)
            assert all(x.equal(y) for x, y in zip(expected, scaled, strict=True))

    def test_inputs_are_left_alone(self):
        (a, a_ids), (b, b_ids), _ = random_sides(3)
        given = [x.clone() for x in (a, b, a_ids, b_ids)]
        both_ranks(a.requires_grad_(), b, a_ids, b_ids)
        assert all(x.equal(y) for x, y in zip(given, (a, b, a_ids, b_ids), strict=True))

    def test_no_tile_is_larger_than_asked(self):
        (a, a_ids), (b, b_ids), _ = random_sides(11)
        a_ids, b_ids = a_ids.sort().values, b_ids.sort().values
        shapes = [s.shape for *_, s, _ in functional._tiles(a, b, a_ids, b_ids, chunk=2)]
        assert max(max(shape) for shape in shapes) == 2
        assert sum(math.prod(shape) for shape in shapes) == len(a) * len(b)

    def test_all_products_alike_in_id(self):
        """One id everywhere: every tile has right items and nothing is wrong."""
        a, ids = torch.randn(30, 4, generator=torch.manual_seed(0)), torch.zeros(30, dtype=int)
        assert ranks(a, a, ids, ids, chunk=7).eq(1).all()

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(queries=torch.tensor([[1, 0], [math.nan, 1], [math.inf, 1]])),
             r'queries hold NaN or infinity in 2 of 3 rows, first in row 1 \(id 8\)'),
            (dict(gallery=-torch.inf * torch.ones(3, 2)),
             r'gallery hold NaN or infinity in 3 of 3 rows, first in row 0 \(id 7\)'),
            (dict(gallery=torch.ones(3, 5)),
             'queries have 2 dimensions but gallery have 5'),
            (dict(queries=torch.ones(0, 2), query_ids=torch.zeros(0, dtype=int)),
             r'queries must be \(rows, D\) with at least one row, got \(0, 2\)'),
            (dict(gallery=torch.ones(3)), r'gallery must be \(rows, D\).*got \(3,\)'),
            (dict(gallery_ids=torch.tensor([7, 8])),
             r'gallery have 3 rows; their ids must be as many integers, got \(2,\)'),
            (dict(query_ids=torch.tensor([7.0, 8, 9])), 'as many integers.*torch.float32'),
            (dict(query_ids=torch.tensor([7, 5, 6])),
             r'2 of 3 queries have no relevant item among the gallery, e.g. .* \[5, 6\]'),
            (dict(queries=1e20 * torch.ones(3, 2)), 'overflow float32'),
            (dict(chunk=0), 'chunk must be 1 or more, got 0'),
        ],
    )  # fmt: skip
    def test_errors(self, change, message):
        ids = torch.tensor([7, 8, 9])
        given = dict(queries=torch.ones(3, 2), gallery=torch.ones(3, 2), query_ids=ids)
        with pytest.raises(ValueError, match=message):
            ranks(**(given | dict(gallery_ids=ids) | change))

    def test_both_directions_need_relevant_items(self):
        a, ids = torch.ones(2, 3), torch.tensor([1, 2])
        with pytest.raises(ValueError, match=r'1 of 2 images have no .* products, .* id \[2\]'):
            both_ranks(a, a[:1], ids, ids[:1])
        with pytest.raises(ValueError, match=r'1 of 2 products have no .* images, .* id \[2\]'):
            both_ranks(a[:1], a, ids[:1], ids)


class TestSummaries:
    def test_recall_at_k_counts_ranks_up_to_k(self):
        found = recall_at(torch.tensor([1, 2, 3, 3, 11]), (1, 2, 3, 10))
        assert found == {1: 20, 2: 40, 3: 80, 10: 80}

    def test_median_rank(self):
        assert median_rank(torch.tensor([9, 1, 4])) == 4
        assert median_rank(torch.tensor([9, 1, 4, 5])) == 4.5

    def test_errors(self):
        with pytest.raises(ValueError, match=r'ks of 1 or more, got \(0, 5\)'):
            recall_at(torch.tensor([1]), (0, 5))
        with pytest.raises(ValueError, match=r'ks of 1 or more, got \(\)'):
            recall_at(torch.tensor([1]), ())
        for summary in (median_rank, lambda r: recall_at(r, (1,))):
            with pytest.raises(ValueError, match=r'ranks must be \(Q,\) with Q >= 1, got \(0,\)'):
                summary(torch.tensor([], dtype=int))
        with pytest.raises(ValueError, match=r'SumR needs .* \[5\] missing'):
            sum_recall({1: 1.0, 5: 1.0, 10: 1.0}, {1: 1.0, 10: 1.0})


class TestProtocols:
    @pytest.mark.parametrize('name', PROTOCOLS)
    def test_perfect_model(self, name):
        found = evaluate(catalogue([0, 0.1, 0.2]), name)
        assert found['SumR'] == 600
        assert {v for k, v in found.items() if 'R@' in k} == {100}
        assert found['i2t/median_rank'] == found['t2i/median_rank'] == 1
        assert found['num_images'] == (60 if name == 'full/product' else 20)
        assert found['num_products'] == 20

    @pytest.mark.parametrize('name', PROTOCOLS)
    def test_constant_model(self, name):
        found = evaluate(
            replace(catalogue([0, 0]), image=torch.ones(40, 8), product=torch.ones(20, 8)), name
        )
        assert found['SumR'] == 0
        assert found['i2t/median_rank'] == 20
        assert found['t2i/median_rank'] == (39 if name == 'full/product' else 20)

    def test_ranks_known_by_construction(self):
        """Views at ranks 4, 2 and 8; offset 0.5 is a tie with the next product and counts as 2."""
        model = catalogue([1.6, 0.5, 3.6])
        found = evaluate(model, 'full/first-image', ks=(1, 3, 4, 5, 10))
        assert [found[f'i2t/R@{k}'] for k in (1, 3, 4, 5)] == [0, 0, 100, 100]
        assert [found[f't2i/R@{k}'] for k in (1, 3, 4, 5)] == [0, 0, 100, 100]
        assert found['i2t/median_rank'] == 4

        found = evaluate(model, 'full/product', ks=(1, 2, 4, 7, 8))
        assert [round(found[f'i2t/R@{k}'], 3) for k in (1, 2, 4, 7, 8)] == [
            0, 33.333, 66.667, 66.667, 100,
        ]  # fmt: skip
        # best view at 0.5 steps; as near: view 1 of the product before; nearer: view 0 of the
        # second before (0.4); views 2 of the third (0.6) and fourth (0.4) before
        assert found['t2i/R@2'] == 0
        assert found['t2i/R@4'] == 100

    def test_another_view_is_not_wrong(self):
        """One-to-one metrics would cap a perfect model at one of three views."""
        assert evaluate(catalogue([0, 0, 0]), 'full/product')['i2t/R@1'] == 100
        assert evaluate(catalogue([0, 0, 0]), 'full/product')['t2i/R@1'] == 100

    def test_first_image_ignores_other_views(self):
        one, more = catalogue([0.7]), catalogue([0.7, 0.0, 5.0])
        assert evaluate(one, 'full/first-image') == evaluate(more, 'full/first-image')

    @pytest.mark.parametrize('name', PROTOCOLS)
    def test_agree_with_loops_on_catalogues_with_captions(self, name):
        g = torch.Generator().manual_seed(5)
        for _ in range(60):
            images, texts = [], []
            for product in torch.randperm(30, generator=g)[:8].tolist():
                for rows in (images, texts):
                    for number in range(int(torch.randint(1, 4, (), generator=g))):
                        vector = torch.randint(-2, 3, (3,), generator=g).float()
                        rows.append((vector.tolist(), product, number))
            found = evaluate(embeddings_of(images, texts), name, ks=(1, 3, 8))
            protocol = PROTOCOLS[name]
            expected = references.retrieval(
                images, texts, protocol.views, protocol.captions, ks=(1, 3, 8)
            )
            assert expected.items() <= found.items()
            assert found['num_products'] == 8
            assert 'SumR' not in found

    def test_order_of_rows_changes_nothing(self):
        model = catalogue([0.7, 0.3])
        g = torch.Generator().manual_seed(0)
        i, p = torch.randperm(40, generator=g), torch.randperm(20, generator=g)
        shuffled = Embeddings(
            model.image[i], model.image_product_id[i], model.image_view[i],
            model.product[p], model.product_id[p],
        )  # fmt: skip
        for name in PROTOCOLS:
            assert evaluate(shuffled, name) == evaluate(model, name)

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (
                dict(image_view=torch.tensor([1, 2]).repeat(20)),
                r'20 products have no view 0, e.g. \[0, 1, 2, 3, 4\]',
            ),
            (dict(product_caption=torch.ones(20).long()), r'20 products have no caption 0, e.g.'),
            (
                dict(product_id=torch.arange(1, 21)),
                r'1 of 20 images have no .* \[0\]',
            ),
            (dict(image=torch.full((40, 2), math.nan)), 'images hold NaN or infinity in 20 of 20'),
        ],
    )
    def test_errors_name_the_protocol(self, change, message):
        with pytest.raises(ValueError, match=f'protocol full/first-image: {message}'):
            evaluate(replace(catalogue([0, 0]), **change), 'full/first-image')

    def test_k_beyond_the_gallery(self):
        model = catalogue([0, 0], num_products=4)
        for name, k, gallery in (
            ('full/first-image', 5, '4 texts'),
            ('full/product', 5, '4 texts'),
        ):
            with pytest.raises(ValueError, match=f'{name}: R@{k} means nothing in a .* {gallery}'):
                evaluate(model, name, ks=(1, k))
        assert evaluate(model, PROTOCOLS['full/product'], ks=(1, 4))['i2t/R@1'] == 100
        more_captions = Embeddings(
            torch.eye(2), torch.arange(2), torch.zeros(2).long(),
            torch.eye(2).repeat(2, 1), torch.arange(2).repeat(2), torch.tensor([0, 0, 1, 1]),
        )  # fmt: skip
        with pytest.raises(ValueError, match='R@3 means nothing in a gallery of 2 images'):
            evaluate(more_captions, 'full/product', ks=(3,))

    def test_unknown_names(self):
        with pytest.raises(KeyError, match=r'unknown retrieval protocol .full/firstimage.; there'):
            evaluate(catalogue([0]), 'full/firstimage')
        with pytest.raises(ValueError, match="views of a protocol is 'first' or 'all', got 'some'"):
            Protocol('x', 'some', 'all', '', '')


def embeddings_of(images, texts):
    (image, image_id, view), (product, product_id, caption) = (
        [torch.tensor(column) for column in zip(*rows, strict=True)] for rows in (images, texts)
    )
    return Embeddings(image, image_id, view, product, product_id, caption)


class TestEmbeddings:
    def test_round_trip(self, tmp_path):
        model = catalogue([0, 0.4])
        path = tmp_path / 'new' / 'dump.npz'
        model.save(path)
        loaded = Embeddings.load(path)
        for field in fields(Embeddings):
            given, found = getattr(model, field.name), getattr(loaded, field.name)
            assert found.dtype == (
                torch.float32 if field.name in ('image', 'product') else given.dtype
            )
            assert found.equal(given.to(found.dtype))
        replace(model, image=model.image.bfloat16()).save(path)
        assert Embeddings.load(path).image.equal(model.image.bfloat16().float())

    def test_captions_may_be_left_out(self, tmp_path):
        model = catalogue([0])
        arrays = {f.name: getattr(model, f.name).numpy() for f in fields(model)}
        assert arrays.pop('product_caption').tolist() == [0] * 20
        np.savez(tmp_path / 'dump.npz', **arrays)
        assert Embeddings.load(tmp_path / 'dump.npz').product_caption.tolist() == [0] * 20

    def test_load_errors(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r'none.npz do not exist. Write them with Ret'):
            Embeddings.load(tmp_path / 'none.npz')
        path = tmp_path / 'dump.npz'
        np.savez(path, image=np.ones((2, 3)), product=np.ones((2, 3)), pose=np.ones(2))
        with pytest.raises(
            ValueError,
            match=r"lacks \['image_product_id', 'image_view', 'product_id'\] and has unknown "
            r"\['pose'\]; expected \['image', ",
        ):
            Embeddings.load(path)
        for content in (b'', b'PK\x03\x04 cut', b'not an archive'):
            path.write_bytes(content)
            with pytest.raises(ValueError, match=r'is not an .npz of number arrays'):
                Embeddings.load(path)
        for value in (np.array([{}]), np.array(['text'])):
            np.savez(path, image=value)
            with pytest.raises(ValueError, match=r'is not an .npz of number arrays'):
                Embeddings.load(path)
        with path.open('wb') as file:
            np.save(file, np.ones(3))
        with pytest.raises(ValueError, match=r'is not an .npz of number arrays'):
            Embeddings.load(path)
        with pytest.raises(ValueError, match=r"written as .npz, got the path '/tmp/dump.pkl'"):
            catalogue([0]).save('/tmp/dump.pkl')

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(image_view=torch.zeros(40).long()),
             r'20 pairs of \(image_product_id, image_view\).*\[\[0, 0\], \[1, 0\]'),
            (dict(product_id=torch.zeros(20).long()), r'1 pairs of \(product_id, product_caption'),
            (dict(image_view=torch.zeros(3).long()), r'image_view as many .* \(40, 2\) and \(3,\)'),
            (dict(product_id=torch.zeros(20)), 'product_id as many integers, .*torch.float32'),
            (dict(product=torch.ones(20)), r'product must be \(rows, D\).*got \(20,\)'),
        ],
    )  # fmt: skip
    def test_errors(self, change, message):
        with pytest.raises(ValueError, match=message):
            replace(catalogue([0, 1]), **change)


class TestTable:
    def test_rows_and_columns(self):
        rows = {
            'CLIP | zero-shot': evaluate(catalogue([0.7]), 'full/first-image'),
            'EI-CLIP': evaluate(catalogue([0]), 'full/first-image'),
        }
        head, rule, baseline, ours = recall_table(rows).splitlines()
        assert re.findall(r'[^|]+', head)[1:] == [
            ' I2T R@1 ', ' I2T R@5 ', ' I2T R@10 ', ' T2I R@1 ', ' T2I R@5 ', ' T2I R@10 ',
            '   SumR ',
        ]  # fmt: skip
        assert len(head) == len(rule) == len(baseline) == len(ours)
        assert baseline.startswith(r'| CLIP \| zero-shot |    0.00 |  100.00 |')
        assert ours.endswith('| 600.00 |')

    def test_errors(self):
        for wrong in ({}, {'a': {}}, {'a': {'full/first-image/i2t/R@1': 1.0}}):
            with pytest.raises(ValueError, match=r"needs the keys of evaluate\(\), as 'i2t/R@1'"):
                recall_table(wrong)


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
                list(PROTOCOLS), out=f'{folder}/{world}.npz', collect_device=device, **where
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
        metric = METRICS.build(dict(type='RetrievalMetric', protocols=list(PROTOCOLS)))
        found = run_metric(metric, data, batch_size)
        for name in PROTOCOLS:
            for key, value in expected_of(data, name).items():
                assert found[f'{name}/{key}'] == value
        assert 0 < found['full/product/i2t/R@1'] < 100
        assert found['full/product/num_images'] == len({(s['product_id'], s['view']) for s in data})
        assert not metric.results  # ready for the next epoch

    def test_processes_and_padding_change_nothing(self, tmp_path):
        data = samples()
        path = tmp_path / '1.npz'
        expected = run_metric(RetrievalMetric(list(PROTOCOLS), out=path), data)
        mp.spawn(metric_process, (tmp_path / 'store', tmp_path), nprocs=3)
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
        assert set(run_metric(RetrievalMetric(ks=[1]), samples())) == {
            f'full/first-image/{key}'
            for key in ('i2t/R@1', 't2i/R@1', 'i2t/median_rank', 't2i/median_rank', 'num_images',
                        'num_products')
        }  # fmt: skip
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

    def test_constructor_and_sample_errors(self):
        with pytest.raises(KeyError, match=r"unknown retrieval protocol 'full'.*full/first-image"):
            RetrievalMetric(['full'])
        with pytest.raises(ValueError, match=r'needs a protocol and a k, got \[\]'):
            RetrievalMetric([])
        with pytest.raises(ValueError, match=r'written as .npz, got the path .dump.pkl'):
            RetrievalMetric(out='dump.pkl')
        sample = samples()[0]
        del sample['view'], sample['product']
        with pytest.raises(KeyError, match=r"\['product', 'view'\] missing among \['image'"):
            RetrievalMetric().process(None, [sample])
