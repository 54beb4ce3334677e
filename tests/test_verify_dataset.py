"""The tool that checks a config's data: what it counts, what it finds broken."""

import importlib.util
import json
from pathlib import Path

import pytest
from catalogues import write_coco, write_fashiongen

from eiclip_mm.structures import EntityVocab

_spec = importlib.util.spec_from_file_location(
    'verify_dataset', Path(__file__).resolve().parents[1] / 'tools/misc/verify_dataset.py'
)
tool = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tool)

CONFIG = """
tokenizer = dict(
    type='EntityTokenizer',
    model=dict(text_cfg=dict(context_length=8)),
    vocab={vocab!r},
    fields=('description',),
)
train_dataloader = dict(dataset=dict(
    type='FashionGen', data_root={root!r}, ann_file='train.h5', views='random',
    entity_types=('brand', 'season'), tokenizer=tokenizer,
    pipeline=[dict(type='LoadProductImage')]))
val_dataloader = None
test_dataloader = dict(dataset=dict(
    type='CocoProducts', data_root={root!r}, ann_file='test.json', views='all'))
"""
ROWS = [
    dict(productID=5, brand='Gas', description='Tee with appliqu\xe9s.'),
    dict(productID=6, brand='Nobody', description='Tee'),
    dict(productID=5, brand='Gas', description='Tee with appliqu\xe9s.'),
    dict(productID=7, season='SS2014', description='Tee'),
    dict(productID=8, brand='GAS', description='one two three four five six seven eight'),
    dict(productID=8),
    dict(productID=9),
]


@pytest.fixture
def case(tmp_path, capsys):
    """A folder with data, its config, and a function (arguments) -> (status, what is printed)."""
    write_fashiongen(tmp_path / 'train.h5', ROWS)
    images = [dict(id=i, file_name=f'{i}.png') for i in range(1, 4)]
    write_coco(
        tmp_path / 'test.json', images, [dict(id=i, image_id=i, caption='x') for i in range(1, 4)]
    )
    vocab = tmp_path / 'entities.json'
    EntityVocab({'brand': ('Gas', 'Puma')}, {'brand': (2, 1)}).save(vocab)
    config = tmp_path / 'config.py'
    config.write_text(CONFIG.format(vocab=str(vocab), root=str(tmp_path)))

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            tool.main([str(config), *arguments])
        return end.value.code, capsys.readouterr().out

    return tmp_path, run


def counts(printed: str) -> dict[str, str]:
    """Label -> value of the lines of one split."""
    lines = [line for line in printed.splitlines() if '  ' in line]
    return {line.split('  ')[0]: line.split('  ', 1)[1].strip() for line in lines}


def test_what_is_counted(case):
    status, printed = case[1]('--split', 'train')
    assert not status and 'train: FashionGen train.h5, fold all' in printed
    found = counts(printed)
    assert found == {
        'products': '5',
        'views of a product': '1 to 2, 1.40 on average',
        'views': '7',
        'captions': '5',
        'products in scattered rows': '1',
        'brand': '2 names in 3 products; vocabulary of 2, unknown in 1 products',
        'season': '1 names in 1 products',
        'products without text': '1',
        'products of one text': '2, sharing 1 texts',
        'texts not in ASCII': '1',
        'texts over 8 tokens': '1, losing 2 sub-words',
        'photos all black': '1',  # row 0
        'photos that cannot be read': '0',
    }


def test_all_splits(case):
    status, printed = case[1]()
    assert not status
    train, test = printed.split('\n== ')[1:]
    assert train.startswith('train') and test.startswith('test: CocoProducts')
    assert counts(test)['products of one text'] == '3, sharing 1 texts'
    assert 'tokens' not in test  # without a tokenizer


def test_broken_photos(case):
    folder, run = case
    (folder / '2.png').write_bytes(b'no photo')
    (folder / '3.png').unlink()
    status, printed = run('--split', 'test')
    assert status == 1
    assert counts(printed)['photos that cannot be read'] == '2'
    assert f'{folder / "2.png"} is not an image' in printed
    assert f'{folder / "3.png"}' in printed
    status, printed = run('--split', 'test', '--no-images')
    assert not status and 'photos' not in printed


def test_only_the_first_are_listed(case):
    folder, run = case
    ids = range(1, 41)
    images = [dict(id=i, file_name=f'none{i}.png') for i in ids]
    annotations = [dict(id=i, image_id=i, caption='x') for i in ids]
    write_coco(folder / 'test.json', images, annotations, photos=False)
    status, printed = run('--split', 'test')
    assert status == 1 and counts(printed)['photos that cannot be read'] == '40'
    assert 'none10.png' in printed and 'none11.png' not in printed


def test_a_broken_split_does_not_hide_the_next(case):
    folder, run = case
    (folder / 'train.h5').write_bytes(b'')
    status, printed = run()
    assert status == 1
    assert 'CANNOT BE READ' in printed and 'train.h5 is not a readable HDF5 file' in printed
    assert '== test' in printed and 'photos all black             0' in printed


def test_without_vocabulary(case):
    folder, run = case
    (folder / 'entities.json').unlink()
    status, printed = run('--split', 'train')
    assert (
        not status and 'Write it with\npython tools/dataset_converters/build_entities.py' in printed
    )
    assert counts(printed)['brand'] == '2 names in 3 products'
    (folder / 'entities.json').write_text(json.dumps({}))
    status, printed = run('--split', 'train')
    assert status == 1 and 'is not an entity vocabulary' in printed


def test_no_such_split(case):
    status, _ = case[1]('--split', 'val')
    assert status.endswith('config.py has no dataloader for val.')
