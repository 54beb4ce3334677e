"""Drawn candidates: the definition, chance, repeatability, and the manifests that keep them."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import references_protocols as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from eiclip_mm.evaluation import (
    PROTOCOLS,
    Candidates,
    Embeddings,
    Manifest,
    draw_candidates,
    get_protocol,
    retrieve,
)
from eiclip_mm.evaluation.candidates import LEVELS, TOP_UP, draw

LISTED = [name for name in PROTOCOLS if name.startswith('101/')]


def split_of(groups, views=None):
    """A split of such sub-categories and numbers of views; product p has the id 100 + p."""
    views = views or [1] * len(groups)
    images = [slow.Image((p, v), 100 + p, v) for p, n in enumerate(views) for v in range(n)]
    texts = [slow.Text((p, 0), 100 + p, 0, p, group) for p, group in enumerate(groups)]
    return images, texts


def drawn(split, seed=0, queries=None, unit='product', repeats=1, **candidates):
    """Lists by product id and number."""
    embeddings = Embeddings(**slow.arrays(*split))
    lists = draw(embeddings, Candidates(**candidates), queries, unit, repeats, seed)
    return slow.lists_of(lists.manifest(embeddings, origin={}))


def assert_uniform(counts, per_draw=1):
    """Chi-square of how often each was drawn, ``per_draw`` different ones at once."""
    counts = np.array(counts)
    assert counts.mean() > 50
    statistic = ((counts - counts.mean()) ** 2).sum() / counts.mean()
    statistic *= (len(counts) - 1) / (len(counts) - per_draw)  # those of one draw repel
    assert chi2.sf(statistic, len(counts) - 1) > 1e-4, counts
    assert chi2.cdf(statistic, len(counts) - 1) > 1e-4, counts  # nor more even than chance


class TestDefinition:
    @pytest.mark.parametrize('top_up', TOP_UP)
    @given(seed=st.integers(0, 10**6), level=st.sampled_from(LEVELS), number=st.integers(1, 12))
    @settings(deadline=None, max_examples=40)
    def test_random_splits(self, top_up, seed, level, number):
        images, texts = slow.random_split(seed, most=14)
        if top_up == 'mixture':
            level = 'product'
        how = dict(number=number, top_up=top_up, level=level)
        lists = drawn((images, texts), seed=seed, **how)
        assert slow.faults(lists, texts, images, **how) == []
        products = sorted({text.product for text in texts})
        for direction in ('i2t', 't2i'):
            assert sorted(query[0] for query, _ in lists[direction]) == products

    @pytest.mark.parametrize('top_up', TOP_UP)
    def test_large_groups(self, top_up):
        """Where a list is a small part of its group, another way of drawing is taken."""
        images, texts = split_of('a' * 60 + 'b' * 9 + 'c', [1, 2, 3, 1, 2] * 14)
        for number, level in ((5, 'product'), (14, 'image'), (14, 'product')):
            level = 'product' if top_up == 'mixture' else level
            how = dict(number=number, top_up=top_up, level=level)
            lists = drawn((images, texts), repeats=4, **how)
            assert slow.faults(lists, texts, images, **how) == []
            assert len(lists['i2t']) == len(lists['t2i']) == 4 * 70

    def test_the_check_finds_faults(self):
        images, texts = split_of('aab', [2, 2, 2])
        right, same, other = (100, 0), (101, 0), (102, 0)
        for candidates, how in (
            ([same, same], {}),
            ([right, right, same], {}),
            ([right, same, same], {}),
            ([right, other], {}),
            ([right], {}),
            ([right, other], dict(top_up='others')),
            ([right, same, (101, 1)], dict(top_up='others')),
        ):
            for direction in ('i2t', 't2i'):
                lists = {'i2t': [], 't2i': []} | {direction: [(right, candidates)]}
                assert slow.faults(lists, texts, images, number=2, **how)

    @pytest.mark.parametrize('level', LEVELS)
    def test_own_group_first_then_others(self, level):
        """Product 101 has four of the six other images of its group; lists of both are full."""
        split = split_of('aabbbbbb', [2, 4, 1, 1, 1, 1, 1, 1])
        lists = drawn(split, number=5, top_up='others', level=level, repeats=20)
        for (product, _), candidates in lists['t2i']:
            if product in (100, 101):
                other = 201 - product
                own = {100: 4, 101: 2}[product] if level == 'image' else 1
                assert [p for p, _ in candidates[1:]].count(other) == own
                assert len(candidates) == 6

    def test_own_group_again(self):
        """Only of t2i, and with the right product, a view of which may be drawn as wrong."""
        split = split_of('aaabbb', [2] * 6)
        lists = drawn(split, number=5, top_up='mixture', own_again=True, repeats=40)
        own, twice = Counter(), Counter()
        for direction, queries in lists.items():
            for (product, _), candidates in queries:
                products = [p for p, _ in candidates[1:]]
                own[direction] += product in products
                twice[direction] += len(set(products)) < len(products)
        assert own['i2t'] == twice['i2t'] == 0
        assert own['t2i'] > 40 and twice['t2i'] > 40

    @pytest.mark.parametrize(('queries', 'expected'), [(None, 12), (12, 12), (1000, 12), (5, 5)])
    def test_number_of_queries(self, queries, expected):
        lists = drawn(split_of('aaaabbbbcccc'), queries=queries, repeats=3, number=2)
        for direction in ('i2t', 't2i'):
            asked = [query for query, _ in lists[direction]]
            rounds = [asked[i : i + expected] for i in range(0, len(asked), expected)]
            assert [len(set(part)) for part in rounds] == [expected] * 3
            assert (len(set(map(frozenset, rounds))) == 1) == (expected == 12)

    @pytest.mark.parametrize('top_up', TOP_UP)
    def test_no_candidates_at_all(self, top_up):
        with pytest.raises(
            ValueError,
            match=f'empty: none of 1 .* top_up={top_up!r}; take .*report.py --group LABEL',
        ):
            drawn(split_of('a'), top_up=top_up)
        alone = split_of('aab')  # some have candidates, others none
        lists = drawn(alone, number=1, top_up=top_up)
        assert [len(c) for _, c in lists['i2t']] == [2, 2, 1 if top_up == 'none' else 2]

    def test_images_as_queries(self):
        images, texts = split_of('aaaa', [1, 2, 3, 4])
        lists = drawn((images, texts), unit='image', number=2)
        assert sorted(query for query, _ in lists['i2t']) == [i[1:] for i in images]
        assert len(lists['t2i']) == 4


class TestChance:
    """Counts of many draws with fixed seeds; the bounds fail by chance once in 5,000 cases."""

    @pytest.mark.parametrize('group_size', [10, 40])
    @pytest.mark.parametrize('top_up', TOP_UP)
    def test_candidates_of_the_own_group(self, group_size, top_up):
        split = split_of('a' * group_size + 'bc')
        for counts in wrong_counts(split, repeats=800, number=3, top_up=top_up):
            for asked in (0, group_size // 2):
                assert_uniform(np.delete(counts[asked, :group_size], asked), per_draw=3)

    def test_candidates_of_other_groups(self):
        """Also where a list takes fewer than others of its group, as the first product does."""
        split = split_of('aa' + 'b' * 60, [1, 20] + [1] * 60)
        i2t, t2i = wrong_counts(split, repeats=600, number=30, top_up='others', level='image')
        for asked, own in ((0, 20), (1, 1)):
            assert_uniform(t2i[asked, 2:], per_draw=30 - own)
            assert_uniform(i2t[asked, 2:], per_draw=29)

    @pytest.mark.parametrize('number', [3, 4])
    def test_mixture(self, number):
        """Exact shares, from all orders in which the other groups can be added."""
        groups = 'aaabbcccccd'
        expected = np.zeros(len(groups))
        for order in itertools.permutations('bcd'):
            pool = [1, 2]
            for group in order:
                if len(pool) < number:
                    pool += [p for p, g in enumerate(groups) if g == group]
            expected[pool] += number / len(pool) / 6
        repeats = 1500
        sigma = np.sqrt(expected * (1 - expected) / repeats)
        how = dict(repeats=repeats, number=number, top_up='mixture')
        for counts in wrong_counts(split_of(groups), **how):
            assert (abs(counts[0] / repeats - expected) <= 4 * sigma).all()

    def test_queries_and_views(self):
        views = [1, 2, 3, 4, 5, 5]
        split = split_of('aaaaaa', views)
        lists = drawn(split, repeats=2000, number=2, queries=2)
        assert_uniform(list(Counter(q[0] for q, _ in lists['i2t']).values()), per_draw=2)
        assert_uniform(list(Counter(q[0] for q, _ in lists['t2i']).values()), per_draw=2)
        images = Counter(q for q, _ in lists['i2t'])
        right = Counter(candidates[0] for _, candidates in lists['t2i'])
        wrong = Counter(c for _, candidates in lists['t2i'] for c in candidates[1:])
        for counts in (images, right, wrong):
            for product, num in enumerate(views[1:], 101):
                assert_uniform([counts[product, view] for view in range(num)])
        # random images are more often of products with more views
        lists = drawn(split, repeats=2000, number=2, queries=2, unit='image')
        assert_uniform([n for _, n in Counter(q for q, _ in lists['i2t']).items()], per_draw=2)

    def test_other_images_of_a_query(self):
        split = split_of('aaaa', [1, 2, 3, 4])
        lists = drawn(split, repeats=1500, number=3, level='image')
        counts = Counter(c for q, listed in lists['t2i'] if q[0] == 101 for c in listed[1:])
        assert_uniform(list(counts.values()), per_draw=3)
        assert len(counts) == 8


def wrong_counts(split, repeats, **candidates):
    """For both directions, (P, P): how often a product is a wrong candidate of another."""
    embeddings = Embeddings(**slow.arrays(*split))
    lists = draw(embeddings, Candidates(**candidates), None, 'product', repeats, seed=0)
    product = embeddings.image_product_id.numpy() - 100
    for asked, wrong in (
        (product[lists.i2t_query], lists.i2t[:, 1:]),
        (lists.t2i_query, np.where(lists.t2i < 0, -1, product[lists.t2i])[:, 1:]),
    ):
        counts = np.zeros((len(split[1]),) * 2, int)
        np.add.at(
            counts, (asked[:, None].repeat(wrong.shape[1], 1)[wrong >= 0], wrong[wrong >= 0]), 1
        )
        yield counts


class TestRepeatable:
    @pytest.mark.parametrize(
        ('name', 'as_published'),
        [*((name, False) for name in LISTED), ('101/kaleido', True), ('101/fashionsap', True)],
    )
    def test_rows_and_model_change_nothing(self, name, as_published):
        protocol = replace(get_protocol(name, as_published), queries=5)
        images, texts = slow.random_split(3, most=14, captions=1)
        found = hashes(images, texts, protocol)
        shuffled = images[::-1], texts[1:] + texts[:1]
        other = [image._replace(vector=(9, 9, 9)) for image in images], texts
        assert hashes(*shuffled, protocol) == hashes(*other, protocol) == found
        assert hashes(images, texts, replace(protocol, seed=1)) != found
        renamed = [image._replace(product=image.product + 200) for image in images]
        renamed = renamed, [text._replace(product=text.product + 200) for text in texts]
        assert hashes(*renamed, protocol) != found

    def test_golden(self):
        """The same on any machine; numpy's partition, for one, orders by the processor's kind."""
        split = split_of('a' * 150 + 'bbbccc', [1, 2, 3] * 52)
        found = {name: hashes(*split, PROTOCOLS[name]) for name in LISTED}
        few = Candidates(number=8, top_up='others', level='image')
        found['few'] = hashes(*split, replace(PROTOCOLS['101/kaleido'], candidates=few))
        assert found == GOLDEN

    def test_result_names_its_manifest(self):
        embeddings = Embeddings(**slow.arrays(*slow.random_split(0)))
        manifest = draw_candidates(embeddings, '101/kaleido').manifest(embeddings, origin={})
        assert retrieve(embeddings, '101/kaleido').manifest == manifest.hash
        assert retrieve(embeddings, '101/kaleido', manifest).manifest == manifest.hash
        assert retrieve(embeddings, 'full/product').manifest is None


def hashes(images, texts, protocol):
    embeddings = Embeddings(**slow.arrays(images, texts))
    return draw_candidates(embeddings, protocol).manifest(embeddings, origin={}).hash


GOLDEN = {
    '101/eiclip': 'bd7d4cedd89c331f',
    '101/fashionbert': 'bd7d4cedd89c331f',  # the same where there are no 1,000 products
    '101/kaleido': 'e9482cba2f1008cb',
    '101/fashionsap': '94a1bd64bac94486',
    'few': 'f4090f493f640045',
}


class TestManifest:
    @pytest.fixture
    def embeddings(self):
        return Embeddings(**slow.arrays(*slow.random_split(2, most=14)))

    @pytest.fixture
    def manifest(self, embeddings):
        return draw_candidates(embeddings, '101/kaleido').manifest(embeddings, dict(seed=0))

    def test_round_trip(self, tmp_path, embeddings, manifest):
        manifest.save(tmp_path / 'new' / 'lists.npz')
        loaded = Manifest.load(tmp_path / 'new' / 'lists.npz')
        assert loaded.hash == manifest.hash
        assert loaded.origin == dict(seed=0)
        assert slow.lists_of(loaded) == slow.lists_of(manifest)
        rows = loaded.lists(embeddings)
        assert rows.manifest(embeddings, origin={}).hash == manifest.hash

    def test_hash_sees_every_list(self, manifest):
        found = {manifest.hash}
        for direction in ('i2t', 't2i'):
            query = getattr(manifest, f'{direction}_query').copy()
            listed = getattr(manifest, f'{direction}_candidates').copy()
            listed[0, -1] = listed[0, 0]
            found.add(replace(manifest, **{f'{direction}_candidates': listed}).hash)
            query[0, 1] += 1
            found.add(replace(manifest, **{f'{direction}_query': query}).hash)
        assert len(found) == 5
        assert replace(manifest, origin={}).hash == manifest.hash

    def test_of_lists_made_elsewhere(self, tmp_path, manifest):
        """Any integers, without an origin, as other projects ship them."""
        arrays = {n: v for n, v in vars(manifest).items() if n != 'origin'}
        np.savez(tmp_path / 'lists.npz', **{n: v.astype(np.int16) for n, v in arrays.items()})
        loaded = Manifest.load(tmp_path / 'lists.npz')
        assert (loaded.hash, loaded.origin) == (manifest.hash, {})

    @pytest.mark.parametrize('number', [1, 7])
    def test_of_another_split(self, embeddings, manifest, number):
        lost = int(manifest.t2i_query[0, 0])
        gone = embeddings.image_product_id == lost
        views = torch.where(gone, embeddings.image_view + number, embeddings.image_view)
        with pytest.raises(ValueError, match=rf'of another split: .* e.g. \[\[{lost}, 0\]'):
            manifest.lists(replace(embeddings, image_view=views))
        ids = torch.where(embeddings.product_id == lost, 999, embeddings.product_id)
        with pytest.raises(ValueError, match=rf'\d+ of its i2t candidates .* e.g. \[\[{lost}, 0\]'):
            manifest.lists(replace(embeddings, product_id=ids))

    @pytest.mark.parametrize('far', [2**62 - 2, 2**63 - 2, 2**63 - 1])
    def test_numbers_of_any_size(self, far):
        model = Embeddings(
            image=torch.eye(7),
            image_product_id=torch.tensor([0, 0, 1, 2, 3, 4, 4]),
            image_view=torch.tensor([far, 8, 0, 0, 0, 8, 0]),
            product=torch.eye(7)[:5],
            product_id=torch.arange(5),
        )
        asked = np.array([[0, far], [0, 8], [4, 0], [4, 8]])
        texts = np.array([[[0, 0], [1, 0]]] * 2 + [[[4, 0], [0, 0]]] * 2)
        manifest = Manifest(asked, texts, texts[:, 0], asked[:, None], origin={})
        assert manifest.lists(model).i2t_query.tolist() == [0, 1, 6, 5]
        for lost in ([4, far], [0, 0], [0, 7], [4, far - 1]):
            asked[3] = lost
            with pytest.raises(ValueError, match=rf'of another split: 1 .* e.g. \[\[{lost[0]}, '):
                manifest.lists(model)

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(origin=np.array('[1]')), r"origin must be a JSON object, .* got '\[1\]'"),
            (dict(origin=np.array('[' * 10**5)), 'maximum recursion depth'),
            (dict(t2i_query=np.ones((1, 2), bool)), 't2i_query must be integers, got bool'),
            (dict(i2t_query=np.array([[2**64 - 1, 0]], np.uint64)), 'i2t_query has numbers beyond'),
        ],
    )
    def test_files_of_other_types(self, tmp_path, manifest, change, message):
        path = tmp_path / 'lists.npz'
        arrays = {n: v for n, v in vars(manifest).items() if n != 'origin'}
        np.savez(path, **(arrays | change))
        with pytest.raises(ValueError, match=rf'is not a manifest .*: {message}'):
            Manifest.load(path)

    def test_damaged_files(self, tmp_path, manifest):
        path = tmp_path / 'lists.npz'
        with pytest.raises(
            FileNotFoundError, match=r'lists.npz does not exist; .* --save-manifests DIR'
        ):
            Manifest.load(path)
        with pytest.raises(
            ValueError, match=r"manifests are written as .npz, got the path 'lists.js"
        ):
            manifest.save('lists.json')
        manifest.save(path)
        whole = path.read_bytes()
        for end in (0, 4, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:end])
            with pytest.raises(ValueError, match=r'lists.npz is not a manifest with .*i2t_query'):
                Manifest.load(path)
        refused = 0
        for place in range(0, len(whole), 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
            try:
                assert Manifest.load(path).hash == manifest.hash  # a date or the like
            except ValueError as error:
                assert 'is not a manifest' in str(error)
                refused += 1
        assert refused > len(whole) // 7 / 2
        np.savez(path, i2t_query=np.ones((1, 2), int))
        with pytest.raises(ValueError, match=r'is not a manifest .*i2t_candidates is not a file'):
            Manifest.load(path)

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(i2t_query=[[3, 0, 0]]), r'must be \(Q, 2\) and .* got \(1, 3\) and \(1, 2, 2\)'),
            (dict(t2i_query=[[3, 0], [4, 0]]), r't2i_query .* got \(2, 2\) and \(1, 2, 2\)'),
            (dict(i2t_query=[[3.0, 0.0]]), 'must be integers, got float64 and int64'),
            (
                dict(t2i_candidates=[[[-1, -1], [-1, -1]]]),
                r'1 of 1 t2i queries have an empty list .* number\) \[3, 0\]',
            ),
            (
                dict(i2t_candidates=[[[4, 0], [3, 0]]]),
                r'must be the right one.*; 1 of 1 i2t queries .* \[3, 0\] with \[4, 0\]',
            ),
            (dict(i2t_candidates=[[[3, -1], [4, 0]]]), r'must be the right one'),
            (dict(t2i_query=[[3, -1]]), r'must be the right one.*\[3, -1\] with'),
        ],
    )
    def test_lists_that_mean_nothing(self, change, message):
        given = {f'{d}_query': [[3, 0]] for d in ('i2t', 't2i')}
        given |= {f'{d}_candidates': [[[3, 0], [4, 0]]] for d in ('i2t', 't2i')}
        with pytest.raises(ValueError, match=message):
            Manifest(**{n: np.array(v) for n, v in (given | change).items()}, origin={})
        none = np.zeros((0, 2), int), np.zeros((0, 3, 2), int)
        with pytest.raises(ValueError, match=r'with one query or more, got \(0, 2\) and \(0, 3'):
            Manifest(*none, *none, origin={})
