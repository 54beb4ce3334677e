"""InfoNCE against loops, open_clip and itself on one, two and three processes."""

import math
import warnings

import pytest
import references_models as references
import tiny
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import DefaultScope
from open_clip.loss import ClipLoss

from eiclip_mm.models import EALearner, InfoNCE, losses
from eiclip_mm.models.losses import gather, mean_over_processes, sum_over_processes
from eiclip_mm.registry import MODELS

N, D = 7, 5
CASES = {
    'one positive each': dict(product_id=[0, 1, 2, 3, 4, 5, 6]),
    'several positives': dict(product_id=[0, 1, 0, 2, 2, 2, 3]),
    'same text': dict(product_id=[0, 1, 0, 2, 3, 4, 5], text_id=[9, 8, 7, 8, 8, 6, 9]),
    'all positive': dict(product_id=[1] * N),
}


def case(product_id, text_id=None, senses=1, seed=0):
    """Leaves in float64, and what InfoNCE makes of them."""
    g = torch.Generator().manual_seed(seed)

    def leaf(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()

    leaves = dict(image=leaf(N, D), product=leaf(senses, N, D), prior=leaf(senses, N))
    leaves['log_scale'] = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    ids = dict(
        product_id=torch.tensor(product_id),
        text_id=torch.tensor(list(range(N)) if text_id is None else text_id),
    )
    unit = dict(
        image=F.normalize(leaves['image'], dim=-1),
        product=F.normalize(leaves['product'], dim=-1),
        log_prior=leaves['prior'].log_softmax(0),
        log_scale=leaves['log_scale'].float(),
    )
    return leaves, unit, ids


def gradients(value, leaves):
    return torch.autograd.grad(value, list(leaves.values()), retain_graph=True)


@pytest.mark.parametrize('senses', [1, 3])
@pytest.mark.parametrize('name', CASES)
def test_value_and_gradient_equal_loops(name, senses):
    leaves, unit, ids = case(**CASES[name], senses=senses)
    same_text = 'text_id' in CASES[name]
    value = InfoNCE(same_text=same_text)(**unit, **ids)
    expected = references.info_nce(
        list(unit['image']),
        [list(version) for version in unit['product']],
        [list(p) for p in unit['log_prior'].exp()],
        unit['log_scale'].exp(),
        ids['product_id'].tolist(),
        ids['text_id'].tolist() if same_text else None,
    )
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    moved = 0
    for found, wanted in zip(gradients(value, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
        moved += wanted.abs().max() > 1e-3
    assert moved >= (0 if name == 'all positive' else 3)


def test_text_ids_count_only_where_asked():
    _, unit, ids = case(**CASES['same text'])
    plain, merged = InfoNCE()(**unit, **ids), InfoNCE(same_text=True)(**unit, **ids)
    assert merged < plain - 0.1
    ids['text_id'] = torch.arange(N)
    assert InfoNCE(same_text=True)(**unit, **ids) == plain


def test_equals_open_clip():
    leaves, unit, ids = case(**CASES['one positive each'])
    value = InfoNCE()(**unit, **ids)
    expected = ClipLoss()(unit['image'], unit['product'][0], unit['log_scale'].exp())
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    del leaves['prior']
    for found, wanted in zip(gradients(value, leaves), gradients(expected, leaves), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_equal_embeddings_score_chance():
    _, unit, ids = case(**CASES['several positives'])
    unit['image'] = unit['image'][:1].expand(N, -1)
    unit['product'] = unit['image'][None]
    sizes = ids['product_id'].bincount()[ids['product_id']]
    assert InfoNCE()(**unit, **ids).item() == pytest.approx(
        (N / sizes).log().mean().item(), abs=1e-6
    )


def test_a_sense_more_with_no_prior_changes_nothing():
    _, unit, ids = case(**CASES['several positives'], senses=2)
    unit['log_prior'] = torch.tensor([0.0, -1e4]).expand(N, 2).T
    one = dict(unit, product=unit['product'][:1], log_prior=unit['log_prior'][:1])
    assert InfoNCE()(**unit, **ids) == InfoNCE()(**one, **ids)


def test_temperature_is_clamped():
    _, unit, ids = case(**CASES['one positive each'])
    unit = {name: tensor.detach() for name, tensor in unit.items()}
    scale = torch.nn.Parameter(torch.tensor(9.0))
    value = InfoNCE()(**unit | dict(log_scale=scale), **ids)
    assert scale.item() == pytest.approx(math.log(100))
    assert value == InfoNCE()(**unit | dict(log_scale=torch.tensor(100.0).log()), **ids)
    value.backward()
    assert value.isfinite() and scale.grad.isfinite()
    low = torch.nn.Parameter(torch.tensor(1.5))
    InfoNCE()(**unit | dict(log_scale=low), **ids)
    assert low.item() == 1.5


def test_autocast_leaves_the_loss_in_float32():
    _, unit, ids = case(**CASES['several positives'], senses=2)
    unit = {name: tensor.detach().float() for name, tensor in unit.items()}
    expected = InfoNCE()(**unit, **ids)
    with torch.autocast('cpu', torch.bfloat16):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        assert InfoNCE()(**unit, **ids) == expected


def test_bfloat16_inputs_are_rounded_but_the_sums_are_not():
    n = 100  # log 100 has no near neighbour in bfloat16
    vector = F.normalize(torch.ones(1, D)).expand(n, -1).bfloat16()
    value = InfoNCE()(
        vector,
        vector[None],
        torch.zeros(1, n, dtype=torch.bfloat16),
        torch.tensor(2.0),
        torch.arange(n),
        torch.arange(n),
    )
    assert value.item() == pytest.approx(math.log(n), abs=1e-5)


class TestOneProcess:
    def test_nothing_is_gathered(self):
        x = torch.randn(3, 2, requires_grad=True)
        assert gather(x) is x
        assert mean_over_processes(x) is x

    def test_a_sum_is_the_number_itself_without_gradient(self):
        x = torch.tensor(3.0, requires_grad=True)
        total = sum_over_processes(x)
        assert total == 3
        assert not total.requires_grad


def test_configs_name_it():
    loss = MODELS.build(dict(type='eiclip_mm.InfoNCE', same_text=True))
    assert isinstance(loss, InfoNCE) and loss.same_text


# Everything the loss of EICLIP can hold: mixture of senses, learned prior, gates, entity loss.
CONFIGS = dict(
    mixture=dict(
        selector=dict(type='GatedCESelector'),
        learner=dict(type='EALearner', expectation='exact', prior='learned'),
        loss=dict(type='InfoNCE', same_text=True),
        entity_loss_weight=1.0,
    ),
    one_vector=dict(
        selector=dict(type='EffectCESelector'),
        learner=dict(type='EALearner', prior='frequency', num_learned=0),
    ),
    clip=dict(kind='OpenCLIP'),
)
CONFIGS['in_tiles'] = CONFIGS['mixture'] | dict(
    loss=dict(type='InfoNCE', same_text=True, tiled=True)
)
# The second half, what rank 1 of two holds, has no brand but unknown ones.
GLOBAL_BATCH = tiny.PRODUCTS + (
    (8, 'green dress', dict(composition=['silk'])),
    (9, 'grey shirt', {}),
    (3, 'red tee', dict(composition=['cotton'])),
    (10, 'hat', dict(brand=['Nobody'])),
    (11, 'white socks', dict(composition=['cotton', 'silk'])),
    (12, 'black belt', dict(brand=['None'])),
)


def build(name, seed=1):
    config = dict(CONFIGS[name])
    model = tiny.model(config.pop('kind', 'EICLIP'), **config)
    if name != 'clip':
        tiny.randomised(model.learner, 0.2, seed)
    return model.eval() if name == 'clip' else model.train()


def value_and_gradients(model, inner, data):
    torch.manual_seed(5)  # all processes draw the same gates, as StepSeedHook makes them
    terms = model(**data, mode='loss')
    tiny.total(terms).backward()
    terms = {name: value.item() for name, value in terms.items()}
    return terms, {n: p.grad for n, p in inner.named_parameters() if p.requires_grad}


def without_gradient(x, sizes):
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def loss_process(rank, folder):
    DefaultScope.get_instance('test', scope_name='eiclip_mm')
    torch.set_num_threads(1)
    warnings.simplefilter('ignore')  # torch's about processes; the tests' own stay errors
    for world in (2, 3):
        if rank >= world:
            continue
        dist.init_process_group('gloo', f'file://{folder}/{world}', rank=rank, world_size=world)
        report = {}
        for name in CONFIGS:
            model = build(name)
            size = len(GLOBAL_BATCH) // world
            data = {
                key: value[rank * size : (rank + 1) * size]
                for key, value in tiny.batch(model, GLOBAL_BATCH).items()
            }
            parallel = MMDistributedDataParallel(
                model, device_ids=None, broadcast_buffers=False, find_unused_parameters=False
            )
            report[name] = value_and_gradients(parallel, model, data)
            model.zero_grad()
            # a second step is where torch complains of parameters that the loss never used
            value_and_gradients(parallel, model, data)
        losses.gather, right = without_gradient, losses.gather
        model = build('mixture')
        report['wrong'] = value_and_gradients(
            MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False),
            model,
            {
                key: value[rank * size : (rank + 1) * size]
                for key, value in tiny.batch(model, GLOBAL_BATCH).items()
            },
        )
        losses.gather = right
        report['gather'] = gather_twice(rank)
        torch.save(report, f'{folder}/{world}-{rank}.pt')
        dist.destroy_process_group()


def gather_twice(rank):
    """Two gathers that share the gradient which flows into them."""
    a, b = (torch.full((2, 1), float(rank + i), requires_grad=True) for i in range(2))
    both = gather(a) + gather(b)
    (both * (rank + 1)).sum().backward()
    return both.detach(), a.grad, b.grad


def relative_difference(found, expected):
    return (found - expected).norm() / expected.norm().clamp(min=1e-6)


def test_many_processes_equal_one(tmp_path):
    # forked: three new interpreters would import everything again
    mp.start_processes(loss_process, (tmp_path,), nprocs=3, start_method='fork')
    for name in CONFIGS:
        model = build(name)
        terms, grads = value_and_gradients(model, model, tiny.batch(model, GLOBAL_BATCH))
        assert sum(g.abs().max() > 1e-6 for g in grads.values()) > 30
        for world in (2, 3):
            for rank in range(world):
                report = torch.load(tmp_path / f'{world}-{rank}.pt')
                found_terms, found = report[name]
                assert found_terms == pytest.approx(terms, rel=1e-5), (name, world)
                assert set(found) == set(grads)
                for key, expected in grads.items():
                    difference = (found[key] - expected).abs().max()
                    assert difference <= 1e-5 * max(expected.abs().max(), 0.1), (name, world, key)
                if name != 'mixture':
                    continue
                # the same comparison tells a gather that cuts the gradient
                wrong_terms, wrong = report['wrong']
                assert wrong_terms == pytest.approx(terms, rel=1e-5)
                differences = [
                    relative_difference(wrong[key], grads[key])
                    for key in grads
                    if grads[key].norm() > 1e-4 and 'towers' in key and 'scale' not in key
                ]
                assert len(differences) > 30 and min(differences) > 0.02
                both, a, b = report['gather']
                ranks = torch.arange(world).repeat_interleave(2)[:, None]
                assert both.equal(2.0 * ranks + 1)
                assert (a == sum(range(1, world + 1))).all() and a.equal(b)


def test_every_learned_part_is_in_the_loss():
    """What DistributedDataParallel needs unless it looks for unused parameters."""
    for num_learned, expectation, prior in (
        (0, 'nwgm', 'uniform'),
        (1, 'exact', 'learned'),
        (3, 'exact', 'learned'),  # drawn, not enumerated
    ):
        learner = EALearner(
            tiny.VOCAB, 4, num_learned=num_learned, expectation=expectation, prior=prior,
            max_combinations=4,
        )  # fmt: skip
        tiny.randomised(learner)
        image = F.normalize(torch.randn(6, 4), dim=-1)
        ids = torch.tensor([[[1, 0], [2, 1]]] * 3 + [[[3, 2], [0, 0]]] * 3)
        products, log_prior = learner.expand(torch.randn(6, 4), ids, torch.ones(ids.shape))
        loss = InfoNCE()(
            image, F.normalize(products, dim=-1), log_prior, torch.tensor(2.0),
            torch.arange(6), torch.arange(6),
        ) + learner.entity_loss(image, ids)  # fmt: skip
        loss.backward()
        unused = [n for n, p in learner.named_parameters() if p.requires_grad and p.grad is None]
        assert not unused
