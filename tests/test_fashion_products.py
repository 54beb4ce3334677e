"""The converter of Fashion Product Images: brand rule, broken files, real data."""

import contextlib
import doctest
import io
import json
import re
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO

from eiclip_mm.structures import EntityVocab

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / 'tools/dataset_converters'))
import _brands  # noqa: E402
import _coco  # noqa: E402
import fashion_products as fp  # noqa: E402

KAGGLE = (
    'id,gender,masterCategory,subCategory,articleType,baseColour,season,year,usage,'
    'productDisplayName'
)
SHORT = 'id,masterCategory,subCategory,articleType,baseColour,usage,productDisplayName,split'
ROWS = [
    '1,Apparel,Topwear,Shirts,Blue,Casual,Turtle Men Check Blue Shirt,train',
    '2,Apparel,Topwear,Shirts,Red,Casual,"Turtle Men Red, Checked Shirt",train',
    '3,Apparel,Topwear,Shirts,Red,NA,Turtle Women Red Shirt, with Belt, Pack of 2,train',
    '4,Apparel,Topwear,Shirts,Blue,Casual,Turtle Blue Shirt,val',
    '5,Apparel,Topwear,Shirts,Blue,Casual,Levi&#039;s Men Shirt,val',
]


def real_data() -> Path:
    folder = Path(__file__).resolve().parents[2] / 'shared/data/fashion_products'
    if not (folder / 'styles.csv').is_file():
        pytest.skip('the fashion products data are not on this machine')
    return folder


def jpeg(size=(60, 80), mode='RGB') -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, 'JPEG')
    return buffer.getvalue()


def make_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, 'w') as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


@pytest.fixture
def case(tmp_path):
    """Write a CSV and photos 1 to 5, convert them, return (report, out folder)."""

    def run(rows=ROWS, header=SHORT, entries=None, bom='', split_column='split', **kwargs):
        styles = tmp_path / 'styles.csv'
        styles.write_text(bom + '\n'.join([header, *rows]) + '\n', encoding='utf-8')
        if entries is None:
            entries = {f'images/{i}.jpg': jpeg() for i in range(1, 6)}
        kwargs.setdefault('images', make_zip(tmp_path / 'images.zip', entries))
        kwargs.setdefault('out', tmp_path / 'out')
        kwargs.setdefault('min_count', 1)
        kwargs.setdefault('max_bad', 1)
        return fp.convert(styles, split_column=split_column, **kwargs), kwargs['out']

    return run


def read(out: Path, split: str) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(out / f'{split}.json'))


def product(coco: COCO, id_: int) -> dict:
    (annotation,) = coco.imgToAnns[id_]
    return annotation


# ------------------------------------------------------------------------------- brands


def test_doctests():
    result = doctest.testmod(_brands)
    assert result.attempted >= 4 and not result.failed


@pytest.mark.parametrize(
    ('title', 'brand'),
    [
        ("Mother Earth Women's Kurta", 'Mother Earth'),
        ('Disney Kids-Boys Blue Tshirt', 'Disney'),
        ('Mr. Men Men Green Tshirt', 'Mr. Men'),
        ('Versace for Women Perfume', 'Versace'),
        ('Marvel Spider-Man Tshirt', ''),
        ('Manchester United Shirt', ''),
        ('Women Blue Shirt', ''),
        ('One Two Three Four Five Men Shirt', ''),
        ('', ''),
    ],
)
def test_candidate(title, brand):
    assert ' '.join(_brands.brand_candidate(title)) == brand


def test_brands_of_makers_and_their_lines():
    brands = _brands.Brands(
        ['Lee Men Jeans'] * 6
        + ['Lee Cooper Men Shoes'] * 3  # more than a fifth: a brand of its own
        + ['Nike Men Shoes'] * 20
        + ['Nike Fragrances Men Deo'] * 4  # a fifth: a line
        + [f'Turtle {line} Men Shirt' for line in ('Check', 'Solid', 'Stripes') for _ in '1234']
        + ['Turtle Men Shirt'] * 3
    )
    assert sorted(brands.names.values()) == ['Lee', 'Lee Cooper', 'Nike', 'Turtle']
    assert brands.of('Lee Cooper Belt') == 'Lee Cooper'
    assert brands.of('Lee Coopers Belt') == 'Lee'
    assert brands.of('Leeds Belt') is None
    assert brands.of('NIKE Sahara Men Shoes') == 'Nike'
    assert brands.of('Turtle Check Women Shirt') == 'Turtle'


