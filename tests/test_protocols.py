"""The retrieval protocols: against loops, by construction, in order and scale, broken input."""

import math
from dataclasses import replace

import pytest
import references_protocols as slow
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eiclip_mm.evaluation import (
    PROTOCOLS,
    Candidates,
    Embeddings,
    Manifest,
    Protocol,
    draw_candidates,
    evaluate,
    get_protocol,
    retrieve,
)

LISTED = [name for name in PROTOCOLS if name.startswith('101/')]
KS = (1, 2, 3)
seeds = st.integers(0, 10**6)
quick = settings(deadline=None, max_examples=20)


def circle(steps, num_products):
    """Unit vectors on the circle; product p stands at step p of num_products."""
    angle = torch.as_tensor(steps, dtype=torch.float64) * 2 * math.pi / num_products
    return torch.stack((angle.cos(), angle.sin()), 1)


def catalogue(offsets, num_products=20):
    """Product p has its text at step p and view v at step p + offsets[v]: every rank is known.

    The texts nearer to a view than its own are those of the 2 * offset steps in front of it, an
    equally near one included, so its rank is 1 + floor(2 * offset). Odd products are of one
    sub-category, even ones of another.
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
        labels=dict(subcategory=(ids % 2).numpy().astype(str)),
    )


def constant(num_products=20, views=2):
    """A collapsed model: one vector for all."""
    model = catalogue([0] * views, num_products)
    return replace(
        model, image=torch.ones(len(model.image), 8), product=torch.ones(num_products, 8)
    )


def small(name, number=3, as_published=False, **changes):
    """A protocol with few candidates, for small splits."""
    protocol = get_protocol(name, as_published, **changes)
    return replace(protocol, candidates=replace(protocol.candidates, number=number))


def rows_of(result):
    """A result as the loops give it."""
    return {
        direction: [
            (product, [count for count in counts if count >= 0])
            for product, counts in zip(
                ranking.product_id.tolist(), ranking.ahead.tolist(), strict=True
            )
        ]
        for direction, ranking in (('i2t', result.i2t), ('t2i', result.t2i))
    }


class TestAgreeWithLoops:
    @pytest.mark.parametrize(
        ('name', 'same_text'),
        [
            ('full/first-image', False),
            ('full/first-image', True),
            ('full/product', False),
            ('full/product', True),
            ('full/pair', False),  # one image for one text: words do not matter
        ],
    )
    def test_all_candidates(self, name, same_text):
        for seed in range(60):
            split = slow.random_split(seed)
            protocol = get_protocol(name, same_text=same_text)
            result = retrieve(Embeddings(**slow.arrays(*split)), protocol)
            expected = slow.full(name, *split, same_text=same_text)
            assert rows_of(result) == expected, seed
            assert result.metrics(KS).items() >= approximate(slow.measures(expected, KS)).items()

    @pytest.mark.parametrize('ties', ['for', 'against'])
    def test_ties(self, ties):
        differ = 0
        for seed in range(40):
            split = slow.random_split(seed)
            protocol = get_protocol('full/product', ties=ties)
            found = rows_of(retrieve(Embeddings(**slow.arrays(*split)), protocol))
            assert found == slow.full('full/product', *split, ties=ties)
            differ += found != slow.full('full/product', *split)
        assert (differ > 20) == (ties == 'for')

    @pytest.mark.parametrize('same_text', [False, True])
    @pytest.mark.parametrize('number', [3, 100])
    @pytest.mark.parametrize('name', LISTED)
    def test_lists(self, name, number, same_text):
        for seed in range(16):
            split = slow.random_split(seed)
            embeddings = Embeddings(**slow.arrays(*split))
            queries = 3 if seed % 2 else 1000
            protocol = small(name, number, same_text=same_text, seed=seed, queries=queries)
            lists = draw_candidates(embeddings, protocol).manifest(embeddings, origin={})
            expected = slow.listed(*split, slow.lists_of(lists), same_text=same_text)
            for manifest in (None, lists):
                result = retrieve(embeddings, protocol, manifest)
                assert rows_of(result) == expected, seed
                assert result.manifest == lists.hash
            found = result.metrics((1,))
            assert found.items() >= approximate(slow.measures(expected, (1,))).items()

    @pytest.mark.parametrize(
        ('name', 'as_published'),
        [('101/kaleido', dict(masked=-1 / 16)), ('101/fashionsap', dict(pair=True, ties='for'))],
    )
    def test_lists_as_published(self, name, as_published):
        differ = 0
        for seed in range(60):
            split = slow.random_split(seed, dim=4, lengths='equal')
            embeddings = Embeddings(**slow.arrays(*split))
            protocol = small(name, (3, 100)[seed % 2], as_published=True, seed=seed)
            manifest = draw_candidates(embeddings, protocol).manifest(embeddings, origin={})
            lists = slow.lists_of(manifest)
            expected = slow.listed(*split, lists, **as_published)
            found = rows_of(retrieve(embeddings, protocol, manifest))
            assert found == expected, seed
            differ += found != slow.listed(*split, lists)
        assert differ > 30

    def test_all_measures_and_sums(self):
        split = slow.random_split(5, most=14)
        expected = slow.measures(slow.full('full/product', *split), ks=(1, 5, 10))
        found = evaluate(Embeddings(**slow.arrays(*split)), 'full/product')
        counts = dict(num_images=len(split[0]), num_products=len({t.product for t in split[1]}))
        assert found == approximate(expected | counts)


def approximate(expected):
    """Sums of floats in another order; ranks are compared exactly before."""
    return {name: pytest.approx(value, rel=1e-12) for name, value in expected.items()}


class TestByConstruction:
    @pytest.mark.parametrize('name', [n for n in PROTOCOLS if n != 'full/pair'])
    def test_perfect_model(self, name):
        found = evaluate(catalogue([0, 0.1, 0.2]), name)
        assert found['SumR'] == 600
        assert found['i2t/mAP'] == found['t2i/mAP'] == found['i2t/MRR'] == 1
        assert found['i2t/mean_rank'] == found['t2i/median_rank'] == 1
        assert found['num_products'] == 20

    @pytest.mark.parametrize('name', PROTOCOLS)
    def test_constant_model(self, name):
        found = evaluate(constant(), name, ks=(1,))
        if name == 'full/pair':  # the earliest of 40 equal texts
            assert found['i2t/R@1'] == found['t2i/R@1'] == 100 / 40
            return
        assert found['i2t/R@1'] == found['t2i/R@1'] == 0
        last = dict.fromkeys(
            ('i2t', 't2i'), 10 if name in ('101/eiclip', '101/fashionbert') else 20
        )
        if name == 'full/product':
            last['t2i'] = 39  # the better of two views stands behind 38 wrong ones
        assert {d: found[f'{d}/median_rank'] for d in last} == last

    def test_ranks_known_by_construction(self):
        """Views at ranks 4, 2 and 8; offset 0.5 is a tie with the next product and counts as 2."""
        model = catalogue([1.6, 0.5, 3.6])
        found = evaluate(model, 'full/first-image', ks=(1, 3, 4, 5, 10))
        for direction in ('i2t', 't2i'):
            assert [found[f'{direction}/R@{k}'] for k in (1, 3, 4, 5)] == [0, 0, 100, 100]
        assert found['i2t/median_rank'] == 4

        found = evaluate(model, 'full/product', ks=(1, 2, 4, 7, 8))
        assert [round(found[f'i2t/R@{k}'], 3) for k in (1, 2, 4, 7, 8)] == [
            0, 33.333, 66.667, 66.667, 100,
        ]  # fmt: skip
        # best view at 0.5 steps; as near: view 1 of the product before; nearer: view 0 of the
        # second before (0.4); views 2 of the third (0.6) and fourth (0.4) before
        assert found['t2i/R@2'] == 0
        assert found['t2i/R@4'] == 100

    def test_lists_hold_the_same_subcategory_alone(self):
        """At 1.6 steps three texts are nearer or as near, of which one is of the sub-category."""
        found = evaluate(catalogue([1.6]), '101/eiclip', ks=(1, 2))
        assert (found['i2t/R@1'], found['i2t/R@2']) == (0, 100)
        assert (found['t2i/R@1'], found['t2i/R@2']) == (0, 100)
        found = evaluate(catalogue([1.6]), '101/fashionsap', ks=(3, 4))
        assert (found['i2t/R@3'], found['i2t/R@4']) == (0, 100)

    def test_number_of_queries(self):
        """Of 20 products with two views each, as the protocols' sources ask them."""
        results = {name: retrieve(catalogue([0, 0]), name) for name in PROTOCOLS}
        assert {n: (len(r.i2t.ahead), len(r.t2i.ahead)) for n, r in results.items()} == {
            'full/first-image': (20, 20),
            'full/product': (40, 20),
            'full/pair': (40, 40),
            '101/eiclip': (20, 20),
            '101/fashionbert': (20, 20),
            '101/kaleido': (5 * 40, 5 * 20),
            '101/fashionsap': (20, 20),
        }

    def test_first_image_ignores_other_views(self):
        one, more = catalogue([0.7]), catalogue([0.7, 0.0, 5.0])
        assert evaluate(one, 'full/first-image') == evaluate(more, 'full/first-image')

    def test_same_text_is_right(self):
        """Texts of neighbours are equal, and so are their vectors: a tie that is no mistake."""
        pairs = torch.arange(20) // 2
        both = circle(pairs * 2, 20)
        model = replace(catalogue([0]), image=both, product=both, product_text=pairs)
        for name in ('full/first-image', 'full/product', '101/fashionsap'):
            assert evaluate(model, name)['i2t/R@1'] == 0
            assert evaluate(model, get_protocol(name, same_text=True))['i2t/R@1'] == 100

    def test_slices_rank_among_the_same_galleries(self):
        result = retrieve(catalogue([0.1, 3.6]), 'full/product')
        some = result.of(torch.tensor([4, 7]))
        assert len(some.i2t.ahead) == 4 and len(some.t2i.ahead) == 2
        assert some.metrics() == result.metrics() | dict(some.metrics())
        assert some.metrics((8,))['i2t/R@8'] == 100
        assert some.metrics((7,))['i2t/R@7'] == 50


