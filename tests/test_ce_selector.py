"""CE-Selector: weights, gates, and causal effects against loops."""

import inspect
import itertools
import math
from functools import partial

import pytest
import references_models as references
import tiny
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper

from eiclip_mm.models import (
    AttentionCESelector,
    CESelector,
    EffectCESelector,
    GatedCESelector,
    KeepAll,
    KeepNone,
    KeepTypes,
    causal_effects,
)
from eiclip_mm.models.causal_effects import bootstrap_interval
from eiclip_mm.models.entity_table import EntityTable
from eiclip_mm.structures import EntityVocab

ATTENTION = partial(AttentionCESelector, dim=8)
ALL = (KeepAll, KeepNone, GatedCESelector, EffectCESelector, ATTENTION)
# products: two brands' values, unknown, one of each, nothing known
IDS = torch.tensor([[[1, 3], [2, 0]], [[0, 0], [1, 2]], [[2, 0], [1, 0]], [[0, 0], [0, 0]]])
TEXT = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class TestTable:
    def test_rows(self):
        table = EntityTable(tiny.VOCAB)
        assert table.num_rows == 6 and table.of_type == [range(1, 4), range(4, 6)]
        assert table.type_of_row.tolist() == [0, 0, 0, 0, 1, 1]
        assert table.rows(IDS)[0].tolist() == [[1, 3], [5, 0]]
        assert table.rows(IDS)[1].tolist() == [[0, 0], [4, 5]]

    def test_mean_equals_loops(self):
        table = EntityTable(tiny.VOCAB)
        values = torch.randn(6, 3)
        found = table.mean(values, IDS)
        assert found.shape == (4, 2, 3)
        for i, product in enumerate(IDS.tolist()):
            for k, first in enumerate((0, 3)):
                own = [values[0].tolist()] + values[first + 1 :].tolist()
                expected = references.mean_of_known(own, product[k])
                torch.testing.assert_close(found[i, k], torch.tensor(expected))

    def test_weighted_mean_equals_loops(self):
        """The weights multiply the rows; the mean is still over all known values."""
        table = EntityTable(tiny.VOCAB)
        values, weights = torch.randn(6, 3), torch.rand(IDS.shape)
        weights[0, 0, 1] = 0
        found = table.mean(values, IDS, weights)
        for i, product in enumerate(IDS.tolist()):
            for k, first in enumerate((0, 3)):
                own = [values[0].tolist()] + values[first + 1 :].tolist()
                expected = references.mean_of_known(own, product[k], weights[i, k].tolist())
                torch.testing.assert_close(found[i, k], torch.tensor(expected))
        assert table.mean(values, IDS, torch.ones(IDS.shape)).equal(table.mean(values, IDS))

    def test_shares(self):
        ids = torch.tensor([[[1, 3, 2], [2, 0, 0]], [[0, 0, 0], [0, 1, 2]]])
        expected = [[[1 / 3] * 3, [1, 0, 0]], [[0, 0, 0], [0, 0.5, 0.5]]]
        torch.testing.assert_close(EntityTable(tiny.VOCAB).share(ids), torch.tensor(expected))

    def test_empty_places_are_not_values(self):
        """Ids are padded with 0: how many places there are must not matter."""
        table = EntityTable(tiny.VOCAB)
        values = torch.randn(6, 3)
        wide = F.pad(IDS, (1, 3))
        torch.testing.assert_close(table.mean(values, wide), table.mean(values, IDS))


