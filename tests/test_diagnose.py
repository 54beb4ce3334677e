"""What an entity does: swaps on a circle, entities added, and the tool on small files."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from catalogues import write_coco
from confined import confined
from mmengine.config import Config
from mmengine.registry import DefaultScope
from small import run_tool, write_data
from test_tools import EI, write_config

from eiclip_mm.datasets import CocoProducts, EntityTokenizer
from eiclip_mm.datasets.synthetic import FILES, write_mini_fashiongen
from eiclip_mm.evaluation import Embeddings, evaluate
from eiclip_mm.evaluation.diagnostics import auc, swap_effects
from eiclip_mm.models import add_entities, drop_entities, extended
from eiclip_mm.models.new_entities import STRENGTHS, regressed
from eiclip_mm.registry import MODELS, TOKENIZER
from eiclip_mm.structures import EntityVocab

sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools/analysis_tools'))
sys.path.append(str(Path(__file__).resolve().parents[1] / 'tools/dataset_converters'))
import _diagnose
import _new_brand
import _sense
import _swap
import diagnose
import hold_out_entities

SELECTORS = ('KeepAll', 'KeepNone', 'GatedCESelector', 'AttentionCESelector', 'EffectCESelector')
NEW = dict(brand=['Canada Goose'], composition=['wool'])


# --------------------------------------------------------------------------------- swaps


def unit(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_a_swap_on_the_circle():
    """Photos at 0, 10 (old entity), 60, 70 (new); the query of the first turns from 1 to 58."""
    image = unit(0, 10, 60, 70)
    holds = torch.tensor([[0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]).bool()
    found = swap_effects(
        unit(1, 9), unit(58, 9), image, torch.tensor([0, 1]), holds, torch.tensor([[1, 2]] * 2)
    )
    assert found['rank_before'].tolist() == [1, 1]
    assert found['rank_after'].tolist() == [4, 1]  # 60, 70 and 10 are nearer to 58 than 0 is
    assert found['rank'].tolist() == [3, 0]
    assert found['top_before'].tolist() == [0, 0]
    assert found['top_after'].tolist() == found['top'].tolist() == [1, 0]

    def cosine(*degrees):
        return sum(torch.tensor(float(d)).deg2rad().cos().item() for d in degrees) / len(degrees)

    expected = dict(
        own=cosine(58) - cosine(1),
        old=cosine(58, 48) - cosine(1, 9),
        new=cosine(2, 12) - cosine(59, 69),
    )
    expected['new - old'] = expected['new'] - expected['old']
    for name, value in expected.items():
        assert found[name].tolist() == pytest.approx([value, 0], abs=1e-6)


def test_auc_equals_all_pairs():
    g = torch.Generator().manual_seed(0)
    right, wrong = (torch.randint(6, (n,), generator=g).float() for n in (13, 29))
    pairs = [(r > w) + 0.5 * (r == w) for r in right.tolist() for w in wrong.tolist()]
    assert auc(right, wrong) == pytest.approx(sum(pairs) / len(pairs))
    assert auc(wrong + 9, wrong) == 1 and auc(wrong - 9, wrong) == 0
    with pytest.raises(ValueError, match='got 13 right and 0 wrong'):
        auc(right, wrong[:0])


def test_an_exchanged_entity_is_exchanged_in_the_text_too():
    tokenizer = EntityTokenizer(tiny.ARCHITECTURE, tiny.VOCAB, fields=('brand', 'description'))
    text = {'description': 'a GOLDEN goose tee, golden, by Golden Goose'}
    tags = dict(brand=['golden goose', 'Diesel'], composition=['silk'])
    found = _swap.exchanged((text, tags), tokenizer, 'brand', old=2, new=3)
    assert found == (
        {'description': "a Levi's tee, golden, by Levi's"},
        dict(brand=["Levi's", 'Diesel'], composition=['silk']),
    )
    assert tokenizer(*found).entity_ids[0].tolist()[:2] == [3, 1]
    assert tags['brand'] == ['golden goose', 'Diesel']


# -------------------------------------------------------------------------- new entities


def trained(selector: str = 'KeepAll', **learner):
    """A model of drawn weights, as after training."""
    learner = dict(type='EALearner') | learner
    return tiny.randomised(
        tiny.model(selector=tiny.selector(selector), learner=learner), scale=0.1
    ).eval()


def grown_tokenizer(model, names=NEW):
    return TOKENIZER.build(tiny.tokenizer(vocab=extended(model.vocab, names)))


@torch.no_grad()
def product(model, products=tiny.PRODUCTS):
    data = tiny.batch(model, products)
    return model.encode_product(data['text'], data['entity_ids'])


@pytest.mark.parametrize('selector', SELECTORS)
@pytest.mark.parametrize('prior', ['uniform', 'frequency', 'learned'])
def test_other_products_stay_as_they_are_to_the_bit(selector, prior):
    model = trained(selector, prior=prior, num_learned=2)
    if selector == 'EffectCESelector':
        model.selector.weight[torch.tensor([2, 5])] = 0
    before = product(model)
    add_entities(model, grown_tokenizer(model))
    assert product(model).equal(before)
    ids = tiny.batch(model, [(8, 'a tee', dict(brand=['canada goose'], composition=['wool']))])
    assert ids['entity_ids'][0, :, 0].tolist() == [4, 3]
    rows = model.learner.table.rows(ids['entity_ids'])[0, :, 0]
    assert rows.tolist() == [4, 7]  # brands 1 to 4, then compositions 5 to 7
    with torch.no_grad():
        names = model.towers.text_trunk(torch.from_numpy(model.tokenizer.encode_names()))
    old = torch.tensor([1, 2, 3, 5, 6])
    (general,) = model.learner.general
    meant = ridge(names[old - 1], general[old], names[rows - 1])
    torch.testing.assert_close(general[rows], meant, rtol=1e-3, atol=1e-4)
    for table in model.learner.learned:
        torch.testing.assert_close(table[4], table[1:4].mean(0))
        torch.testing.assert_close(table[7], table[5:7].mean(0))


def ridge(x, y, new):
    """Of unit rows, with the strength whose error on each row, learnt from the others, is least."""
    x, y, new = (rows.double().numpy() for rows in (x, y, new))
    x, new = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, new))
    largest = np.linalg.svd(x - x.mean(0))[1][0] ** 2

    def fit(x, y, new, strength):
        inner = (x - x.mean(0)).T @ (x - x.mean(0)) + strength * np.eye(x.shape[1])
        weight = np.linalg.solve(inner, (x - x.mean(0)).T @ (y - y.mean(0)))
        return (new - x.mean(0)) @ weight + y.mean(0)

    def error(strength):
        rest = [np.arange(len(x)) != i for i in range(len(x))]
        found = [fit(x[r], y[r], x[~r], strength) for r in rest]
        return sum(np.square(f - y[~r]).sum() for f, r in zip(found, rest, strict=True))

    strengths = [share * largest for share in STRENGTHS]
    return torch.from_numpy(fit(x, y, new, min(strengths, key=error))).float()


@pytest.mark.parametrize('noise', [0.0, 0.3, 30.0])
def test_a_regression_is_as_strong_as_leaving_one_out_asks(noise):
    generator = torch.Generator().manual_seed(1)
    x, new = torch.randn(24, 5, generator=generator), torch.randn(3, 5, generator=generator)
    weight = torch.randn(5, 4, generator=generator)
    unit = torch.nn.functional.normalize
    y = unit(x) @ weight + 7 + noise * torch.randn(24, 4, generator=generator)
    found = regressed(x, y, new)
    torch.testing.assert_close(found, ridge(x, y, new), rtol=1e-4, atol=1e-4)
    if noise == 0:
        torch.testing.assert_close(found, unit(new) @ weight + 7, rtol=1e-3, atol=1e-3)
    assert regressed(x[:1], y[:1], new).equal(y[:1].expand(3, -1))
    same = regressed(x[:1].expand(9, -1), y[:9], new)
    torch.testing.assert_close(same, y[:9].mean(0).expand(3, -1))


def test_an_added_entity_speaks_and_trains():
    """Its product is no longer that of an unknown one, and its row gets a gradient."""
    model = trained()
    new = [(8, 'a tee', dict(brand=['Canada Goose']))]
    before = product(model, new)
    add_entities(model, grown_tokenizer(model))
    assert (product(model, new) - before).abs().max() > 1e-3
    losses = model(**tiny.batch(model, (*tiny.PRODUCTS, *new)), mode='loss')
    tiny.total(losses).backward()
    assert model.learner.learned.grad[0, 4].abs().max() > 0


def test_a_checkpoint_goes_with_the_new_vocabulary_alone():
    model = trained('GatedCESelector', prior='frequency')
    tokenizer = grown_tokenizer(model)
    add_entities(model, tokenizer)
    parts = dict(
        selector=dict(type='GatedCESelector'), learner=dict(type='EALearner', prior='frequency')
    )
    again = tiny.model(seed=1, tokenizer=tiny.tokenizer(vocab=tokenizer.vocab), **parts).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    products = (*tiny.PRODUCTS, (8, 'a tee', dict(brand=['Canada Goose'])))
    assert product(again, products).equal(product(model, products))
    with pytest.raises(ValueError, match='another entity vocabulary'):
        trained('GatedCESelector', prior='frequency').set_extra_state(model.get_extra_state())


def test_a_selector_keeps_new_entities_of_types_that_it_keeps():
    model = trained('EffectCESelector')
    model.selector.weight[:] = torch.tensor([1.0, 0, 1, 0, 0, 0])  # of brands one, no composition
    add_entities(model, grown_tokenizer(model))
    assert model.selector.weight.tolist() == [1, 0, 1, 0, 1, 0, 0, 0]


def test_photos_tell_learned_senses_as_those_of_their_type_teach():
    """Learned senses that are a linear map of photos are read off the photos of a new entity."""
    names = {f'shop {i}': f'shop {i}' for i in range(40)}
    vocab = EntityVocab(dict(brand=tuple(names), composition=('silk',)), dict(
        brand=(1,) * 40, composition=(1,)
    ))  # fmt: skip
    model = tiny.model(tokenizer=tiny.tokenizer(vocab=vocab), learner=dict(
        type='EALearner', num_learned=2
    )).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    photos = torch.randn(43, 32, generator=generator)  # 41 brands, 2 compositions
    photos = torch.nn.functional.normalize(photos, dim=1)
    maps = torch.randn(2, 32, 32, generator=generator)
    with torch.no_grad():
        model.learner.learned[:, 1:41] = photos[:40] @ maps
    photos[[3, 41]] = torch.nan  # without photos
    before = model.learner.learned.detach().clone()
    new = TOKENIZER.build(tiny.tokenizer(vocab=extended(vocab, NEW)))
    add_entities(model, new, photos)
    learned = model.learner.learned.detach()
    torch.testing.assert_close(learned[:, 41], photos[40] @ maps, rtol=0, atol=0.02)
    assert learned[:, [*range(41), 42]].equal(before)
    torch.testing.assert_close(learned[:, 43], before[:, 41])  # of one composition, as it is


def test_dropped_is_the_inverse_of_added():
    for selector in SELECTORS:
        model = trained(selector)
        tokenizer, state = model.tokenizer, {k: v.clone() for k, v in model.state_dict().items()}
        add_entities(model, grown_tokenizer(model))
        drop_entities(model, tokenizer)
        assert set(model.state_dict()) == set(state)
        assert all(v.equal(state[k]) for k, v in model.state_dict().items())
        expected = product(model)
        some = EntityVocab(dict(brand=("Levi's",), composition=('silk',)), dict(
            brand=(2,), composition=(10,)
        ))  # fmt: skip
        few = [
            p for p in tiny.PRODUCTS if p[2] in (dict(brand=["Levi's"]), dict(composition=['silk']))
        ]
        rows = [tiny.PRODUCTS.index(p) for p in few]
        drop_entities(model, TOKENIZER.build(tiny.tokenizer(vocab=some)))
        assert len(few) == 2
        with pytest.raises(ValueError, match=r"new names \[\('brand', 'Diesel'\)"):
            drop_entities(model, tokenizer)
        torch.testing.assert_close(product(model, few), expected[rows], rtol=0, atol=1e-6)


def test_what_cannot_be_added_is_refused():
    model = trained()
    other = EntityVocab(dict(brand=('Puma',), composition=('silk',)), model.vocab.counts | dict(
        brand=(1,), composition=(1,)
    ))  # fmt: skip
    for tokenizer, message in (
        (tiny.tokenizer(vocab=other), 'must hold all types and names of the old one'),
        (tiny.tokenizer(max_values=3), 'reads texts as'),
    ):
        with pytest.raises(ValueError, match=message):
            add_entities(model, TOKENIZER.build(tokenizer))
    with pytest.raises(ValueError, match='photos must be'):
        add_entities(model, grown_tokenizer(model), torch.zeros(1, 32))
    with pytest.raises(KeyError, match="types \\['colour'\\] are not in the vocabulary"):
        extended(model.vocab, dict(colour=['red']))
    with pytest.raises(ValueError, match='occur twice'):
        extended(model.vocab, dict(brand=['DIESEL']))
    tokens = tiny.model(tokenizer=tiny.tokenizer(mention='token'))
    vocab = extended(tokens.vocab, NEW)
    with pytest.raises(ValueError, match='entities are tokens'):
        add_entities(tokens, TOKENIZER.build(tiny.tokenizer(mention='token', vocab=vocab)))
    model.selector.register_buffer('own', torch.ones(6))
    with pytest.raises(TypeError, match="KeepAll has tables \\['own'\\]"):
        add_entities(model, grown_tokenizer(model))


def test_entities_taken_out_are_unknown():
    vocab = _new_brand.taken_out(tiny.VOCAB, 'brand', [2])
    assert vocab.names == dict(tiny.VOCAB.names, brand=('Diesel', "Levi's"))
    assert vocab.counts == dict(tiny.VOCAB.counts, brand=(30, 2))


# ------------------------------------------------------------------------------ the tool


@pytest.fixture(scope='module')
def case(tmp_path_factory):
    """A folder with a config and a checkpoint of drawn weights, on 24 test products."""
    folder = tmp_path_factory.mktemp('diagnose')
    DefaultScope.get_instance('diagnose', scope_name='eiclip_mm')
    config = Config.fromfile(write_config(EI, write_data(folder, 60, 24), folder))
    write_mini_fashiongen(folder / 'more', 4, 2, 60, progress=False)
    (folder / 'more' / FILES['general']).replace(folder / FILES['general'])
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[loader].num_workers = 0
    config.dump(folder / 'config.py')
    model = MODELS.build(config.model)
    tiny.randomised(model.learner, scale=0.1)
    torch.save(dict(state_dict=model.state_dict()), folder / 'model.pth')
    return folder


@pytest.fixture
def ask(case, tmp_path, capsys):
    """A function (what, options) -> what is written, and what is printed."""

    def ask(what, *options, checkpoint='model.pth'):
        paths = [case / 'config.py'] + [case / checkpoint] * (what != 'tokens')
        out = tmp_path / 'out.json'
        diagnose.main([what, *map(str, (*paths, '--out', out, *options))])
        return json.loads(out.read_text()), capsys.readouterr().out

    return ask


def test_tags_given_are_what_a_test_measures(ask, case, tmp_path):
    run_tool(
        'test', case / 'config.py', case / 'model.pth', '--out', tmp_path / 'dump.npz',
        '--work-dir', tmp_path / 'work',
    )  # fmt: skip
    expected = evaluate(Embeddings.load(tmp_path / 'dump.npz'), 'full/first-image')
    found, printed = ask('tags')
    for name, difference in found['measures'].items():
        assert difference['b'] == pytest.approx(expected[name], abs=1e-6)
    assert found['measures']['SumR']['a'] != found['measures']['SumR']['b']
    assert f'{expected["SumR"]:.2f}' in printed


def test_tail_covers_all_products_with_a_brand(ask):
    found, printed = ask('tail')
    assert sum(own['products'] for own in found['bins'].values()) == 24
    assert '24 products' in printed and '| never' in printed


def test_swap_asks_products_of_known_brands(ask):
    found, printed = ask('swap')
    assert 20 <= found['queries'] <= 24 and found['what'] == 'swap'
    means = {name: m['mean'] for name, m in found['means'].items()}
    assert means['rank'] == pytest.approx(means['rank_after'] - means['rank_before'])
    assert means['rank'] != 0
    assert all(m['low'] <= m['mean'] <= m['high'] for m in found['means'].values())
    assert 'Median rank of the own photo' in printed


def test_a_product_that_is_its_brand_alone_follows_the_swap(ask, case):
    """By construction a query is the mean photo of its brand: no query is nearer to its photos."""
    cfg = Config.fromfile(case / 'config.py')
    model = _diagnose.model_of(cfg, str(case / 'model.pth'))
    dataset = _diagnose.dataset_of(cfg)
    (image,) = _diagnose.embed_photos(cfg, [model], dataset)
    learner, vocab = model.learner, model.vocab
    brands = [data['entities']['brand'][0] for data in dataset.records()]
    with torch.no_grad():
        for tensor in (learner.general, *learner.parameters()):
            tensor.zero_()
        k = vocab.types.index('brand')
        own = slice(k * image.shape[1], (k + 1) * image.shape[1])
        learner.skip.weight[:, own] = torch.eye(image.shape[1])
        first = learner.table.first[k]
        for id_, name in enumerate(vocab.names['brand'], 1):
            if name in brands:
                rows = torch.tensor([brand == name for brand in brands])
                learner.learned[0, first + id_] = 1e6 * image[rows].mean(0)
    torch.save(dict(state_dict=model.state_dict()), case / 'brands.pth')
    found, _ = ask('swap', checkpoint='brands.pth')
    means = found['means']
    assert means['new']['low'] > 0 > means['old']['high']
    assert means['rank']['low'] > 0 and means['top_after']['low'] > means['top_before']['high']


def test_sense_before_is_that_of_the_pretrained_towers(ask, case):
    start = str(case / 'start.pth')
    options = ['--cfg-options', f'model.towers.pretrained={start}', '--truth', case / 'truth.json']
    model = MODELS.build(Config.fromfile(case / 'config.py').model)
    tiny.randomised(model.towers, scale=0.1)  # not the learner, which has nothing to say yet
    torch.save(dict(state_dict=model.state_dict()), start)
    found, printed = ask('sense', *options)
    assert set(found['means']) == {'products', 'everyday', 'everyday above products'}
    assert all(0 <= m['mean'] <= 1 for own in found['means'].values() for m in own.values())
    assert 'before: the towers as pretrained' in printed
    own = found['names']['Turtle']
    assert own['before'] != own['text'] != own['entity']
    same, _ = ask('sense', *options, checkpoint='start.pth')
    assert all(own['before'] == own['text'] for own in same['names'].values())
    assert same['names']['Turtle']['before'] == own['before']


def test_sense_has_no_before_of_drawn_heads(ask):
    found, printed = ask('sense')
    assert set(found['means']['products']) == {'text', 'entity'}
    assert all(set(own) == {'text', 'entity'} for own in found['names'].values())
    assert 'no "before", for the config has no model.towers.pretrained' in printed
    assert found['type'] == 'brand' and printed.startswith('sense, brand: ')


@pytest.mark.parametrize('options', [[], ['--from-images']])
def test_new_brand_compares_three_states(ask, options):
    found, printed = ask('new-brand', '--names', 'diesel', *options)
    assert found['names'] == ['Diesel']
    differences = {pair: own['SumR'] for pair, own in found['measures'].items()}
    assert list(differences) == ['added - unknown', 'trained - added', 'trained - unknown']
    one, two, both = differences.values()
    assert one['difference'] + two['difference'] == pytest.approx(both['difference'])
    assert one['b'] == two['a'] and two['b'] == both['b'] and one['a'] == both['a']
    assert ('photos of train' if options else 'names alone') in printed


def test_tokens_counts_subwords(ask):
    assert diagnose.subword_counts([[7], [8, 9], [9, 9, 3], [4]]) == dict(
        mean=1.75, most=3, one=0.5, shared=0.5
    )
    found, printed = ask('tokens')
    assert found['types']['season']['shared'] == 1 and '| brand' in printed
    assert printed.startswith('tokens: ') and 'type' not in found


@pytest.mark.parametrize('what', ['tokens', 'tags'])
def test_what_is_of_all_types_takes_none(ask, what, capsys):
    with pytest.raises(SystemExit, match='2'):
        ask(what, '--type', 'brand')
    assert 'unrecognized arguments: --type brand' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('what', 'options', 'message'),
    [
        ('swap', ['--type', 'colour'], "'colour' is not in the vocabulary"),
        ('new-brand', ['--names', 'Nobody'], 'not all are known'),
        ('new-brand', ['--share', '0'], 'takes out 0; choose another'),
        ('sense', ['--truth', 'nowhere.json'], 'nowhere.json'),
    ],
)
def test_refusals_are_one_sentence(ask, what, options, message):
    with pytest.raises(SystemExit) as end:
        ask(what, *options)
    assert message in end.value.code


@pytest.mark.parametrize(
    ('content', 'says'),
    [
        ('[' * 10**5, 'is not JSON of ours: '),
        ('5', "names no brands with their 'everyday'"),
        ('{"brands": 5}', 'names no brands'),
        ('{"brands": {}}', 'names no brands'),
        ('{"brands": {"Turtle": 5}}', 'names no brands'),
        ('{"brands": {"Turtle": {"everyday": 5}}}', 'names no brands'),
    ],
)
def test_what_is_no_truth_is_refused(ask, tmp_path, content, says):
    path = tmp_path / 'odd.json'
    path.write_text(content)
    with pytest.raises(SystemExit) as end:
        ask('sense', '--truth', path)
    assert end.value.code.startswith(f'{path} {says}')


def test_a_device_is_no_truth():
    kind, message = confined(_sense.read_truth, '/dev/zero', 'types', 'role', seconds=20)
    assert kind == 'FileNotFoundError' and '/dev/zero is not there, or no file' in message


# ------------------------------------------------------------------- brands never trained


def test_held_out_brands_are_in_no_file_of_train(tmp_path):
    brands = [f'Brand {i}' for i in range(20)]
    catalogue = tmp_path / 'shop'
    catalogue.mkdir()
    for split in ('train', 'val'):
        images = [dict(id=i, file_name=f'{split}{i}.png', product_id=i // 2) for i in range(80)]
        notes = [
            dict(id=i, image_id=2 * i, caption='a tee', entities=dict(brand=[brands[i % 20]]))
            for i in range(40)
        ]
        write_coco(catalogue / f'{split}.json', [*images], notes, photos=False)
    EntityVocab(dict(brand=tuple(brands)), dict(brand=(2,) * 20)).save(catalogue / 'entities.json')
    (tmp_path / 'config.py').write_text(
        f'root = {str(catalogue)!r}\n'
        "train_dataloader = dict(dataset=dict(type='CocoProducts', data_root=root, "
        "ann_file='train.json'))\n"
        "test_dataloader = dict(dataset=dict(type='CocoProducts', data_root=root, "
        "ann_file='val.json'))\n"
        "model = dict(tokenizer=dict(vocab=root + '/entities.json'))\n"
    )
    out, config = tmp_path / 'unseen', str(tmp_path / 'config.py')
    with pytest.raises(SystemExit, match=r'--out: .*shop is there and not empty'):
        hold_out_entities.main([config, '--share', '0.3', '--out', str(catalogue)])
    with pytest.raises(SystemExit, match=r'left for val_unseen\.json; choose another --share'):
        hold_out_entities.main([config, '--share', '1e-9', '--out', str(out)])
    assert not out.exists()
    hold_out_entities.main([config, '--share', '0.3', '--out', str(out)])
    found = {}
    for name in ('train', 'val_unseen'):
        records = list(CocoProducts(f'{name}.json', data_root=str(out), views='first').records())
        found[name] = {brand for r in records for brand in r['entities']['brand']}
        assert len(records) == 2 * len(found[name])
        split = name.partition('_')[0]
        paths = {Path(r['img_path']).resolve() for r in records}
        assert paths <= {catalogue / f'{split}{i}.png' for i in range(80)}
    assert found['train'].isdisjoint(found['val_unseen'])
    assert found['train'] | found['val_unseen'] == set(brands)
    assert 0 < len(found['val_unseen']) < 14
    vocab = EntityVocab.load(out / 'entities.json')
    assert set(vocab.names['brand']) == found['train']