class TestProperties:
    @pytest.mark.parametrize('name', PROTOCOLS)
    @given(seed=seeds)
    @quick
    def test_order_of_rows_and_scale_change_nothing(self, name, seed):
        split = slow.random_split(seed)
        model = Embeddings(**slow.arrays(*split))
        g = torch.Generator().manual_seed(seed)
        i, p = (torch.randperm(len(side), generator=g) for side in split)
        if name == 'full/pair':  # where ties go by order
            i, p = i.sort().values, p.sort().values
        other = Embeddings(
            image=8 * model.image[i],
            image_product_id=model.image_product_id[i],
            image_view=model.image_view[i],
            product=model.product[p] / 4,
            product_id=model.product_id[p],
            product_caption=model.product_caption[p],
            labels=dict(subcategory=model.labels['subcategory'][p.numpy()]),
        )
        assert evaluate(other, name, (1,)) == approximate(evaluate(model, name, (1,)))

    @pytest.mark.parametrize('name', LISTED)
    @given(seed=seeds)
    @quick
    def test_fewer_candidates_are_easier(self, name, seed):
        """No query stands further behind among its candidates than among all texts."""
        split = slow.random_split(seed, captions=1)
        model = Embeddings(**slow.arrays(*split))
        among = retrieve(model, small(name, queries=None, unit='image', repeats=1))
        everything = retrieve(model, 'full/product')
        lists = draw_candidates(model, small(name, queries=None, unit='image', repeats=1))
        assert (among.i2t.ahead[:, 0] <= everything.i2t.ahead[lists.i2t_query, 0]).all()
        assert (everything.i2t.ahead[lists.i2t_query, 0] > 0).sum() >= (among.i2t.ahead > 0).sum()

    @given(seed=seeds, name=st.sampled_from(list(PROTOCOLS)))
    @quick
    def test_measures_hang_together(self, seed, name):
        result = retrieve(Embeddings(**slow.arrays(*slow.random_split(seed))), name)
        if min(result.i2t.gallery, result.t2i.gallery) < 3:
            return
        found = result.metrics(KS)
        for d in ('i2t', 't2i'):
            assert 0 <= found[f'{d}/R@1'] <= found[f'{d}/R@2'] <= found[f'{d}/R@3'] <= 100
            assert found[f'{d}/R@1'] / 100 <= found[f'{d}/MRR'] <= 1
            assert 0 < found[f'{d}/mAP'] <= 1 and 0 <= found[f'{d}/nDCG@3'] <= 1
            assert 1 <= found[f'{d}/mean_rank'] <= getattr(result, d).gallery