class TestInterface:
    @pytest.mark.parametrize('kind', ALL)
    @pytest.mark.parametrize('training', [True, False])
    def test_shape_and_range(self, kind, training):
        selector = tiny.randomised(kind(tiny.VOCAB), 3.0).train(training)
        for _ in range(20):
            weights = selector(TEXT, IDS)
            assert weights.shape == IDS.shape and weights.dtype == torch.float32
            assert (weights >= 0).all() and (weights <= 1).all()

    def test_keep_all_and_none(self):
        assert (KeepAll(tiny.VOCAB)(TEXT, IDS) == 1).all()
        assert (KeepNone(tiny.VOCAB)(TEXT, IDS) == 0).all()
        assert KeepAll(tiny.VOCAB).penalty() is None

    def test_keep_types_is_to_know_nothing_of_the_others(self):
        first, second = tiny.VOCAB.types
        some, everything = (
            tiny.model(selector=selector)
            for selector in (dict(type='KeepTypes', types=[second]), dict(type='KeepAll'))
        )
        data = tiny.batch(some)
        for model in (some, everything):
            tiny.randomised(model.learner, 0.2)
            model.eval()
        without = data['entity_ids'].clone()
        without[:, tiny.VOCAB.types.index(first)] = 0
        product = some.encode_product(data['text'], data['entity_ids'])
        assert product.equal(everything.encode_product(data['text'], without))
        assert not product.equal(everything.encode_product(data['text'], data['entity_ids']))

    @pytest.mark.parametrize('types', [[], ['brand', 'colour']])
    def test_keep_types_refuses(self, types):
        with pytest.raises(ValueError, match=r"types must name some of \('brand', .*, got \("):
            KeepTypes(tiny.VOCAB, types)

    def test_keep_none_is_to_know_nothing(self):
        changes = dict(learner=dict(type='EALearner', prior='learned'))
        none = tiny.model(selector=dict(type='KeepNone'), **changes)
        everything = tiny.model(**changes)
        data = tiny.batch(none)
        for model in (none, everything):
            tiny.randomised(model.learner, 0.2)
            model.eval()
        blind = torch.zeros_like(data['entity_ids'])
        product = none.encode_product(data['text'], data['entity_ids'])
        assert product.equal(none.encode_product(data['text'], blind))
        assert product.equal(everything.encode_product(data['text'], blind))
        assert not product.equal(everything.encode_product(data['text'], data['entity_ids']))

    @pytest.mark.parametrize('prior', ['uniform', 'frequency', 'learned'])
    def test_a_dropped_entity_does_not_reach_the_product(self, prior):
        """Silk is dropped; beside cotton, which is kept, its senses must not matter either."""
        model = tiny.model(
            selector=dict(type='EffectCESelector'), learner=dict(type='EALearner', prior=prior),
            entity_loss_weight=0,
        )  # fmt: skip
        tiny.randomised(model.learner, 0.2)
        model.eval()
        model.selector.weight[5] = 0
        data = tiny.batch(model)
        assert (
            (data['entity_ids'][:, 1] == 2).any(1) & (data['entity_ids'][:, 1] == 1).any(1)
        ).any()
        product = model.encode_product(data['text'], data['entity_ids'])
        tiny.total(model(**data, mode='loss')).backward()
        grad = model.learner.learned.grad[0]
        assert (grad[5] == 0).all() and (grad[4] != 0).any()
        model.learner.learned.data[:, 5] += 3
        model.learner.general[:, 5] -= 3
        assert model.encode_product(data['text'], data['entity_ids']).equal(product)
        model.selector.weight[5] = 1
        assert not model.encode_product(data['text'], data['entity_ids']).equal(product)

    def test_base_class_chooses_nothing(self):
        with pytest.raises(NotImplementedError):
            CESelector(tiny.VOCAB)(TEXT, IDS)


