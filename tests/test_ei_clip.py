"""The whole model: at step 0 it is CLIP to the bit; trained, entities matter."""

import inspect
import json

import pytest
import tiny
import torch
import torch.nn.functional as F
from mmengine.optim import OptimWrapper

from eiclip_mm.models import EICLIP, OpenCLIP
from eiclip_mm.models.ei_clip import unbatch

SELECTORS = ('KeepAll', 'KeepNone', 'EffectCESelector', 'GatedCESelector', 'AttentionCESelector')


@pytest.fixture(scope='module', params=['clip', 'bert'])
def architecture(request, tmp_path_factory) -> dict:
    """open_clip's own pair of towers, and a pair with a Hugging Face text tower."""
    if request.param == 'bert':
        return tiny.bert_architecture(tmp_path_factory)
    return tiny.ARCHITECTURE


def plain_open_clip(model, architecture):
    """open_clip's own model with the same weights, built without this package."""
    import open_clip

    custom = 'hf_model_name' in architecture['text_cfg']
    kind = open_clip.model.CustomTextCLIP if custom else open_clip.model.CLIP
    clip = kind(**architecture).eval()
    clip.load_state_dict(model.towers.clip.state_dict())
    return clip


class TestStepZero:
    @pytest.mark.parametrize('selector', SELECTORS)
    def test_it_is_clip_to_the_bit(self, selector, architecture):
        model = tiny.model(
            towers=dict(model=architecture),
            selector=tiny.selector(selector),
            learner=dict(type='EALearner', num_learned=2, prior='learned'),
        ).eval()
        clip = plain_open_clip(model, architecture)
        data = tiny.batch(model)
        text = data['text']
        if 'hf_model_name' in architecture['text_cfg']:  # the towers leave out common padding
            text = text[:, : (text != 0).sum(1).max()]
        with torch.no_grad():
            image = model.encode_image(data['image'])
            product = model.encode_product(data['text'], data['entity_ids'])
            pixels = (data['image'] / 255 - model.towers.mean) / model.towers.std
            assert image.equal(clip.encode_image(pixels, normalize=True))
            assert product.equal(clip.encode_text(text, normalize=True))
            torch.testing.assert_close(product, clip.encode_text(data['text'], normalize=True))
            blind = model.encode_product(data['text'], torch.zeros_like(data['entity_ids']))
        assert product.equal(blind)
        torch.testing.assert_close(product.norm(dim=-1), torch.ones(6))

    @pytest.mark.parametrize('expectation', ['nwgm', 'exact'])
    def test_the_loss_is_clip_s_too(self, expectation):
        learner = dict(type='EALearner', expectation=expectation, num_learned=2)
        model = tiny.model(learner=learner, entity_loss_weight=0).eval()
        plain = tiny.model('OpenCLIP').eval()
        plain.towers.load_state_dict(model.towers.state_dict())
        data = tiny.batch(model)
        found, expected = (m(**data, mode='loss') for m in (model, plain))
        assert set(found) == set(expected) == {'loss_contrast', 'logit_scale'}
        torch.testing.assert_close(found['loss_contrast'], expected['loss_contrast'])
        assert found['logit_scale'].item() == pytest.approx(1 / 0.07, rel=1e-5)

    def test_first_gradients_of_the_towers_are_clip_s(self):
        """Where W_o is zero nothing else of the learner reaches the towers."""
        model = tiny.model(entity_loss_weight=0).eval()
        plain = tiny.model('OpenCLIP').eval()
        plain.towers.load_state_dict(model.towers.state_dict())
        data = tiny.batch(model)
        for m in (model, plain):
            m(**data, mode='loss')['loss_contrast'].backward()
        for a, b in zip(model.towers.parameters(), plain.towers.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad)


