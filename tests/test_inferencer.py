"""The inferencer beside tools/test.py, and everything that may be wrong with its input."""

import io
from pathlib import Path

import numpy as np
import pytest
import small
import tiny
import torch
from mmengine.config import Config
from PIL import Image
from test_tools import EI, write_config

from eiclip_mm.apis import EICLIPInferencer, open_checkpoint, read_photo
from eiclip_mm.apis.photos import PhotoSizing
from eiclip_mm.evaluation import Embeddings
from eiclip_mm.registry import DATASETS

CLIP = 'configs/baselines/clip_fashiongen_mini.py'


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    return small.write_data(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory) -> tuple[str, Path]:
    """Config and checkpoint of two epochs."""
    out = tmp_path_factory.mktemp('run')
    config = write_config(EI, data, out)
    small.run_tool('train', config, '--work-dir', out)
    return config, next(out.glob('best_*.pth'))


@pytest.fixture(scope='module')
def inferencer(trained) -> EICLIPInferencer:
    return EICLIPInferencer(trained[1], device='cpu', batch_size=5)


@pytest.fixture(scope='module')
def records(trained) -> list[dict]:
    dataset = Config.fromfile(trained[0]).test_dataloader.dataset
    changes = dict(views='first', pipeline=[dict(type='LoadProductImage')], batched=False)
    changes |= dict(_scope_='eiclip_mm', tokenizer=None)
    built = DATASETS.build(dict(dataset, **changes))
    return [built[i] for i in range(len(built))]


def product(record: dict) -> dict:
    return dict(record['text_fields'], entities=record['entities'])


def test_embeddings_are_those_of_the_test_tool(trained, inferencer, records, tmp_path):
    config, checkpoint = trained
    dump = tmp_path / 'dump.npz'
    small.run_tool('test', config, checkpoint, '--work-dir', tmp_path, '--out', dump)
    dump = Embeddings.load(dump)
    first = dump.image_view == 0
    image = dict(zip(dump.image_product_id[first].tolist(), dump.image[first], strict=True))
    text = dict(zip(dump.product_id.tolist(), dump.product, strict=True))
    ids = [r['product_id'] for r in records]
    assert len(ids) == 24
    images = inferencer.encode_images([r['img'] for r in records], progress=False)
    products = inferencer.encode_products([product(r) for r in records], progress=False)
    torch.testing.assert_close(images, torch.stack([image[i] for i in ids]), rtol=0, atol=1e-5)
    torch.testing.assert_close(products, torch.stack([text[i] for i in ids]), rtol=0, atol=1e-5)


def test_a_query_is_a_product_whose_entities_stand_in_its_text(trained):
    inferencer = EICLIPInferencer(trained[1], device='cpu')
    tiny.randomised(inferencer.model.learner.requires_grad_(True), 0.1)
    inferencer.model.selector.weight.uniform_(0.2, 1.0)
    brand = inferencer.tokenizer.vocab.names['brand'][0]
    query = f'a shirt of {brand.upper()}'
    (reading,) = inferencer.explain(query)
    (found,) = [e for e in reading.entities if e.type == 'brand']
    assert (found.name, reading.text[found.start : found.end]) == (brand, brand.upper())
    assert found.count == inferencer.tokenizer.vocab.counts['brand'][0]
    encoded = inferencer.tokenizer(dict(description=query))
    text, ids = (torch.from_numpy(x)[None] for x in (encoded.text, encoded.entity_ids))
    with torch.no_grad():
        expected = inferencer.model.encode_product(text, ids)
        weights = inferencer.model.selector(inferencer.model.towers.encode_text(text), ids)
        unknown = inferencer.model.encode_product(text, torch.zeros_like(ids))
    assert found.weight == weights[0, inferencer.tokenizer.vocab.types.index('brand'), 0]
    ours = inferencer.encode_queries([query, 'no entity at all'])
    torch.testing.assert_close(ours[:1], expected, rtol=0, atol=1e-6)
    without = inferencer.encode_queries(query, entities=False)
    torch.testing.assert_close(without, unknown, rtol=0, atol=1e-6)
    assert (without - expected).abs().max() > 1e-4


def test_weight_of_an_entity_that_was_left_out(trained):
    inferencer = EICLIPInferencer(trained[1], device='cpu')
    vocab = inferencer.tokenizer.vocab
    inferencer.model.selector.weight.zero_()
    name = vocab.names['brand'][1]
    (reading,) = inferencer.explain(dict(description='', entities=dict(brand=[name])))
    (found,) = reading.entities
    assert (found.name, found.weight) == (name, 0.0)


