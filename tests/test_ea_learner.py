"""EA-Learner against loops, and where its two ways of taking the expectation must agree."""

import inspect
import itertools
import math

import pytest
import references_models as references
import tiny
import torch
import torch.nn.functional as F
from watch import Largest

from eiclip_mm.models import EALearner, InfoNCE
from eiclip_mm.structures import EntityVocab

DIM = 4
# products: two values, unknown, one of each, nothing known, the rarest brand
IDS = torch.tensor(
    [[[1, 3], [2, 0]], [[0, 0], [1, 2]], [[2, 0], [1, 0]], [[0, 0], [0, 0]], [[3, 0], [2, 0]]]
)
B, K = IDS.shape[:2]
# of product 0 one brand is half kept; of product 1 one composition is dropped beside a kept one
WEIGHTS = torch.tensor(
    [
        [[1, 0.5], [0.5, 0.7]],
        [[1, 1], [1, 0]],
        [[0, 1], [1, 0]],
        [[1, 1], [1, 1]],
        [[0.3, 1], [0, 1]],
    ]
)
ONES = torch.ones(IDS.shape)
TEXT = torch.randn(B, DIM, generator=torch.Generator().manual_seed(1))
ROWS = (slice(0, 4), slice(3, 6))  # of a type in the common table; its first row stands for 0


def learner(seed=0, scale=0.7, **changes):
    """All weights random, so that nothing is zero by chance or by start."""
    made = EALearner(tiny.VOCAB, **dict(dim=DIM, hidden_dim=3) | changes)
    tiny.randomised(made, scale, seed)
    generator = torch.Generator().manual_seed(seed + 100)
    made.general.copy_(torch.randn(made.general.shape, generator=generator))
    return made


def prior_of_value(made, type_number, value):
    """P(b | a) of one value of a type; 0 is unknown."""
    senses = made.num_senses
    if made.prior == 'learned':
        logits = made.prior_logit[type_number].tolist()
        return [math.exp(x) / sum(map(math.exp, logits)) for x in logits]
    if made.prior == 'uniform' or value == 0 or not len(made.general) or senses == 1:
        return [1 / senses] * senses
    n = list(tiny.VOCAB.counts.values())[type_number][value - 1]
    return [10 / (n + 10)] + [n / (n + 10) / (senses - 1)] * (senses - 1)


def prior_by_hand(made, type_number, ids, weights):
    """P(b) of a type: mean over its known values by CE-Selector's weights, else the unknown's."""
    known = [
        (prior_of_value(made, type_number, i), w) for i, w in zip(ids, weights, strict=True) if i
    ]
    kept = sum(w for _, w in known)
    if not kept:
        return prior_of_value(made, type_number, 0)
    return [sum(w * row[b] for row, w in known) / kept for b in range(made.num_senses)]


def by_hand(made, choose):
    """t' of every product; ``choose(senses, prior, product, type)`` gives a value's vector z."""
    tables = [*made.general.tolist(), *made.learned.tolist()]
    result = []
    for i, product in enumerate(IDS.tolist()):
        values = []
        for k, ids in enumerate(product):
            known = []
            for value, weight in zip(ids, WEIGHTS[i, k].tolist(), strict=True):
                if value != 0:
                    senses = [table[ROWS[k]][value] for table in tables]
                    z = choose(senses, prior_of_value(made, k, value), i, k)
                    known.append((z, weight))
            values.append(known)
        result.append(
            references.fuse(
                TEXT[i].tolist(), values, made.unknown.tolist(),
                (made.hidden.weight.tolist(), made.hidden.bias.tolist()),
                (made.out.weight.tolist(), made.out.bias.tolist()), made.skip.weight.tolist(),
            )
        )  # fmt: skip
    return result


def expected_sense(senses, prior, product, type_number):
    return [sum(p * z[d] for p, z in zip(prior, senses, strict=True)) for d in range(DIM)]


