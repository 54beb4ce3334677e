"""Catalogues of all kinds, read as the same items, and everything that may be wrong with one."""

import json
import os
import shutil
from pathlib import Path

import catalogues
import numpy as np
import pytest
import shop

from eiclip_mm.apis.catalogue import Item, open_photo, read_catalogue
from eiclip_mm.apis.photos import read_photo

TYPES = ('brand', 'composition')


@pytest.fixture
def table(tmp_path):
    """Writes a CSV file, ``read`` reads it."""

    class Table:
        path = tmp_path / 'shop.csv'

        def read(self, content: str | bytes, **options) -> list[Item]:
            content = content.encode() if isinstance(content, str) else content
            self.path.write_bytes(content)
            return list(read_catalogue(self.path, entity_types=TYPES, **options))

    return Table()


def test_a_row_is_texts_entities_attributes_and_a_photo(tmp_path):
    photos = shop.write_photos(tmp_path / 'photos', 2)
    path = shop.write_csv(tmp_path / 'shop.csv', shop.rows(2))
    catalogue = read_catalogue(path, entity_types=TYPES, images=photos)
    assert len(catalogue) == 2
    first, second = catalogue
    assert first == Item(
        id='p0',
        text_fields=dict(description='red tee number 0'),
        entities=dict(brand=['Diesel']),
        attributes=dict(price=5.5, sku='000x'),
        photo=str(photos / '0.png'),
    )
    assert second.entities == dict(brand=['Diesel'], composition=['cotton', 'silk'])
    assert list(catalogue) == [first, second]  # again
    assert read_photo(open_photo(first.photo)).shape == (40, 40, 3)


def test_numbers_are_columns_of_numbers_alone(table):
    items = table.read('id,description,a,b,c,d\n1,x,1,1,,0.5\n2,y,2e1,one,,3\n3,z,,,,4\n')
    assert [item.attributes for item in items] == [
        dict(a=1.0, b='1', d=0.5),
        dict(a=20.0, b='one', d=3.0),
        dict(d=4.0),
    ]


@pytest.mark.parametrize('missing', ['nan', 'NaN', '-inf', '1e400', 'NULL', 'None', 'N/A', '<NA>'])
def test_what_says_that_a_number_is_missing(table, missing):
    rows = f'id,description,price,pattern\n1,x,5,striped\n2,y,{missing},{missing}\n'
    one, other = table.read(rows)
    assert one.attributes == dict(price=5.0, pattern='striped')
    assert other.attributes == dict(pattern=missing)  # of texts it may be one


def test_numbers_with_leading_zeros_are_texts(table):
    items = table.read('id,description,ean,share\n1,x,0003,0.5\n2,y,4,0\n')
    assert [item.attributes for item in items] == [
        dict(ean='0003', share=0.5),
        dict(ean='4', share=0.0),
    ]


def test_columns_that_are_nearly_numbers_are_noted(table):
    table.read(
        'id,description,price,size,year,brand\n'
        '1,x,5,M,2012,1\n2,y,7.5,L,,2\n3,z,5.5 EUR,42,nan,x\n4,z,6,,2013,3\n5,z,free,,2014,4\n'
    )
    catalogue = read_catalogue(table.path, entity_types=TYPES)
    assert catalogue.notes == (
        "attribute 'price' is text, so that price<=100 cannot be asked: 3 of its 5 values are "
        "numbers, but line 4 has '5.5 EUR'.",
    )


@pytest.mark.parametrize('separator', [',', ';', '\t'])
def test_tables_of_spreadsheets(table, separator):
    header = separator.join(['', 'id', 'description', 'brand', 'image'])
    row = separator.join(['0', '7', '"a; b, c\td ""e"" &amp; f"', 'Chloé| Chloé |', 'a.png|b.png'])
    (item,) = table.read(f'\ufeff{header}\r\n{row}\r\n\r\n')
    assert item.text_fields == dict(description='a; b, c d "e" & f')
    assert item.entities == dict(brand=['Chloé'])
    assert item.photo == str(table.path.parent / 'a.png')
    assert item.attributes == {}


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('', 'no rows'),
        ('id,description\n', 'no rows'),
        ('id,title\n1,x\n', r"columns \['description'\] are missing, it has \['id', 'title'\]"),
        ('name,description\n1,x\n', r"columns \['id'\] are missing"),
        ('id,description,id\n1,x,2\n', r"columns \['id'\] twice"),
        ('id,description\n1,x\n,y\n', 'line 3: the id is empty'),
        ('id,description\n1,x\n2,y\n1,z\n', "id '1' occurs twice, line 2 and line 4"),
        ('id,description\n1,x, y\n', 'line 2: 3 cells in a table of 2 columns'),
        ('id,description,"size 10"""\n1,x,2\n', """column 'size 10"' must be without"""),
        ('id,description,a\\\n1,x,2\n', r"column 'a\\\\' must be without"),
        ('id,description\n1\n', 'line 2: 1 cells in a table of 2 columns'),
        ('id,description\n1,"x\n', 'not CSV, line 2: unexpected end of data'),
        ('id,description\n1,Chloé\n'.encode('latin-1'), 'not UTF-8 .*iconv -f latin1'),
        ('id,description\n1,x\n'.encode('utf-16'), 'not UTF-8 .*iconv -f utf-16 -t utf-8'),
        ('id,description\n1,x\n'.encode('utf-32'), 'not UTF-8 .*iconv -f utf-32 -t utf-8'),
        ('id,description\n1,' + 'x' * 200_000 + '\n', 'line 2: a cell is longer than 131,072 char'),
    ],
)
def test_a_table_that_is_wrong(table, content, said):
    with pytest.raises(ValueError, match=said) as error:
        table.read(content)
    assert str(table.path) in str(error.value)


