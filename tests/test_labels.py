"""Labels of the texts of a split, against loops and by hand."""

import numpy as np
import pytest
from catalogues import write_fashiongen
from tiny import ARCHITECTURE

from eiclip_mm.datasets import EntityTokenizer, FashionGen
from eiclip_mm.datasets.labels import text_card, text_table
from eiclip_mm.structures import EntityVocab

VOCAB = EntityVocab(
    names=dict(brand=('Levi\'s', 'Golden Goose', 'Arrow', 'Gas'), composition=('cotton', 'silk')),
    counts=dict(brand=(50, 30, 15, 5), composition=(9, 1)),
    source='made by hand',
)  # fmt: skip
RECORDS = [
    dict(
        product_id=7,
        texts=[dict(description='A golden goose tee'), dict(description='A tee')],
        entities=dict(brand=['Golden Goose'], composition=['cotton', 'silk']),
    ),
    dict(
        product_id=3,
        texts=[dict(description='  a TEE ')],
        entities=dict(brand=['LEVI&#039;S'], composition=['cotton']),
    ),
    dict(
        product_id=5,
        texts=[dict(description='Levi’s and Arrow')],
        entities=dict(brand=['Nobody'], composition=['cotton', 'hemp']),
    ),
    dict(product_id=9, texts=[dict(name='gas', description='x')], entities=dict(brand=['Gas'])),
]


@pytest.fixture(scope='module')
def tokenizer():
    return EntityTokenizer(model=ARCHITECTURE, vocab=VOCAB, fields=('description',))


def test_by_hand(tokenizer):
    table = text_table(RECORDS, tokenizer)
    assert table['product_id'].tolist() == [7, 7, 3, 5, 9]
    assert table['caption'].tolist() == [0, 1, 0, 0, 0]
    text = table['text']
    assert text.dtype == np.int64
    assert text.min() >= 0
    assert text[1] == text[2]
    assert len(set(text.tolist())) == 4
    found = {name: values.tolist() for name, values in table['labels'].items()}
    assert found == {
        'brand': ['Golden Goose', 'Golden Goose', 'LEVI&#039;S', 'Nobody', 'Gas'],
        'composition': ['cotton; silk', 'cotton; silk', 'cotton', 'cotton; hemp', ''],
        # Levi's alone holds half of the 100 occurrences
        'brand.frequency': ['tail', 'tail', 'head', 'unseen', 'tail'],
        'brand.seen': ['seen', 'seen', 'seen', 'unseen', 'seen'],
        # the product's own brand, not any brand
        'brand.mention': [
            'mentioned', 'not mentioned', 'not mentioned', 'not mentioned', 'mentioned',
        ],
        'composition.frequency': ['tail', 'tail', 'head', 'unseen', ''],
        'composition.seen': ['seen', 'seen', 'seen', 'unseen', ''],
        'composition.mention': ['not mentioned'] * 4 + [''],
    }  # fmt: skip


def test_head_is_half_of_the_occurrences():
    rng = np.random.default_rng(0)
    for _ in range(50):
        counts = sorted(rng.integers(1, 60, rng.integers(1, 30)).tolist(), reverse=True)
        names = tuple(f'b{i}' for i in range(len(counts)))
        tokenizer = EntityTokenizer(
            ARCHITECTURE,
            EntityVocab(dict(brand=names), dict(brand=tuple(counts))),
            ('description',),
        )
        records = [
            dict(product_id=i, texts=[dict(description='')], entities=dict(brand=[name]))
            for i, name in enumerate(names)
        ]
        label = text_table(records, tokenizer)['labels']['brand.frequency'].tolist()
        number = label.count('head')
        assert label == ['head'] * number + ['tail'] * (len(names) - number)
        assert sum(counts[:number]) >= sum(counts) / 2 > sum(counts[: number - 1])


def test_without_a_tokenizer_only_values_are_known():
    table = text_table(RECORDS)
    assert set(table['labels']) == {'brand', 'composition'}


def test_data_sets_tell_what_they_are(tmp_path, tokenizer):
    rows = [dict(productID=p, description=f'text {p}', brand='Arrow') for p in (4, 4, 2)]
    path = write_fashiongen(tmp_path / 'validation.h5', rows)
    config = dict(
        type='EntityTokenizer', model=ARCHITECTURE, vocab=VOCAB, fields=('description', 'brand')
    )
    dataset = FashionGen(path, entity_types=('brand',), views='all', tokenizer=config)
    known = dataset.metainfo['retrieval']
    assert known['data'] == dict(
        dataset='FashionGen', file='validation.h5', fold='all', views='all', images=3, products=2,
        texts=2,
    )  # fmt: skip
    assert known['texts']['product_id'].tolist() == [4, 2]
    assert known['text'] == text_card(dataset.tokenizer)
    assert known['text']['fields'] == ['description', 'brand']
    assert known['text']['vocab_source'] == 'made by hand'
    other = EntityVocab(dict(brand=('Arrow',)), dict(brand=(1,)))
    hashes = {
        text_card(EntityTokenizer(ARCHITECTURE, vocab, ('description',)))['vocab_sha256']
        for vocab in (VOCAB, other)
    }
    assert len(hashes) == 2
    # in every epoch another view: nothing to report, and checkpoints stay small
    assert 'retrieval' not in FashionGen(path, entity_types=('brand',)).metainfo
    slice_of = FashionGen(path, views='first', fold='select', select_share=0.99).metainfo
    assert slice_of['retrieval']['data']['fold'] == 'select'
    assert 'text' not in slice_of['retrieval']