SETTINGS = [
    dict(general=general, num_learned=num_learned, prior=prior)
    for general, num_learned in ((True, 0), (False, 1), (True, 1), (False, 3), (True, 2))
    for prior in ('uniform', 'frequency', 'learned')
]


def rows_one_by_one(made, table, weights):
    """The mean of a table's rows over a type's known values, every row held: (B, K, D)."""
    rows = table[made.table.rows(IDS)]  # (B, K, M, D)
    known = IDS != 0
    share = known / known.sum(-1, keepdim=True).clamp(min=1) * weights
    return (share[..., None] * rows).sum(2)


class TestFusion:
    @pytest.mark.parametrize('settings', SETTINGS, ids=str)
    def test_equals_loops(self, settings):
        made = learner(**settings)
        found = made(TEXT, IDS, WEIGHTS)
        assert found.shape == (B, DIM)
        expected = torch.tensor(by_hand(made, expected_sense))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize('settings', SETTINGS, ids=str)
    def test_one_table_of_expectations_equals_one_expectation_a_product(self, settings):
        """In value and gradient, that of CE-Selector's weights among them."""
        made, results = learner(**settings), []
        for fast in (True, False):
            weights = WEIGHTS.clone().requires_grad_()
            if fast:
                product = made(TEXT, IDS, weights)
            else:
                tables = zip((*made.general, *made.learned), made._priors().T, strict=True)
                mean = sum(rows_one_by_one(made, p[:, None] * t, weights) for t, p in tables)
                product = made._fuse(TEXT, mean, IDS, weights)
            made.zero_grad()
            product.square().sum().backward()
            grads = {n: p.grad.clone() for n, p in made.named_parameters() if p.grad is not None}
            results.append((product.detach(), grads | dict(weights=weights.grad)))
        (found, found_grads), (expected, grads) = results
        torch.testing.assert_close(found, expected)
        assert found_grads.keys() == grads.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(found_grads[name], grad, rtol=1e-4, atol=1e-5)
        assert sum(bool(grad.any()) for grad in grads.values()) >= 6

    def test_no_second_table_of_all_senses_is_held(self):
        vocab = EntityVocab(dict(brand=tuple(map(str, range(500)))), dict(brand=(1,) * 500))
        made = EALearner(vocab, DIM, num_learned=3, hidden_dim=3)
        with Largest() as seen:
            made(TEXT, IDS[:, :1], ONES[:, :1])
        assert seen.size == 501 * DIM

    def test_it_starts_as_nothing(self):
        made = EALearner(tiny.VOCAB, DIM)
        made.set_general_sense(torch.randn(5, DIM))
        assert made(TEXT, IDS, WEIGHTS).equal(TEXT)
        # and yet its first step moves it
        made(TEXT, IDS, WEIGHTS).square().sum().backward()
        assert made.out.weight.grad.abs().sum() > 0

    def test_unknown_rows(self):
        """Without a known value or without weight a type is its unknown row, whoever it was."""
        made = learner()
        nobody = torch.zeros_like(IDS)
        blind = made(TEXT, nobody, WEIGHTS)
        torch.testing.assert_close(blind[3], made(TEXT, IDS, WEIGHTS)[3])
        torch.testing.assert_close(made(TEXT, IDS, torch.zeros(IDS.shape)), blind)
        before = blind.detach().clone()
        made.unknown.data[0] += 1
        assert not made(TEXT, nobody, WEIGHTS).equal(before)
        full = IDS.clamp(min=1)  # every type known: the unknown row does not count
        known = made(TEXT, full, ONES)
        made.unknown.data += 1
        torch.testing.assert_close(made(TEXT, full, ONES), known)

    @pytest.mark.parametrize('settings', SETTINGS, ids=str)
    @pytest.mark.parametrize('expectation', ['nwgm', 'exact'])
    def test_a_dropped_value_has_no_say_beside_a_kept_one(self, settings, expectation):
        made = learner(**settings, expectation=expectation)
        ids = torch.tensor([[[2, 1], [1, 2]], [[3, 2], [2, 0]]])  # brand 2 is dropped in both
        weights = torch.tensor([[[0.0, 1], [1, 1]], [[1, 0], [1, 1]]])
        products, log_prior = made.expand(TEXT[:2], ids, weights)
        products.square().sum().backward()
        if len(made.learned):
            reached = made.learned.grad.abs().sum((0, 2)) > 0
            assert reached.tolist() == [False, True, False, True, True, True]
            assert (made.learned.grad[:, 2] == 0).all()
            made.learned.data[:, 2] += 5
        made.general[:, 2] -= 3
        after, prior_after = made.expand(TEXT[:2], ids, weights)
        assert after.equal(products) and prior_after.equal(log_prior)
        # where it is kept it does count, and so does a value that is kept
        assert not made.expand(TEXT[:2], ids, torch.ones_like(weights))[0].equal(products)
        if len(made.learned):
            made.learned.data[:, 3] += 5
        made.general[:, 3] += 5
        assert not made.expand(TEXT[:2], ids, weights)[0].equal(products)

    @pytest.mark.parametrize('prior', ['uniform', 'frequency', 'learned'])
    @pytest.mark.parametrize('expectation', ['nwgm', 'exact'])
    def test_it_does_not_matter_which_value_is_dropped(self, prior, expectation):
        """All that is left of it is that its type has one more value, an unknown one."""
        made = learner(prior=prior, expectation=expectation)
        weights = torch.tensor([[[0.0, 1], [1, 1]]])
        first, second = (
            made.expand(TEXT[:1], torch.tensor([[[dropped, 1], [1, 2]]]), weights)
            for dropped in (2, 3)
        )
        assert first[0].equal(second[0]) and first[1].equal(second[1])

    def test_a_dropped_value_counts_as_unknown(self):
        """u + w (z - u), averaged: half of the type is its unknown row then."""
        made = learner(num_learned=0)
        ids, weights = torch.tensor([[[1, 2], [0, 0]]]), torch.tensor([[[1.0, 0], [1, 1]]])
        found = made(TEXT[:1], ids, weights)
        z = made.general[0, 1].tolist()
        expected = references.fuse(
            TEXT[0].tolist(), [[(z, 1), (made.unknown[0].tolist(), 1)], []],
            made.unknown.tolist(),
            (made.hidden.weight.tolist(), made.hidden.bias.tolist()),
            (made.out.weight.tolist(), made.out.bias.tolist()), made.skip.weight.tolist(),
        )  # fmt: skip
        torch.testing.assert_close(found[0], torch.tensor(expected), rtol=1e-4, atol=1e-5)

    def test_several_values_are_averaged(self):
        made = learner()
        both, first, second = (
            made.senses(torch.tensor([[ids, [0, 0]]]), ONES[:1])[0][0, 0]
            for ids in ([1, 2], [1, 0], [0, 2])
        )
        torch.testing.assert_close(both, (first + second) / 2)
        swapped = IDS.flip(-1)
        torch.testing.assert_close(made(TEXT, swapped, WEIGHTS.flip(-1)), made(TEXT, IDS, WEIGHTS))

    def test_products_do_not_meet(self):
        made = learner()
        alone = torch.cat([
            made(TEXT[i : i + 1], IDS[i : i + 1], WEIGHTS[i : i + 1]) for i in range(B)
        ])  # fmt: skip
        torch.testing.assert_close(made(TEXT, IDS, WEIGHTS), alone)

    def test_gradient_reaches_every_part(self):
        made = learner(prior='learned')
        made(TEXT, IDS, WEIGHTS).square().sum().backward()
        for name, p in made.named_parameters():
            assert name.startswith('heads') or p.grad.abs().sum() > 0, name
        reached = made.learned.grad[0].abs().sum(-1) > 0
        assert reached.tolist() == [False, True, False, True, True, True]  # entity 2 has no weight

    @pytest.mark.parametrize(
        'selector', ['KeepAll', 'EffectCESelector', 'GatedCESelector', 'AttentionCESelector']
    )
    @pytest.mark.parametrize('expectation', ['nwgm', 'exact'])
    @pytest.mark.parametrize('prior', ['uniform', 'frequency', 'learned'])
    def test_autocast(self, selector, expectation, prior):
        """Text features come in bfloat16 then, gates and tables do not."""
        model = tiny.model(
            selector=tiny.selector(selector),
            learner=dict(type='EALearner', expectation=expectation, prior=prior),
        )
        tiny.randomised(model.learner, 0.2)
        data = tiny.batch(model)
        torch.manual_seed(0)
        expected = model(**data, mode='loss')
        torch.manual_seed(0)
        with torch.autocast('cpu', torch.bfloat16):
            losses = model(**data, mode='loss')
            tiny.total(losses).backward()
        for name, value in losses.items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, expected[name], rtol=0.05, atol=0.05)
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