@pytest.mark.parametrize('name', ['../s.png', 'down/../../s.png', '{root}/s.png', '..'])
def test_a_photo_outside_of_the_folder(table, tmp_path, name):
    photos = shop.write_photos(tmp_path / 'photos', 1)
    shutil.copy(photos / '0.png', tmp_path / 's.png')  # it could be read
    name = name.format(root=tmp_path)
    rows = f'id,description,image\n1,x,0.png|{name}\n2,y,{name}|0.png\n'
    with pytest.raises(ValueError) as error:
        table.read(rows, images=photos)
    said = f"{table.path}, line 3: photo '{name}' lies outside of {photos}; name it relative to"
    assert str(error.value).startswith(said)


def test_a_photo_of_the_folder_by_another_way(table, tmp_path):
    photos = shop.write_photos(tmp_path / 'photos', 1)
    (photos / 'link.png').symlink_to(shutil.copy(photos / '0.png', tmp_path / 's.png'))
    rows = 'id,description,image\n1,x,down/../0.png\n2,y,link.png\n3,z,\n'
    found = [item.photo for item in table.read(rows, images=photos)]
    assert found == [str(photos / '0.png'), str(photos / 'link.png'), None]


def test_parquet_reads_as_csv(tmp_path):
    pyarrow = pytest.importorskip('pyarrow', reason="needs pip install 'eiclip_mm[search]'")
    from pyarrow import parquet

    rows = shop.rows(5)
    lists = [dict(r, composition=r['composition'].split('|'), price=float(r['price']), id=i)
             for i, r in enumerate(rows)]  # fmt: skip
    lists[3]['price'] = None
    parquet.write_table(pyarrow.Table.from_pylist(lists), tmp_path / 'shop.parquet')
    shop.write_csv(tmp_path / 'shop.csv', [dict(r, id=i) for i, r in enumerate(rows)])
    one, other = (
        list(read_catalogue(tmp_path / f'shop.{kind}', entity_types=TYPES))
        for kind in ('parquet', 'csv')
    )
    assert other[3].attributes.pop('price') == 8.5
    assert one == other
    (tmp_path / 'shop.parquet').write_bytes(b'PAR1 no more')
    with pytest.raises(ValueError, match='not a readable parquet file'):
        read_catalogue(tmp_path / 'shop.parquet')


def test_whole_numbers_of_parquet_are_whole(tmp_path):
    """pandas makes the ids of a column floats where one was missing."""
    pyarrow = pytest.importorskip('pyarrow', reason="needs pip install 'eiclip_mm[search]'")
    from pyarrow import parquet

    path = tmp_path / 'shop.parquet'
    prices = [5.0, 7.5, float('inf'), None]
    ids = [17.0, -2.0, 0.5, 1e300]
    columns = dict(id=ids, description=['x'] * 4, price=prices)
    parquet.write_table(pyarrow.table(columns), path)
    items = list(read_catalogue(path))
    assert [item.id for item in items] == ['17', '-2', '0.5', '1e+300']
    assert [item.attributes for item in items] == [dict(price=5.0), dict(price=7.5), {}, {}]


