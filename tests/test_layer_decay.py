"""Learning rates by layer: distances name by name, the rates they make, what is refused."""

import pytest
import tiny
import torch
from torch import nn

from eiclip_mm.engine import TowerLrConstructor
from eiclip_mm.engine.layer_decay import layers_below_head
from eiclip_mm.models import OpenCLIPTowers

CUSTOM = dict(tiny.ARCHITECTURE, custom_text=True)
TIMM = dict(
    tiny.ARCHITECTURE,
    vision_cfg=dict(
        timm_model_name='test_vit', timm_pool='token', timm_proj='linear', image_size=160
    ),
)


def clip(architecture, **changes):
    torch.manual_seed(0)
    return OpenCLIPTowers(architecture, **changes).clip


def assert_distances(module, expected):
    found = layers_below_head(module)
    assert found.keys() == {name for name, _ in module.named_parameters()}
    assert {name: found[name] for name in expected} == expected


VIT = {
    'conv1.weight': 3,
    'class_embedding': 3,
    'positional_embedding': 3,
    'ln_pre.weight': 3,
    'transformer.resblocks.0.attn.in_proj_weight': 2,
    'transformer.resblocks.1.mlp.c_proj.bias': 1,
    'ln_post.bias': 0,
    'proj': 0,
}
TEXT = {
    'token_embedding.weight': 3,
    'positional_embedding': 3,
    'transformer.resblocks.0.ln_1.weight': 2,
    'transformer.resblocks.1.attn.out_proj.weight': 1,
    'ln_final.weight': 0,
    'text_projection': 0,
}


class TestDistances:
    @pytest.mark.parametrize('architecture', [tiny.ARCHITECTURE, CUSTOM], ids=['flat', 'custom'])
    def test_open_clip(self, architecture):
        model = clip(architecture)
        assert_distances(model.visual, VIT)
        prefix = 'text.' if architecture is CUSTOM else ''
        both = {f'visual.{name}': n for name, n in VIT.items()}
        both |= {f'{prefix}{name}': n for name, n in TEXT.items()} | {'logit_scale': 0}
        assert_distances(model, both)
        if prefix:
            assert_distances(model.text, TEXT)

    def test_timm(self):
        blocks = 6
        expected = {f'trunk.blocks.{i}.attn.qkv.weight': blocks - i for i in range(blocks)}
        expected |= {'trunk.cls_token': blocks + 1, 'trunk.patch_embed.proj.weight': blocks + 1}
        # the last norm belongs to the last block, as timm has it
        assert_distances(clip(TIMM).visual, expected | {'trunk.norm.weight': 1} | {
            'head.proj.weight': 0
        })  # fmt: skip

    def test_bert(self, tmp_path_factory):
        model = clip(tiny.bert_architecture(tmp_path_factory))
        layers = 'transformer.encoder.layer'
        expected = {
            'transformer.embeddings.word_embeddings.weight': 4,
            'transformer.embeddings.LayerNorm.bias': 4,
            f'{layers}.0.attention.self.query.weight': 3,
            f'{layers}.1.output.dense.weight': 2,
            f'{layers}.2.intermediate.dense.bias': 1,
            'proj.weight': 0,
        }
        assert_distances(model.text, expected)
        assert_distances(model, {f'text.{name}': n for name, n in expected.items()})

    def test_adapters_lie_where_their_matrix_lies(self):
        found = layers_below_head(clip(tiny.ARCHITECTURE, lora=dict(rank=2)))
        adapters = {name: n for name, n in found.items() if name.endswith(('.up', '.down'))}
        assert {n for name, n in adapters.items() if 'resblocks.0' in name} == {2}
        assert {n for name, n in adapters.items() if 'resblocks.1' in name} == {1}

    def test_unknown_structures_are_refused(self):
        with pytest.raises(ValueError, match='does not know the layers of Sequential: it has nei'):
            layers_below_head(nn.Sequential(nn.Linear(2, 2)))
        resnet = dict(tiny.ARCHITECTURE['vision_cfg'], layers=[1, 1, 1, 1], head_width=64)
        with pytest.raises(ValueError, match='does not know the layers of ModifiedResNet'):
            layers_below_head(clip(dict(tiny.ARCHITECTURE, vision_cfg=resnet)))


def rates(network, **paramwise):
    constructor = TowerLrConstructor(
        dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.1)),
        paramwise,
    )
    groups = constructor(network).optimizer.param_groups
    found = {id(p): group for group in groups for p in group['params']}
    named = {n: p for n, p in network.named_parameters() if p.requires_grad}
    assert len(found) == len(named) == sum(len(group['params']) for group in groups)
    return {name: (found[id(p)]['lr'], found[id(p)]['weight_decay']) for name, p in named.items()}


class TestRates:
    DECAY = {'towers.clip.visual': 0.8, 'towers.clip': 0.9}

    def test_two_towers(self):
        found = rates(tiny.model(), lr_mult={'towers': 0.1}, layer_decay=self.DECAY)
        blocks = 'transformer.resblocks'
        expected = {
            'towers.clip.visual.conv1.weight': (1e-4 * 0.8**3, 0.1),
            f'towers.clip.visual.{blocks}.0.mlp.c_fc.weight': (1e-4 * 0.8**2, 0.1),
            f'towers.clip.visual.{blocks}.1.mlp.c_fc.bias': (1e-4 * 0.8, 0),
            'towers.clip.visual.proj': (1e-4, 0.1),
            'towers.clip.token_embedding.weight': (1e-4 * 0.9**3, 0),
            f'towers.clip.{blocks}.0.attn.in_proj_weight': (1e-4 * 0.9**2, 0.1),
            f'towers.clip.{blocks}.1.ln_2.weight': (1e-4 * 0.9, 0),
            'towers.clip.text_projection': (1e-4, 0.1),
            'towers.clip.logit_scale': (1e-4, 0),
            'learner.hidden.weight': (1e-3, 0.1),
        }
        for name, (rate, decay) in expected.items():
            assert found[name] == (pytest.approx(rate), decay), name

    def test_one_rate_reaches_both_towers(self):
        found = rates(tiny.model(), layer_decay={'towers.clip': 0.5})
        assert found['towers.clip.visual.conv1.weight'][0] == pytest.approx(1e-3 / 8)
        assert found['towers.clip.token_embedding.weight'][0] == pytest.approx(1e-3 / 8)

    def test_without_it_nothing_changes(self):
        assert {rate for rate, _ in rates(tiny.model()).values()} == {1e-3}

    def test_refused(self):
        with pytest.raises(ValueError, match=r"layer_decay 'tower.clip' is no module of the m"):
            rates(tiny.model(), layer_decay={'tower.clip': 0.9})
        with pytest.raises(ValueError, match=r"of 'towers.clip' must lie above 0, at most 1, got"):
            rates(tiny.model(), layer_decay={'towers.clip': 1.5})
        with pytest.raises(ValueError, match='does not know the layers of EALearner'):
            rates(tiny.model(), layer_decay={'learner': 0.9})


def test_layer_decay_is_a_dict():
    with pytest.raises(ValueError, match=r"layer_decay must be a dict such as .* got '0.8'"):
        rates(clip(tiny.ARCHITECTURE), layer_decay='0.8')