class TestPrior:
    @pytest.mark.parametrize('settings', SETTINGS, ids=str)
    def test_equals_loops_and_sums_to_one(self, settings):
        made = learner(**settings)
        senses, prior = made.senses(IDS, WEIGHTS)
        assert senses.shape == (B, K, made.num_senses, DIM)
        tables = [*made.general.tolist(), *made.learned.tolist()]
        assert prior.shape == (B, K, made.num_senses)
        torch.testing.assert_close(prior.sum(-1), torch.ones(B, K))
        for i, product in enumerate(IDS.tolist()):
            for k, ids in enumerate(product):
                expected = torch.tensor(prior_by_hand(made, k, ids, WEIGHTS[i, k].tolist()))
                torch.testing.assert_close(prior[i, k], expected)
                for s, table in enumerate(tables):
                    own = [[0] * DIM, *table[ROWS[k]][1:]]
                    mean = references.mean_of_known(own, ids, WEIGHTS[i, k].tolist())
                    torch.testing.assert_close(senses[i, k, s], torch.tensor(mean))

    def test_rare_entities_lean_on_the_general_sense(self):
        made = learner(prior='frequency')
        _, prior = made.senses(torch.tensor([[[1, 0], [0, 0]], [[3, 0], [0, 0]]]), ONES[:2])
        assert prior[0, 0].tolist() == pytest.approx([10 / 40, 30 / 40])
        assert prior[1, 0].tolist() == pytest.approx([10 / 12, 2 / 12])

    def test_text_has_no_say(self):
        """P(z), never P(z|X): the text is no argument, and the log prior ignores it."""
        arguments = ['self', 'entity_ids', 'weights']
        assert list(inspect.signature(EALearner.senses).parameters) == arguments
        for prior in ('uniform', 'frequency', 'learned'):
            made = learner(prior=prior, expectation='exact')
            first = made.expand(TEXT, IDS, WEIGHTS)
            other = made.expand(torch.randn(B, DIM) * 9, IDS, WEIGHTS)
            assert first[1].equal(other[1]) and not first[0].equal(other[0])


