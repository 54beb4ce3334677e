"""Ranks and what stands ahead of right items: loops, ties, processes, tiles, errors."""

import json
import math

import pytest
import references
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from watch import Largest

from eiclip_mm.evaluation import both_ahead, both_ranks, candidate_ahead, functional, ranks, tiles
from eiclip_mm.evaluation import coarse as coarse_module

TIES = ('against', 'for', 'order')
HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32, torch.float64)


def circle(steps, num_products):
    """Unit vectors on the circle; product p stands at step p of num_products."""
    angle = torch.as_tensor(steps, dtype=torch.float64) * 2 * math.pi / num_products
    return torch.stack((angle.cos(), angle.sin()), 1)


def randints(g, low, high, *shape):
    return torch.randint(low, high, shape, generator=g)


def vectors(g, number, dim, few):
    """Random vectors; with ``few`` different values, so that many scores are equal."""
    if few:
        return randints(g, -2, 3, number, dim).float()
    return torch.randn(number, dim, generator=g)


def random_sides(seed, most=9):
    """A small random case: up to ``most`` more items than ids a side, odd ids, equal scores."""
    g = torch.Generator().manual_seed(seed)
    dim, num_ids = int(randints(g, 1, 5)), int(randints(g, 1, 6))
    ids = randints(g, -50, 50, 20).unique()
    ids = ids[torch.randperm(len(ids), generator=g)][:num_ids]
    sides = []
    for _ in range(2):
        own = torch.cat((ids, ids[randints(g, 0, len(ids), int(randints(g, 0, most + 1)))]))
        own = own[torch.randperm(len(own), generator=g)]
        sides.append((vectors(g, len(own), dim, few=seed % 2), own))
    return *sides, int(randints(g, 1, 8))


def random_lists(seed, ties):
    """Queries, gallery, candidates with repeats and -1 anywhere, which are right, and a chunk."""
    g = torch.Generator().manual_seed(seed)
    dim, q, size, length = (int(randints(g, 1, high)) for high in (5, 8, 9, 8))
    candidates = randints(g, -1, size, q, length)
    right = randints(g, 0, 2, q, length).bool()
    if ties == 'order':
        right[:] = False
    first = randints(g, 0, length, q)  # one is right for sure
    rows = torch.arange(q)
    candidates[rows, first], right[rows, first] = randints(g, 0, size, q), True
    sides = [vectors(g, n, dim, few=seed % 2) for n in (q, size)]
    return *sides, candidates, right, int(randints(g, 1, 9))


class TestRanks:
    def test_agree_with_loops(self):
        tied = 0
        for seed in range(200):
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
        assert tied > 75  # or the cases would not test what they say

    def test_gallery_may_hold_distractors(self):
        queries, gallery = circle([0, 5], 20), circle([0, 4.9, 5.2], 20)
        found = ranks(queries, gallery, torch.tensor([3, 4]), torch.tensor([3, 9, 4]))
        assert found.tolist() == [1, 2]
        for seed in range(100):
            (a, a_ids), (b, b_ids), chunk = random_sides(seed)
            a, a_ids = a[a_ids != a_ids[-1]], a_ids[a_ids != a_ids[-1]]
            if len(a):
                expected = references.ranks(*(x.tolist() for x in (a, b, a_ids, b_ids)))
                assert ranks(a, b, a_ids, b_ids, chunk=chunk).tolist() == expected

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

    @pytest.mark.parametrize('dtype', [*HALF, torch.float64])
    def test_other_types_and_autocast_are_computed_in_float32(self, dtype):
        g = torch.Generator().manual_seed(1)
        a, b = (torch.randn(200, 64, generator=g).to(dtype) for _ in range(2))
        ids = torch.arange(200)
        plain = ranks(a.float(), b.float(), ids, ids)
        assert ranks(a, b, ids, ids).equal(plain)
        with torch.autocast('cpu', torch.bfloat16):
            assert ranks(a.float(), b.float(), ids, ids).equal(plain)
        torch.set_float32_matmul_precision('medium')  # bfloat16 on many CPUs, TF32 on GPUs
        try:
            assert ranks(a.float(), b.float(), ids, ids).equal(plain)
            assert torch.get_float32_matmul_precision() == 'medium'
        finally:
            torch.set_float32_matmul_precision('highest')

    def test_inputs_are_left_alone(self):
        (a, a_ids), (b, b_ids), _ = random_sides(3)
        given = [x.clone() for x in (a, b, a_ids, b_ids)]
        both_ranks(a.requires_grad_(), b, a_ids, b_ids)
        assert all(x.equal(y) for x, y in zip(given, (a, b, a_ids, b_ids), strict=True))

    def test_all_products_alike_in_id(self):
        """One id everywhere: every tile has right items and nothing is wrong."""
        a, ids = torch.randn(30, 4, generator=torch.manual_seed(0)), torch.zeros(30, dtype=int)
        assert ranks(a, a, ids, ids, chunk=7).eq(1).all()


