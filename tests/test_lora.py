"""LoRA: the identity at first, adapters alone train, saved, merged, on weights loaded before."""

import pytest
import tiny
import torch
from torch import nn

from eiclip_mm.models import OpenCLIPTowers, add_lora, merge_lora
from eiclip_mm.models.lora import LowRank

LORA = dict(rank=4, alpha=8)
TIMM = dict(
    tiny.ARCHITECTURE,
    vision_cfg=dict(
        timm_model_name='test_vit', timm_pool='token', timm_proj='linear', image_size=160
    ),
)


@pytest.fixture(scope='session')
def architectures(tmp_path_factory) -> dict:
    return dict(
        flat=tiny.ARCHITECTURE,
        custom=dict(tiny.ARCHITECTURE, custom_text=True),
        timm=TIMM,
        bert=tiny.bert_architecture(tmp_path_factory),
    )


def towers(model=tiny.ARCHITECTURE, **changes):
    torch.manual_seed(0)
    return OpenCLIPTowers(model, **changes)


def outputs(model):
    with torch.no_grad():  # with gradients torch takes another kernel for attention
        return embedded(model)


def embedded(model):
    size = 160 if hasattr(model.clip.visual, 'trunk') else 32
    image = torch.randint(256, (3, 3, size, size), generator=torch.Generator().manual_seed(0))
    text = torch.tensor([[5, 6, 7, 9] + [0] * 12])
    return model.encode_image(image.to(torch.uint8)), model.encode_text(text)


def same(a, b):
    return all(x.equal(y) for x, y in zip(a, b, strict=True))


