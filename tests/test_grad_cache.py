"""Gradient cache: loss and gradients of the whole batch, activations of a micro-batch."""

import contextlib
from pathlib import Path

import pytest
import tiny
import torch
import torch.multiprocessing as mp
from torch import nn

from eiclip_mm.models import OpenCLIPTowers
from eiclip_mm.models.grad_cache import in_micro_batches

SIZE = 4  # of a micro-batch; the tiny batch holds 6 products
DROPPED = dict(
    tiny.ARCHITECTURE, vision_cfg=dict(tiny.ARCHITECTURE['vision_cfg'], patch_dropout=0.5)
)
TIMM_VIT = dict(
    tiny.ARCHITECTURE,
    vision_cfg=dict(
        timm_model_name='test_vit', timm_pool='token', timm_proj='linear', image_size=160,
        timm_drop_path=0.3,
    ),
)  # fmt: skip


@pytest.fixture(scope='session')
def bert(tmp_path_factory) -> dict:
    return tiny.bert_architecture(tmp_path_factory)


def by_loop(encode, rows, size, trunk):
    """The plain twin: micro-batches one after the other, all activations kept."""
    return torch.cat([encode(part) for part in rows.split(SIZE)])


def loss_and_gradients(model, size=32, dtype=None, seed=1):
    """Noise is that of the seed, whatever was drawn before."""
    data = tiny.batch(model, size=size)
    model.train()
    torch.manual_seed(seed)
    autocast = torch.autocast('cpu', dtype) if dtype else contextlib.nullcontext()
    with autocast:
        loss = tiny.total(model(**data, mode='loss'))
    loss.backward()
    return loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(found, expected, **tolerance):
    torch.testing.assert_close(found[0], expected[0], **tolerance)
    assert found[1].keys() == expected[1].keys() and len(expected[1]) > 10
    for name, gradient in expected[1].items():
        torch.testing.assert_close(
            found[1][name], gradient, msg=lambda m, n=name: f'{n}: {m}', **tolerance
        )


class TestEqual:
    @pytest.mark.parametrize('checkpointing', [False, True])
    def test_to_the_whole_batch(self, checkpointing):
        expected = loss_and_gradients(tiny.model())
        towers = dict(micro_batch=SIZE, grad_checkpointing=checkpointing)
        assert_same(loss_and_gradients(tiny.model(towers=towers)), expected, rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize('dtype', [None, torch.bfloat16])
    @pytest.mark.parametrize('name', ['patches', 'drop_path', 'bert'])
    def test_with_noise(self, name, dtype, bert, monkeypatch):
        """What is dropped is dropped again when the gradient is due."""
        architecture = dict(patches=DROPPED, drop_path=TIMM_VIT, bert=bert)[name]
        size = 160 if name == 'drop_path' else 32

        def once(**towers):
            model = tiny.model(towers=dict(model=architecture, micro_batch=SIZE, **towers))
            return loss_and_gradients(model, size, dtype)

        found, both = once(), once(grad_checkpointing=True)
        monkeypatch.setattr('eiclip_mm.models.towers.in_micro_batches', by_loop)
        expected = once()
        tolerance = dict(rtol=1e-4, atol=1e-5) if dtype is None else dict(rtol=0.05, atol=2e-3)
        assert_same(found, expected, **tolerance)
        assert_same(both, expected, **tolerance)
        model = tiny.model(towers=dict(model=architecture))
        assert loss_and_gradients(model, size, dtype, seed=2)[0] != expected[0]  # there was noise

    def test_a_rest_and_a_short_batch(self):
        layer = nn.Linear(3, 2)
        rows = torch.randn(7, 3)
        for size in (1, 3, 7, 100):
            layer.zero_grad()
            out = in_micro_batches(layer, rows, size, layer)
            out.square().sum().backward()
            found = layer.weight.grad.clone()
            layer.zero_grad()
            layer(rows).square().sum().backward()
            torch.testing.assert_close(found, layer.weight.grad)
            torch.testing.assert_close(out, layer(rows))

    def test_two_processes(self, tmp_path):
        """DistributedDataParallel averages the gradients of both, as without the cache."""
        # forked: two new interpreters would import everything again
        mp.start_processes(one_of_two, (tmp_path,), nprocs=2, start_method='fork')
        first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in range(2))
        for way in ('plain', 'cached'):
            assert_same(first[way], second[way], rtol=0, atol=0)
        assert_same(first['cached'], first['plain'], rtol=1e-4, atol=1e-6)


