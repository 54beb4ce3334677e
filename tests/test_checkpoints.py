"""Weights from other projects' files, and what travels in a checkpoint of ours."""

import re

import pytest
import tiny
import torch
from mmengine.runner import load_checkpoint, save_checkpoint
from mmengine.runner.checkpoint import get_state_dict

from eiclip_mm.models import OpenCLIPTowers
from eiclip_mm.models.checkpoints import from_hugging_face, read_towers
from eiclip_mm.models.ei_clip import vocab_of_state
from eiclip_mm.structures import EntityVocab

QUICK = dict(tiny.ARCHITECTURE, quick_gelu=True)


@pytest.fixture(scope='module')
def hf_clip():
    """transformers' own CLIP with the sizes of the tiny architecture, all weights random."""
    transformers = pytest.importorskip('transformers', reason='compares with its CLIPModel')
    torch.manual_seed(0)
    sizes = dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        projection_dim=32,
    )  # fmt: skip
    config = transformers.CLIPConfig(
        text_config=dict(
            vocab_size=49408, max_position_embeddings=16, eos_token_id=49407, bos_token_id=49406,
            pad_token_id=1, **sizes,
        ),
        vision_config=dict(image_size=32, patch_size=8, **sizes),
        projection_dim=32,
    )  # fmt: skip
    model = transformers.CLIPModel(config).eval()
    # its initial biases are zero and its norms one, which would hide a swap
    return tiny.randomised(model, 0.2)


class TestHuggingFace:
    def inputs(self):
        text = torch.tensor(
            [[49406, 320, 1125, 49407] + [0] * 12, [49406, *range(900, 914), 49407]]
        )
        image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
        return image, text

    @pytest.mark.parametrize('file', ['', 'model.safetensors', 'pytorch_model.bin'])
    def test_outputs_equal_transformers(self, hf_clip, file, tmp_path):
        hf_clip.save_pretrained(tmp_path, safe_serialization=file != 'pytorch_model.bin')
        model = OpenCLIPTowers(QUICK, pretrained=str(tmp_path / file)).eval()
        image, text = self.inputs()
        pixels = (image / 255 - model.mean) / model.std
        with torch.no_grad():
            expected = hf_clip.get_image_features(pixel_values=pixels)
            torch.testing.assert_close(model.encode_image(image), expected, rtol=0, atol=1e-5)
            expected = hf_clip.get_text_features(input_ids=text)
            torch.testing.assert_close(model.encode_text(text), expected, rtol=0, atol=1e-5)
        assert expected.std() > 0.1
        assert model.log_scale.item() == hf_clip.logit_scale.item()

    def test_activation_matters(self, hf_clip, tmp_path):
        """The test above would see plain GELU, which such files must not be run with."""
        hf_clip.save_pretrained(tmp_path)
        quick, plain = (
            OpenCLIPTowers(a, pretrained=str(tmp_path)).eval() for a in (QUICK, tiny.ARCHITECTURE)
        )
        _, text = self.inputs()
        assert (quick.encode_text(text) - plain.encode_text(text)).abs().max() > 1e-3

    def test_every_tensor_is_renamed_once(self, hf_clip):
        state = hf_clip.state_dict()
        converted = from_hugging_face(state)
        wanted = OpenCLIPTowers(QUICK).clip.state_dict()
        assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in wanted.items()}
        assert sum(v.numel() for v in converted.values()) == sum(v.numel() for v in state.values())
        old = dict(state)
        for side in ('text', 'vision'):  # older releases of transformers save these
            old[f'{side}_model.embeddings.position_ids'] = torch.arange(16)[None]
        assert from_hugging_face(old).keys() == converted.keys()

    def test_other_models(self, hf_clip):
        state = dict(hf_clip.state_dict(), classifier=torch.zeros(3))
        with pytest.raises(ValueError, match="'classifier' is not a weight of a Hugging Face CLIP"):
            from_hugging_face(state)


