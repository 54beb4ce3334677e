"""Exported models give what the checkpoint gives, and ids are read from plain data as here."""

import contextlib
import csv
import importlib
import io
import json
import shutil
import sys
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import shop
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from schemas import check_conforms

pytest.importorskip('onnxruntime', reason="needs pip install 'eiclip_mm[onnx]'")
pytest.importorskip('onnxscript', reason="needs pip install 'eiclip_mm[onnx]'")

import open_clip
from safetensors.torch import load_file

from eiclip_mm.apis import EICLIPInferencer, open_checkpoint
from eiclip_mm.apis.onnx import OnnxEncoder
from eiclip_mm.datasets import EntityTokenizer
from eiclip_mm.models import merge_lora
from eiclip_mm.models.checkpoints import from_hugging_face

TOOLS = Path(__file__).resolve().parents[1] / 'tools/deployment'
sys.path.append(str(TOOLS))
export_onnx, export_towers, read_texts = (
    importlib.import_module(name) for name in ('export_onnx', 'export_towers', 'read_texts')
)
ARCHITECTURE = dict(  # of one layer: tracing takes long
    tiny.ARCHITECTURE,
    vision_cfg=dict(tiny.ARCHITECTURE['vision_cfg'], layers=1),
    text_cfg=dict(tiny.ARCHITECTURE['text_cfg'], layers=1),
)
PRODUCTS = [
    dict(description=text, entities=tags)
    for text, tags in (
        ('red tee', dict(brand=['Diesel'], composition=['cotton', 'silk'])),
        ('Golden Goose sneakers of silk', {}),
        ('a scarf ' * 30, dict(brand=['Nobody'])),
        ('', dict(brand=["Levi's"])),
    )
]