class TestGated:
    def gated(self, type_logit, entity_logit):
        selector = GatedCESelector(tiny.VOCAB)
        selector.type_logit.data = torch.tensor(type_logit)
        selector.entity_logit.data = torch.tensor(entity_logit)
        return selector

    def test_logits_add_type_and_entity(self):
        selector = self.gated([1.0, -2.0], [9.0, 0.1, 0.2, 0.3, 0.4, 0.5])
        expected = torch.tensor([1.1, 1.2, 1.3, -1.6, -1.5])
        torch.testing.assert_close(selector.logits()[1:], expected)

    def test_evaluation_is_the_stretched_mean(self):
        selector = self.gated([1.0, -2.0], [0.0, 0.1, 0.2, 9.0, 0.4, -9.0]).eval()
        expected = [
            min(max(1.2 / (1 + math.exp(-x)) - 0.1, 0), 1) for x in (1.1, 1.2, 10.0, -1.6, -11.0)
        ]
        gates = selector.gates()[1:]
        torch.testing.assert_close(gates, torch.tensor(expected))
        assert gates[2] == 1 and gates[4] == 0 and selector.gates()[1:].equal(gates)
        weights = selector(TEXT, IDS)
        known = {(0, 0, 0): 0, (0, 0, 1): 2, (0, 1, 0): 4, (1, 1, 0): 3, (1, 1, 1): 4}
        known |= {(2, 0, 0): 1, (2, 1, 0): 3}
        assert len(known) == (IDS != 0).sum()
        for place, gate in known.items():
            assert weights[place] == gates[gate]

    def test_an_entity_has_one_gate_in_a_batch(self):
        selector = self.gated([0.5, 0.0], [0.0] * 6).train()
        ids = torch.tensor([[[1, 2], [1, 0]], [[2, 1], [2, 1]], [[0, 1], [0, 0]]])
        for _ in range(10):
            w = selector(TEXT[:3], ids)
            assert w[0, 0, 0] == w[1, 0, 1] == w[2, 0, 1] and w[0, 0, 1] == w[1, 0, 0]
            assert w[0, 1, 0] == w[1, 1, 1]

    def test_training_draws(self):
        selector = self.gated([0.0, 0.0], [0.0] * 6).train()
        draws = torch.stack([selector.gates() for _ in range(500)])
        assert len(draws.unique()) > 500
        assert (draws == 0).float().mean() > 0.05 and (draws == 1).float().mean() > 0.05
        expected = references.open_probability(0.0)
        assert (draws > 0).float().mean().item() == pytest.approx(expected, abs=0.03)
        torch.manual_seed(3)
        first = selector.gates()
        torch.manual_seed(3)
        assert selector.gates().equal(first)

    def test_penalty_is_the_expected_share_of_open_gates(self):
        logits = [0.3, -2.0, 4.0, -0.5, 1.5]
        selector = self.gated([0.0, 0.0], [99.0, *logits])  # the row of "unknown" does not count
        expected = sum(references.open_probability(x) for x in logits) / 5
        assert selector.penalty().item() == pytest.approx(expected, abs=1e-4)
        assert selector.eval().penalty() == selector.train().penalty()

    def test_gradient_reaches_logits(self):
        model = tiny.model(selector=dict(type='GatedCESelector', init_logit=0.5), gate_price=0)
        tiny.randomised(model.learner, 0.2)
        torch.manual_seed(0)
        model.train()
        tiny.total(model(**tiny.batch(model), mode='loss')).backward()
        assert (model.selector.type_logit.grad != 0).all()
        grad = model.selector.entity_logit.grad
        assert grad[0] == 0 and (grad[1:] != 0).sum() >= 3

    def test_price_closes_gates(self):
        selector = GatedCESelector(tiny.VOCAB)
        start = selector.penalty().item()
        optimizer = torch.optim.SGD(selector.parameters(), 5.0)
        for _ in range(20):
            optimizer.zero_grad()
            selector.penalty().backward()
            optimizer.step()
        assert selector.penalty() < start - 0.3
        model = tiny.model(selector=dict(type='GatedCESelector'), gate_price=0.7)
        losses = model(**tiny.batch(model), mode='loss')
        assert losses['loss_gate'].item() == pytest.approx(0.7 * start)


