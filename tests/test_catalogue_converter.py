"""The converter of a shop's table: what it reads, what it leaves out, what it writes."""

import doctest
import json
import os
import sys
from pathlib import Path

import pytest
import shop
from schemas import check_conforms

from eiclip_mm.apis import read_catalogue
from eiclip_mm.datasets import CocoProducts
from eiclip_mm.structures import EntityVocab

TOOLS = Path(__file__).resolve().parents[1] / 'tools/dataset_converters'
sys.path.append(str(TOOLS))
import _coco  # noqa: E402
import _table  # noqa: E402
import catalogue  # noqa: E402
import fashion_products  # noqa: E402

TYPES = ('brand', 'composition')
NO_BRANDS = ('N/A', 'na', 'NaN', '#N/A', '<NA>', 'NULL | none', 'n/a|Diesel|Diesel')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    return shop.write_photos(tmp_path_factory.mktemp('photos'))


@pytest.fixture
def run(tmp_path, photos):
    """Convert rows; returns (report, folder)."""

    def converted(rows=None, table='shop.csv', **changes):
        path = tmp_path / table
        if not path.is_file():
            shop.write_csv(path, shop.rows() if rows is None else rows)
        out = tmp_path / 'out'
        settings = dict(entities=TYPES, images=photos, val_share=0.3, keywords=2, max_bad=1)
        settings |= changes
        return catalogue.convert(path, out, **settings), out

    return converted


def products(out: Path, split: str) -> dict[str, dict]:
    """The records of a split by the id in the table, as training reads them."""
    check_conforms(out / f'{split}.json', 'catalogue')
    images = json.loads((out / f'{split}.json').read_text(encoding='utf-8'))['images']
    names = {image['product_id']: image['source_id'] for image in images}
    data = CocoProducts(f'{split}.json', data_root=str(out))
    return {names[record['product_id']]: record for record in data.records()}


def both(out: Path) -> dict[str, dict]:
    return products(out, 'train') | products(out, 'val')


def test_doctests():
    result = doctest.testmod(_table)
    assert result.attempted and not result.failed


def test_every_product_is_in_one_split_as_the_table_says(run, photos):
    report, out = run()
    train, val = products(out, 'train'), products(out, 'val')
    assert report['products'] == dict(train=len(train), val=len(val))
    assert not set(train) & set(val)
    assert set(train) | set(val) == {row['id'] for row in shop.rows()}
    assert len({r['product_id'] for r in (train | val).values()}) == 24
    for row in shop.rows():
        record = (train | val)[row['id']]
        (image,), (text,) = record['images'], record['texts']
        assert Path(image['img_path']).resolve() == (photos / row['image']).resolve()
        assert text == dict(description=row['description'])
        expected = {type_: row[type_].split('|') for type_ in TYPES if row[type_]}
        assert record['entities'] == expected


def test_entities_are_those_that_an_index_of_the_table_reads(run, photos, tmp_path):
    """Training and search must see one product alike."""
    rows = shop.rows()
    for row, brand in zip(rows, NO_BRANDS, strict=False):
        row['brand'] = brand
    _, out = run(rows)
    found = both(out)
    assert found['p0']['entities'] == {} and found['p6']['entities'] == dict(brand=['Diesel'])
    for item in read_catalogue(tmp_path / 'shop.csv', entity_types=TYPES, images=photos):
        record = found[item.id]
        assert record['entities'] == item.entities
        assert record['texts'] == [item.text_fields]
        assert Path(record['images'][0]['img_path']).resolve() == Path(item.photo).resolve()


def test_vocabulary_is_of_train_alone(run):
    report, out = run(min_count=1)
    vocab = EntityVocab.load(out / 'entities.json')
    train = products(out, 'train').values()
    assert vocab.types == (*TYPES, 'keyword')
    for type_ in TYPES:
        for name, count in zip(vocab.names[type_], vocab.counts[type_], strict=True):
            assert count == sum(name in r['entities'].get(type_, ()) for r in train)
        assert set(vocab.names[type_]) == {n for r in train for n in r['entities'].get(type_, ())}
    assert {'tee', 'number'} <= set(vocab.names['keyword'])
    assert report['vocabulary'] == {t: vocab.size(t) - 1 for t in vocab.types}
    assert EntityVocab.load(run(keywords=0)[1] / 'entities.json').types == TYPES