def test_bytes_of_parquet_are_text_and_structs_are_refused(tmp_path):
    pyarrow = pytest.importorskip('pyarrow', reason="needs pip install 'eiclip_mm[search]'")
    from pyarrow import parquet

    path = tmp_path / 'shop.parquet'
    columns = dict(id=['1', '2'], description=['Chloé'.encode(), None], brand=[[b'a', b'b'], []])
    parquet.write_table(pyarrow.table(columns), path)
    first, second = read_catalogue(path, entity_types=['brand'])
    assert (first.text_fields, first.entities) == (
        dict(description='Chloé'), dict(brand=['a', 'b']),
    )  # fmt: skip
    assert (second.text_fields, second.entities) == (dict(description=''), {})
    entries = pyarrow.array([[('a', 1)]] * 2, pyarrow.map_(pyarrow.string(), pyarrow.int64()))
    for value, said in [
        ([b'\xff', b'x'], 'holds bytes that are no UTF-8'),
        ([dict(a=1), dict(a=2)], 'holds structs or maps'),
        ([[dict(a=1)], []], 'holds structs or maps'),
        (entries, 'holds structs or maps'),
    ]:
        parquet.write_table(pyarrow.table(dict(columns, photo=value)), path)
        with pytest.raises(ValueError, match=rf"shop\.parquet, column 'photo' {said}"):
            read_catalogue(path)


def test_coco_json_gives_the_first_photo_and_text(tmp_path):
    images = [dict(id=i, file_name=f'{i}.png', product_id=p) for i, p in ((1, 7), (2, 7), (3, 8))]
    texts = [
        dict(id=1, image_id=1, caption='first', entities=dict(brand=['Diesel'], colour=[])),
        dict(id=2, image_id=2, caption='second', entities=dict(season=['SS'])),
        dict(id=3, image_id=3, caption='other'),
    ]
    path = Path(catalogues.write_coco(tmp_path / 'shop.json', images, texts))
    first, second = read_catalogue(path)
    assert first == Item(
        '7', dict(description='first'), dict(brand=['Diesel'], season=['SS']), {},
        str(tmp_path / '1.png'),
    )  # fmt: skip
    assert (second.id, second.entities) == ('8', {})
    (tmp_path / 'elsewhere').mkdir()
    moved, _ = read_catalogue(path, images=tmp_path / 'elsewhere')
    assert moved.photo == str(tmp_path / 'elsewhere/1.png')
    config = tmp_path / 'config.py'
    config.write_text(
        f"test_dataloader = dict(dataset=dict(type='CocoProducts', ann_file={str(path)!r}))"
    )
    assert list(read_catalogue(config)) == [first, second]
    with pytest.raises(ValueError, match='has no val_dataloader'):
        read_catalogue(config, split='val')


def test_fashion_gen_rows_are_photos_and_prices(tmp_path):
    rows = [
        dict(productID=5, description='a tee', brand='Chloé', composition='90% cotton'),
        dict(productID=5, description='a tee', brand='Chloé', composition='90% cotton'),
        dict(productID=6, description='a bag', season='SS'),
    ]
    path = catalogues.write_fashiongen(tmp_path / 'shop.h5', rows)
    first, second = read_catalogue(path, entity_types=(*TYPES, 'keyword'))
    assert first == Item(
        '5', dict(description='a tee'), dict(brand=['Chloé'], composition=['cotton']),
        dict(price=0.0), f'{path}#0',
    )  # fmt: skip
    assert (second.id, second.photo, second.entities) == ('6', f'{path}#2', {})
    np.testing.assert_array_equal(open_photo(second.photo), np.full((8, 8, 3), 2))
    with pytest.raises(ValueError, match=r"reads texts \['title'\]"):
        read_catalogue(path, text_fields=('title',))


def test_files_that_are_no_catalogue(tmp_path):
    with pytest.raises(FileNotFoundError, match='does not exist; give a file'):
        read_catalogue(tmp_path / 'none.csv')
    (tmp_path / 'shop.xlsx').write_bytes(b'PK')
    with pytest.raises(ValueError, match=r"must end in \.json, \.csv.* got '\.xlsx'"):
        read_catalogue(tmp_path / 'shop.xlsx')
    with pytest.raises(FileNotFoundError, match='folder of photos'):
        read_catalogue(tmp_path / 'shop.xlsx', images=tmp_path / 'none')


def test_the_digest_is_of_what_vectors_depend_on(tmp_path):
    photo = shop.write_photos(tmp_path, 1) / '0.png'
    item = Item('1', dict(description='a'), dict(brand=['b']), dict(price=1.0), str(photo))
    payload = item.payload()
    assert json.loads(json.dumps(payload)) == payload
    assert set(payload) == {'text_fields', 'entities', 'photo', 'attributes', 'digest'}

    def changed(**changes) -> bool:
        return Item(**(item.__dict__ | changes)).digest != payload['digest']

    assert not changed()
    assert not changed(attributes={})
    assert changed(text_fields=dict(description='b'))
    assert changed(entities={})
    assert changed(photo=None)
    (tmp_path / 'moved').mkdir()
    moved = shutil.copy2(photo, tmp_path / 'moved')
    assert not changed(photo=str(moved))
    os.utime(photo, ns=(0, 0))
    assert changed()
    before = item.digest
    photo.unlink()
    assert item.digest not in (before, payload['digest'])
