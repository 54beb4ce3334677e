"""The linter of results: every rule fires where it should and is silent where it should be."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eiclip_mm.evaluation.candidates import Candidates
from eiclip_mm.evaluation.embeddings import Embeddings
from eiclip_mm.evaluation.lint import VALIDATION, lint
from eiclip_mm.evaluation.protocols import PROTOCOLS, get_protocol
from eiclip_mm.evaluation.retrieval import draw_candidates, retrieve

PRODUCTS, VIEWS = 60, 2
CARD = dict(
    data=dict(dataset='Shop', file='val.json', fold='all', views='all'),
    text=dict(vocab_source='training split data/shop/train.json: 50 products'),
    model=dict(chosen_on=dict(file='train.json', fold='select')),
)


def clean(products: int = PRODUCTS, views: int = VIEWS, **changes) -> Embeddings:
    """Embeddings of which nothing can be said: different texts, different photos, a whole card."""
    rng = torch.Generator().manual_seed(0)
    product = torch.nn.functional.normalize(torch.randn(products, 8, generator=rng), dim=1)
    ids = torch.arange(products) + 100
    arrays = dict(
        image=torch.randn(products * views, 8, generator=rng),
        image_product_id=ids.repeat_interleave(views),
        product=product,
        product_id=ids,
        product_text=torch.arange(products),
        labels=dict(subcategory=np.array(['tops', 'shoes'] * (products // 2))),
        card=CARD,
    )
    return Embeddings(**arrays | changes)


def card(**parts: dict) -> dict:
    """The clean card with some values changed; a value of None is left out."""
    merged = {name: part | parts.get(name, {}) for name, part in CARD.items()}
    return {n: {k: v for k, v in part.items() if v is not None} for n, part in merged.items()}


def only(findings: list[str]) -> str:
    assert len(findings) == 1, findings
    return findings[0]


@pytest.mark.parametrize('name', [*PROTOCOLS, None])
def test_nothing_to_say(name):
    embeddings = clean(views=1)
    if name is None:
        assert lint(embeddings) == []
        return
    changes = {}
    if get_protocol(name).candidates:  # 30 products of each sub-category
        few = replace(get_protocol(name).candidates, number=29)
        changes = dict(candidates=few, queries=PRODUCTS)
    assert lint(embeddings, retrieve(embeddings, get_protocol(name, **changes))) == []


def test_no_card():
    found = only(lint(clean(card={}, product_text=None)))
    assert 'they have no card' in found and found.endswith('or add what is missing.')
    for place in ('data.file', 'text.vocab_source', 'model.chosen_on', 'array product_text'):
        assert place in found


def test_a_card_with_a_gap():
    found = only(lint(clean(card=card(text=dict(vocab_source=None)))))
    assert 'no card' not in found and 'chosen_on' not in found
    assert 'which split the vocabulary is from (card text.vocab_source)' in found


def test_same_texts():
    text = torch.arange(PRODUCTS)
    text[[3, 4, 7, 9]] = torch.tensor([0, 0, 1, 1])  # products 0, 3, 4 and 1, 7, 9
    embeddings = clean(product_text=text)
    assert only(lint(embeddings)).startswith('6 of 60 texts (10.0 %) are identical to the text')
    protocol = get_protocol('full/product')
    assert '6 of 60' in only(lint(embeddings, retrieve(embeddings, protocol)))
    assert lint(embeddings, retrieve(embeddings, replace(protocol, same_text=True))) == []


def test_a_text_twice_at_one_product_is_no_finding():
    twice = clean(
        product=torch.randn(2 * PRODUCTS, 8, generator=torch.Generator().manual_seed(1)),
        product_id=torch.arange(PRODUCTS).repeat_interleave(2) + 100,
        product_text=torch.arange(PRODUCTS).repeat_interleave(2),
        labels={},
    )
    assert lint(twice) == []


@pytest.mark.parametrize('views, percent', [(2, '50.0'), (4, '25.0')])
def test_the_ceiling_is_what_a_perfect_model_reaches(views, percent):
    embeddings = clean(views=views)
    perfect = replace(embeddings, image=embeddings.product.repeat_interleave(views, 0))
    retrieval = retrieve(perfect, 'full/pair')
    assert f'{retrieval.metrics()["i2t/R@1"]:.1f}' == percent
    found = lint(clean(views=views), retrieval)
    assert f'a perfect model reaches at most {percent} % R@1' in only(found)
    assert lint(embeddings, retrieve(perfect, 'full/product')) == []


@pytest.mark.parametrize(
    'source, fires',
    [
        ('val.json', True),
        ('training split data/shop/val.json: 3 products', True),
        ('data/train.json and data\\val.json', True),
        ('data/shop/my_val.json', False),
        ('data/shop/val.jsonl', False),
        ('data/shop/train.json', False),
    ],
)
def test_vocabulary(source, fires):
    found = lint(clean(card=card(text=dict(vocab_source=source))))
    assert len(found) == fires
    assert not fires or 'built on the reported file' in found[0]


@pytest.mark.parametrize(
    'reported, chosen, fires',
    [
        ('all', dict(file='val.json', fold='all'), True),
        ('all', dict(file='data/shop/val.json', fold='select'), True),
        ('select', dict(file='val.json', fold='select'), True),
        ('select', dict(file='val.json'), True),
        ('fit', dict(file='val.json', fold='select'), False),
        ('all', dict(file='train.json', fold='all'), False),
        ('all', dict(file='train.json', reported=True), True),
        ('all', dict(file='train.json', reported=False), False),
    ],
)
def test_choice(reported, chosen, fires):
    parts = dict(data=dict(fold=reported), model=dict(chosen_on=chosen))
    found = lint(clean(card=card(**parts)))
    assert len(found) == fires
    assert not fires or 'chosen on the reported split (val.json)' in found[0]


@pytest.mark.parametrize(
    'data, wrong, right',
    [
        (dict(images=35528), '35,528 images', '32,528'),
        (dict(images=260480), '260,480 images', '260,490'),
        (dict(subcategories=121), '121 subcategories', '122'),
    ],
)
def test_misprints(data, wrong, right):
    found = only(lint(clean(card=card(data=data | dict(dataset='FashionGen')))))
    assert found.startswith(f'{wrong} is a misprint') and f'Fashion-Gen has {right}' in found
    assert lint(clean(card=card(data=data))) == []  # of another catalogue


def test_a_misprint_among_the_arrays():
    images = torch.randn(35528, 2, generator=torch.Generator().manual_seed(2))
    ids = torch.cat([torch.arange(PRODUCTS), torch.zeros(35528 - PRODUCTS, dtype=torch.int64)])
    embeddings = clean(image=images, image_product_id=ids + 100)
    embeddings = replace(embeddings, card=card(data=dict(dataset='FashionGen')))
    assert any('35,528 images is a misprint' in finding for finding in lint(embeddings))


@pytest.mark.parametrize(
    'products, views, kind, fires',
    [(7519, 1, 'first', False), (7519, 1, 'all', True), (7518, 1, 'first', True)],
)
def test_incomplete_file(products, views, kind, fires):
    labels = dict(labels={})
    data = dict(dataset='FashionGen', file=VALIDATION, views=kind)
    found = lint(clean(products, views, card=card(data=data), **labels))
    assert len(found) == fires
    assert not fires or 'the file is not complete' in found[0]
    if fires:  # a fold of it is not meant to be complete
        part = card(data=data | dict(fold='select'))
        assert lint(clean(products, views, card=part, **labels)) == []


def test_the_complete_file():
    count = torch.full((7519,), 4)
    count[: 32528 - 4 * 7519] += 1
    rng = torch.Generator().manual_seed(3)
    embeddings = clean(
        7519,
        labels={},
        image=torch.randn(32528, 8, generator=rng),
        image_product_id=(torch.arange(7519) + 100).repeat_interleave(count),
        card=card(data=dict(dataset='FashionGen', file=VALIDATION)),
    )
    assert lint(embeddings) == []


def test_fewer_queries():
    embeddings = clean()
    protocol = get_protocol('101/fashionbert', candidates=Candidates(number=29), queries=61)
    found = lint(embeddings, retrieve(embeddings, protocol))
    assert len(found) == 2
    for direction, finding in zip(('i2t', 't2i'), found, strict=True):
        assert f'asks 61 queries in {direction}, here are 60' in finding
    enough = replace(protocol, queries=60)
    assert lint(embeddings, retrieve(embeddings, enough)) == []


def test_short_lists():
    groups = ['alone', 'pair', 'pair', *['many'] * (PRODUCTS - 3)]
    embeddings = clean(labels=dict(subcategory=np.array(groups)))
    protocol = get_protocol('101/eiclip', candidates=Candidates(number=56))
    found = lint(embeddings, retrieve(embeddings, protocol))
    assert len(found) == 2
    for direction, finding in zip(('i2t', 't2i'), found, strict=True):
        assert finding.startswith(f'3 of 60 {direction} queries have fewer than 56 wrong')
        assert 'and 1 have none, so they always score 100 %' in finding
    filled = replace(protocol, candidates=Candidates(number=56, top_up='others'))
    assert lint(embeddings, retrieve(embeddings, filled)) == []


def test_candidates_of_the_same_text_are_not_wrong():
    groups = ['pair', 'pair', *['many'] * (PRODUCTS - 2)]
    text = torch.arange(PRODUCTS)
    text[1] = 0
    embeddings = clean(labels=dict(subcategory=np.array(groups)), product_text=text)
    protocol = get_protocol('101/eiclip', candidates=Candidates(number=1), same_text=True)
    found = lint(embeddings, retrieve(embeddings, protocol))
    assert len(found) == 2
    for finding in found:
        assert finding.startswith('2 of 60') and 'and 2 have none' in finding


def test_lists_of_a_manifest_are_checked_without_the_label():
    embeddings = clean()
    protocol = get_protocol('101/eiclip', candidates=Candidates(number=29))
    drawn = draw_candidates(embeddings, replace(protocol, seed=1)).manifest(embeddings, {})
    foreign = replace(embeddings, labels={})
    assert lint(foreign, retrieve(foreign, protocol, drawn)) == []
    more = replace(protocol, candidates=Candidates(number=40))
    assert '60 of 60 i2t queries have fewer than 40 wrong' in lint(
        foreign, retrieve(foreign, more, drawn)
    )[0]  # fmt: skip


def test_same_images():
    embeddings = clean()
    image = embeddings.image.clone()
    image[5] = image[4]  # views of one product
    assert lint(replace(embeddings, image=image)) == []
    image[9], image[20] = image[0], image[0]
    found = only(lint(replace(embeddings, image=image)))
    assert found.startswith('3 of 120 image embeddings are equal to one of another product')
    assert 'of products 100 and 104' in found


@pytest.mark.parametrize('side', ['image', 'product'])
def test_collapsed(side):
    embeddings = clean()
    rows = getattr(embeddings, side)
    near = torch.ones(8) + 0.01 * rows / rows.norm(dim=1, keepdim=True)
    found = only(lint(replace(embeddings, **{side: near})))
    assert found.startswith(f'The {side} embeddings are nearly all equal')
    unit = near.double() / near.double().norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)]
    assert f'{len(near)} of them: {cosines.mean():.4f}' in found
    apart = torch.ones(8) + rows / rows.norm(dim=1, keepdim=True)
    assert lint(replace(embeddings, **{side: apart})) == []


@pytest.mark.parametrize('side, product', [('image', 102), ('product', 105)])
def test_one_vector_far_longer_than_others(side, product):
    embeddings = clean()
    rows = torch.nn.functional.normalize(getattr(embeddings, side), dim=1)
    longer = rows.clone()
    longer[5] *= 900
    assert lint(replace(embeddings, **{side: longer})) == []
    longer[5] *= 20
    found = only(lint(replace(embeddings, **{side: longer})))
    assert found.startswith(
        f'The longest of the {side} embeddings, of product {product}, is 18,000 times as long'
    )


@pytest.mark.parametrize(
    'part, value, silent',
    [
        ('text', 1, False),
        ('data', ['val.json'], False),
        ('text', dict(vocab_source=['val.json']), True),
        ('data', dict(file=['val.json'], fold=['all'], near_duplicates=[3]), True),
        ('data', dict(file='val.json', near_duplicates=dict(images=7)), True),
        ('data', dict(file='val.json', near_duplicates=dict(images=[7], products=7)), True),
        ('model', dict(chosen_on=dict(file='train.json', fold=['select'])), True),
        ('model', dict(chosen_on='train.json'), True),
    ],
)
def test_what_a_foreign_card_has_in_another_form_is_unknown(part, value, silent):
    found = lint(clean(card=CARD | {part: value}))
    assert (found == []) == silent
    assert silent or 'do not say everything' in only(found)


def test_near_duplicates():
    found = dict(images=7, products=1005, distance=4)
    written = dict(found, of_images=4471, of_products=4471, test_file='val.json')
    of_card = clean(card=card(data=dict(near_duplicates=found | dict(of=4471))))
    sentence = only(lint(of_card))
    assert '7 images of 1,005 products, of 4,471, have a near-duplicate in train' in sentence
    assert lint(clean(), duplicates=written) == [sentence]
    assert lint(of_card, duplicates=dict(written, images=0)) == []
    other = only(lint(clean(), duplicates=dict(written, test_file='other.json')))
    assert 'those of other.json, but val.json is reported' in other