class TestBothAhead:
    @pytest.mark.parametrize('ties', TIES)
    def test_agrees_with_loops(self, ties):
        """Every right item of every query, in all types, for tiles of all sizes."""
        short, tied = 0, 0
        for seed in range(200):
            (a, a_ids), (b, b_ids), chunk = random_sides(seed, most=0 if ties == 'order' else 12)
            a, b = a.to(DTYPES[seed % 4]), b.to(DTYPES[seed // 4 % 4])
            sides = a.float().tolist(), b.float().tolist(), a_ids.tolist(), b_ids.tolist()
            i2t = references.gallery_ahead(*sides, ties)
            t2i = references.gallery_ahead(*(sides[i] for i in (1, 0, 3, 2)), ties)
            found = both_ahead(a, b, a_ids, b_ids, ties=ties, chunk=chunk)
            assert [x.tolist() for x in found] == [i2t, t2i], seed
            assert found[0].dtype == found[1].dtype == torch.int64
            best = both_ahead(a, b, a_ids, b_ids, every=False, ties=ties)
            assert [x.tolist() for x in best] == [[row[:1] for row in x] for x in (i2t, t2i)]
            short += any(-1 in row for row in i2t)
            other = both_ahead(a, b, a_ids, b_ids, ties='for' if ties == 'against' else 'against')
            tied += not (found[0].equal(other[0]) and found[1].equal(other[1]))
        assert tied > 35
        assert (short > 70) == (ties != 'order')  # or the cases would not test what they say

    @pytest.mark.parametrize('ties', ['against', 'for'])
    def test_many_right_items_agree_with_loops(self, ties, monkeypatch):
        """Beyond a few right items a query they are counted by search, not one by one."""
        for seed in range(40):
            (a, a_ids), (b, b_ids), chunk = random_sides(seed, most=40)
            sides = a.tolist(), b.tolist(), a_ids.tolist(), b_ids.tolist()
            expected = references.gallery_ahead(*sides, ties)
            for many in (1, 2, 8):
                monkeypatch.setattr(functional, 'MANY', many)
                found = both_ahead(a, b, a_ids, b_ids, ties=ties, chunk=chunk)
                assert found[0].tolist() == expected, (many, seed)

    @pytest.mark.parametrize('dim', [512, 768, 1024, 4096])
    @pytest.mark.parametrize('size', [1023, 1025, 1027])
    def test_collapsed_model_scores_nothing_whatever_the_tiles(self, dim, size):
        """Tiles of one row would sum in another order; equal vectors must stay equal."""
        same, ids = torch.full((size, dim), dim**-0.5), torch.arange(size)
        for found in both_ahead(same, same, ids, ids):
            assert found.eq(size - 1).all()

    @pytest.mark.parametrize(
        ('ties', 'many'), [*((ties, functional.MANY) for ties in TIES), ('against', 0), ('for', 0)]
    )
    def test_scores_within_the_tolerance_are_equal(self, ties, many, monkeypatch):
        """The right item has 0.8 of the length; a wrong one more or less by 0.5 or 1.5 times 1e-6.

        One by one, and, beyond ``many`` right items, by search.
        """
        monkeypatch.setattr(functional, 'MANY', many)
        for step, counts in (
            (-1.5e-6, (0, 0, 0)), (-5e-7, (1, 0, 1)), (5e-7, (1, 0, 1)), (1.5e-6, (1, 1, 1)),
        ):  # fmt: skip
            gallery = torch.tensor([[0.8 + step, 0.6], [0.8, 0.6]], dtype=torch.float64)
            for scale in (1, 1e-3, 1e3):
                query, ids = scale * torch.tensor([[1.0, 0]]), torch.tensor([7, 8])
                both = torch.cat((query, torch.zeros(1, 2)))  # of ids 8 and 7, the other way round
                found, _ = both_ahead(both, gallery, ids.flip(0), ids, ties=ties)
                _, back = both_ahead(gallery, both, ids, ids.flip(0), ties=ties)
                listed = dict(candidates=torch.tensor([[0, 1]]), right=ids[None] == 8)
                alone = candidate_ahead(query, scale * gallery, **listed, ties=ties)
                expected = counts[TIES.index(ties)]
                assert [int(found[0]), int(back[0]), int(alone)] == [expected] * 3

    def test_tolerance_grows_with_the_longest_item(self):
        """A wrong item 5e-6 below the right one is as near if some item is ten times as long."""
        query, ids = torch.tensor([[1.0, 0]]), torch.tensor([1, 2, 3])
        gallery = torch.tensor([[0.8, 0], [0.8 - 5e-6, 0], [0, 1.0]])
        longer = gallery * torch.tensor([[1], [1], [10.0]])
        assert ranks(query, gallery, ids[:1], ids).tolist() == [1]
        assert ranks(query, longer, ids[:1], ids).tolist() == [2]
        assert ranks(10 * query, gallery, ids[:1], ids).tolist() == [1]
        for transposed, expected in ((gallery, 0), (longer, 1)):
            others = torch.cat((query, torch.zeros(2, 2)))
            found, _ = both_ahead(others, transposed, ids, ids)
            _, back = both_ahead(transposed, others, ids, ids)
            assert int(found[0]) == int(back[0]) == expected

    @pytest.mark.parametrize(
        ('dim', 'tolerance', 'expected'), [(2, 1, 0), (512, 1, 0), (1024, 2, 1), (4096, 8, 1)]
    )
    def test_tolerance_grows_with_the_dimensions_beyond_512(self, dim, tolerance, expected):
        """A wrong item 1.5e-6 below the right one."""
        assert functional.tie(dim) == pytest.approx(tolerance * 1e-6, rel=1e-9)
        query, gallery, ids = torch.zeros(2, dim), torch.zeros(2, dim), torch.tensor([1, 2])
        query[0, 0] = 1  # the other has no length, nor any wrong item that is nearer
        gallery[:, 0], gallery[:, 1] = torch.tensor([0.8, 0.8 - 1.5e-6]), 0.6
        found, _ = both_ahead(query, gallery, ids, ids)
        _, back = both_ahead(gallery, query, ids, ids)
        listed = torch.tensor([[0, 1]])
        alone = candidate_ahead(query[:1], gallery, listed, listed == 0)
        assert [int(found[0]), int(back[0]), int(alone)] == [expected] * 3

    def test_order_is_that_of_the_rows_given_not_of_ids(self):
        ids = torch.tensor([5, 9, -3, 7])
        same = torch.ones(4, 3)
        for chunk in (1, 2, 3, 1024):
            i2t, t2i = both_ahead(same, same, ids, ids.flip(0), ties='order', chunk=chunk)
            assert i2t.flatten().tolist() == [3, 2, 1, 0]
            assert t2i.flatten().tolist() == [3, 2, 1, 0]

    @given(st.integers(0, 10**6), st.integers(-12, 12), st.integers(-12, 12))
    @settings(max_examples=100, deadline=None)
    def test_scale_and_order_of_rows_change_nothing(self, seed, a_power, b_power):
        (a, a_ids), (b, b_ids), chunk = random_sides(seed)
        g = torch.Generator().manual_seed(seed)
        i, j = torch.randperm(len(a), generator=g), torch.randperm(len(b), generator=g)
        for ties in ('against', 'for'):
            i2t, t2i = both_ahead(a, b, a_ids, b_ids, ties=ties)
            a_scaled, b_scaled = 2.0**a_power * a[i], 2.0**b_power * b[j]
            found = both_ahead(a_scaled, b_scaled, a_ids[i], b_ids[j], ties=ties, chunk=chunk)
            assert found[0].equal(i2t[i])
            assert found[1].equal(t2i[j])

    @given(st.integers(0, 10**6))
    @settings(max_examples=100, deadline=None)
    def test_ties_for_are_no_worse_than_by_order_and_those_no_worse_than_against(self, seed):
        (a, a_ids), (b, b_ids), _ = random_sides(2 * seed + 1, most=0)
        found = {t: torch.cat(both_ahead(a, b, a_ids, b_ids, ties=t)) for t in TIES}
        assert (found['for'] <= found['order']).all()
        assert (found['order'] <= found['against']).all()

    @given(st.integers(1, 40), st.integers(1, 50))
    @settings(max_examples=50, deadline=None)
    def test_constant_model_scores_what_the_rule_for_ties_says(self, size, chunk):
        same, ids = torch.full((size, 3), 0.1), torch.arange(size)
        for ties, expected in (
            ('against', [size - 1] * size), ('for', [0] * size), ('order', list(range(size))),
        ):  # fmt: skip
            for found in both_ahead(same, same, ids, ids, ties=ties, chunk=chunk):
                assert found.flatten().tolist() == expected
            listed, right = ids.repeat(size, 1), torch.eye(size).bool()
            found = candidate_ahead(same, same, listed, right, ties=ties, chunk=chunk)
            assert found.flatten().tolist() == expected

    @pytest.mark.parametrize('many', [functional.MANY, 0])
    def test_model_without_length_is_constant(self, many, monkeypatch):
        """Its tolerance is 0, so equal scores alone are ties."""
        monkeypatch.setattr(functional, 'MANY', many)
        zero, ids = torch.zeros(5, 3), torch.arange(5)
        assert ranks(zero, zero, ids, ids).eq(5).all()
        assert both_ahead(zero, zero, ids, ids, ties='for')[1].eq(0).all()

    def test_model_without_length_has_the_order_of_rows(self):
        zero, ids = torch.zeros(5, 3), torch.arange(5)
        for found in both_ahead(zero, zero, ids, ids, ties='order'):
            assert found.flatten().equal(ids)


class TestCandidateAhead:
    @pytest.mark.parametrize('ties', TIES)
    def test_agrees_with_loops(self, ties):
        filled, single, repeated, longer = 0, 0, 0, 0
        for seed in range(400):
            a, b, candidates, right, chunk = random_lists(seed, ties)
            a, b = a.to(DTYPES[seed % 4]), b.to(DTYPES[seed // 4 % 4])
            sides = a.float().tolist(), b.float().tolist(), candidates.tolist(), right.tolist()
            expected = references.list_ahead(*sides, ties)
            found = candidate_ahead(a, b, candidates, right, ties=ties, chunk=chunk)
            assert found.dtype == torch.int64
            assert found.tolist() == expected, seed
            filled += bool((candidates < 0).any())
            single += candidates.shape[1] == 1
            repeated += any(len(row.unique()) < len(row) for row in candidates)
            longer += candidates.shape[1] > len(b)
        assert min(filled, single, repeated, longer) > 30

    def test_equals_both_ahead_where_all_are_candidates(self):
        for seed in range(50):
            (a, a_ids), (b, b_ids), _ = random_sides(seed)
            all_of_them = torch.arange(len(b)).repeat(len(a), 1)
            right = a_ids[:, None] == b_ids
            for ties in ('against', 'for'):
                found = candidate_ahead(a, b, all_of_them, right, ties=ties)
                assert found.equal(both_ahead(a, b, a_ids, b_ids, ties=ties)[0])

    def test_lists_of_a_large_gallery_agree_with_a_product(self):
        """More dimensions than the loops have: unit vectors, no ties, all positions known."""
        g = torch.Generator().manual_seed(2)
        a, b = (torch.nn.functional.normalize(torch.randn(n, 512, generator=g)) for n in (70, 900))
        candidates = torch.stack([torch.randperm(900, generator=g)[:101] for _ in a])
        right = torch.zeros(70, 101, dtype=bool)
        right[:, 0] = True
        scores = (a.double() @ b.double().T).gather(1, candidates)
        expected = (scores[:, 1:] > scores[:, :1]).sum(1)
        gap = (scores[:, 1:] - scores[:, :1]).abs().min()
        assert gap > 2e-6
        for order in (slice(None), torch.randperm(101, generator=g)):
            found = candidate_ahead(a, b, candidates[:, order], right[:, order], chunk=32)
            assert found.flatten().equal(expected)
        strided = torch.stack((b, -b), 1)[:, 0]  # every other row of memory
        assert candidate_ahead(a, strided, candidates, right).flatten().equal(expected)
        rows = candidates.int()
        assert candidate_ahead(a.requires_grad_(), b, rows, right).flatten().equal(expected)
        with torch.autocast('cpu', torch.bfloat16):
            assert candidate_ahead(a, b, candidates, right).flatten().equal(expected)

    def test_tolerance_is_that_of_the_own_list(self):
        """Neither a long item off the list nor row 0, which stands where -1 fills, widens it."""
        query = torch.tensor([[1.0, 0]])
        gallery = torch.tensor([[0, 1000.0], [0.8, 0], [0.8 - 5e-6, 0], [0, 10]])
        for row, expected in (([1, 2], 0), ([1, 2, -1], 0), ([1, 2, 3], 1)):
            listed = torch.tensor([row])
            assert int(candidate_ahead(query, gallery, listed, listed == 1)) == expected

    def test_marks_where_a_list_is_filled_mean_nothing(self):
        query, gallery = torch.ones(2, 1), torch.tensor([[9.0], [1], [2]])
        candidates = torch.tensor([[1, 2, -1], [-1, 2, 1]])
        right = torch.tensor([[True, False, True], [True, True, False]])
        assert candidate_ahead(query, gallery, candidates, right).tolist() == [[1], [0]]
        ordered = candidate_ahead(query, gallery, candidates, right, ties='order')
        assert ordered.tolist() == [[1], [0]]


def shared_process(rank, world, folder):
    """What one of several processes counts of some cases, and its part of the score matrix."""
    torch.set_num_threads(1)  # a forked process has no others
    torch.distributed.init_process_group(
        'gloo', f'file://{folder}/store', rank=rank, world_size=world
    )
    report = []
    for seed in range(12):
        (a, a_ids), (b, b_ids), chunk = random_sides(seed)
        sides = a, b, a_ids, b_ids
        counts = [x.tolist() for x in both_ahead(*sides, chunk=chunk, shared=True)]
        own = a * (-1) ** rank, *sides[1:]  # what others have is no part of it
        apart = [x.tolist() for x in (*both_ahead(*own, chunk=chunk), ranks(*own, chunk=chunk))]
        ordered = [a_ids.sort().values, b_ids.sort().values]
        spans = tiles.spans(a, b, *ordered, chunk, shared=True)
        area = sum(len(a[rows]) * len(b[columns]) for rows, columns, _ in spans)
        report.append((counts, area, apart))
    with open(f'{folder}/{rank}.json', 'w') as file:
        json.dump(report, file)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize('world', [2, 3])
def test_work_shared_by_processes_is_that_of_one(tmp_path, world):
    mp.start_processes(shared_process, (world, tmp_path), nprocs=world, start_method='fork')
    reports = [json.loads((tmp_path / f'{rank}.json').read_text()) for rank in range(world)]
    at_rest = 0
    for seed in range(12):
        (a, a_ids), (b, b_ids), chunk = random_sides(seed)
        alone = [x.tolist() for x in both_ahead(a, b, a_ids, b_ids, chunk=chunk)]
        counts, areas, aparts = zip(*(report[seed] for report in reports), strict=True)
        assert list(counts) == [alone] * world
        assert sum(areas) == len(a) * len(b)  # nothing is counted twice
        for rank, apart in enumerate(aparts):
            own = a * (-1) ** rank, b, a_ids, b_ids
            assert apart == [x.tolist() for x in (*both_ahead(*own), ranks(*own))]
        assert len(a) <= chunk or max(areas) < len(a) * len(b)
        at_rest += 0 in areas
    assert 0 < at_rest < 12  # some have fewer rows of tiles than processes


def test_shared_alone_is_not_shared():
    (a, a_ids), (b, b_ids), chunk = random_sides(5)
    alone, shared = (both_ahead(a, b, a_ids, b_ids, chunk=chunk, shared=s) for s in (False, True))
    assert alone[0].equal(shared[0])
    assert alone[1].equal(shared[1])


class TestTiles:
    def test_no_tile_is_larger_than_asked(self):
        (a, a_ids), (b, b_ids), _ = random_sides(11)
        a_ids, b_ids = a_ids.sort().values, b_ids.sort().values
        spans = tiles.spans(a, b, a_ids, b_ids, chunk=2)
        shapes = [(len(a[rows]), len(b[columns])) for rows, columns, _ in spans]
        assert max(max(shape) for shape in shapes) == 2
        assert sum(math.prod(shape) for shape in shapes) == len(a) * len(b)

    @pytest.mark.parametrize('coarse', [False, True])
    def test_ranking_never_holds_more(self, monkeypatch, coarse):
        """What both_ahead and candidate_ahead score at once, seen while they do."""
        if not coarse:
            monkeypatch.setattr(functional, 'worthwhile', lambda *_: False)
        else:
            monkeypatch.setattr(coarse_module, 'fast_bfloat16', lambda: True)
        angle = torch.arange(500) * 2 * math.pi / 500
        a, ids = torch.stack((angle.cos(), angle.sin()), 1), torch.arange(500)
        with Largest() as watch:
            both_ahead(a, a, ids // 2, ids // 2, chunk=10)
        assert watch.size == a.numel()
        assert watch.products >= 50 * 50
        listed = torch.stack((ids, ids.roll(1)), 1)
        with Largest() as watch:
            candidate_ahead(a, a, listed, listed == ids[:, None], chunk=10)
        assert watch.size == a.numel()

    def test_only_tiles_with_right_items_are_asked_for_them(self):
        ids = torch.arange(100) // 3
        a = torch.randn(100, 4, generator=torch.manual_seed(0))
        found = [
            (rows.start, columns.start, int(right.sum()))
            for rows, columns, right in tiles.spans(a, a, ids, ids, 10, only_right=True)
        ]
        assert sum(right for *_, right in found) == int((ids[:, None] == ids).sum())
        assert all(abs(row - column) <= 10 for row, column, _ in found)
        assert len(found) < 30  # of 100


def change(**changes):
    """Arguments of both_ahead and ranks that are right but for the changes."""
    ids = torch.tensor([7, 8, 9])
    return dict(a=torch.ones(3, 2), b=torch.ones(3, 2), a_ids=ids, b_ids=ids) | changes


class TestErrors:
    @pytest.mark.parametrize(
        ('given', 'message'),
        [
            (change(a=torch.tensor([[1, 0], [math.nan, 1], [math.inf, 1]])),
             r'queries hold NaN or infinity in 2 of 3 rows, first in row 1 \(id 8\). Such scores '
             r'have no rank'),
            (change(b=-torch.inf * torch.ones(3, 2)),
             r'gallery hold NaN or infinity in 3 of 3 rows, first in row 0 \(id 7\)'),
            (change(b=torch.tensor([[1, 0], [1, 0], [math.inf, -math.inf]])),
             r'gallery hold NaN or infinity in 1 of 3 rows, first in row 2 \(id 9\)'),
            (change(b=torch.ones(3, 5)),
             'queries have 2 dimensions but gallery have 5; both must come from one model'),
            (change(a=torch.ones(0, 2), a_ids=torch.zeros(0, dtype=int)),
             r'queries must be \(rows, D\) with at least one row, got \(0, 2\)'),
            (change(a=torch.ones(3, 0), b=torch.ones(3, 0)), r'at least one row, got \(3, 0\)'),
            (change(b=torch.ones(3)), r'gallery must be \(rows, D\).*got \(3,\)'),
            (change(b_ids=torch.tensor([7, 8])),
             r'gallery have 3 rows; their ids must be as many integers, got \(2,\) of torch.int64'),
            (change(a_ids=torch.tensor([7.0, 8, 9])), 'as many integers.*torch.float32'),
            (change(a_ids=torch.tensor([7, 5, 6])),
             r'2 of 3 queries have no relevant item among the gallery, e.g. those of id \[5, 6\]'),
            (change(a=1e20 * torch.ones(3, 2)),
             'vectors as long as .* and 1.41 overflow float32 when multiplied; normalise them'),
            (change(a=1e19 * torch.ones(3, 2), b=1e25 * torch.ones(3, 2)), 'overflow float32'),
            (change(a=1e-20 * torch.ones(3, 2), b=1e-20 * torch.ones(3, 2)),
             'vectors no longer than 1.41e-20 and 1.41e-20 vanish in float32 .* normalise them'),
            (change(a=3e38 * torch.ones(3, 2)), 'overflow float32'),  # no infinity, but its sum is
            (change(chunk=0), 'chunk must be 1 or more, got 0'),
        ],
    )  # fmt: skip
    def test_of_ranks(self, given, message):
        a, b, a_ids, b_ids = (given.pop(name) for name in ('a', 'b', 'a_ids', 'b_ids'))
        with pytest.raises(ValueError, match=message):
            ranks(a, b, a_ids, b_ids, **given)

    @pytest.mark.parametrize(
        ('given', 'message'),
        [
            (change(a=torch.full((3, 2), math.nan)), r'images hold NaN .* first in row 0 \(id 7\)'),
            (change(b=torch.tensor([[0, 0], [0, math.nan], [0, 0]])),
             r'products hold NaN or infinity in 1 of 3 rows, first in row 1 \(id 8\)'),
            (change(b=torch.ones(3, 4)), 'images have 2 dimensions but products have 4'),
            (change(ties='worst'),
             r"ties must be one of \('against', 'for', 'order'\), got 'worst'"),
            (change(ties='order', a_ids=torch.tensor([7, 7, 8]), b_ids=torch.tensor([7, 8, 8])),
             r"ties='order' is defined for one right item a query, here are up to 2; take 'against'"
             " or 'for'"),
            (change(ties='order', a=torch.ones(4, 2), a_ids=torch.tensor([7, 7, 8, 9])),
             'here are up to 2'),
            (change(ties='order', b=torch.ones(4, 2), b_ids=torch.tensor([7, 7, 8, 9])),
             'here are up to 2'),
            (change(chunk=-1), 'chunk must be 1 or more, got -1'),
        ],
    )  # fmt: skip
    def test_of_both_ahead(self, given, message):
        a, b, a_ids, b_ids = (given.pop(name) for name in ('a', 'b', 'a_ids', 'b_ids'))
        for every in (True, False):
            with pytest.raises(ValueError, match=message):
                both_ahead(a, b, a_ids, b_ids, every=every, **given)

    def test_both_directions_need_relevant_items(self):
        a, ids = torch.ones(2, 3), torch.tensor([1, 2])
        with pytest.raises(ValueError, match=r'1 of 2 images have no .* products, .* id \[2\]'):
            both_ranks(a, a[:1], ids, ids[:1])
        with pytest.raises(ValueError, match=r'1 of 2 products have no .* images, .* id \[2\]'):
            both_ranks(a[:1], a, ids[:1], ids)

    @pytest.mark.parametrize(
        ('given', 'message'),
        [
            (dict(queries=torch.full((2, 3), math.inf)),
             r'queries hold NaN or infinity in 2 of 2 rows, first in row 0 \(id 0\)'),
            (dict(gallery=torch.full((4, 3), math.nan)), 'gallery hold NaN or infinity in 4 of 4'),
            (dict(gallery=torch.ones(4, 2)), 'queries have 3 dimensions but gallery have 2'),
            (dict(queries=1e30 * torch.ones(2, 3)), 'overflow float32'),
            (dict(ties='none'), "ties must be one of .*, got 'none'"),
            (dict(right=torch.ones(2, 2).bool()),
             r'2 queries need candidates and right of shape \(2, C\), C of 1 or more, got '
             r'\(2, 3\) and \(2, 2\)'),
            (dict(candidates=torch.zeros(3, 3).long(), right=torch.ones(3, 3).bool()),
             r'shape \(2, C\), C of 1 or more, got \(3, 3\) and \(3, 3\)'),
            (dict(candidates=torch.zeros(2).long(), right=torch.ones(2).bool()),
             r'shape \(2, C\), C of 1 or more, got \(2,\) and \(2,\)'),
            (dict(candidates=torch.zeros(2, 0).long(), right=torch.ones(2, 0).bool()),
             r'shape \(2, C\), C of 1 or more, got \(2, 0\) and \(2, 0\)'),
            (dict(candidates=torch.tensor([[0, 1, 2], [1, 2, 4]])),
             'candidates must be rows of a gallery of 4, or -1; got 0 to 4'),
            (dict(candidates=torch.tensor([[0, 1, -2], [1, 2, 3]])), 'or -1; got -2 to 3'),
            (dict(right=torch.tensor([[True, False, False], [False, False, False]])),
             '1 of 2 queries have no right item among their candidates, first query 1'),
            (dict(candidates=torch.tensor([[-1, 1, 2], [-1, 1, 2]])),
             '2 of 2 queries have no right item .* first query 0'),  # marked where filled
            (dict(ties='order', right=torch.tensor([[True, False, False], [True, True, False]])),
             "ties='order' is defined for one right item a query, here are up to 2"),
            (dict(chunk=0), 'chunk must be 1 or more, got 0'),
            (dict(chunk=-1), 'chunk must be 1 or more, got -1'),
        ],
    )  # fmt: skip
    def test_of_candidate_ahead(self, given, message):
        right = torch.tensor([[True, False, False]]).repeat(2, 1)
        rows = torch.tensor([[0, 1, 2], [1, 2, 3]])
        fine = dict(queries=torch.ones(2, 3), gallery=torch.ones(4, 3), candidates=rows)
        fine['right'] = right
        assert candidate_ahead(**fine).tolist() == [[2], [2]]
        with pytest.raises(ValueError, match=message):
            candidate_ahead(**(fine | given))