def test_the_split_hangs_on_the_id_alone(run, tmp_path):
    _, out = run()
    before = {split: set(products(out, split)) for split in catalogue.SPLITS}
    (tmp_path / 'shop.csv').unlink()
    rows = [dict(row, description='another tee', price='1') for row in shop.rows()[::-1]]
    run(rows[:15])
    for split in catalogue.SPLITS:
        assert set(products(out, split)) == before[split] & {row['id'] for row in rows[:15]}


def test_share_of_val(run):
    shares = [
        run(val_share=share, min_count=1, keywords=0)[0]['products']['val'] / 24
        for share in (0.1, 0.9)
    ]
    assert shares[0] < 0.35 < 0.65 < shares[1]


@pytest.mark.parametrize('separator', [',', ';', '\t'])
@pytest.mark.parametrize('mark', ['', '\ufeff'])
def test_csv_of_spreadsheets(run, tmp_path, separator, mark):
    rows = [dict(row, description=f'Jupe d’été № {i}') for i, row in enumerate(shop.rows())]
    lines = [separator.join(rows[0])] + [separator.join(row.values()) for row in rows]
    (tmp_path / 'shop.csv').write_text(mark + '\r\n'.join(lines), encoding='utf-8')
    found = both(run()[1])
    assert [found[row['id']]['texts'][0]['description'] for row in rows] == [
        row['description'] for row in rows
    ]


def test_parquet_is_read_as_csv(run, tmp_path):
    pa = pytest.importorskip('pyarrow', reason="needs pip install 'eiclip_mm[search]'")
    from pyarrow import parquet

    csv_report, out = run()
    from_csv = both(out)
    rows = [dict(r, composition=r['composition'].split('|')) for r in shop.rows()]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / 'shop.parquet')
    report, out = run(table='shop.parquet')
    assert both(out) == from_csv
    assert report | dict(table='') == csv_report | dict(table='')


def test_other_names_of_columns(run):
    names = dict(id='sku', description='title', image='photos')
    rows = [{names.get(k, k + '_'): v for k, v in row.items()} for row in shop.rows()]
    report, out = run(rows, id='sku', text='title', photo='photos', entities=['brand_'])
    assert sum(report['products'].values()) == 24
    assert both(out)['p3']['texts'] == [dict(description='grey tee number 3')]
    assert both(out)['p3']['entities'] == dict(brand_=['Diesel'])


def test_several_photos_are_views_of_one_product(run):
    rows = [dict(row, image=f'{i}.png| {(i + 1) % 24}.png') for i, row in enumerate(shop.rows())]
    report, out = run(rows)
    assert sum(report['photos'].values()) == 48 and sum(report['products'].values()) == 24
    views = [Path(image['img_path']).name for image in both(out)['p23']['images']]
    assert views == ['23.png', '0.png']


def test_integer_ids_stay_what_they_are(run):
    rows = [dict(row, id=str(1000 + i)) for i, row in enumerate(shop.rows())]
    assert {id_: r['product_id'] for id_, r in both(run(rows)[1]).items()} == {
        str(1000 + i): 1000 + i for i in range(24)
    }


def test_names_that_say_nothing_are_none(run):
    rows = [dict(row, brand='N/A' if i < 8 else row['brand']) for i, row in enumerate(shop.rows())]
    found = both(run(rows)[1])
    assert all('brand' not in found[f'p{i}']['entities'] for i in range(8))


def test_a_photo_that_is_named_twice_is_one_view(run):
    rows = [dict(row, image=f'{row["image"]}|./x/../{row["image"]}') for row in shop.rows()]
    assert sum(run(rows)[0]['photos'].values()) == 24