class TestCost:
    def calls(self, module):
        """How often a module runs."""
        counted = []
        module.register_forward_pre_hook(lambda *_: counted.append(1))
        return counted

    def towers(self, **changes):
        torch.manual_seed(0)
        return OpenCLIPTowers(**dict(model=DROPPED, micro_batch=2) | changes)

    def photos(self, n=6):
        generator = torch.Generator().manual_seed(0)
        return torch.randint(256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)

    def test_activations_kept_are_those_of_embeddings(self):
        kept = {}
        for size in (None, 2):
            towers = self.towers(micro_batch=size, model=tiny.ARCHITECTURE).train()
            seen = {}

            def pack(tensor, seen=seen):
                if tensor.is_floating_point():  # pixels, of 8 bits, are there anyway
                    seen[tensor.data_ptr()] = tensor.numel()
                return tensor

            weights = {p.data_ptr() for p in towers.parameters()}
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                towers.encode_image(self.photos()).sum()
            kept[size] = sum(n for pointer, n in seen.items() if pointer not in weights)
        assert kept[2] < kept[None] / 100

    def test_a_frozen_tower_runs_once(self):
        towers = self.towers(image_unlocked=0, text_unlocked=0).train()
        calls = self.calls(towers.clip.visual)
        features = towers.encode_image(self.photos())
        assert not features.requires_grad and len(calls) == 3
        towers = self.towers().train()
        calls = self.calls(towers.clip.visual)
        towers.encode_image(self.photos()).sum().backward()
        assert len(calls) == 6

    def test_evaluation_is_plain(self):
        towers = self.towers().eval()
        calls = self.calls(towers.clip.visual)
        plain = self.towers(micro_batch=None).eval()
        with torch.no_grad():
            whole = towers.encode_image(self.photos())
            assert len(calls) == 1 and whole.equal(plain.encode_image(self.photos()))


class TestRefused:
    TIMM = dict(
        tiny.ARCHITECTURE,
        vision_cfg=dict(
            timm_model_name='test_efficientnet', timm_pool='avg', timm_proj='linear', image_size=32
        ),
    )

    def test_batch_norm_that_trains(self):
        with pytest.raises(ValueError, match=r'batch norm that trains \(visual.trunk.bn1\).*image'):
            OpenCLIPTowers(self.TIMM, micro_batch=2)
        assert OpenCLIPTowers(self.TIMM, micro_batch=2, image_unlocked=0).micro_batch == 2

    @pytest.mark.parametrize('size', [0, True, '8', 2.5])
    def test_no_number_of_rows(self, size):
        with pytest.raises(
            ValueError, match=f'micro_batch must be an integer from 1, got {size!r}'
        ):
            OpenCLIPTowers(tiny.ARCHITECTURE, micro_batch=size)


def one_of_two(rank: int, folder: Path) -> None:
    """What a process of ``test_two_processes`` does."""
    torch.set_num_threads(1)  # OpenMP's other threads do not survive a fork
    torch.distributed.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    found = {}
    for way, size in (('plain', None), ('cached', 2)):
        model = tiny.model(towers=dict(micro_batch=size), entity_loss_weight=0)
        data = tiny.batch(model)
        model = nn.parallel.DistributedDataParallel(model)
        half = {name: value[3 * rank : 3 * rank + 3] for name, value in data.items()}
        loss = tiny.total(model(**half, mode='loss'))
        loss.backward()
        found[way] = loss.detach(), {n: p.grad for n, p in model.module.named_parameters()}
    torch.save(found, folder / f'{rank}.pt')
    torch.distributed.destroy_process_group()