def test_brands_join_spellings_and_titles_without_audience():
    brands = _brands.Brands(
        ['Inc 5 Women Heels', 'Inc 5 Women Flats', 'INC.5 Women Flats']
        + ['Royal Diadem Gold Ring', 'Royal Diadem Red Ring', 'Royal diadem Bangle']
        + ['Blue Belt'] * 3
    )
    assert brands.of('Inc. 5 Black Flats') == 'Inc 5'
    assert brands.of('Royal Diadem Necklace') == 'Royal Diadem'
    assert brands.of('Blue Belt') is None  # what the titles share is all they say


# -------------------------------------------------------------------------- small files


def test_output(case):
    report, out = case()
    train, val = read(out, 'train'), read(out, 'val')
    assert sorted(train.imgs) == [1, 2, 3] and sorted(val.imgs) == [4, 5]
    assert train.imgs[1] == dict(id=1, product_id=1, file_name='images/1.jpg', width=60, height=80)
    assert (out / 'images/1.jpg').is_file()
    assert product(train, 2)['caption'] == 'Turtle Men Red, Checked Shirt'
    assert product(train, 3)['caption'] == 'Turtle Women Red Shirt, with Belt, Pack of 2'
    assert product(train, 3)['entities'] == dict(  # usage is NA
        brand=['Turtle'], article_type=['Shirts'], colour=['Red']
    )
    assert product(val, 4)['entities']['brand'] == ['Turtle']
    assert product(val, 5)['entities']['brand'] == ["Levi's"]  # unseen in train, still given
    vocab = EntityVocab.load(out / 'entities.json')
    assert vocab.types == ('brand', 'article_type', 'colour', 'usage')
    assert vocab.id('brand', 'turtle') == 1 and vocab.id('brand', "Levi's") == 0
    assert 'styles.csv, split train' in vocab.source
    assert train.dataset['info']['entity_types'] == list(vocab.types)
    assert train.dataset['info']['split'] == 'train'
    assert report['products'] == dict(train=3, val=2) and not report['skipped']
    assert json.loads((out / 'converter_report.json').read_text()) == report


def test_keywords(case):
    """Words of two train titles that are no brand, colour or kind of product."""
    _, out = case(keywords=2)
    vocab = EntityVocab.load(out / 'entities.json')
    assert vocab.types == ('brand', 'article_type', 'colour', 'usage', 'keyword')
    titles = [product(read(out, 'train'), i)['caption'].lower() for i in (1, 2, 3)]
    for word, count in zip(vocab.names['keyword'], vocab.counts['keyword'], strict=True):
        assert count == sum(word in re.findall(r'\w+', title) for title in titles) >= 2
    assert not {'turtle', 'red'} & set(vocab.names['keyword'])


def test_original_layout_with_bom_and_hash_split(case):
    rows = [
        f'{i},Men,Apparel,Topwear,Shirts,Blue,Summer,2012,Casual,Gas Men Shirt, {i}, new'
        for i in range(1, 6)
    ]
    _, out = case(rows, KAGGLE, bom='\ufeff', split_column=None, val_share=0.5)
    train, val = read(out, 'train'), read(out, 'val')
    assert set(train.imgs) | set(val.imgs) == {1, 2, 3, 4, 5}
    assert train.imgs and val.imgs
    for coco, split in ((train, 'train'), (val, 'val')):
        for id_ in coco.imgs:
            assert _coco.hash_split(id_, 0.5) == split
            assert product(coco, id_)['caption'] == f'Gas Men Shirt, {id_}, new'
            assert product(coco, id_)['entities'] == dict(
                brand=['Gas'],
                article_type=['Shirts'],
                colour=['Blue'],
                usage=['Casual'],
                gender=['Men'],
                season=['Summer'],
            )


def test_hash_split_share():
    share = sum(_coco.hash_split(i, 0.125) == 'val' for i in range(20_000)) / 20_000
    assert abs(share - 0.125) < 0.01


def test_chosen_types(case):
    _, out = case(types=['colour', 'subcategory'])
    assert product(read(out, 'train'), 1)['entities'] == dict(
        colour=['Blue'], subcategory=['Topwear']
    )