@pytest.fixture(scope='module')
def photos():
    draw = np.random.default_rng(0)
    sizes = ((40, 60), (64, 33), (32, 32), (90, 45), (33, 34))
    return [draw.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A function (kind) -> its checkpoint, what export_onnx.py made of it, and what it printed.

    ======  =========================================================================
    clip    CLIP's own towers with LoRA, a token for each entity, a gate for each
    bert    a timm and a Hugging Face tower; checked on a shop, also in 8 bits
    plain   no entities, towers of open_clip's second kind
    ======  =========================================================================
    """

    @cache
    def export(kind):
        folder = tmp_path_factory.mktemp(kind)
        architecture = dict(ARCHITECTURE, custom_text=kind == 'plain')
        if kind == 'bert':
            timm = dict(timm_model_name='test_efficientnet', timm_pool='avg', timm_proj='mlp')
            architecture = tiny.bert_architecture(tmp_path_factory)
            architecture['vision_cfg'] = dict(timm, image_size=32)
        towers = dict(type='OpenCLIPTowers', model=architecture)
        tokenizer = tiny.tokenizer(model=architecture)
        changes = dict(towers=towers, tokenizer=tokenizer)
        if kind == 'clip':
            tokenizer |= dict(mention='token', fields=('{brand}:', 'description'))
            towers['lora'] = dict(rank=2)
            changes['selector'] = dict(type='GatedCESelector')
        name = 'OpenCLIP' if kind == 'plain' else 'EICLIP'
        checkpoint = shop.write_checkpoint(folder / 'best.pth', kind=name, **changes)
        options = ['--out', str(folder / 'onnx')]
        if kind == 'bert':
            table = str(shop.write_csv(folder / 'shop.csv', shop.rows()))
            shop.write_photos(folder)
            options += ['--check', table, '--number', '20', '--int8', table]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            export_onnx.main([str(checkpoint), *options])
        return checkpoint, folder / 'onnx', said.getvalue()

    return export


def far(a, b):
    return float(np.abs(a - b).max())


# ------------------------------------------------------------------------------ onnx


@pytest.mark.parametrize('kind', ['clip', 'bert', 'plain'])
def test_onnx_gives_what_the_checkpoint_gives(exported, photos, kind):
    checkpoint, folder, _ = exported(kind)
    ours, theirs = EICLIPInferencer(checkpoint), OnnxEncoder(folder)
    assert (theirs.name, theirs.dim) == ('best.pth', 32)
    assert theirs.sha256 == open_checkpoint(checkpoint).sha256
    for a, b in zip(photos, photos, strict=True):
        assert ours.sizing(a).equal(theirs.sizing(b))
    calls = [
        lambda e: e.encode_images(photos, output='numpy'),
        lambda e: e.encode_images(photos[:1], output='numpy'),
        lambda e: e.encode_products(PRODUCTS, output='numpy'),
        lambda e: e.encode_products(PRODUCTS[:1], output='numpy'),  # one row, few tokens
        lambda e: e.encode_products(PRODUCTS, output='numpy', entities=False),
        lambda e: e.encode_queries(['golden goose tee', 'x'], output='numpy'),
    ]
    for call in calls:
        assert far(call(ours), call(theirs)) < export_onnx.TOLERANCE
    assert far(calls[2](ours)[:1], calls[2](ours)[1:2]) > 1e-2  # products are told apart
    for a, b in zip(ours.explain(PRODUCTS), theirs.explain(PRODUCTS), strict=True):
        assert [(e.name, e.start) for e in a.entities] == [(e.name, e.start) for e in b.entities]
        assert [e.weight for e in a.entities] == pytest.approx([e.weight for e in b.entities])


def test_no_path_of_this_machine_is_left_in_the_graphs(exported):
    checkpoint, folder, _ = exported('clip')
    for path in folder.iterdir():
        for place in (str(TOOLS.parents[1]), str(checkpoint.parent), sys.prefix):
            assert place.encode() not in path.read_bytes(), path.name


def test_8_bits_are_smaller_and_near(exported):
    _, folder, said = exported('bert')
    assert 'image.onnx in 8 bits: static, calibrated on 24 photos' in said
    assert 'product.onnx in 8 bits: dynamic' in said
    rows = {
        line.split('|')[1].strip(): line.split('|')[2:8]
        for line in said.splitlines()
        if '|' in line
    }
    assert rows['torch'] == rows['onnx'] and '20 products' in said
    whole, small = OnnxEncoder(folder), OnnxEncoder(folder / 'int8')
    for name in ('image.onnx', 'product.onnx'):
        assert (folder / 'int8' / name).stat().st_size < (folder / name).stat().st_size
    a, b = (e.encode_products(PRODUCTS, output='numpy') for e in (whole, small))
    assert 0.9 < (a * b).sum(1).min() < 1 - 1e-6
    assert small.sha256 == whole.sha256 and small.name == 'best.pth (int8)'


def test_graphs_of_another_model_are_refused(exported, capsys):
    ours, theirs = EICLIPInferencer(exported('clip')[0]), OnnxEncoder(exported('plain')[1])
    with pytest.raises(SystemExit, match=r'not the model: entries differ by more than 0\.0001'):
        export_onnx.compare({'torch': ours, 'onnx': theirs}, None)
    assert 'largest difference' in capsys.readouterr().out


def test_folders_that_are_no_exported_model_are_refused(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match=r'model\.json does not exist'):
        OnnxEncoder(tmp_path)
    _, folder, _ = exported('clip')
    shutil.copytree(folder, tmp_path / 'a')
    check_conforms(folder / 'model.json', 'exported_model')
    about = json.loads((folder / 'model.json').read_text())
    for change, said in (
        (dict(format='other'), "expected 'eiclip_mm.onnx/1'"),
        (dict(text={}), 'damaged'),
        (dict(image=dict(sizing=[dict(type='os.system')])), 'which is not registered'),
    ):
        (tmp_path / 'a/model.json').write_text(json.dumps(about | change))
        with pytest.raises(ValueError, match=said):
            OnnxEncoder(tmp_path / 'a')
    (tmp_path / 'a/model.json').write_text(json.dumps(about))
    (tmp_path / 'a/image.onnx').write_bytes(b'no graph')
    with pytest.raises(ValueError, match='cannot be opened by onnxruntime'):
        OnnxEncoder(tmp_path / 'a')


def test_a_folder_in_use_is_refused(exported, capsys):
    checkpoint, folder, _ = exported('clip')
    for tool in (export_onnx, export_towers):
        with pytest.raises(SystemExit):
            tool.main([str(checkpoint), '--out', str(folder)])
        assert 'is not an empty folder' in capsys.readouterr().err


# ------------------------------------------------------------------------------ texts


NAMES = ('Diesel', 'golden GOOSE', 'Golden', 'Levi&#039;s', 'LEVI’S', 'cotton', 'silk', 'Nobody')
ODD = (
    'tee', 'don&amp;#39;t', 'café', 'CAFE\u0301', '™', '１２', 'ß', 'İ', 'Σ', '3/4', "it's", '<b>',
    'ï¬\x81', '“x”', '[SEP]', '<start_of_text>', '<end_of_text>', '\ud800', '\x07', '衣服', '👟',
    'ſ', '\u200b', '\u00a0', '!!<start_of_text>', 'a' * 120,
)  # fmt: skip
TEXTS = st.lists(st.one_of(st.sampled_from(NAMES + ODD), st.text(max_size=6)), max_size=12).flatmap(
    lambda words: st.sampled_from([' ', '', '-']).map(lambda between: between.join(words))
)
TAGS = st.none() | st.dictionaries(
    st.sampled_from(['brand', 'composition']), st.lists(st.sampled_from(NAMES), max_size=4)
)


@pytest.fixture(scope='module')
def readers(exported, tmp_path_factory):
    """For settings of the tokenizer, the reader and the tokenizer that it must equal."""

    @cache
    def make(kind, **changes):
        _, source, _ = exported(kind)
        folder = tmp_path_factory.mktemp('reader') / 'a'
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns('*.onnx'))
        about = json.loads((folder / 'model.json').read_text())
        architecture = dict(context_length=16)
        if kind == 'bert':
            architecture['hf_model_name'] = str(folder / 'tokenizer')
        settings = dict(fields=('description',), max_values=2, mention='keep') | changes
        about['text'] |= settings
        (folder / 'model.json').write_text(json.dumps(about))
        tokenizer = EntityTokenizer(dict(text_cfg=architecture), tiny.VOCAB, **settings)
        return read_texts.Reader(folder), tokenizer

    return make


SETTINGS = [
    dict(),
    dict(mention='cut', mention_types=('brand',)),
    dict(mention='token', text_types=('composition',)),
    dict(fields=('brand', 'by {brand}, {composition}.', 'description'), tags='given'),
    dict(tags='text', max_values=1, mention_types=()),
]


@pytest.mark.parametrize('kind', ['clip', 'bert'])
@pytest.mark.parametrize('change', SETTINGS, ids=lambda change: '-'.join(change) or 'default')
@settings(max_examples=60, deadline=None, derandomize=True)
@given(text=TEXTS, tags=TAGS)
def test_reader_equals_the_tokenizer(readers, kind, change, text, tags):
    reader, tokenizer = readers(kind, **change)
    encoded = tokenizer(dict(description=text), tags)
    token_ids, entity_ids = reader(dict(description=text), tags)
    assert token_ids == encoded.text.tolist()
    assert entity_ids == encoded.entity_ids.tolist()


def test_reader_needs_no_package_of_ours(exported):
    source = (exported('clip')[1] / 'read_texts.py').read_text(encoding='utf-8')
    assert source == (TOOLS / 'read_texts.py').read_text(encoding='utf-8')
    assert 'eiclip_mm' not in source and 'torch' not in source and 'open_clip' not in source


@pytest.mark.parametrize('kind', ['clip', 'bert'])
def test_reader_equals_the_tokenizer_on_real_texts(readers, shared_products, kind):
    reader, tokenizer = readers(kind)
    with (shared_products / 'styles.csv').open(encoding='utf-8', newline='') as file:
        texts = [row['productDisplayName'] for row in islice(csv.DictReader(file), 3000)]
    assert len(texts) == 3000
    encoded = tokenizer.encode_all((dict(description=text), None) for text in texts)
    for row, text in enumerate(texts):
        token_ids, entity_ids = reader(dict(description=text))
        assert token_ids == encoded.text[row].tolist()
        assert entity_ids == encoded.entity_ids[row].tolist()


# ------------------------------------------------------------------------------ towers


@pytest.mark.parametrize('kind', ['clip', 'bert', 'plain'])
def test_open_clip_opens_the_towers(exported, tmp_path, photos, kind):
    checkpoint, _, _ = exported(kind)
    folder = tmp_path / 'towers'
    export_towers.main([str(checkpoint), '--out', str(folder)])
    ours = EICLIPInferencer(checkpoint)
    towers = merge_lora(ours.model.towers)
    clip = open_clip.create_model(f'local-dir:{folder}').eval()
    clip.requires_grad_(False)  # torch takes another kernel for attention that trains
    pixels = torch.stack([ours.sizing(photo) for photo in photos])
    encoded = ours.read(PRODUCTS[:3])
    text = torch.from_numpy(encoded.text).long()
    assert text.max() > 49407 or kind != 'clip'  # tokens of entities
    with torch.no_grad():
        scaled = (pixels.float() / 255 - towers.mean) / towers.std
        assert towers.encode_image(pixels).equal(clip.encode_image(scaled))
        theirs = clip.encode_text(text)
        assert towers.clip.encode_text(text).equal(theirs)
        assert (towers.encode_text(text) - theirs).abs().max() < 1e-5  # padding may be cut here
    assert clip.visual.preprocess_cfg['mean'] == pytest.approx(towers.mean.flatten().tolist())
    said = (folder / 'README.md').read_text(encoding='utf-8')
    left = 'Left out: CE-Selector, EA-Learner and the 5 entities of brand, composition'
    assert (left in said) == (kind != 'plain')
    assert ('LoRA is merged' in said) == (kind == 'clip')
    tokens = open_clip.get_tokenizer(f'local-dir:{folder}')(['a red tee'])
    if kind != 'clip':
        assert tokens[0].tolist() == ours.tokenizer(dict(description='a red tee')).text.tolist()


def test_hugging_face_opens_the_towers(exported, tmp_path, photos):
    transformers = pytest.importorskip('transformers', reason="needs pip install 'eiclip_mm[hf]'")
    checkpoint, _, _ = exported('clip')
    folder = tmp_path / 'hf'
    export_towers.main([str(checkpoint), '--out', str(folder), '--format', 'hf'])
    ours = EICLIPInferencer(checkpoint)
    towers = merge_lora(ours.model.towers)
    clip = transformers.CLIPModel.from_pretrained(folder).eval()
    pixels = torch.stack([ours.sizing(photo) for photo in photos])
    text = torch.from_numpy(ours.read(PRODUCTS).text).long()
    with torch.no_grad():
        image = clip.get_image_features((pixels / 255 - towers.mean) / towers.std)
        torch.testing.assert_close(image, towers.encode_image(pixels), atol=1e-5, rtol=1e-5)
        words = clip.get_text_features(text)
        torch.testing.assert_close(words, towers.encode_text(text), atol=1e-5, rtol=1e-5)
    back = from_hugging_face(load_file(folder / 'model.safetensors'))
    state = towers.clip.state_dict()
    assert back.keys() == state.keys() and all(back[n].equal(state[n]) for n in state)


def test_other_towers_are_no_hugging_face_clip(exported, tmp_path):
    checkpoint, _, _ = exported('bert')
    with pytest.raises(SystemExit, match='these are a TimmModel and a HFTextEncoder'):
        export_towers.main([str(checkpoint), '--out', str(tmp_path / 'a'), '--format', 'hf'])
    assert not (tmp_path / 'a').exists()