class TestFiles:
    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r'none.pt do not exist. Give a file, a Hugg'):
            read_towers(tmp_path / 'none.pt')
        with pytest.raises(FileNotFoundError, match=r'holds neither model.safetensors nor'):
            read_towers(tmp_path)

    @pytest.mark.parametrize('name', ['a.pt', 'a.safetensors'])
    @pytest.mark.parametrize('content', [b'', b'<html>not found</html>', b'PK\x03\x04 cut'])
    def test_not_a_checkpoint(self, tmp_path, name, content):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=rf'{re.escape(str(path))} cannot be read safely as a check'
        ):
            read_towers(path)

    @pytest.mark.parametrize('content', [[1, 2], {}, torch.zeros(3), dict(epoch=3), 'text'])
    def test_a_pickle_of_something_else(self, tmp_path, content):
        path = tmp_path / 'a.pt'
        torch.save(content, path)
        with pytest.raises(ValueError, match=rf'{re.escape(str(path))} (cannot be|does not fit)'):
            OpenCLIPTowers(tiny.ARCHITECTURE, pretrained=str(path))

    def test_pickles_that_run_code_are_refused(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return (open, (str(tmp_path / 'ran'), 'w'))

        torch.save(dict(state_dict=Trap()), tmp_path / 'a.pt')
        with pytest.raises(ValueError, match='cannot be read safely as a checkpoint'):
            read_towers(tmp_path / 'a.pt')
        assert not (tmp_path / 'ran').exists()


class TestVocabulary:
    def test_it_travels(self, tmp_path):
        model = tiny.model()
        state = model.state_dict()
        assert vocab_of_state(state['_extra_state']) == tiny.VOCAB
        # mmengine has a state_dict, a save and a load of its own
        save_checkpoint(dict(state_dict=get_state_dict(model)), str(tmp_path / 'a.pth'))
        state = torch.load(tmp_path / 'a.pth', weights_only=True)['state_dict']
        assert vocab_of_state(state['_extra_state']).types == ('brand', 'composition')
        load_checkpoint(tiny.model(seed=1), str(tmp_path / 'a.pth'), strict=True)

    def test_names_in_any_script(self):
        vocab = EntityVocab(dict(brand=('Étoile', '無印良品', "Levi's")), dict(brand=(3, 2, 1)))
        model = tiny.model('OpenCLIP', tokenizer=tiny.tokenizer(vocab=vocab))
        assert vocab_of_state(model.state_dict()['_extra_state']) == vocab

    @pytest.mark.parametrize('kind', ['OpenCLIP', 'EICLIP'])
    @pytest.mark.parametrize(
        ('names', 'message'),
        [
            (dict(brand=('Diesel', 'Golden Goose', 'Puma'), composition=('cotton', 'silk')),
             r"\{'brand': 3, 'composition': 2\} entities, here \{'brand': 3, 'composition': 2\}"),
            (dict(brand=('Golden Goose', 'Diesel', "Levi's"), composition=('cotton', 'silk')),
             r'another entity vocabulary'),
            (dict(composition=('cotton', 'silk'), brand=('Diesel', 'Golden Goose', "Levi's")),
             r"\{'brand': 3, 'composition': 2\} entities, here \{'composition': 2, 'brand': 3\}"),
        ],
    )  # fmt: skip
    def test_another_is_refused(self, kind, names, message, tmp_path):
        counts = dict(brand=(30, 5, 2), composition=(40, 10))
        other = tiny.tokenizer(vocab=EntityVocab(names, counts))
        state = tiny.model(kind).state_dict()
        with pytest.raises(ValueError, match=message):
            tiny.model(kind, tokenizer=other).load_state_dict(state)
        torch.save(dict(state_dict=state), tmp_path / 'a.pth')
        with pytest.raises(ValueError, match='Give the vocabulary it was trained with'):
            load_checkpoint(tiny.model(kind, tokenizer=other), str(tmp_path / 'a.pth'))

    def test_a_note_of_its_source_may_differ(self):
        other = EntityVocab(tiny.VOCAB.names, tiny.VOCAB.counts, source='elsewhere')
        tiny.model(tokenizer=tiny.tokenizer(vocab=other)).load_state_dict(tiny.model().state_dict())

    def test_damaged(self):
        model = tiny.model('OpenCLIP')
        state = model.state_dict()
        state['_extra_state'] = torch.tensor(list(b'{"format": "other"}'), dtype=torch.uint8)
        with pytest.raises(ValueError, match='the checkpoint is not an entity vocabulary'):
            model.load_state_dict(state)

    @pytest.mark.parametrize('dtype', [torch.int64, torch.uint8])
    def test_a_number_is_not_as_many_zeros(self, dtype):
        with pytest.raises(ValueError, match=rf'a row of bytes, .*, got {dtype} of shape \(\)'):
            vocab_of_state(torch.tensor(99, dtype=dtype))
        with pytest.raises(ValueError, match=r'a row of bytes, torch.uint8, got str'):
            vocab_of_state('{}')
        other = torch.tensor(list(b'{}'), dtype=torch.int16)
        with pytest.raises(ValueError, match=r'got torch.int16 of shape \(2,\)'):
            vocab_of_state(other)


def test_state_dict_round_trip():
    for selector in ('KeepAll', 'EffectCESelector', 'GatedCESelector', 'AttentionCESelector'):
        changes = dict(
            selector=tiny.selector(selector),
            learner=dict(type='EALearner', prior='learned', num_learned=2),
        )
        source = tiny.randomised(tiny.model(**changes), 0.1).eval()
        if selector == 'EffectCESelector':
            source.selector.weight[2:4] = 0
        other = tiny.model(seed=1, **changes).eval()
        data = tiny.batch(source)
        inputs = {name: data[name] for name in ('image', 'text', 'entity_ids')}
        before, expected = other(**inputs), source(**inputs)
        other.load_state_dict(source.state_dict())
        found = other(**inputs)
        for name in ('image', 'product'):
            assert found[name].equal(expected[name]) and not before[name].equal(expected[name])
