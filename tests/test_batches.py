"""Whole batches hold what samples hold, one by one collated: the same values in every setting."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from catalogues import write_coco
from mmcv.transforms import BaseTransform
from mmengine.dataset import default_collate
from mmengine.runner import Runner
from PIL import Image
from test_datasets import states
from torch.utils.data import DataLoader

from eiclip_mm.datasets import CocoProducts, PackProduct, stack_products
from eiclip_mm.datasets.product_dataset import VIEWS
from eiclip_mm.structures import EntityVocab
from eiclip_mm.utils.digest import hash63

RNG = np.random.default_rng(0)
BRANDS = ('Diesel', 'Golden Goose', 'Gas')
TOKENIZER = dict(
    type='EntityTokenizer',
    model=dict(text_cfg=dict(context_length=30)),
    vocab=EntityVocab({'brand': BRANDS}, {'brand': (3, 2, 1)}),
    fields=('brand', 'description'),
    max_values=2,
)
IMAGES = [dict(id=i, file_name=f'{i}.png', product_id=i % 7) for i in range(17)]
ANNOTATIONS = [
    dict(id=n, image_id=image, caption='tee ' * words, entities={'brand': [BRANDS[n % 3]]})
    for n, (image, words) in enumerate(
        [(0, 1), (1, 3), (2, 4), (3, 12), (4, 2), (5, 40), (6, 1), (7, 20), (8, 5), (15, 6)]
    )
]
PIXELS = [
    dict(type='LoadProductImage'),
    dict(type='RandomResizedCrop', scale=16, crop_ratio_range=(0.2, 1.0)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='EntityDropout', prob=0.3),
    dict(type='PackProduct'),
]
FEATURES = [dict(type='LoadImageFeature', pipeline=[]), *PIXELS[3:]]


@pytest.fixture(scope='module')
def catalogue(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp('catalogue')
    for image in IMAGES:
        photo = RNG.integers(256, size=(20 + image['id'], 30, 3), dtype=np.uint8)
        Image.fromarray(photo).save(folder / image['file_name'])
    np.save(folder / 'features.npy', RNG.normal(size=(len(IMAGES), 5)).astype(np.float32))
    return write_coco(folder / 'train.json', IMAGES, ANNOTATIONS, photos=False)


def make(catalogue: str, pipeline=PIXELS, epoch: int = 2, **changes) -> CocoProducts:
    dataset = CocoProducts(catalogue, tokenizer=TOKENIZER, pipeline=pipeline, **changes)
    if pipeline is FEATURES:
        rows = {key: row for row, key in enumerate(dataset.images())}
        features = catalogue.replace('train.json', 'features.npy')
        dataset.pipeline.transforms[0].use(features, rows)
    dataset.set_epoch(epoch)
    return dataset


def batches(dataset: CocoProducts, num_workers: int = 0, collate=stack_products) -> list[dict]:
    context = 'fork' if num_workers else None
    loader = DataLoader(
        dataset, 3, num_workers=num_workers, collate_fn=collate, multiprocessing_context=context
    )
    return list(loader)


def assert_equal(found: dict, expected: dict) -> None:
    """The same values and dtypes; texts may be padded further."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        if key == 'text' and found[key].shape != value.shape:
            length = found[key].shape[1]
            assert length % 8 == 0 and not value[:, length:].any()
            assert value[:, length - 8 :].any()  # no shorter multiple would do
            value = value[:, :length]
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('pipeline', [PIXELS, FEATURES], ids=['pixels', 'features'])
@pytest.mark.parametrize('views', VIEWS)
def test_batches_are_those_of_samples(catalogue, views, pipeline, num_workers):
    samples = make(catalogue, pipeline, views=views)
    whole = make(catalogue, pipeline, views=views, batched=True)
    expected = batches(samples, collate=default_collate)
    found = batches(whole, num_workers)
    assert len(found) == len(expected) == -(-len(samples) // 3)
    for one, other in zip(found, expected, strict=True):
        assert type(one) is dict
        assert_equal(one, other)
        assert one['image'].is_shared() is (num_workers > 0)
        if pipeline is PIXELS:
            assert one['image'].is_contiguous(memory_format=torch.channels_last)
    assert len({one['text'].shape[1] for one in found}) > 1
    again = make(catalogue, pipeline, views=views, batched=True, epoch=3)
    assert not all(
        torch.equal(a['image'], b['image']) and torch.equal(a['entity_ids'], b['entity_ids'])
        for a, b in zip(batches(again), found, strict=True)
    )


def test_flips_are_seen(catalogue):
    flip = [dict(PIXELS[1], crop_ratio_range=(1.0, 1.0)), dict(type='RandomFlip', prob=1.0)]
    pipeline = [PIXELS[0], *flip, PIXELS[-1]]
    for one, other in zip(
        batches(make(catalogue, pipeline, batched=True, views='all')),
        batches(make(catalogue, pipeline, views='all'), collate=default_collate),
        strict=True,
    ):
        assert_equal(one, other)


def test_stack_products_takes_samples_too(catalogue):
    dataset = make(catalogue)
    assert dataset.__getitems__([1, 2])[1]['product_id'] == dataset[2]['product_id']
    for one, other in zip(batches(dataset), batches(dataset, 0, default_collate), strict=True):
        assert one['text'].shape[1] == 30
        assert_equal(one, other)


def test_encoded_once_as_one_by_one(catalogue):
    dataset = make(catalogue, views='random')
    rows = [(text, r['entities']) for r in dataset.records() for text in r['texts']]
    assert len(dataset.encoded.text) == len(rows) == len(ANNOTATIONS)
    for i, pair in enumerate(rows):
        one = dataset.tokenizer(*pair)
        np.testing.assert_array_equal(dataset.encoded.text[i], one.text)
        np.testing.assert_array_equal(dataset.encoded.entity_ids[i], one.entity_ids)
        assert dataset.encoded.text_id[i] == one.text_id
    for _ in range(20):
        sample = dataset._item(3)
        one = dataset.tokenizer(sample['text_fields'], sample['entities'])
        np.testing.assert_array_equal(sample['text'], one.text)
        assert sample['text_id'] == one.text_id
        assert sample['entities_id'] == hash63(one.entity_ids.tobytes())


def test_dropped_entities_leave_their_id(catalogue):
    resized = [dict(type='LoadProductImage'), dict(type='Resize', scale=(16, 16))]
    plain, dropped = (
        batches(make(catalogue, [*resized, dict(type='EntityDropout', prob=prob), PIXELS[-1]]))[0]
        for prob in (0.0, 1.0)
    )
    assert plain['entity_ids'].any() and not dropped['entity_ids'].any()
    assert plain['entities_id'].equal(dropped['entities_id'])
    known = {tuple(ids.flatten().tolist()) for ids in plain['entity_ids']}
    assert len(plain['entities_id'].unique()) == len(known) > 1


@pytest.mark.parametrize('batched', [False, True])
def test_features_of_a_frozen_text_trunk(catalogue, batched):
    dataset = make(catalogue, views='first', batched=batched)
    features = RNG.normal(size=(len(ANNOTATIONS), 7)).astype(np.float16)
    dataset.encoded = replace(dataset.encoded, text=features)
    text = torch.cat([batch['text'] for batch in batches(dataset)])
    assert text.dtype == torch.float32 and text.shape == (7, 7)
    rows = [dataset.get_data_info(i)['text_row'] for i in range(7)]
    assert len(set(rows)) == 7
    assert torch.equal(text, torch.from_numpy(features[rows]).float())


def test_only_as_many_as_asked(catalogue):
    batch = make(catalogue, batched=True, views='all').__getitems__([5])
    assert batch['image'].shape == (1, 3, 16, 16) and batch['sample_idx'].tolist() == [5]


def test_without_an_epoch_the_process_decides(catalogue):
    dataset = make(catalogue, batched=True, epoch=-1)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed), np.random.seed(seed)
        found.append(dataset.__getitems__([0, 1, 2])['image'])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_batches_leave_the_generators_alone(catalogue):
    dataset = make(catalogue, batched=True)
    before = states()
    dataset.__getitems__([0, 1, 2])
    assert states() == before