def test_rows_left_out_are_listed(case):
    rows = [
        *ROWS,
        'x6,Apparel,Topwear,Shirts,Blue,Casual,Turtle Men Shirt,train',
        '7,Apparel,Topwear,Shirts,Blue,Casual, ,train',
        '8,Apparel',
        '9,Apparel,Topwear,Shirts,Blue,Casual,Turtle Men Shirt,train',
        '10,Apparel,Topwear,Shirts,Blue,Casual,Turtle Men Shirt,train',
        '11,Apparel,Topwear,Shirts,Blue,Casual,Turtle Men Shirt,train',
    ]
    entries = {f'images/{i}.jpg': jpeg() for i in range(1, 6)}
    entries |= {'images/10.jpg': b'', 'images/11.jpg': b'not a photo'}
    report, _ = case(rows, entries=entries)
    assert report['rows'] == 11 and report['products'] == dict(train=3, val=2)
    lines = {reason: [x['line'] for x in what] for reason, what in report['skipped'].items()}
    assert lines == {
        'id is not an integer': [7],
        'empty title': [8],
        'too few fields': [9],
        'photo is missing or damaged': [10],
        'photo cannot be read': [11, 12],
    }
    said = _coco.summary(report, report['skipped'])
    assert 'photo cannot be read: 2, e.g. id 10, line 11, found ' in said


def test_odd_photos_are_kept(case):
    entries = {f'images/{i}.jpg': jpeg() for i in range(1, 6)}
    entries['images/1.jpg'] = jpeg((33, 7), 'L')
    entries['images/2.jpg'] = jpeg(mode='CMYK')
    _, out = case(entries=entries, verify_images=True)
    image = read(out, 'train').imgs[1]
    assert (image['width'], image['height']) == (33, 7) and 2 in read(out, 'train').imgs


def test_verify_images_finds_cut_photos(case):
    entries = {f'images/{i}.jpg': jpeg() for i in range(1, 6)}
    entries['images/1.jpg'] = jpeg((600, 800))[:-900]
    assert case(entries=entries)[0]['skipped'] == {}
    report, _ = case(entries=entries, verify_images=True)
    assert [x['id'] for x in report['skipped']['photo cannot be read']] == [1]


def test_zip_entries_cannot_climb_out(case, tmp_path):
    entries = {
        '../../2.jpg': b'evil',
        '/etc/3.jpg': b'evil',
        'a\\..\\..\\4.jpg': b'evil',
        'images/../../5.jpg': b'evil',
        'deep/er/images/1.jpg': jpeg(),
        'images/notes.txt': b'not asked for',
        'images/77.jpg': jpeg(),
    }
    report, _ = case(entries=entries)
    assert report['products'] == dict(train=1)
    assert len(report['archive_notes']) == 4 and 'unsafe' in report['archive_notes'][0]
    jpgs = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob('*') if p.is_file()]
    assert [p for p in jpgs if p.endswith(('.jpg', '.txt', '.part'))] == ['out/images/1.jpg']
    assert not (tmp_path.parent / '2.jpg').exists()


def test_damaged_zip_entry(case, tmp_path):
    case()
    archive = tmp_path / 'images.zip'
    data = bytearray(archive.read_bytes())
    data[data.index(jpeg()) + 100] ^= 0xFF  # photo 1 no longer fits its checksum
    (tmp_path / 'damaged.zip').write_bytes(data)
    report, out = case(images=tmp_path / 'damaged.zip', out=tmp_path / 'out2')
    assert [x['id'] for x in report['skipped']['photo is missing or damaged']] == [1]
    assert 'images/1.jpg: damaged' in report['archive_notes'][0]
    assert not list(out.rglob('*.part')) and not (out / 'images/1.jpg').exists()


def test_second_run_keeps_whole_photos_only(case, tmp_path):
    _, out = case()
    kept, cut = out / 'images/1.jpg', out / 'images/2.jpg'
    before = kept.stat().st_mtime_ns
    cut.write_bytes(b'cut')
    case()
    assert kept.stat().st_mtime_ns == before
    assert cut.read_bytes() == jpeg()


def test_folder_is_referred_to_not_copied(case, tmp_path):
    folder = tmp_path / 'photos' / 'images'
    folder.mkdir(parents=True)
    for i in range(1, 6):
        (folder / f'{i}.jpg').write_bytes(jpeg())
    for images in (folder, folder.parent):
        _, out = case(images=images, out=tmp_path / 'deep' / 'out')
        assert read(out, 'train').imgs[1]['file_name'] == '../../photos/images/1.jpg'
        assert not (out / 'images').exists()