class TestErrors:
    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (
                dict(image_view=torch.tensor([1, 2]).repeat(20)),
                r'20 products have no view 0, e.g. \[0, 1, 2, 3, 4\]',
            ),
            (dict(product_caption=torch.ones(20).long()), '20 products have no caption 0, e.g.'),
            (dict(product_id=torch.arange(1, 21)), r'1 of 20 images have no .* \[0\]'),
            (dict(image=torch.full((40, 2), math.nan)), 'images hold NaN or infinity in 20 of 20'),
            (dict(image=torch.ones(40, 3)), 'images have 3 dimensions but products have 2'),
        ],
    )
    def test_errors_name_the_protocol(self, change, message):
        with pytest.raises(ValueError, match=f'protocol full/first-image: {message}'):
            evaluate(replace(catalogue([0, 0]), **change), 'full/first-image')

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(labels={}), r"no label 'subcategory'; they have \[\]\. .*'label.subcategory'"),
            (dict(product_id=torch.arange(1, 21)), r'2 products have an image but .* \[0, 20\]'),
            (
                dict(labels=dict(subcategory=torch.arange(20).numpy().astype(str))),
                r"pool is empty: none of 20 .* group='subcategory' and top_up='none'; take",
            ),
            (dict(product_caption=torch.ones(20).long()), '20 products .* but no caption 0'),
            (dict(image=torch.ones(40, 3)), 'queries have 3 dimensions but gallery have 2'),
        ],
    )
    def test_errors_of_lists(self, change, message):
        with pytest.raises(ValueError, match=f'protocol 101/eiclip: .*{message}'):
            evaluate(replace(catalogue([0, 0]), **change), '101/eiclip')

    def test_ids_on_one_side_alone(self):
        model = catalogue([0, 0])
        fewer = dict(image=model.image[2:], image_product_id=model.image_product_id[2:])
        model = replace(model, **fewer, image_view=model.image_view[2:])
        for name, message in (
            ('full/product', r'1 of 20 products have no relevant item among the images, .* \[0\]'),
            ('101/kaleido', r'1 products have an image but no caption 0, or the reverse.* \[0\]'),
        ):
            with pytest.raises(ValueError, match=message):
                evaluate(model, name)

    def test_same_text(self):
        protocol = get_protocol('full/product', same_text=True)
        with pytest.raises(
            ValueError, match=r'full/product, same text: same_text .* add the array product_te'
        ):
            evaluate(catalogue([0]), protocol)
        two = Embeddings(
            image=torch.eye(2),
            image_product_id=torch.arange(2),
            product=torch.eye(2).repeat(2, 1),
            product_id=torch.arange(2).repeat(2),
            product_text=torch.tensor([5, 6, 5, 7]),
        )
        with pytest.raises(ValueError, match=r'1 further captions differ .* e.g. of product 1'):
            evaluate(two, protocol)

    @pytest.mark.parametrize(
        ('name', 'k', 'gallery'),
        [
            ('full/first-image', 5, '4 texts'),
            ('full/product', 5, '4 texts'),
            ('101/eiclip', 3, '2 texts'),
            ('101/fashionsap', 5, '4 texts'),
        ],
    )
    def test_k_beyond_the_gallery(self, name, k, gallery):
        model = catalogue([0, 0], num_products=4)
        with pytest.raises(ValueError, match=f'{name}: R@{k} means nothing in a .* {gallery}'):
            evaluate(model, name, ks=(1, k))
        assert evaluate(model, name, ks=(1, k - 1))['i2t/R@1'] == 100

    def test_k_beyond_the_images(self):
        more_captions = Embeddings(
            image=torch.eye(2),
            image_product_id=torch.arange(2),
            product=torch.eye(2).repeat(2, 1),
            product_id=torch.arange(2).repeat(2),
        )
        with pytest.raises(ValueError, match='R@3 means nothing in a gallery of 2 images'):
            evaluate(more_captions, 'full/product', ks=(3,))

    def test_manifests(self):
        model = catalogue([0, 0])
        manifest = draw_candidates(model, '101/eiclip').manifest(model, origin={})
        with pytest.raises(ValueError, match=r'full/product: a manifest lists .* here all are'):
            evaluate(model, 'full/product', manifest=manifest)
        with pytest.raises(ValueError, match='full/product ranks all; there are no candidates'):
            draw_candidates(model, 'full/product')
        other = replace(model, image_product_id=model.image_product_id + 1)
        with pytest.raises(ValueError, match=r'manifest is of another split: \d+ of its i2t quer'):
            evaluate(other, '101/eiclip', manifest=manifest)

    def test_names_and_fields(self):
        with pytest.raises(KeyError, match=r'unknown retrieval protocol .full/firstimage.; there'):
            evaluate(catalogue([0]), 'full/firstimage')
        with pytest.raises(
            ValueError, match=r'no defect .* known of 101/eiclip; as_published is f'
        ):
            get_protocol('101/eiclip', as_published=True)
        for field in ('views', 'captions', 'right', 'unit', 'ties'):
            with pytest.raises(ValueError, match=f"{field} of a protocol is one of .*, got 'some'"):
                Protocol(name='x', source='', **{field: 'some'})
        for field in ('top_up', 'level'):
            with pytest.raises(ValueError, match=f"{field} of candidates is one of .*, got 'some'"):
                Candidates(**{field: 'some'})
        with pytest.raises(ValueError, match='1 candidate or more beside the right one, got 0'):
            Candidates(number=0)
        for wrong in (dict(queries=0), dict(repeats=0)):
            with pytest.raises(ValueError, match='needs 1 query and 1 repeat or more, got'):
                get_protocol('101/kaleido', **wrong)
        with pytest.raises(ValueError, match="ties='order' is defined for one right item a query"):
            evaluate(catalogue([0, 0]), get_protocol('full/product', ties='order'))


def test_another_label_may_restrict_candidates():
    model = catalogue([1.6])
    model = replace(model, labels=dict(brand=model.labels['subcategory']))
    protocol = get_protocol('101/eiclip', group='brand')
    assert evaluate(model, protocol, (2,))['i2t/R@2'] == 100
    with pytest.raises(
        ValueError, match=r"full/product has no candidates that could share 'brand'"
    ):
        get_protocol('full/product', group='brand')


def test_manifest_made_by_hand_as_mvlt_ships_them():
    """Fixed lists of ids without a draw: the ranks are those of the lists."""
    model = catalogue([0, 1.6])
    lists = torch.tensor([[[3, 0], [4, 0], [9, 0]], [[8, 0], [9, 0], [-1, -1]]]).numpy()
    query = torch.tensor([[3, 1], [8, 1]]).numpy()
    manifest = Manifest(query, lists, query * [1, 0], lists, origin={})
    found = retrieve(model, '101/eiclip', manifest)
    # view 1 at 1.6 steps: nearer to the next product than to its own; so is no first view
    assert rows_of(found) == {'i2t': [(3, [1]), (8, [1])], 't2i': [(3, [0]), (8, [0])]}
    assert found.metrics((1,))['num_products'] == 2