def test_the_runner_finds_the_collate_function(catalogue):
    config = dict(
        batch_size=3,
        num_workers=0,
        sampler=dict(type='ProductSampler', shuffle=False),
        collate_fn=dict(type='stack_products'),
        dataset=make(catalogue, batched=True),
    )
    batch = next(iter(Runner.build_dataloader(config)))
    assert batch['image'].shape == (3, 3, 16, 16)


# ------------------------------------------------------------------------------- bad input


def test_collating_a_batch_says_what_to_do(catalogue):
    with pytest.raises(KeyError, match=r"whole batch.*collate_fn=dict\(type='stack_products'\)"):
        batches(make(catalogue, batched=True), collate=default_collate)
    batch = make(catalogue, batched=True).__getitems__([0])
    with pytest.raises(KeyError, match=r'^.pixels.$'):
        batch['pixels']


def test_photos_of_one_batch_must_agree(catalogue):
    dataset = make(catalogue, [PIXELS[0], PIXELS[-1]], batched=True, views='first')
    assert dataset.__getitems__([0])['image'].shape == (1, 3, 20, 30)
    with pytest.raises(ValueError, match=r'product 1 has shape \(21, 30, 3\).*\(20, 30, 3\): let'):
        dataset.__getitems__([0, 1])


def test_batched_needs_pack_product(catalogue):
    with pytest.raises(ValueError, match=r'PackProduct as the last .* got RandomFlip'):
        make(catalogue, PIXELS[:3], batched=True)
    plain = make(catalogue, [], batched=True)  # tools that look at a data set drop the pipeline
    assert [row['sample_idx'] for row in plain.__getitems__([1, 2])] == [1, 2]


class Drop(BaseTransform):
    def transform(self, results: dict) -> None:
        return None


def test_left_out_samples(catalogue):
    dataset = make(catalogue, [Drop(), PackProduct()], batched=True)
    with pytest.raises(ValueError, match='left a sample out; set batched=False'):
        dataset.__getitems__([0])