class TestExpand:
    @pytest.mark.parametrize('settings', SETTINGS, ids=str)
    def test_enumeration_equals_loops(self, settings):
        made = learner(**settings, expectation='exact')
        products, log_prior = made.expand(TEXT, IDS, WEIGHTS)
        combos = list(itertools.product(range(made.num_senses), repeat=K))
        assert products.shape == (len(combos), B, DIM)
        torch.testing.assert_close(log_prior.exp().sum(0), torch.ones(B))
        for c, combo in enumerate(combos):
            expected = by_hand(made, lambda senses, _, i, k, combo=combo: senses[combo[k]])
            torch.testing.assert_close(products[c], torch.tensor(expected), rtol=1e-4, atol=1e-5)
            for i, product in enumerate(IDS.tolist()):
                by_type = [
                    prior_by_hand(made, k, ids, WEIGHTS[i, k].tolist())[combo[k]]
                    for k, ids in enumerate(product)
                ]
                assert log_prior[c, i].exp().item() == pytest.approx(math.prod(by_type), rel=1e-5)

    @pytest.mark.parametrize('general', [True, False])
    def test_one_sense_is_nwgm(self, general):
        settings = dict(general=general, num_learned=1 - general)
        made = learner(**settings, expectation='exact')
        products, log_prior = made.expand(TEXT, IDS, WEIGHTS)
        assert products.shape == (1, B, DIM) and (log_prior == 0).all()
        torch.testing.assert_close(products[0], made(TEXT, IDS, WEIGHTS))
        plain, none = learner(**settings).expand(TEXT, IDS, WEIGHTS)
        torch.testing.assert_close(plain, products)
        assert none.equal(log_prior)

    def test_nwgm_is_one_vector(self):
        made = learner(num_learned=3)
        products, log_prior = made.expand(TEXT, IDS, WEIGHTS)
        assert products.shape == (1, B, DIM) and (log_prior == 0).all()
        assert products[0].equal(made(TEXT, IDS, WEIGHTS))

    def test_nwgm_is_the_normalised_geometric_mean_where_scores_are_affine(self):
        """softmax(Σ P s) = Π softmax(s)^P, normalised; GELU is the identity far above zero."""
        made = learner(prior='learned', num_learned=2, expectation='exact', scale=0.3).double()
        made.hidden.bias.data += 12
        made.out.bias.data -= 12 * made.out.weight.sum(1)
        text, weights = TEXT.double(), WEIGHTS.double()
        gallery = 3 * F.normalize(torch.randn(7, DIM, dtype=torch.float64), dim=-1)
        versions, log_prior = made.expand(text, IDS, weights)
        mean_vector = made(text, IDS, weights)
        prior = log_prior.exp()[..., None]  # (C, B, 1)
        torch.testing.assert_close((prior * versions).sum(0), mean_vector)
        probabilities = (versions @ gallery.T).softmax(-1)  # (C, B, 7)
        geometric = (probabilities**prior).prod(0)
        geometric = geometric / geometric.sum(-1, keepdim=True)
        torch.testing.assert_close((mean_vector @ gallery.T).softmax(-1), geometric)
        # it is not the mixture of softmaxes, to which it is an approximation
        mixture = (prior * probabilities).sum(0)
        assert (mixture - geometric).abs().max() > 1e-3
        made.hidden.bias.data -= 12  # nor is it either where GELU bends
        bent = made.expand(text, IDS, weights)[0]
        assert ((prior * bent).sum(0) - made(text, IDS, weights)).abs().max() > 1e-3

    def loss(self, made, seed):
        torch.manual_seed(seed)
        image = F.normalize(torch.randn(B, DIM, generator=torch.Generator().manual_seed(3)), dim=-1)
        products, log_prior = made.expand(TEXT, IDS, ONES)
        ids = torch.arange(B)
        value = InfoNCE()(
            image, F.normalize(products, dim=-1), log_prior, torch.tensor(1.5), ids, ids
        )
        made.zero_grad()
        value.backward()
        gradients = {n: p.grad for n, p in made.named_parameters() if p.grad is not None}
        return value.item(), {n: g.clone() for n, g in gradients.items()}

    @pytest.mark.parametrize('prior', ['frequency', 'learned'])
    def test_draws_tend_to_the_enumeration(self, prior):
        def made(max_combinations):
            found = learner(
                num_learned=8, prior=prior, expectation='exact', max_combinations=max_combinations
            )
            found.skip.weight.data /= 20  # else 40 draws of 80 scatter too far to tell their mean
            return found

        exact, gradients = self.loss(made(81), 0)
        few = [self.loss(made(80), seed)[0] for seed in range(10)]
        drawn = [self.loss(made(80), seed) for seed in range(40)]
        values = torch.tensor([value for value, _ in drawn])
        assert len(set(few)) == 10
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - exact) < 4 * error + 0.01 * abs(exact)
        assert values.std() < 0.1 * abs(exact)
        for name, gradient in gradients.items():
            mean = torch.stack([g[name] for _, g in drawn]).mean(0)
            cosine = F.cosine_similarity(mean.flatten(), gradient.flatten(), dim=0)
            assert cosine > 0.9, (name, cosine)

    def test_draws_follow_the_prior(self):
        made = learner(num_learned=2, prior='learned', expectation='exact', max_combinations=8)
        made.prior_logit.data = torch.tensor([[9.0, 0, 0], [0, 9.0, 0]])
        sharp = by_hand(made, lambda senses, _, i, k: senses[k])
        products, log_prior = made.expand(TEXT, IDS, WEIGHTS)
        assert products.shape == (8, B, DIM)
        torch.testing.assert_close(log_prior.exp(), torch.full((8, B), 1 / 8))
        near = (products - torch.tensor(sharp)).abs().amax(-1) < 1e-4
        assert near.float().mean() > 0.95

    def test_enumerated_up_to_the_limit(self):
        for limit, count in ((4, 4), (3, 3), (16, 4), (1, 1)):
            made = learner(expectation='exact', max_combinations=limit)
            assert len(made.expand(TEXT, IDS, WEIGHTS)[0]) == count