def test_one_by_one_and_in_batches_are_equal(inferencer, records):
    photos, products = [r['img'] for r in records], [product(r) for r in records]
    for encode, rows in (
        (inferencer.encode_images, photos),
        (inferencer.encode_products, products),
    ):
        whole = encode(rows, batch_size=100, progress=False)
        single = torch.cat([encode(row) for row in rows])
        torch.testing.assert_close(whole, single, rtol=0, atol=1e-5)
        assert isinstance(encode(rows[:2], output='numpy'), np.ndarray)
        torch.testing.assert_close(whole.norm(dim=1), torch.ones(len(rows)), rtol=0, atol=1e-5)


def test_a_photo_may_come_in_any_form(inferencer, records, tmp_path):
    pixels = records[0]['img']
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    path = tmp_path / 'photo.png'
    path.write_bytes(file.getvalue())
    forms = [pixels, Image.fromarray(pixels), path, str(path), file.getvalue()]
    rows = inferencer.encode_images(forms)
    assert rows.shape == (5, inferencer.dim)
    assert (rows == rows[0]).all()
    assert inferencer.encode_images(forms[4]).shape == (1, inferencer.dim)


def test_nothing_given_is_nothing_returned(inferencer):
    assert inferencer.encode_images([]).shape == (0, inferencer.dim)
    assert inferencer.encode_products([]).shape == (0, inferencer.dim)
    assert inferencer.explain([]) == []


def test_called_as_mmpretrain_inferencers_are(inferencer, records):
    photo, text = records[0]['img'], 'a cotton shirt'
    (row,) = inferencer(photo, kind='photo')
    np.testing.assert_array_equal(row['embedding'], inferencer.encode_images(photo)[0].numpy())
    rows = inferencer([text, text], kind='query', batch_size=1)
    assert [set(row) for row in rows] == [{'embedding', 'text', 'entities'}] * 2
    with pytest.raises(ValueError, match="kind='text' is not known"):
        inferencer(text, kind='text')


def test_what_is_no_product_is_refused(inferencer):
    with pytest.raises(ValueError, match=r"must have texts .'description',."):
        inferencer.encode_products(dict(title='a shirt'))
    with pytest.raises(TypeError, match='a text or a dict, got int'):
        inferencer.encode_products([3])
    with pytest.raises(TypeError, match='query must be a str, got dict'):
        inferencer.encode_queries([dict(description='a')])
    with pytest.raises(TypeError, match='must be a list'):
        inferencer.encode_products(dict(description='', entities=dict(brand='Diesel')))
    with pytest.raises(ValueError, match='output='):
        inferencer.encode_queries('a', output='jax')


@pytest.mark.parametrize('device', ['nope', 'cuda:99'])
def test_a_device_that_is_not_there_is_refused(trained, device):
    with pytest.raises(ValueError, match=rf'^device {device} takes no model here \(.+; try cpu\.$'):
        EICLIPInferencer(trained[1], device)


@pytest.mark.parametrize(
    ('photo', 'error', 'message'),
    [
        (np.zeros((4, 4, 3)), ValueError, 'uint8'),
        (np.zeros((4, 4, 7), np.uint8), ValueError, '3 channels'),
        (np.zeros((0, 4, 3), np.uint8), ValueError, r'\(0, 4, 3\)'),
        (b'no image', ValueError, '8 bytes is not an image'),
        ('/no/such/photo.jpg', FileNotFoundError, 'photo.jpg'),
        (3, TypeError, 'a path, bytes, PIL image or array, got int'),
    ],
)
def test_what_is_no_photo_is_refused(photo, error, message):
    with pytest.raises(error, match=message):
        read_photo(photo)


def test_photos_are_upright_opaque_and_rgb(tmp_path):
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned clockwise by 90 degrees
    path = tmp_path / 'turned.png'
    Image.fromarray(pixels).save(path, exif=exif)
    np.testing.assert_array_equal(read_photo(path), np.rot90(pixels, -1))
    clear = Image.fromarray(np.zeros((2, 2, 4), np.uint8))
    np.testing.assert_array_equal(read_photo(clear), np.full((2, 2, 3), 255, np.uint8))
    deep = Image.fromarray(np.full((2, 2), 257 * 127, np.uint16))
    np.testing.assert_array_equal(read_photo(deep), np.full((2, 2, 3), 127, np.uint8))
    grey = np.full((2, 2), 7, np.uint8)
    np.testing.assert_array_equal(read_photo(grey), np.full((2, 2, 3), 7, np.uint8))


def test_sizing_is_the_test_pipeline_less_reading_and_packing():
    inner = [
        dict(type='LoadProductImage'),
        dict(type='ResizeEdge', scale=8, edge='long', backend='pillow'),
        dict(type='Pad', size=(8, 8), pad_val=dict(img=255)),
    ]
    cached = [dict(type='LoadImageFeature', pipeline=inner), dict(type='PackProduct')]
    for pipeline in ([*inner, dict(type='PackProduct')], cached):
        sized = PhotoSizing(pipeline)(np.zeros((4, 2, 3), np.uint8))
        assert sized.shape == (3, 8, 8)
        assert (sized == 255).float().mean() == 0.5