class TestSameText:
    def test_entities_tell_equal_descriptions_apart(self):
        """Positives are products of one text and the same entities, dropped or not."""
        model = tiny.model(loss=dict(type='InfoNCE', same_text=True), entity_loss_weight=0).eval()
        plain = tiny.model('OpenCLIP', loss=dict(type='InfoNCE', same_text=True)).eval()
        plain.towers.load_state_dict(model.towers.state_dict())
        data = tiny.batch(model)
        product_id = torch.arange(len(data['product_id']))
        text_id = torch.zeros_like(product_id)
        one, two = (data['entity_ids'][i] for i in (0, 2))
        gone = torch.zeros_like(one)
        assert len({tuple(ids.flatten().tolist()) for ids in (one, two, gone)}) == 3
        for entities, groups in (
            ([one] * 6, [0] * 6),
            ([one, one, two, one, two, two], [0, 0, 1, 0, 1, 1]),
            ([one, gone, two, gone, gone, two], [0, 0, 1, 0, 1, 1]),
        ):
            ids = dict(product_id=product_id, entity_ids=torch.stack(entities))
            ids['entities_id'] = 2**62 * torch.tensor(groups)  # a sum that wraps around
            found = model(**data | ids | dict(text_id=text_id), mode='loss')
            ids['text_id'] = torch.tensor(groups)
            expected = plain(**data | ids, mode='loss')  # at step 0 the models are one
            torch.testing.assert_close(found['loss_contrast'], expected['loss_contrast'])


class TestEntities:
    def test_they_never_reach_the_image_side(self):
        for kind in (OpenCLIP, EICLIP):
            assert list(inspect.signature(kind.encode_image).parameters) == ['self', 'image']
        model = tiny.model()
        tiny.randomised(model.learner)
        model.eval()
        data = tiny.batch(model)
        inputs = {name: data[name] for name in ('image', 'text', 'entity_ids')}
        outputs = model(**inputs)
        for ids in (torch.zeros_like(inputs['entity_ids']), inputs['entity_ids'].flip(0)):
            other = model(**inputs | dict(entity_ids=ids))
            assert other['image'].equal(outputs['image'])
            assert not other['product'].equal(outputs['product'])
        # nor do they by way of gradients: the image side does not depend on the tables
        model.encode_image(data['image']).sum().backward()
        assert all(p.grad is None for p in model.learner.parameters())

    @pytest.mark.parametrize('selector', SELECTORS)
    @pytest.mark.parametrize('expectation', ['nwgm', 'exact'])
    def test_training_makes_them_matter(self, selector, expectation):
        model = tiny.model(
            selector=tiny.selector(selector),
            learner=dict(type='EALearner', expectation=expectation, prior='learned'),
        )
        data = tiny.batch(model)
        inputs = {name: data[name] for name in ('image', 'text', 'entity_ids')}
        before = {n: t.clone() for n, t in model.state_dict().items()}
        first = tiny.total(model.eval()(**data, mode='loss'))
        tiny.train(model, data)
        model.eval()
        assert tiny.total(model(**data, mode='loss')) < first - 0.1
        # with KeepNone the tables get no gradient but from the entity loss
        still = {n for n, t in model.state_dict().items() if t.equal(before[n])}
        expected = {'learner.general', '_extra_state', 'towers.mean', 'towers.std'}
        if selector == 'EffectCESelector':
            expected.add('selector.weight')
        if selector == 'KeepNone':
            expected.add('learner.prior_logit')
        assert still == expected
        with torch.no_grad():
            product = model.encode_product(inputs['text'], inputs['entity_ids'])
            blind = model.encode_product(inputs['text'], torch.zeros_like(inputs['entity_ids']))
        difference = (product - blind).abs().amax(-1)
        known = (inputs['entity_ids'] > 0).flatten(1).any(-1)
        assert known.sum() == 5
        if selector == 'KeepNone':
            assert product.equal(blind)
        else:
            assert (difference[known] > 1e-4).all() and (difference[~known] == 0).all()

    def test_without_entities_open_clip_learns_too(self):
        model = tiny.model('OpenCLIP')
        data = tiny.batch(model)
        first = tiny.total(model.eval()(**data, mode='loss'))
        tiny.train(model, data)
        assert tiny.total(model.eval()(**data, mode='loss')) < first - 0.1