def test_behind_a_link_the_photos_are_found(tmp_path, photos, monkeypatch):
    """Names in the files are relative, and ``..`` of a link is not where it stands."""
    (tmp_path / 'disk/far').mkdir(parents=True)
    (tmp_path / 'data').symlink_to('disk/far')
    (tmp_path / 'linked').symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    shop.write_csv(tmp_path / 'shop.csv', shop.rows())
    settings = dict(entities=TYPES, val_share=0.3, keywords=2)
    catalogue.convert('shop.csv', 'data/shop', images='linked', **settings)
    found = both(Path('data/shop'))
    for row in shop.rows():
        (image,) = found[row['id']]['images']
        assert os.path.samefile(image['img_path'], photos / row['image'])
    for split in catalogue.SPLITS:
        for item in read_catalogue(f'data/shop/{split}.json'):
            assert Path(item.photo).is_absolute() and Path(item.photo).is_file()


def test_a_photo_may_be_a_link(run, tmp_path, photos):
    """Its name stays: an index tells by it whether a photo is another."""
    (tmp_path / 'links').mkdir()
    for row in shop.rows():
        (tmp_path / 'links' / row['image']).symlink_to(photos / '0.png')  # outside of --images
    found = both(run(images=tmp_path / 'links')[1])
    for row in shop.rows():
        assert Path(found[row['id']]['images'][0]['img_path']).name == row['image']


def test_a_photo_of_a_zip_s_converter_is_found_behind_a_link(tmp_path, photos):
    (tmp_path / 'disk/far').mkdir(parents=True)
    (tmp_path / 'data').symlink_to('disk/far')
    out = tmp_path / 'data/shop'
    out.mkdir()
    products = [dict(id=1, line=2)]
    (product,) = fashion_products.add_images(products, {1: photos / '1.png'}, out, False, None)
    assert os.path.samefile(out / product['file_name'], photos / '1.png')


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('x' * 300 + '.jpg', 'photo is missing'),
        ('../photo.png', 'photo lies outside of --images'),
        ('down/../../photo.png', 'photo lies outside of --images'),
        ('{photo}', 'photo lies outside of --images'),
    ],
)
def test_photos_that_cannot_be_named_so(run, tmp_path, photos, name, reason):
    images = shop.write_photos(tmp_path / 'shop')
    (images / 'down').mkdir()
    photo = tmp_path / 'photo.png'
    photo.write_bytes((photos / '0.png').read_bytes())  # it could be read
    rows = shop.rows()
    rows[7]['image'] += '|' + name.format(photo=photo)
    report, _ = run(rows, images=images, on_error='skip')
    ((found, (what,)),) = report['left_out'].items()
    assert (found, what['id']) == (reason, 'p7')
    shown = _coco.listed(report['left_out'])
    assert len(shown) < 200 and f'{reason}: 1, e.g. line 9, id p7, photo ' in shown


def broken(photos: Path) -> list[dict]:
    """24 rows, of which p0 to p4 cannot be used and p5 has one photo too many."""
    (photos / 'broken.png').write_bytes(b'no photo')
    rows = shop.rows()
    rows[0]['id'] = ''
    rows[1]['id'] = 'p20'  # the row of p20 comes later
    rows[2]['description'] = ' NaN '
    rows[3]['image'] = ''
    rows[4]['image'] = 'broken.png|nowhere.png'
    rows[5]['image'] = '5.png|nowhere.png'
    return rows


LEFT_OUT = {
    'id is empty': [('line 2', None)],
    'text is empty': [('line 4', 'p2')],
    'no photo is named': [('line 5', 'p3')],
    'photo cannot be read': [('line 6', 'p4')],
    'photo is missing': [('line 6', 'p4'), ('line 7', 'p5')],
    'id occurs again': [('line 22', 'p20')],
}


def test_rows_left_out_are_listed(run, photos, capsys):
    report, out = run(broken(photos), on_error='skip')
    found = {
        reason: [(what['place'], what.get('id')) for what in rows]
        for reason, rows in report['left_out'].items()
    }
    assert found == LEFT_OUT
    assert json.loads((out / 'converter_report.json').read_text()) == report
    kept = both(out)
    assert set(kept) == {f'p{i}' for i in range(5, 24)}
    assert len(kept['p5']['images']) == 1
    assert kept['p20']['texts'] == [dict(description='green tee number 1')]  # the first row
    text = _coco.summary(report, report['left_out'])
    assert 'photo is missing: 2, e.g. line 6, id p4, photo nowhere.png' in text
    assert 'id occurs again: 1, e.g. line 22, id p20, first line 3' in text