class TestAttention:
    def test_equals_loops(self):
        selector = tiny.randomised(ATTENTION(tiny.VOCAB), 2.0)
        weights = selector(TEXT * 5, IDS)  # the length of a text feature does not matter
        first = dict(zip(tiny.VOCAB.types, (0, 3), strict=True))
        for i, product in enumerate(IDS.tolist()):
            text = [x / math.hypot(*TEXT[i].tolist()) for x in TEXT[i].tolist()]
            for k, type_ in enumerate(tiny.VOCAB.types):
                for m, id_ in enumerate(product[k]):
                    if not id_:
                        continue
                    entity = selector.entity_embedding[first[type_] + id_].tolist()
                    logit = selector.type_logit[k].item()
                    logit += sum(a * b for a, b in zip(text, entity, strict=True))
                    expected = 1 / (1 + math.exp(-logit))
                    assert weights[i, k, m].item() == pytest.approx(expected, rel=1e-4)

    def test_begins_the_same_for_all_and_learns_of_the_text(self):
        model = tiny.model(
            selector=dict(type='AttentionCESelector', dim=32, init_logit=1.0), entity_loss_weight=0
        )
        tiny.randomised(model.learner, 0.2)
        data = tiny.batch(model)
        with torch.no_grad():
            text = model.towers.encode_text(data['text'])
        start = model.selector(text, data['entity_ids'])
        torch.testing.assert_close(start, torch.full_like(start, 1 / (1 + math.exp(-1))))
        tiny.total(model(**data, mode='loss')).backward()
        assert (model.selector.type_logit.grad != 0).all()
        reached = model.selector.entity_embedding.grad.abs().sum(1) > 0
        seen = model.selector.table.rows(data['entity_ids']).unique()
        assert set(reached.nonzero()[:, 0].tolist()) == set(seen[seen > 0].tolist())

    def test_another_width_is_refused(self):
        with pytest.raises(ValueError, match='text features have 8 numbers, not dim=4'):
            AttentionCESelector(tiny.VOCAB, dim=4)(TEXT, IDS)

    def test_what_is_no_matrix_of_weights_does_not_decay(self):
        model = tiny.model(selector=dict(type='AttentionCESelector', dim=32))
        wrapper = build_optim_wrapper(
            model,
            dict(
                constructor='TowerLrConstructor',
                paramwise_cfg=dict(lr_mult={}),
                optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.5),
            ),
        )
        own = {id(p) for p in model.selector.parameters()}
        groups = [g for g in wrapper.optimizer.param_groups if own & {*map(id, g['params'])}]
        assert groups and all(group['weight_decay'] == 0 for group in groups)


class TestBootstrap:
    def test_coverage(self):
        """On normal data a 95 % interval holds the true mean in about 95 % of the cases."""
        g = torch.Generator().manual_seed(0)
        values = torch.randn(120, 600, generator=g) * 3 + 0.4
        low, high = bootstrap_interval(values, 0.95, seed=0)
        covered = ((low < 0.4) & (high > 0.4)).float().mean()
        assert 0.93 <= covered <= 0.97
        width = (high - low).mean().item()
        assert width == pytest.approx(2 * 1.96 * 3 / math.sqrt(120), rel=0.03)
        low, high = bootstrap_interval(values, 0.5, seed=0)
        assert 0.45 <= ((low < 0.4) & (high > 0.4)).float().mean() <= 0.55

    def test_it_is_repeatable(self):
        values = torch.randn(30, 2)
        first, again, other = (bootstrap_interval(values, 0.9, s)[0] for s in (0, 0, 1))
        assert first.equal(again) and not first.equal(other)
        torch.manual_seed(0)
        expected = torch.rand(1)
        torch.manual_seed(0)
        bootstrap_interval(values, 0.9, 0)
        assert torch.rand(1) == expected  # no draw from the global generator

    def test_no_spread(self):
        low, high = bootstrap_interval(torch.full((9, 1), 0.25), 0.95, 0)
        assert low == high == 0.25


