"""The loss in tiles against loops, the plain way, and itself on one, two and three processes."""

import math

import pytest
import references_models as references
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from watch import Largest

from eiclip_mm.models import InfoNCE, losses
from eiclip_mm.models.losses import log_prob_of_positives
from eiclip_mm.models.tiled import log_probs_in_tiles


def plain(x, y, scale, x_ids, y_ids):
    scores = scale * x @ y.T
    positives = (x_ids[:, :, None] == y_ids[:, None]).any(0)
    return log_prob_of_positives(scores, positives), log_prob_of_positives(scores.T, positives.T)


def vectors(q, g, d=6, scale=7.0, seed=0, dtype=torch.float64):
    """Leaves x (Q, D), y (G, D), scale."""
    generator = torch.Generator().manual_seed(seed)
    x, y = (F.normalize(torch.randn(n, d, generator=generator), dim=-1) for n in (q, g))
    return [t.to(dtype).requires_grad_() for t in (x, y, torch.tensor(scale))]


def value_and_gradients(way, leaves, *ids, seed=3, **kwargs):
    """Rows, columns, and the gradients of a sum in which each has a weight of its own."""
    rows, columns = way(*leaves, *ids, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(len(rows) + len(columns), generator=generator, dtype=rows.dtype)
    return rows, columns, *torch.autograd.grad(torch.cat([rows, columns]) @ weights, leaves)


# Q and G, and ids of each kind; every row and column has a positive
IDS = {
    'one positive each': [torch.arange(9), torch.arange(9).flip(0)],
    'one row': [torch.zeros(1), torch.zeros(4)],
    'one column': [torch.zeros(5), torch.zeros(1)],
    'all positive': [torch.ones(6), torch.ones(5)],
    'duplicates': [
        torch.tensor([0, 1, 0, 2, 2, 2, 3]),
        torch.tensor([3, 2, 1, 0, 0, 3, 3, 1, 2, 2]),
    ],
    'two kinds': [
        torch.tensor([[0, 1, 2, 3, 4, 5], [9, 9, 8, 7, 8, 6]]),
        torch.tensor([[5, 4, 3, 2, 1, 0, 2], [6, 8, 7, 8, 9, 9, 9]]),
    ],
    # an id of one kind is no id of the other
    'kinds that share numbers': [torch.arange(8).view(2, 4), torch.arange(8).view(2, 4)],
}  # fmt: skip


@pytest.mark.parametrize('tile', [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize('name', IDS)
def test_value_and_gradients_equal_the_plain_way(name, tile):
    ids = [torch.atleast_2d(i).long() for i in IDS[name]]
    leaves = vectors(*(i.shape[1] for i in ids))
    found = value_and_gradients(log_probs_in_tiles, leaves, *ids, tile=tile)
    expected = value_and_gradients(plain, leaves, *ids)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    if ids[0].unique().numel() > 1:  # else the softmax is 1 whatever the scores are
        assert min(g.abs().max() for g in expected[2:]) > 1e-3


@given(data=st.data(), seed=st.integers(0, 99), tile=st.integers(1, 9))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_shape_and_ids(data, seed, tile):
    kinds, products, extra = (data.draw(st.integers(1, n)) for n in (2, 6, 8))
    generator = torch.Generator().manual_seed(seed)

    def ids():  # all products, so that every row and column has a positive, and some again
        more = torch.randint(0, products, (extra,), generator=generator)
        product = torch.cat([torch.arange(products), more])
        product = product[torch.randperm(len(product), generator=generator)]
        other = torch.randint(0, 5, (kinds - 1, len(product)), generator=generator)
        return torch.cat([product[None], other])

    x_ids, y_ids = ids(), ids()
    scale = float(torch.rand((), generator=generator) * 100)
    leaves = vectors(x_ids.shape[1], y_ids.shape[1], 3, scale, seed)
    found = value_and_gradients(log_probs_in_tiles, leaves, x_ids, y_ids, tile=tile)
    for a, b in zip(found, value_and_gradients(plain, leaves, x_ids, y_ids), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize('name', ['one positive each', 'duplicates', 'two kinds'])
def test_gradcheck(name):
    ids = [torch.atleast_2d(i).long() for i in IDS[name]]
    leaves = vectors(*(i.shape[1] for i in ids), d=3)
    assert torch.autograd.gradcheck(lambda *t: log_probs_in_tiles(*t, *ids, tile=4), leaves)


def test_second_derivatives_are_refused():
    leaves, ids = vectors(3, 3), torch.arange(3)[None]
    rows, _ = log_probs_in_tiles(*leaves, ids, ids)
    with pytest.raises(RuntimeError, match='no second derivatives'):
        torch.autograd.grad(rows.sum(), leaves[:1], create_graph=True)


def test_masses_far_apart():
    """exp(score) overflows and underflows float32, tile by tile and from row to row."""
    n, ids = 8, torch.arange(8)[None]
    x = torch.zeros(n, 2, dtype=torch.float64)
    x[:, 0] = torch.linspace(-1, 1, n)
    y = x * torch.tensor([1, -1] * 4)[:, None]  # the last product is farthest from its image
    leaves = [t.requires_grad_() for t in (x, y, torch.tensor(300.0, dtype=torch.float64))]
    expected = value_and_gradients(plain, leaves, ids, ids)
    assert expected[0].min() < -500 and expected[1].max() > -1
    single = [t.detach().float().requires_grad_() for t in leaves]
    for tile in (1, 3, 8):
        found = value_and_gradients(log_probs_in_tiles, single, ids, ids, tile=tile)
        # float32 weights would be others
        rows, columns = found[:2]
        torch.testing.assert_close(rows.double(), expected[0], rtol=1e-6, atol=1e-4)
        torch.testing.assert_close(columns.double(), expected[1], rtol=1e-6, atol=1e-4)
        assert all(g.isfinite().all() for g in found[2:])


def test_float32_at_temperature_100_equals_float64():
    n = 300
    x, y, scale = vectors(n, n, 16, 100.0, dtype=torch.float32)
    y = F.normalize(x.detach() + y.detach(), dim=-1).requires_grad_()
    ids = torch.arange(n)[None] // 2
    weight = torch.ones(n)

    def all_of(way, *leaves, **kwargs):
        rows, columns = way(*leaves, ids, ids, **kwargs)
        total = rows @ weight.to(rows.dtype) + columns @ weight.to(rows.dtype)
        return total, *torch.autograd.grad(total, leaves)

    found = all_of(log_probs_in_tiles, x, y, scale, tile=64)
    expected = all_of(plain, *(t.detach().double().requires_grad_() for t in (x, y, scale)))
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() < 5e-5 * b.abs().max()


def test_no_score_matrix_is_ever_held():
    n, d, tile = 200, 4, 32
    ids = torch.arange(n)[None] // 3
    leaves = vectors(n, n, d)
    sizes = {}
    for name, way, kwargs in (
        ('tiled', log_probs_in_tiles, dict(tile=tile)),
        ('plain', plain, {}),
    ):
        with Largest() as seen:
            rows, columns = way(*leaves, ids, ids, **kwargs)
            torch.autograd.grad(rows.sum() + columns.sum(), leaves)
        sizes[name] = seen.size
    assert sizes['plain'] == n * n
    assert sizes['tiled'] == 2 * tile * tile


def batch(n=24, senses=1, dtype=torch.float64):
    """What InfoNCE takes: products that come again, as rows of any process, and equal texts."""
    g = torch.Generator().manual_seed(5)
    leaves = dict(
        image=torch.randn(n, 5, generator=g, dtype=dtype),
        product=torch.randn(senses, n, 5, generator=g, dtype=dtype),
        prior=torch.randn(senses, n, generator=g, dtype=dtype),
        log_scale=torch.tensor(2.0),
    )
    ids = dict(
        product_id=torch.randint(0, n // 2, (n,), generator=g),
        text_id=torch.randint(0, n // 2, (n,), generator=g),
    )
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}, ids


def loss_of(loss, leaves, ids, rows=slice(None)):
    return loss(
        F.normalize(leaves['image'][rows], dim=-1),
        F.normalize(leaves['product'][:, rows], dim=-1),
        leaves['prior'].log_softmax(0)[:, rows],
        leaves['log_scale'].clone(),
        *(i[rows] for i in ids.values()),
    )


@pytest.mark.parametrize('same_text', [False, True])
@pytest.mark.parametrize('senses', [1, 3])
def test_loss_equals_loops_and_the_plain_way(senses, same_text, monkeypatch):
    monkeypatch.setattr('eiclip_mm.models.tiled.TILE', 7)
    leaves, ids = batch(senses=senses)
    value, at_once = (
        loss_of(InfoNCE(same_text, tiled=tiled), leaves, ids) for tiled in (True, False)
    )
    wanted = references.info_nce(
        list(F.normalize(leaves['image'], dim=-1)),
        [list(version) for version in F.normalize(leaves['product'], dim=-1)],
        [list(p) for p in leaves['prior'].softmax(0)],
        leaves['log_scale'].double().exp(),
        ids['product_id'].tolist(),
        ids['text_id'].tolist() if same_text else None,
    )
    assert value.dtype == torch.float32
    for other in (at_once, wanted):
        torch.testing.assert_close(value.double(), other.double(), rtol=1e-5, atol=1e-6)
        gradients = (torch.autograd.grad(v, list(leaves.values()), retain_graph=True)
                     for v in (value, other))  # fmt: skip
        for name, a, b in zip(leaves, *gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
            assert b.abs().max() > 1e-3 or (name == 'prior' and senses == 1)


def test_tiles_are_taken_from_the_size_where_they_win(monkeypatch):
    taken = []
    monkeypatch.setattr(losses, 'TILED_FROM', 24)
    tiles = losses.in_tiles
    monkeypatch.setattr(losses, 'in_tiles', lambda *a: taken.append(len(a[1])) or tiles(*a))
    for n in (23, 24):
        loss_of(InfoNCE(), *batch(n))
    assert taken == [24]
    loss_of(InfoNCE(tiled=False), *batch(24))
    assert taken == [24]
    loss_of(InfoNCE(tiled=True), *batch(23))
    assert taken == [24, 23]


def test_tiles_are_taken_from_512_rows_on_a_cpu(monkeypatch):
    taken = []
    tiles = losses.in_tiles
    monkeypatch.setattr(losses, 'in_tiles', lambda *a: taken.append(len(a[1])) or tiles(*a))
    for n in (511, 512):
        loss_of(InfoNCE(), *batch(n))
    assert taken == [512]


def test_autocast_changes_neither_value_nor_gradients():
    leaves, ids = batch(senses=2, dtype=torch.float32)
    loss = InfoNCE(tiled=True)

    def all_of(backward_inside):
        value = loss_of(loss, leaves, ids)
        with torch.autocast('cpu', torch.bfloat16, enabled=backward_inside):
            return value, *torch.autograd.grad(value, [leaves['image'], leaves['product']])

    expected = all_of(False)
    with torch.autocast('cpu', torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        inside = all_of(True)
    for a, b in zip(inside, expected, strict=True):
        assert a.equal(b)


def test_bfloat16_inputs_are_rounded_but_the_sums_are_not():
    n = 100  # log 100 has no near neighbour in bfloat16
    vector = F.normalize(torch.ones(1, 5)).expand(n, -1).bfloat16()
    prior = torch.zeros(1, n, dtype=torch.bfloat16)
    value = InfoNCE(tiled=True)(
        vector, vector[None], prior, torch.tensor(2.0), torch.arange(n), torch.arange(n)
    )
    assert value.item() == pytest.approx(math.log(n), abs=1e-5)


# Rows of each process, which together hold one batch.
SPLITS = {
    'two': [12, 12],
    'three': [8, 8, 8],
    'two, unequal': [17, 7],
    'three, unequal': [11, 1, 12],
}
SENSES = (1, 3)


def averaged(leaves):
    """Gradients as DistributedDataParallel leaves them."""
    for leaf in leaves.values():
        dist.all_reduce(leaf.grad)
        leaf.grad /= dist.get_world_size()
    return {name: leaf.grad for name, leaf in leaves.items()}


def loss_process(rank, folder):
    torch.set_num_threads(1)
    for name, sizes in SPLITS.items():
        if rank >= len(sizes):
            continue
        dist.init_process_group('gloo', f'file://{folder}/{name}', rank=rank, world_size=len(sizes))
        rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        report = {}
        for senses in SENSES:
            for same_text in (False, True):
                for tiled in (False, True):
                    leaves, ids = batch(senses=senses)
                    value = loss_of(InfoNCE(same_text, tiled), leaves, ids, rows)
                    value.backward()
                    report[senses, same_text, tiled] = value.item(), averaged(leaves)
        torch.save(report, f'{folder}/{name}-{rank}.pt')
        dist.destroy_process_group()


def test_many_processes_equal_one(tmp_path):
    # forked: three new interpreters would import everything again
    mp.start_processes(loss_process, (tmp_path,), nprocs=3, start_method='fork')
    _, ids = batch()
    for found in ids.values():  # positives straddle the processes of every split
        assert len(set(found[:8].tolist()) & set(found[17:].tolist())) > 1
    for name, sizes in SPLITS.items():
        for rank in range(len(sizes)):
            report = torch.load(tmp_path / f'{name}-{rank}.pt')
            assert len(report) == 8
            for (senses, same_text, tiled), (value, gradients) in report.items():
                leaves, ids = batch(senses=senses)
                expected = loss_of(InfoNCE(same_text, tiled=False), leaves, ids)
                expected.backward()
                where = name, rank, senses, same_text, tiled
                assert value == pytest.approx(expected.item(), rel=1e-5), where
                for key, leaf in leaves.items():
                    difference = (gradients[key] - leaf.grad).abs().max()
                    assert difference <= 1e-5 * max(leaf.grad.abs().max(), 1e-2), (where, key)