def test_by_default_nothing_is_written(run, photos, tmp_path):
    with pytest.raises(ValueError, match='rows that cannot be used; nothing was written') as error:
        run(broken(photos))
    assert all(f'{reason}: {len(rows)}' in str(error.value) for reason, rows in LEFT_OUT.items())
    assert '--on-error skip' in str(error.value)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(entities=['colour']), r"has the columns \['id'.*missing: \['colour'\].*--entities"),
        (dict(text='title'), r"missing: \['title'\]"),
        (dict(entities=['brand', 'brand']), r'each once'),
        (dict(entities=['sku', 'keyword']), r"'keyword' is the type that --keywords makes"),
        (dict(val_share=0), r'--val-share: found 0, expected a number between 0 and 1'),
        (dict(val_share=1e-9), r"24 products fall into \{'train': 24, 'val': 0\}, expected some"),
        (dict(images='nowhere'), r'--images: nowhere is not there'),
        (dict(rows=shop.rows()[:1]), r'1 products fall into'),
        (dict(min_count=100), r"no product has a value of entity type \['brand', 'composition'\]"),
        (dict(min_count=0), r'--min-count: found 0, expected 1 or more'),
        (dict(keywords=-3), r'--keywords: found -3, expected 1 or more, or 0 for none'),
        (dict(keywords=100), r'no word stands in 100 of the texts'),
        (dict(table='shop.txt'), r'shop.txt: expected a file that ends in .csv or .parquet'),
    ],
)
def test_refuses(run, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)
    assert not (tmp_path / 'out').exists()


def test_a_table_that_is_not_there(tmp_path, photos):
    with pytest.raises(ValueError, match=r'shopp\.csv is not there, or no file\.'):
        catalogue.convert(tmp_path / 'shopp.csv', tmp_path / 'out', entities=TYPES, images=photos)


def test_a_damaged_table_is_refused_whatever_is_skipped(run, tmp_path):
    (tmp_path / 'shop.csv').write_bytes('id,image,description\n1,a.jpg,Écru'.encode('latin1'))
    with pytest.raises(ValueError, match='is not UTF-8'):
        run(on_error='skip')


@pytest.mark.parametrize('content', ['', 'id,image,description,brand,composition\n'])
def test_a_table_without_rows(run, tmp_path, content):
    (tmp_path / 'shop.csv').write_text(content)
    with pytest.raises(ValueError, match=r'shop\.csv has no rows'):
        run()


@pytest.mark.parametrize('out', ['file', 'file/below/it'])
def test_out_that_is_a_file(tmp_path, photos, out):
    path = shop.write_csv(tmp_path / 'shop.csv', shop.rows())
    (tmp_path / 'file').touch()
    command = [str(path), '--images', str(photos), '--out', str(tmp_path / out)]
    with pytest.raises(SystemExit, match=r'--out: .*file is a file, expected a folder'):
        catalogue.main([*command, '--entities', *TYPES])


@pytest.mark.parametrize(('option', 'value'), [('min_count', 0), ('keywords', -3)])
def test_the_other_converter_counts_alike(tmp_path, option, value):
    (tmp_path / 'styles.csv').write_text('id,productDisplayName,articleType,baseColour,usage\n')
    with pytest.raises(ValueError, match=f'--{option.replace("_", "-")}: found {value}, expected'):
        fashion_products.convert(
            tmp_path / 'styles.csv', tmp_path, tmp_path / 'out', **{option: value}
        )


def test_command_line(run, tmp_path, photos, capsys):
    path = shop.write_csv(tmp_path / 'shop.csv', shop.rows())
    command = [str(path), '--images', str(photos), '--out', str(tmp_path / 'out')]
    options = ['--entities', *TYPES, '--val-share', '0.3', '--keywords', '2']
    catalogue.main(command + options)
    printed = capsys.readouterr().out
    assert printed.splitlines() == _coco.summary(run()[0], {}).splitlines()
    with pytest.raises(SystemExit) as stop:
        catalogue.main(command + options + ['--id', 'nothing'])
    assert stop.value.code.startswith('catalogue.py: ') and 'nothing' in stop.value.code
