"""Published numbers, against the means and sums that the papers print beside them."""

import numpy as np
import pytest
import torch

from eiclip_mm.evaluation import Embeddings, evaluate, get_protocol
from eiclip_mm.evaluation.protocols import AS_PUBLISHED, PROTOCOLS
from eiclip_mm.evaluation.published import PUBLISHED, Published, published

MEANS = {  # as printed
    'FashionBERT': 41.89,
    'OSCAR': 41.92,
    'Kaleido-BERT': 53.25,
    'EI-CLIP': 65.02,
    'MVLT': 67.25,
    'FashionViL': 82.60,
    'FAME-ViL': 83.14,
    'UniFashion': 87.55,
}
POSTER_SUMS = [141, 273, 285, 296, 302]


def test_means_are_those_printed():
    means = {p.method: p.values()['meanR'] for p in PUBLISHED if 'full/' not in str(p.protocols)}
    assert means == pytest.approx(MEANS, abs=0.006)


def test_sums_are_those_of_the_poster():
    rows = published('full/first-image')
    assert [row.values()['SumR'] for row in rows] == pytest.approx(POSTER_SUMS, abs=0.51)
    assert all('no row labels' in row.note for row in rows)


def test_full_database_has_means_alone():
    values = [row.values() for row in published('full/product')]
    assert values == [{'meanR': 66.30}, {'meanR': 70.00}, {'meanR': 72.32}]


def test_recalls_grow_with_k_and_are_named_as_ours():
    rows = [row for row in PUBLISHED if row.i2t]
    assert len(rows) == 13
    for row in rows:
        values = row.values()
        assert (values['i2t/R@1'], values['i2t/R@5'], values['i2t/R@10']) == row.i2t
        assert (values['t2i/R@1'], values['t2i/R@5'], values['t2i/R@10']) == row.t2i
        assert list(row.i2t) == sorted(row.i2t) and list(row.t2i) == sorted(row.t2i)


def test_rows_stand_where_they_may():
    known = {*PROTOCOLS, *(f'{name} as published' for name in AS_PUBLISHED)}
    assert {name for row in PUBLISHED for name in row.protocols} <= known
    methods = {name: [row.method for row in published(name)] for name in known}
    assert methods['101/fashionbert'] == ['Kaleido-BERT']
    assert methods['101/fashionbert as published'] == ['FashionBERT', 'OSCAR']
    assert methods['101/eiclip'] == ['EI-CLIP']
    assert methods['101/kaleido'] == ['FashionViL', 'FAME-ViL']
    assert methods['101/kaleido as published'] == ['FashionViL', 'FAME-ViL']
    assert not any({'UniFashion', 'MVLT'} & {*rows} for rows in methods.values())
    assert published('full/pair') == []


def test_what_the_note_says_of_a_perfect_model():
    ids = torch.arange(1500)
    vectors = torch.nn.functional.normalize(torch.randn(1500, 32, generator=torch.manual_seed(0)))
    perfect = Embeddings(
        image=vectors,
        image_product_id=ids,
        product=vectors,
        product_id=ids,
        labels={'subcategory': np.full(1500, 'one')},
    )
    found = evaluate(perfect, get_protocol('101/fashionbert', as_published=True))
    recalls = [value for key, value in found.items() if '/R@' in key]
    assert recalls == pytest.approx([55.7] * 6, abs=1.5)  # three standard errors of 1,000 queries
    assert all('about 55.7 %' in row.note for row in published('101/fashionbert as published'))
    assert evaluate(perfect, '101/fashionbert')['SumR'] == 600


@pytest.mark.parametrize(
    'given', [{}, dict(i2t=(1, 2, 3)), dict(i2t=(1, 2, 3), t2i=(1, 2, 3), mean=2.0)]
)
def test_half_a_row_is_refused(given):
    with pytest.raises(ValueError, match='give both i2t and t2i, or the mean alone, got i2t='):
        Published('ours', (), 'nowhere', **given)