def effects_case(products=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randint(0, n + 1, (products, 2), generator=g) for n in (3, 2)], dim=1)
    return torch.randn(products, 2, generator=g) * 0.1, ids


class TestSelect:
    @pytest.mark.parametrize('shrinkage', [0.5, 10.0])
    def test_shrinkage_equals_loops(self, shrinkage):
        effects, ids = effects_case()
        effects[:, 0] += 0.4
        effects[(ids[:, 0] == 2).any(1), 0] -= 0.5
        selector = EffectCESelector(tiny.VOCAB, shrinkage=shrinkage)
        brand, composition = selector.select(effects, ids)
        for k, row in enumerate((brand, composition)):
            for a, name in enumerate(tiny.VOCAB.names[row['type']], 1):
                expected = references.shrunken(effects.tolist(), ids.tolist(), k, a, shrinkage)
                assert row['names'][name] == pytest.approx(expected, abs=1e-5)
            assert row['effect'] == pytest.approx(effects[:, k].mean().item())
            assert row['low'] < row['effect'] < row['high']
            assert row['kept'] == (row['low'] > 0)
        kept = [value > 0 for value in brand['names'].values()]
        assert selector.weight[1:4].bool().tolist() == kept and brand['entities'] == [sum(kept), 3]

    def test_intervals_of_entities_equal_loops(self):
        effects, ids = effects_case()
        selector = EffectCESelector(tiny.VOCAB, shrinkage=3.0, confidence=0.9)
        brand, composition = selector.select(effects, ids, seed=5)
        draws = torch.randint(40, (500, 40), generator=torch.Generator().manual_seed(5)).tolist()
        for k, row in enumerate((brand, composition)):
            for a, name in enumerate(tiny.VOCAB.names[row['type']], 1):
                values = [
                    references.shrunken(effects[d].tolist(), ids[d].tolist(), k, a, 3.0)
                    for d in draws
                ]
                expected = torch.tensor(values).quantile(torch.tensor([0.05, 0.95]))
                assert row['intervals'][name] == pytest.approx(expected.tolist(), abs=1e-5)
                assert row['intervals'][name][0] < row['names'][name] < row['intervals'][name][1]

    def test_several_values_count_once_each(self):
        effects = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        ids = torch.tensor([[[1, 1], [0, 0]], [[1, 2], [0, 0]]])
        brand, _ = EffectCESelector(tiny.VOCAB, shrinkage=1.0).select(effects, ids)
        assert brand['names'] == pytest.approx({'Diesel': 1.5 / 3, 'Golden Goose': 0.5 / 2})

    def test_useful_is_kept_useless_and_harmful_dropped(self):
        names = dict(useful=('a', 'b'), useless=('a',), harmful=('a',))
        vocab = EntityVocab(names, {t: (1,) * len(n) for t, n in names.items()})
        selector = EffectCESelector(vocab)
        g = torch.Generator().manual_seed(0)
        effects = torch.randn(200, 3, generator=g) + torch.tensor([0.5, 0.0, -0.5])
        ids = torch.ones(200, 3, 1, dtype=torch.int64)
        before = selector(torch.zeros(200, 4), ids)
        table = selector.select(effects, ids)
        assert (before == 1).all()
        assert [row['kept'] for row in table] == [True, False, False]
        assert [row['entities'] for row in table] == [[2, 2], [0, 1], [0, 1]]
        assert selector(torch.zeros(200, 4), ids)[0].tolist() == [[1], [0], [0]]
        # 'b' was never seen: it follows its type, and is not in the table
        assert list(table[0]['names']) == ['a'] and selector.weight[2] == 1

    def test_weights_of_products(self):
        selector = EffectCESelector(tiny.VOCAB)
        selector.weight.copy_(torch.tensor([1.0, 1, 0, 0, 0, 1]))
        expected = torch.tensor(
            [[[1, 0], [1, 0]], [[0, 0], [0, 1]], [[0, 0], [0, 0]], [[0, 0]] * 2]
        )
        known = IDS != 0  # the weight of an empty place does not matter
        assert (selector(TEXT, IDS) * known).equal(expected.float())

    def test_weights_are_saved(self):
        selector = EffectCESelector(tiny.VOCAB)
        effects, ids = effects_case()
        selector.select(effects - 1, ids)
        assert selector.weight.tolist() == [1, 0, 0, 0, 0, 0]
        other = EffectCESelector(tiny.VOCAB)
        other.load_state_dict(selector.state_dict())
        assert other.weight.equal(selector.weight)
        assert not list(selector.parameters())

    def test_errors(self):
        for wrong in (dict(confidence=1.0), dict(confidence=0), dict(shrinkage=0.0)):
            with pytest.raises(ValueError, match=r'confidence must lie in \(0, 1\) and shrinkage'):
                EffectCESelector(tiny.VOCAB, **wrong)


