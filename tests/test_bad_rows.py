"""A few bad rows: an error, or left out when the data are loaded, the same in every process."""

import importlib.util
import json
import logging
import multiprocessing
import sys
from pathlib import Path

import pytest
from bad_files import JPEG, damaged_h5
from catalogues import write_coco
from mmengine.config import Config
from mmengine.logging import MMLogger
from PIL import Image

from eiclip_mm.datasets import CocoProducts, FashionGen, bad_rows, photo_check
from eiclip_mm.datasets.bad_rows import BadRows
from eiclip_mm.engine import fingerprints

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / 'tools/dataset_converters'))
sys.path.append(str(ROOT / 'tools/misc'))
import _run_state  # noqa: E402
import build_entities  # noqa: E402
import pack_images  # noqa: E402

_spec = importlib.util.spec_from_file_location('verify', ROOT / 'tools/misc/verify_dataset.py')
verify = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(verify)

TOKENIZER = dict(
    type='EntityTokenizer',
    model=dict(text_cfg=dict(context_length=8)),
    vocab=None,
    fields=('description',),
)
COUNT = 20
# products: 3 has lost its only photo, 5 has one that is cut, 7 is of two photos of which one is
# missing and keeps the other, 9 has no caption, 11 a caption that is a number
LEFT_OUT = {3: 'does not exist', 5: 'is not an image', 9: 'no caption', 11: 'must be str'}


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Path:
    """``train.json`` of 20 products, 4 of which cannot be used, and 21 photos."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / 'shop'
    folder.mkdir()
    images = [dict(id=i, file_name=f'{i}.png', product_id=i) for i in range(COUNT)]
    images.append(dict(id=COUNT, file_name='more.png', product_id=7))
    texts = [dict(id=i, image_id=i, caption=f'product {i}') for i in range(COUNT) if i != 9]
    write_coco(folder / 'train.json', images, texts)
    texts[10]['caption'] = 11
    write_coco(folder / 'train.json', images, texts, photos=False)
    for name in ('3.png', '7.png'):
        (folder / name).unlink()
    (folder / '5.png').write_bytes(JPEG[:500])
    return folder


def load(folder: Path, **changes):
    settings = dict(views='first', on_error='skip', max_bad=0.5) | changes
    return CocoProducts('train.json', data_root=str(folder), **settings)


KEPT = [i for i in range(COUNT) if i not in LEFT_OUT]


@pytest.mark.parametrize('views', ['first', 'all', 'random'])
def test_what_is_left_is_whole(shop, views):
    pipeline = [dict(type='LoadProductImage')]
    dataset = load(shop, views=views, tokenizer=TOKENIZER, pipeline=pipeline)
    assert sorted(r['product_id'] for r in dataset.records()) == KEPT
    items = [dataset[i] for i in range(len(dataset))]  # every photo can be read
    assert [item['product_id'] for item in items] == KEPT
    assert [item['text_fields']['description'] for item in items] == [f'product {i}' for i in KEPT]
    assert len(dataset.encoded.text) == len(KEPT)
    own = [dataset.tokenizer(item['text_fields']).text for item in items]
    assert all((item['text'] == text).all() for item, text in zip(items, own, strict=True))


def test_all_that_was_left_out_is_listed(shop):
    skipped = load(shop).skipped
    by_row = {row['row']: row['why'] for row in skipped}
    row_of = {i: f'product {i}' for i in LEFT_OUT} | {11: 'annotations[10]'}
    assert {*row_of.values(), 'product 7'} == set(by_row)
    assert all(why in by_row[row_of[i]] for i, why in LEFT_OUT.items())
    assert "caption must be str, got '11'" in by_row['annotations[10]']
    assert all(set(row) == {'file', 'row', 'why'} for row in skipped)
    assert len(skipped) == 5 and json.loads(json.dumps(skipped)) == skipped


def test_the_card_counts_them(shop):
    card = load(shop).metainfo['retrieval']
    assert card['data']['rows_left_out'] == 5 and card['data']['products'] == len(KEPT)
    assert card['texts']['product_id'].tolist() == KEPT
    (shop / 'sound').mkdir()
    write_coco(shop / 'sound/train.json', [dict(id=1, file_name='a.png')],
               [dict(id=1, image_id=1, caption='x')])  # fmt: skip
    assert 'rows_left_out' not in load(shop / 'sound').metainfo['retrieval']['data']


def test_folds_are_of_what_is_left(shop):
    parts = [load(shop, fold=fold, select_share=0.4) for fold in ('fit', 'select')]
    ids = [[r['product_id'] for r in part.records()] for part in parts]
    assert sorted([*ids[0], *ids[1]]) == KEPT and all(ids)
    assert parts[0].skipped == parts[1].skipped == load(shop).skipped


def test_by_default_a_row_is_an_error(shop):
    with pytest.raises(ValueError, match=r"annotations\[10\].caption must be str.*on_error='skip'"):
        CocoProducts('train.json', data_root=str(shop))


@pytest.mark.parametrize(('max_bad', 'fails'), [(0.01, True), (0.2, True), (0.3, False)])
def test_too_many_are_an_error_all_the_same(shop, max_bad, fails):
    if not fails:
        assert len(load(shop, max_bad=max_bad)) == len(KEPT)
        return
    with pytest.raises(ValueError, match=rf'5 of 21 rows.*more than max_bad={max_bad:g}') as error:
        load(shop, max_bad=max_bad)
    assert 'train.json' in str(error.value) and '--list-bad' in str(error.value)


@pytest.mark.parametrize('photos', [20, 4])  # of four, each has five captions
@pytest.mark.parametrize('bad', ['caption', 'image'])
def test_one_fault_is_one_row(tmp_path, monkeypatch, photos, bad):
    monkeypatch.chdir(tmp_path)
    images = [dict(id=i, file_name=f'{i}.png') for i in range(photos)]
    texts = [dict(id=i, image_id=i % photos, caption=f'text {i}') for i in range(COUNT)]
    write_coco(tmp_path / 'train.json', images, texts)
    if bad == 'caption':
        texts[3]['caption'] = None
    else:
        images[3]['file_name'] = ''
    write_coco(tmp_path / 'train.json', images, texts, photos=False)
    rows = 16 if photos == 4 and bad == 'image' else COUNT
    dataset = load(tmp_path, max_bad=1 / rows)
    (row,) = dataset.skipped
    assert row['row'] == ('annotations[3]' if bad == 'caption' else 'images[3]')
    assert dataset.metainfo['retrieval']['data']['rows_left_out'] == 1
    with pytest.raises(ValueError, match=f'1 of {rows} rows'):
        load(tmp_path, max_bad=0.9 / rows)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(on_error='ignore'), r"on_error='ignore' is not known; choose one of \('raise'"),
        (dict(max_bad=1.5), r'max_bad must lie in \[0, 1\], got 1.5'),
        (dict(max_bad=float('nan')), r'max_bad must lie in'),
    ],
)
def test_settings(shop, changes, message):
    with pytest.raises(ValueError, match=message):
        load(shop, **changes)


def test_nothing_left(shop):
    for path in shop.glob('*.png'):
        path.unlink()
    with pytest.raises(ValueError, match=r'train\.json: no product is left'):
        load(shop, max_bad=1)


def test_said_once_with_the_first(shop, caplog, monkeypatch):
    monkeypatch.setattr(bad_rows, 'FIRST', 4)
    with caplog.at_level(logging.WARNING):
        logger = MMLogger.get_instance('bad-rows', logger_name='bad-rows')
        logger.addHandler(caplog.handler)
        load(shop)
    (record,) = caplog.records
    assert record.levelname == 'WARNING' and 'are left out' in record.message
    assert record.message.count('\n') == 5 and record.message.endswith('...')


def test_what_was_found_is_remembered(shop, monkeypatch):
    first = load(shop).skipped
    (memory,) = Path('work_dirs/photo_check').iterdir()
    assert len(json.loads(memory.read_text())) == 3
    monkeypatch.setattr(photo_check, 'decoded', None)  # would fail
    assert load(shop).skipped == first
    monkeypatch.undo()
    monkeypatch.chdir(shop.parent)
    Image.new('RGB', (8, 8)).save(shop / '3.png')  # another file: all are tried anew
    assert len(load(shop).skipped) == len(first) - 1
    memory.write_text('[' * 100_000)
    (shop / '3.png').unlink()
    assert load(shop).skipped == first


def test_what_cannot_be_remembered_is_done_again(shop):
    first = load(shop).skipped
    Path('work_dirs').rename('elsewhere')
    Path('work_dirs').write_text('a file')
    assert load(shop).skipped == first


def test_processes_agree(shop):
    with multiprocessing.get_context('fork').Pool(2) as pool:
        one, other = pool.map(_found, [shop] * 2, chunksize=1)
    assert one == other == _found(shop)


def _found(folder: Path) -> tuple:
    dataset = load(folder, tokenizer=TOKENIZER)
    return (
        dataset.skipped,
        [r['product_id'] for r in dataset.records()],
        dataset.encoded.text_id.tolist(),
    )


def test_packed_photos_need_no_file(shop, capsys):
    config = shop / 'config.py'
    config.write_text(
        f"dataset = dict(type='CocoProducts', data_root={str(shop)!r}, ann_file='train.json', "
        'max_bad=0.5)\ntrain_dataloader = dict(dataset=dataset)\n'
    )
    with pytest.raises(SystemExit, match=r'annotations\[10\].caption must be str'):
        pack_images.main([str(config)])
    pack_images.main([str(config), '--on-error', 'skip'])
    assert f'{len(KEPT)} photos, {len(KEPT)} of them new' in capsys.readouterr().out
    for path in shop.glob('*.png'):
        path.unlink()
    loading = dict(type='LoadProductImage', packed=str(shop / 'packed'))
    dataset = load(shop, pipeline=[loading])
    assert [dataset[i]['product_id'] for i in range(len(dataset))] == KEPT
    nested = dict(type='LoadImageFeature', pipeline=[loading])
    assert load(shop, pipeline=[nested]).skipped == dataset.skipped
    steps = [dict(type='ImgAug'), nested, loading, dict(type='PackProduct', packed=None)]
    assert photo_check.loading_steps(steps) == [nested, loading]


@pytest.fixture
def packed(shop) -> dict:
    """A data set whose photos are in a pack alone, as a config has it."""
    dataset = dict(
        type='CocoProducts', data_root=str(shop), ann_file='train.json', on_error='skip',
        max_bad=0.5, views='first', batched=True, tokenizer=TOKENIZER,
    )  # fmt: skip
    config = shop / 'config.py'
    config.write_text(f'train_dataloader = dict(dataset={dict(dataset, pipeline=[])})\n')
    pack_images.main([str(config)])
    for path in shop.glob('*.png'):
        path.unlink()
    load = dict(type='LoadProductImage', packed=str(shop / 'packed'))
    dataset['pipeline'] = [load, dict(type='PackProduct')]
    config.write_text(f'train_dataloader = dict(dataset={dataset})\n')
    return dataset


def test_the_state_of_packed_photos_is_that_of_the_run(shop, packed):
    dataset = load(shop, pipeline=packed['pipeline'])
    state = _run_state.state_now(Config.fromfile(shop / 'config.py'))
    assert state['photos'] == dict(train=fingerprints.photos_state(dataset, ()))
    assert state['photos']['train']['missing'] == len(KEPT)


def test_verify_reads_packed_photos_from_their_pack(shop, packed, capsys):
    with pytest.raises(SystemExit) as end:
        verify.main([str(shop / 'config.py')])
    printed = capsys.readouterr().out
    assert f'products                     {len(KEPT)}' in printed
    assert 'photos that cannot be read   0' in printed and not end.value.code


def test_names_of_packed_products_are_counted(shop, packed):
    vocab = build_entities.build(Config.fromfile(shop / 'config.py'), min_count=1)
    assert f'{len(KEPT)} products' in vocab.source


def test_verify_lists_them_all(shop, capsys):
    config = shop / 'config.py'
    config.write_text(
        f"test_dataloader = dict(dataset=dict(type='CocoProducts', data_root={str(shop)!r}, "
        "ann_file='train.json'))\n"
        'val_dataloader = test_dataloader\n'
    )

    def run(*options) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            verify.main([str(config), *options])
        return end.value.code, capsys.readouterr().out

    status, printed = run()
    assert status == 1 and 'CANNOT BE READ' in printed
    status, printed = run('--on-error', 'skip')
    assert status == 1 and 'more than max_bad=0.01' in printed
    out = shop / 'lists/bad.json'
    status, printed = run('--list-bad', str(out))
    assert 'rows left out                5' in printed and str(out) in printed
    rows = json.loads(out.read_text())
    assert [{k: v for k, v in row.items() if k != 'splits'} for row in rows] == load(shop).skipped
    assert status == 1 and all(row['splits'] == ['val', 'test'] for row in rows)
    (shop / 'file').touch()
    status, printed = run('--list-bad', str(shop / 'file/bad.json'))
    assert 'file/bad.json cannot be written' in status and not printed


def test_rows_of_hdf5(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = damaged_h5(tmp_path, 'input_description', 2)
    with pytest.raises(ValueError, match=r"row 2 of key 'input_description'.*on_error='skip'"):
        FashionGen(path, ('brand',))
    dataset = FashionGen(path, ('brand',), on_error='skip', max_bad=0.2, views='first')
    assert len(dataset) == 7 and dataset.metainfo['retrieval']['data']['rows_left_out'] == 1
    assert not Path('work_dirs').exists()  # pixels of HDF5 are not tried


def test_bad_rows_end_in_one_sentence():
    with pytest.raises(ValueError, match=r'^a: b\. Mend it, or leave such rows out with'):
        BadRows().add('f', 'r', 'a: b.')
    bad = BadRows('skip', 0)
    bad.check('f', 0)
    bad.add('f', 'r\0', 'why\n')
    assert bad.skipped == [dict(file='f', row='r\\x00', why='why\\n')]
    with pytest.raises(ValueError, match='1 of 5 rows'):
        bad.check('f', 5)