class TestEntityLoss:
    @pytest.mark.parametrize('num_learned', [0, 1, 2])
    def test_equals_loops(self, num_learned):
        made = learner(num_learned=num_learned)
        image = F.normalize(torch.randn(B, DIM), dim=-1)
        table = (made.learned if len(made.learned) else made.general)[-1].tolist()
        expected = references.entity_loss(
            image.tolist(),
            [(head.weight.tolist(), head.bias.tolist()) for head in made.heads],
            [table[rows] for rows in ROWS],
            IDS.tolist(),
        )
        assert made.entity_loss(image, IDS).item() == pytest.approx(expected, rel=1e-5)

    def test_nobody_labelled(self):
        made = learner()
        image = torch.randn(B, DIM, requires_grad=True)
        value = made.entity_loss(image, torch.zeros_like(IDS))
        value.backward()
        assert value == 0 and (image.grad == 0).all()
        # every parameter has a gradient still, as DistributedDataParallel wants it
        assert all(p.grad is not None for p in made.heads.parameters())

    def test_no_type_meets_another(self):
        """Other types' rows and other types' heads do not matter."""
        made = learner()
        image = torch.randn(B, DIM)
        only_brand = IDS.clone()
        only_brand[:, 1] = 0
        made.entity_loss(image, only_brand).backward()
        reached = made.learned.grad[0].abs().sum(-1) > 0
        assert reached.tolist() == [False, True, True, True, False, False]
        assert made.heads[0].weight.grad.abs().sum() > 0
        assert made.heads[1].weight.grad.abs().sum() == 0

    def test_it_teaches_an_entity_that_texts_never_show(self):
        made = learner()
        image = F.normalize(torch.randn(B, DIM), dim=-1)
        optimizer = torch.optim.SGD(made.parameters(), 1.0)
        start = made.entity_loss(image, IDS).item()
        for _ in range(40):
            optimizer.zero_grad()
            made.entity_loss(image, IDS).backward()
            optimizer.step()
        assert made.entity_loss(image, IDS).item() < 0.5 * start

    def test_without_heads(self):
        made = EALearner(tiny.VOCAB, DIM, classify=False)
        assert not list(made.heads.parameters())
        assert made.entity_loss(torch.randn(B, DIM), IDS) == 0