def orders_of(num_types, products, draws, seed=0):
    """The permutations that causal_effects draws."""
    g = torch.Generator().manual_seed(seed)
    return [
        [torch.randperm(products, generator=g).tolist() for _ in range(draws)]
        for _ in range(num_types)
    ]


def small_case(products=6):
    g = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(products, 4, generator=g), dim=-1)
    table = torch.randn(2, 4, 4, generator=g)
    ids = torch.randint(0, 3, (products, 2, 2), generator=g)

    def encode(entity_ids):
        entity_ids = torch.as_tensor(entity_ids)
        vectors = sum(table[k][entity_ids[:, k]].sum(1) for k in range(2)) + 0.1
        return F.normalize(vectors, dim=-1)

    return encode, image, ids


class TestCausalEffects:
    @pytest.mark.parametrize(('draws', 'seed'), [(1, 0), (5, 0), (5, 3)])
    def test_equal_loops(self, draws, seed):
        encode, image, ids = small_case()
        product_id = torch.tensor([4, 7, 4, 1, 2, 3])
        before = ids.clone()
        found = causal_effects(encode, image, ids, product_id, 5.0, draws=draws, seed=seed)
        expected = references.causal_effects(
            lambda entity_ids: encode(entity_ids).tolist(),
            image.tolist(), ids.tolist(), product_id.tolist(), 5.0,
            orders_of(2, 6, draws, seed),
        )  # fmt: skip
        assert found.shape == (6, 2) and ids.equal(before)
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)
        assert found.abs().max() > 0.1

    def test_draws_tend_to_all_permutations(self):
        encode, image, ids = small_case(4)
        product_id = torch.arange(4)
        found = causal_effects(encode, image, ids, product_id, 5.0, draws=3000)
        expected = references.causal_effects(
            lambda entity_ids: encode(entity_ids).tolist(),
            image.tolist(), ids.tolist(), product_id.tolist(), 5.0,
            [list(itertools.permutations(range(4)))] * 2,
        )  # fmt: skip
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=0.05)

    def test_more_products_than_a_chunk(self):
        """1,024 queries at once: the pieces must meet the ids they belong to."""
        n = 1300
        image = F.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
        ids = torch.arange(n)[:, None, None]
        product_id = torch.randperm(n, generator=torch.Generator().manual_seed(1))

        def encode(entity_ids):
            return image[entity_ids[:, 0, 0]]

        effect = causal_effects(encode, image, ids, product_id, 20.0, draws=1)[:, 0]
        order = orders_of(1, n, 1)[0][0]
        scores, mixed = 20.0 * image @ image.T, 20.0 * image[order] @ image.T
        expected = sum(
            a.log_softmax(-1).diagonal() - b.log_softmax(-1).diagonal()
            for a, b in ((scores, mixed), (scores.T, mixed.T))
        ) / 2  # fmt: skip
        torch.testing.assert_close(effect, expected, rtol=1e-4, atol=1e-4)

    def test_a_type_that_tells_nothing_has_no_effect(self):
        """One that all products share, and one that the model does not read."""
        encode, image, ids = small_case()
        ids[:, 1] = 2
        effects = causal_effects(encode, image, ids, torch.arange(6), 3.0)
        assert (effects[:, 1] == 0).all() and (effects[:, 0] != 0).any()
        ids[:, 1] = torch.arange(12).view(6, 2)
        effects = causal_effects(lambda i: encode(i.clamp(max=0)), image, ids, torch.arange(6), 3.0)
        assert (effects == 0).all()