def test_models_without_entities_and_with_lora(data, tmp_path):
    changes = {'model.towers.lora': dict(rank=2)}
    config = Config.fromfile(write_config(CLIP, data, tmp_path, **changes))
    assert 'vocab' in config.model.tokenizer
    path = tmp_path / 'clip.pth'
    model = write_checkpoint(config, path)
    inferencer = EICLIPInferencer(path, device='cpu')
    assert set(inferencer.model.state_dict()) == set(model.state_dict())
    rows = inferencer.encode_queries(['a shirt', 'a dress'])
    (reading, _) = inferencer.explain(['a shirt', 'a dress'])
    assert rows.shape == (2, model.towers.dim)
    assert all(entity.weight == 0 for entity in reading.entities)


def write_checkpoint(config: Config, path: Path, text: str | None = None):
    """As mmengine writes one."""
    from mmengine.registry import init_default_scope

    from eiclip_mm.registry import MODELS

    init_default_scope('eiclip_mm')
    model = MODELS.build(config.model)
    meta = dict(cfg=config.pretty_text if text is None else text)
    torch.save(dict(meta=meta, state_dict=model.state_dict()), path)
    return model


def with_type(type_, step='ResizeEdge', model='ViT-B-32') -> str:
    """A config as mmengine writes it."""
    parts = dict(towers=dict(model=model), tokenizer=dict(model=model))
    loader = dict(dataset=dict(pipeline=[dict(type=step)]))
    return f'model = {dict(parts, type=type_)!r}\ntest_dataloader = {loader!r}'


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ("import os\nos.system('true')", 'not plain data'),
        ("model = __import__('os').getcwd()\ntest_dataloader = dict()", 'not plain data'),
        ('model = dict(**{})', 'takes keywords alone'),
        ('model = ' + '[' * 5000 + ']' * 5000, 'not plain data'),
        ('model = dict(type="EICLIP")', 'holds no config'),
        ('', 'holds no config'),
        ('model = None\ntest_dataloader = None', 'holds no config'),
        ('model = ' + '-' * 20000 + '1', 'not plain data'),
        (with_type('os.system'), "names type 'os.system'"),
        (with_type('mmengine.load'), "names type 'mmengine.load'"),  # it unpickles
        (with_type('antigravity'), "names type 'antigravity'"),  # a module
        (with_type('ResizeEdge'), "names type 'ResizeEdge'"),  # of another registry
        (with_type(3), 'names type 3'),
        (with_type('OpenCLIP', step='mmengine.load'), "names type 'mmengine.load'"),
        (with_type('OpenCLIP', model='hf-hub:a/b'), 'fetched from a hub'),
        (with_type('OpenCLIP', model=dict(text_cfg=dict(hf_model_name='a/b'))), 'no folder here'),
    ],
)
def test_a_config_that_is_more_than_data_is_not_run(trained, tmp_path, text, message):
    loaded = torch.load(trained[1], weights_only=True)
    loaded['meta']['cfg'] = text
    path = tmp_path / 'odd.pth'
    torch.save(loaded, path)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(path)
    assert open_checkpoint(path, trained[0]).config.model.type == 'EICLIP'  # the reader's own


class Evil:
    def __reduce__(self):
        return print, ('run',)


def test_files_that_are_no_checkpoints(trained, tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match='does not exist'):
        open_checkpoint(tmp_path / 'none.pth')
    path = tmp_path / 'file.pth'
    path.write_bytes(b'text')
    with pytest.raises(ValueError, match='cannot be read safely'):
        open_checkpoint(path)
    torch.save(dict(state_dict={}, evil=Evil()), path)
    with pytest.raises(ValueError, match='cannot be read safely'):
        open_checkpoint(path)
    assert 'run' not in capsys.readouterr().out
    damaged = dict(_extra_state=torch.zeros(3, dtype=torch.uint8))
    states = (None, [1], dict(weight=torch.ones(1)), damaged)
    for other in ([1], *(dict(state_dict=state) for state in states)):
        torch.save(other, path)
        with pytest.raises(ValueError, match='no checkpoint of eiclip_mm'):
            open_checkpoint(path)
    loaded = torch.load(trained[1], weights_only=True)
    del loaded['state_dict']['learner.unknown']
    torch.save(loaded, path)
    with pytest.raises(ValueError, match=r'(?s)do not fit the config.*learner\.unknown'):
        EICLIPInferencer(path)


def test_the_scope_of_the_caller_does_not_matter(trained):
    from mmengine.registry import init_default_scope

    init_default_scope('mmpretrain')
    assert EICLIPInferencer(trained[1], device='cpu').dim > 0


def test_tokens_of_entities_and_fields_of_metadata(tmp_path):
    """``mention='token'`` and a text made of metadata, as rows of the table have it."""
    model = tiny.model(
        tokenizer=tiny.tokenizer(mention='token', fields=('{brand}:', 'description'))
    )
    assert model.tokenizer.text_fields == ('description',)