def trained(model):
    """Adapters that are no identity any more."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, LowRank):
                module.up.copy_(torch.randn(module.up.shape, generator=generator) * 0.1)
    return model


def train_names(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


class TestAdapters:
    @pytest.mark.parametrize('name', ['flat', 'custom', 'timm', 'bert'])
    def test_start_as_the_identity_to_the_bit(self, name, architectures):
        plain = towers(architectures[name]).eval()
        adapted = towers(architectures[name], lora=LORA).eval()
        assert same(outputs(adapted), outputs(plain))
        assert not same(outputs(trained(adapted)), outputs(plain))

    def test_what_is_added(self):
        torch.manual_seed(0)
        layer = nn.Linear(5, 3)
        adapter = LowRank(layer.weight, rank=2, alpha=6)
        nn.init.normal_(adapter.up)
        expected = layer.weight.clone()
        for i in range(3):
            for j in range(5):
                for r in range(2):
                    expected[i, j] += 6 / 2 * adapter.up[i, r] * adapter.down[r, j]
        torch.testing.assert_close(adapter(layer.weight), expected)

    @pytest.mark.parametrize(
        ('name', 'reached'),
        [
            ('flat', {'in_proj_weight', 'out_proj.weight', 'c_fc.weight', 'c_proj.weight'}),
            ('timm', {'qkv.weight', 'in_proj_weight'}),
            ('bert', {'query.weight', 'value.weight', 'in_proj_weight'}),
        ],
    )
    def test_reach_every_kind(self, name, reached, architectures):
        model = towers(architectures[name])
        names = add_lora(model.clip, **LORA)
        assert reached <= {target for target in reached for n in names if n.endswith(target)}
        assert len(names) == len(set(names)) == sum(
            isinstance(m, LowRank) for m in model.modules()
        )  # fmt: skip
        # every adapter has a part in the output
        value = sum(x.square().sum() for x in embedded(trained(model)))
        value.backward()
        for module in model.modules():
            if isinstance(module, LowRank):
                assert module.up.grad.abs().sum() > 0 and module.down.grad.abs().sum() > 0

    def test_chosen_ones_only(self):
        model = towers()
        names = add_lora(model.clip, targets=['visual.transformer.resblocks.1.attn.in_proj_weight'])
        assert names == ['visual.transformer.resblocks.1.attn.in_proj_weight']

    def test_refused(self):
        with pytest.raises(
            ValueError,
            match=r"targets \['q_proj'\] fit no parameter; matrices are .* Give targets=\[",
        ):
            towers(lora=dict(targets=['q_proj', 'c_fc.weight']))
        with pytest.raises(ValueError, match=r'adapts matrices; visual.conv1.weight has the shape'):
            towers(lora=dict(targets=['conv1.weight']))
        for wrong in (dict(rank=0), dict(rank=2.0), dict(alpha=0), dict(alpha=float('nan'))):
            with pytest.raises(ValueError, match='rank must be an integer from 1 and alpha a'):
                towers(lora=wrong)


class TestTraining:
    def test_adapters_and_temperature_alone(self):
        model = tiny.model(towers=dict(lora=LORA))
        names = train_names(model.towers)
        assert all(n.endswith(('.up', '.down')) for n in names - {'clip.logit_scale'})
        assert len(names) == 1 + 2 * 16  # two towers, two layers, four matrices
        before = {n: t.clone() for n, t in model.towers.state_dict().items()}
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, 0.01)
        model.train()
        for _ in range(2):  # in the first step only ``up`` moves
            optimizer.zero_grad()
            tiny.total(model(**tiny.batch(model), mode='loss')).backward()
            optimizer.step()
        changed = {n for n, t in model.towers.state_dict().items() if not t.equal(before[n])}
        assert changed == names
        assert {n for n, p in model.towers.named_parameters() if p.grad is not None} == names
        assert {id(p) for p in optimizer.state} == {id(p) for p in parameters}

    def test_heads_of_other_trunks_train(self, architectures):
        """A projection onto D that comes without weights must not stay what it was drawn as."""
        names = train_names(towers(architectures['timm'], lora=LORA))
        assert 'clip.visual.head.proj.weight' in names
        names = train_names(towers(architectures['bert'], lora=LORA))
        assert 'clip.text.proj.weight' in names
        others = {n for n in names if not n.endswith(('.up', '.down'))}
        assert others == {'clip.text.proj.weight', 'clip.logit_scale'}

    def test_groups_that_are_unlocked_train_too(self):
        names = train_names(towers(lora=LORA, image_unlocked=1))
        others = {n for n in names if not n.endswith(('.up', '.down'))}
        assert others == {'clip.visual.proj', 'clip.logit_scale'}

    @pytest.mark.parametrize('name', ['flat', 'bert'])
    @pytest.mark.parametrize('memory', [dict(micro_batch=4), dict(grad_checkpointing=True),
                                        dict(micro_batch=4, grad_checkpointing=True)])  # fmt: skip
    def test_with_less_memory(self, name, memory, architectures):
        found = []
        for changes in ({}, memory):
            settings = dict(model=architectures[name], lora=LORA, **changes)
            model = tiny.model(towers=settings).train()
            for module in trained(model).modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
                if hasattr(module, 'dropout_prob'):  # BERT's attention keeps its own
                    module.dropout_prob = 0.0
            loss = tiny.total(model(**tiny.batch(model), mode='loss'))
            loss.backward()
            found.append((loss, {n: p.grad for n, p in model.named_parameters()}))
        (plain, gradients), (value, others) = found
        torch.testing.assert_close(value, plain)
        for key, gradient in gradients.items():
            if gradient is None:
                assert others[key] is None
            else:
                torch.testing.assert_close(others[key], gradient, rtol=1e-4, atol=1e-6)


class TestWeights:
    def test_pretrained_weights_are_loaded_first(self, tmp_path):
        source = OpenCLIPTowers(tiny.ARCHITECTURE).eval()
        torch.save(source.clip.state_dict(), tmp_path / 'a.pt')
        adapted = towers(pretrained=str(tmp_path / 'a.pt'), lora=LORA).eval()
        assert same(outputs(adapted), outputs(source))

    def test_checkpoints_load_back(self, tmp_path):
        source = trained(tiny.model(towers=dict(lora=LORA))).eval()
        torch.save(source.state_dict(), tmp_path / 'a.pth')
        other = tiny.model(towers=dict(lora=LORA), seed=5).eval()
        state = torch.load(tmp_path / 'a.pth', weights_only=True)
        assert not same(outputs(other.towers), outputs(source.towers))
        other.load_state_dict(state)
        assert same(outputs(other.towers), outputs(source.towers))

    @pytest.mark.parametrize('name', ['flat', 'timm', 'bert'])
    def test_merged(self, name, architectures, tmp_path):
        adapted = trained(towers(architectures[name], lora=LORA)).eval()
        before = outputs(adapted)
        merge_lora(adapted)
        assert same(outputs(adapted), before)
        plain = towers(architectures[name])
        assert adapted.state_dict().keys() == plain.state_dict().keys()
        torch.save(adapted.clip.state_dict(), tmp_path / 'merged.pt')
        again = towers(architectures[name], pretrained=str(tmp_path / 'merged.pt')).eval()
        assert same(outputs(again), before)

    def test_added_tokens(self):
        """The table of tokens grows after the adapters are there."""
        model = tiny.model(towers=dict(lora=LORA), tokenizer=tiny.tokenizer(mention='token'))
        table = model.towers.clip.token_embedding.weight
        added = len(model.tokenizer.extra_tokens)
        assert added == 5 and len(table) == model.tokenizer.subwords.size + added
        assert not table.requires_grad
        merge_lora(model)
        assert not any(isinstance(m, LowRank) for m in model.modules())