class TestForward:
    def test_a_model_without_types_is_refused(self):
        tokenizer = tiny.tokenizer(vocab=None)
        with pytest.raises(ValueError, match='at least one type, or take OpenCLIP'):
            tiny.model(tokenizer=tokenizer)
        tiny.model('OpenCLIP', tokenizer=tokenizer)

    def test_modes(self):
        model = tiny.model().eval()
        data = tiny.batch(model)
        with torch.no_grad():
            tensors = model(**data, mode='tensor')
            rows = model(**data, mode='predict')
        assert set(tensors) == {'image', 'product'} and len(rows) == 6
        ids = {'product_id', 'text_id', 'entities_id', 'view', 'caption', 'sample_idx'}
        names = {'image', 'product'} | ids
        for i, row in enumerate(rows):
            assert set(row) == names
            assert row['product'].equal(tensors['product'][i])
            assert row['product_id'] == data['product_id'][i]

    def test_unbatch_wants_equal_lengths(self):
        assert unbatch(a=torch.arange(2), b=torch.zeros(2, 3))[1]['b'].shape == (3,)
        with pytest.raises(ValueError, match=r'shorter|longer'):
            unbatch(a=torch.arange(2), b=torch.arange(3))

    def test_loss_terms_and_their_weights(self):
        changes = dict(selector=dict(type='GatedCESelector'))
        model = tiny.model(**changes, entity_loss_weight=0.5, gate_price=0.25).eval()
        data = tiny.batch(model)
        losses = model(**data, mode='loss')
        assert set(losses) == {'loss_contrast', 'loss_entity', 'loss_gate', 'logit_scale'}
        image = model.encode_image(data['image'])
        entity = model.learner.entity_loss(image, data['entity_ids'])
        torch.testing.assert_close(losses['loss_entity'], 0.5 * entity)
        torch.testing.assert_close(losses['loss_gate'], 0.25 * model.selector.penalty())
        total, log = model.parse_losses(losses)  # mmengine adds up what is named "loss"
        torch.testing.assert_close(total, tiny.total(losses))
        assert log['logit_scale'] == losses['logit_scale']
        off = tiny.model(entity_loss_weight=0)
        assert not len(off.learner.heads)
        assert set(off(**data, mode='loss')) == {'loss_contrast', 'logit_scale'}

    def test_same_text_and_product_id_reach_the_loss(self):
        data = tiny.batch(tiny.model())
        values = []
        for same_text in (False, True):
            model = tiny.model('OpenCLIP', loss=dict(type='InfoNCE', same_text=same_text)).eval()
            values.append(model(**data, mode='loss')['loss_contrast'].item())
        assert values[1] < values[0] - 0.1  # products 3 and 5 are both "red tee"
        alone = dict(data, product_id=torch.arange(6))
        assert model(**alone, mode='loss')['loss_contrast'].item() == pytest.approx(values[1])

    def test_mmengine_s_train_and_val_step(self):
        model = tiny.model()
        data = tiny.batch(model)
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        log = model.train_step(data, OptimWrapper(optimizer))
        assert {'loss', 'loss_contrast', 'loss_entity', 'logit_scale'} == set(log)
        assert len(model.eval().val_step(data)) == 6

    def test_temperature_never_passes_100(self):
        model = tiny.model()
        model.towers.log_scale.data.fill_(20.0)
        losses = model(**tiny.batch(model), mode='loss')
        assert losses['logit_scale'].item() == pytest.approx(100)
        assert losses['loss_contrast'].isfinite()

    def test_features_of_a_frozen_trunk(self):
        vision = dict(
            timm_model_name='test_efficientnet', timm_pool='avg', timm_proj='mlp', image_size=32
        )
        architecture = dict(tiny.ARCHITECTURE, vision_cfg=vision)
        model = tiny.model(towers=dict(model=architecture, image_unlocked=0)).eval()
        data = tiny.batch(model)
        features = model.towers.image_trunk(data['image'])
        whole, cached = (model(**data | dict(image=x)) for x in (data['image'], features))
        assert whole['image'].equal(cached['image'])
        model.train()
        tiny.total(model(**data | dict(image=features), mode='loss')).backward()
        assert model.towers.clip.visual.head.mlp.fc1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize('mention', ['keep', 'cut', 'token'])
def test_mentions_through_the_whole_model(mention):
    tokenizer = tiny.tokenizer(mention=mention)
    model = tiny.model(tokenizer=tokenizer)
    data = tiny.batch(model)
    assert (data['text'] >= 49408).any() == (mention != 'keep')
    tiny.train(model, data, steps=2)
    rows = model.towers.clip.token_embedding.weight
    assert len(rows) == 49408 + dict(keep=0, cut=1, token=5)[mention]
    assert model.eval()(**data)['product'].isfinite().all()
    assert json.loads(bytes(model.get_extra_state().tolist()))['names']['composition'][1] == 'silk'


def test_general_sense_ignores_the_mention_setting():
    """Names are read as CLIP reads them, whatever texts become."""
    general = [
        tiny.model(tokenizer=tiny.tokenizer(mention=mention)).learner.general
        for mention in ('keep', 'token')
    ]
    assert general[0].equal(general[1])
    assert not F.normalize(general[0][0, 1:], dim=-1).isnan().any()