class TestGeneralSense:
    def test_it_is_the_text_tower_of_the_names(self):
        model = tiny.model(learner=dict(type='EALearner', num_learned=2)).eval()
        names = ['Diesel', 'Golden Goose', "Levi's", 'cotton', 'silk']
        for row, name in enumerate(names, 1):
            tokens = torch.from_numpy(model.tokenizer(dict(description=name)).text)[None]
            expected = model.towers.encode_text(tokens)[0]
            torch.testing.assert_close(model.learner.general[0, row], expected)
            first, second = model.learner.learned[:, row]
            assert first.equal(model.learner.general[0, row])
            # the second begins near it, but not on it
            assert 0 < (second - first).norm() < 0.3 * first.norm()
        assert (model.learner.general[:, 0] == 0).all() and (model.learner.learned[:, 0] == 0).all()

    def test_noise_is_seeded(self):
        features = torch.randn(5, DIM)
        learners = [EALearner(tiny.VOCAB, DIM, num_learned=3) for _ in range(2)]
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        learners[0].set_general_sense(features)
        assert torch.rand(1) == expected  # no draw from the global generator
        learners[1].set_general_sense(features)
        senses = learners[0].learned
        assert senses.equal(learners[1].learned)
        spread = 0.1 * features.std().item()
        for a, b in itertools.combinations(senses, 2):
            assert 0.5 * spread < (a - b)[1:].std().item() < 2.5 * spread

    @pytest.mark.parametrize(
        'settings', [dict(expectation='exact'), dict(prior='learned')], ids=str
    )
    def test_two_learned_senses_differ_in_gradient_after_a_step(self, settings):
        """From the contrastive loss alone; L_ent reads only the last of them."""
        model = tiny.model(
            learner=dict(type='EALearner', num_learned=2, **settings), entity_loss_weight=0
        )
        data = tiny.batch(model)
        # the first step moves W_o, the second a learned prior
        tiny.train(model, data, steps=1 if settings.get('expectation') else 2)
        model.zero_grad()
        tiny.total(model(**data, mode='loss')).backward()
        first, second = model.learner.learned.grad
        assert first.norm() > 0 and (first - second).norm() > 1e-3 * first.norm()

    def test_it_stays_while_the_rest_learns(self):
        model = tiny.model()
        general, learned = model.learner.general.clone(), model.learner.learned.clone()
        tiny.train(model, tiny.batch(model))
        assert model.learner.general.equal(general)
        assert not model.learner.learned.equal(learned)
        assert 'learner.general' in model.state_dict()
        assert 'learner.general' not in dict(model.named_parameters())

    def test_it_is_made_without_dropout(self, tmp_path_factory):
        model = tiny.model(towers=dict(model=tiny.bert_architecture(tmp_path_factory)))
        assert model.towers.training
        general = model.learner.general.clone()
        model._set_general_sense()
        assert model.learner.general.equal(general)


class TestArguments:
    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (dict(prior='text'), r"prior='text' is not known; choose one of \('uniform', "),
            (dict(expectation='mean'), r"expectation='mean' is not known; choose one of \('nwgm'"),
            (dict(general=False, num_learned=0), r'an entity needs a sense: general=False, num_l'),
            (dict(num_learned=-1), r'an entity needs a sense: general=True, num_learned=-1'),
            (dict(num_learned=-2), r'an entity needs a sense'),
            (dict(max_combinations=0), r'max_combinations must be at least 1, got 0'),
        ],
    )
    def test_errors(self, change, message):
        with pytest.raises(ValueError, match=message):
            EALearner(tiny.VOCAB, DIM, **change)

    def test_sizes(self):
        made = EALearner(tiny.VOCAB, DIM)
        assert made.hidden.out_features == 2 * DIM and made.num_senses == 2
        one = EALearner(EntityVocab(dict(brand=('A',)), dict(brand=(1,))), DIM)
        ids = torch.tensor([[[1]], [[0]]])
        assert one(TEXT[:2], ids, torch.ones(2, 1, 1)).shape == (2, DIM)
        assert one.entity_loss(TEXT[:2], ids) == 0  # one class is no question