def test_limit(case):
    assert case(limit=2)[0]['products'] == dict(train=2)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(rows=[*ROWS, ROWS[0]]), r'styles.csv, line 7: found id 1 again .*line 2.*expected'),
        (dict(header=SHORT.replace('baseColour', 'color')), r"line 1: found .*missing: \['baseCol"),
        (dict(header=SHORT.replace('usage', 'id')), r'line 1: found .*expected each once'),
        (dict(header='', rows=[]), r'line 1: found'),
        (dict(rows=[]), r'found no row with a readable photo among 0 rows'),
        (dict(split_column='fold'), r"missing: \['fold'\]"),
        (dict(types=['gender']), r"missing: \['gender'\]"),
        (dict(types=['price']), r"--types: found \['price'\], expected some of \['brand'"),
        (dict(val_share=1.0), r'--val-share: found 1.0'),
        (dict(images=Path('nowhere.zip')), r'nowhere.zip is neither a folder nor a zip'),
        (dict(entries={'a/12.jpg': b''}), r'images.zip: found no row .*such as 1.jpg.*: 5'),
        (dict(rows=ROWS[3:]), r"found the splits \['val'\], expected \"train\""),
        (
            dict(rows=[ROWS[0].replace(',train', ',../train')]),
            r"line 2: split: found '../train', expected a word",
        ),
        (
            dict(rows=['1,Apparel,Topwear,Shirts,Blue,Casual,"Turtle Men,train', *ROWS[1:]]),
            r'found a field that spans lines.*quotation mark',
        ),
    ],
)
def test_errors_say_file_row_found_expected(case, change, message):
    with pytest.raises(fp.InputError, match=message):
        case(**change)


def test_not_utf8(case, tmp_path):
    case()
    styles = tmp_path / 'styles.csv'
    styles.write_bytes(styles.read_bytes().replace(b'Levi', b'L\xe9vi'))
    with pytest.raises(fp.InputError, match='expected comma-separated UTF-8'):
        fp.convert(styles, tmp_path / 'images.zip', tmp_path / 'out')


def test_command_line(case, tmp_path, capsys):
    case()
    args = ['--images', str(tmp_path / 'images.zip'), '--out', str(tmp_path / 'out')]
    fp.main(
        [
            '--styles',
            str(tmp_path / 'styles.csv'),
            *args,
            '--split-column',
            'split',
            '--keywords',
            '1',
        ]
    )
    assert 'train: 3 products; brand 3, article_type 3' in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r'fashion_products.py: nowhere.csv does not exist'):
        fp.main(['--styles', 'nowhere.csv', *args])


# ---------------------------------------------------------------------------- real data


def test_real_rows(tmp_path):
    data = real_data()
    report = fp.convert(
        data / 'styles.csv', data / 'images.zip', tmp_path, split_column='split', limit=1500
    )
    assert sum(report['products'].values()) == report['rows'] == 1500 and not report['skipped']
    train = read(tmp_path, 'train')
    assert len(train.imgs) == report['products']['train'] > 1000
    for image in train.imgs.values():
        assert (tmp_path / image['file_name']).is_file() and image['width'] and image['height']
    assert set(EntityVocab.load(tmp_path / 'entities.json').types) == {
        'brand',
        'article_type',
        'colour',
        'usage',
    }


def test_real_brands():
    """Brands that are common words come out right; almost every title has one."""
    rows = [row for _, row in fp.read_rows(real_data() / 'styles.csv', ['id', fp.TITLE])]
    brands = _brands.Brands(row[fp.TITLE] for row in rows if row['split'] == 'train')
    names = set(brands.names.values())
    everyday = {
        'Turtle', 'Arrow', 'Police', 'Fossil', 'Gas', 'Mother Earth', 'Locomotive', 'Doodle',
    }  # fmt: skip
    assert everyday | {'Lee', 'Lee Cooper', 'Red Tape', 'Red Rose', 'W', 'Mr.Men'} <= names
    assert not {'Turtle Check', 'Nike Fragrances', 'Red', 'Men', 'Mother'} & names
    found = [brands.of(row[fp.TITLE]) for row in rows]
    assert found.count(None) < 0.001 * len(rows)
    for name in everyday:  # whatever begins with the word has the brand, and nothing else has
        for row, brand in zip(rows, found, strict=True):
            begins = f'{row[fp.TITLE]} '.casefold().startswith(f'{name} '.casefold())
            assert (brand == name) == begins, row


# --------------------------------------------------------------------------------- docs


def test_examples_of_the_format_page(tmp_path):
    text = (ROOT / 'docs/data_format.md').read_text(encoding='utf-8')
    catalogue, vocab = (block.split('```')[0] for block in text.split('```json\n')[1:])
    (tmp_path / 'train.json').write_text(catalogue, encoding='utf-8')
    entities = [a['entities'] for a in read(tmp_path, 'train').dataset['annotations']]
    vocab = json.loads(vocab)
    built = EntityVocab.build(entities, ['brand', 'colour'], source=vocab['source'])
    assert built.to_dict() == vocab
