"""torch.compile of the towers, in place: same values, gradients and names."""

import pytest
import tiny
import torch
from torch import nn

from eiclip_mm.models import OpenCLIPTowers

# tracing takes its time by the layer
SMALL = dict(
    tiny.ARCHITECTURE,
    vision_cfg=dict(tiny.ARCHITECTURE['vision_cfg'], layers=1),
    text_cfg=dict(tiny.ARCHITECTURE['text_cfg'], layers=1),
)
# dynamo looks at the gradient of every tensor it meets
pytestmark = pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor:UserWarning')


@pytest.fixture(scope='module')
def bert(tmp_path_factory) -> dict:
    return dict(tiny.bert_architecture(tmp_path_factory), vision_cfg=SMALL['vision_cfg'])


def value_and_gradients(architecture, **changes):
    torch.manual_seed(0)
    torch._dynamo.reset()
    towers = OpenCLIPTowers(architecture, **changes).train()
    for module in towers.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, 'dropout_prob'):
            module.dropout_prob = 0.0
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    text = torch.randint(1000, (4, 16), generator=generator) + 1
    value = towers.encode_image(image).square().mean() + towers.encode_text(text).square().mean()
    value.backward()
    return towers, value, {n: p.grad for n, p in towers.named_parameters() if p.grad is not None}


def assert_same(architecture, compile, **changes):
    plain, expected, gradients = value_and_gradients(architecture)
    torch._dynamo.utils.counters.clear()
    towers, value, found = value_and_gradients(architecture, compile=compile, **changes)
    assert torch._dynamo.utils.counters['stats']['unique_graphs'] >= 2  # of either tower
    assert towers.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(value, expected)
    assert found.keys() == gradients.keys() and len(found) > 10
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_flat_clip(backend):
    assert_same(SMALL, backend)


def test_bert(bert):
    assert_same(bert, 'eager')


def test_with_all_that_saves_memory():
    assert_same(SMALL, 'aot_eager', micro_batch=2, grad_checkpointing=True)


def test_names_are_embedded_before_anything_is_compiled():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs = torch._dynamo.utils.counters['stats']
    model = tiny.model(towers=dict(model=SMALL, compile='eager'))
    assert graphs['unique_graphs'] == 0
    assert model.learner.general.equal(tiny.model(towers=dict(model=SMALL)).learner.general)
    model.towers.encode_text(tiny.batch(model)['text'])
    assert graphs['unique_graphs'] > 0


def test_unknown_backend():
    with pytest.raises(ValueError, match=r"compile='fast' is no backend .*'inductor'"):
        OpenCLIPTowers(SMALL, compile='fast')