class TestChoose:
    def model(self):
        # it drops patches while it trains, and must not while it measures
        vision_cfg = dict(tiny.ARCHITECTURE['vision_cfg'], patch_dropout=0.5)
        towers = dict(model=dict(tiny.ARCHITECTURE, vision_cfg=vision_cfg))
        model = tiny.model(towers=towers, selector=dict(type='EffectCESelector'))
        tiny.randomised(model.learner, 0.3)
        return model

    def test_effects_are_the_model_s_own(self):
        """Against the model's own embeddings of products, and the definition."""
        model = self.model()
        data = tiny.batch(model)
        batches = [{k: v[i : i + 4] for k, v in data.items()} for i in (0, 4)]
        model.train()
        table = model.selector.choose(model, batches)
        assert model.training and model.learner.training

        model.eval()
        model.selector.weight.fill_(1)
        with torch.no_grad():
            expected = references.causal_effects(
                lambda ids: model.encode_product(data['text'], torch.tensor(ids)).tolist(),
                model.encode_image(data['image']).tolist(), data['entity_ids'].tolist(),
                data['product_id'].tolist(), model.towers.log_scale.exp().item(),
                orders_of(2, len(data['text']), 8),
            )  # fmt: skip
        for k, row in enumerate(table):
            mean = sum(e[k] for e in expected) / len(expected)
            assert row['effect'] == pytest.approx(mean, rel=1e-3, abs=1e-5) and mean != 0

    def test_all_entities_are_kept_while_measuring(self):
        """A model that has chosen already measures what it would have measured before."""
        model = self.model()
        batches = [tiny.batch(model)]
        table = model.selector.choose(model, batches)
        chosen = model.selector.weight.clone()
        model.selector.weight[1:] = 0
        assert model.selector.choose(model, batches) == table
        assert model.selector.weight.equal(chosen)

    def test_no_gradient(self):
        model = self.model()
        model.selector.choose(model, [tiny.batch(model)])
        assert all(p.grad is None for p in model.parameters())

    def test_a_planted_type_is_found(self):
        """Brand says which photo it is, composition is noise of the text: only brand is kept."""
        n = 90
        g = torch.Generator().manual_seed(0)
        ids = torch.stack([torch.arange(n) % 3 + 1, torch.randint(1, 3, (n,), generator=g)], 1)
        shown, said = (F.normalize(torch.randn(4, 8, generator=g), dim=-1) for _ in range(2))
        image = F.normalize(shown[ids[:, 0]] + 0.2 * torch.randn(n, 8, generator=g), dim=-1)

        def encode(entity_ids):
            return F.normalize(shown[entity_ids[:, 0, 0]] + said[entity_ids[:, 1, 0]], dim=-1)

        selector = EffectCESelector(tiny.VOCAB)
        effects = causal_effects(encode, image, ids[:, :, None], torch.arange(n), 10.0)
        brand, composition = selector.select(effects, ids[:, :, None])
        assert brand['kept'] and brand['effect'] > 0.3
        assert not composition['kept'] and composition['effect'] < 0.02
        assert selector.weight.tolist() == [1, 1, 1, 1, 0, 0]


def test_selectors_see_no_image():
    for kind in ALL:
        kind = getattr(kind, 'func', kind)
        assert list(inspect.signature(kind.forward).parameters) == ['self', 'text', 'entity_ids']
