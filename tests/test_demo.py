"""demo/: the page in a real browser, on the real service, a small real model and catalogue."""

import csv
import json
import socket
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import shop
import tiny
from browser import Browser
from PIL import Image

from eiclip_mm.apis import EICLIPInferencer
from eiclip_mm.apis.index import CatalogueIndex, parse_filters
from eiclip_mm.apis.search import CatalogueSearch
from eiclip_mm.datasets.synthetic import FILES, write_mini_fashiongen

for name in ('fastapi', 'prometheus_client', 'qdrant_edge'):
    pytest.importorskip(name, reason="needs pip install 'eiclip_mm[serve]'")
uvicorn = pytest.importorskip('uvicorn', reason="needs pip install 'eiclip_mm[serve]'")
testclient = pytest.importorskip('starlette.testclient', reason='needs pip install httpx')

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = '<img src=x onerror="document.title=1"> & "tee"'
TRICKY = 'Fox, "Red" & Sons'  # comma and quotes mean something in a filter
BRANDS = ('Diesel', 'Golden Goose', "Levi's", TRICKY)
QUERY = 'red golden goose tee of silk'
SHOWN = 24


def write_catalogue(folder: Path, number: int = 40) -> Path:
    """Products of one colour each; the first has no photo, the second a text that is HTML."""
    rng = np.random.default_rng(0)
    rows = [('id', 'description', 'image', 'brand', 'composition', 'price')]
    for i in range(number):
        pixels = np.repeat(
            np.repeat(rng.integers(256, size=(4, 3, 3), dtype=np.uint8), 12, 0), 12, 1
        )
        Image.fromarray(pixels).save(folder / f'{i}.png')
        text = HOSTILE if i == 1 else f'{("red", "blue")[i % 2]} tee {i}'
        names = BRANDS[i % 4], ('cotton', 'silk')[i // 4 % 2]
        rows.append((f'a/{i}', text, f'{i}.png' if i else '', *names, 10 + i))
    path = folder / 'shop.csv'
    with path.open('w', newline='') as file:
        csv.writer(file).writerows(rows)
    return path


@pytest.fixture(scope='module')
def demo():
    """The module ``demo/app.py``."""
    folders = [str(ROOT / 'demo'), str(ROOT / 'tools/search')]
    sys.path[:0] = folders
    import app

    yield app
    for folder in folders:
        sys.path.remove(folder)
    sys.modules.pop('app')


@pytest.fixture(scope='module')
def search(tmp_path_factory, demo):
    """What the page searches, built as a user builds it."""
    import build_index

    folder = tmp_path_factory.mktemp('demo')
    model = tiny.randomised(tiny.model())  # in which entities move much
    checkpoint, where = shop.write_checkpoint(folder / 'tiny.pth', model), folder / 'index'
    build_index.main([str(checkpoint), str(write_catalogue(folder)), '--index', str(where)])
    with CatalogueIndex.open(where) as index:
        yield CatalogueSearch(EICLIPInferencer(checkpoint, device='cpu'), index)


@pytest.fixture(scope='module')
def address(demo, search):
    """Where a server answers."""
    config = uvicorn.Config(demo.demo_app(search, search.encoder), ws='none', log_level='error')
    server = uvicorn.Server(config)
    with socket.create_server(('127.0.0.1', 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield f'http://127.0.0.1:{listening.getsockname()[1]}/'
        server.should_exit = True
        thread.join()


@pytest.fixture(scope='module')
def browser(tmp_path_factory, address):
    opened = Browser(tmp_path_factory.mktemp('profile'))
    yield opened
    opened.close()


@pytest.fixture
def page(browser, address):
    """The page, opened anew by ``page.at(search)``; it may neither fail nor look elsewhere."""
    browser.resize(1280)
    browser.events.clear()
    browser.at = lambda asked='': (browser.open(address + asked), settled(browser))
    browser.at()
    yield browser
    said = [e['params'] for e in browser.events if e['method'] == 'Runtime.exceptionThrown']
    sent = [e['params']['request']['url'] for e in requests(browser)]
    assert not said
    assert all(url.startswith((address, 'blob:', 'data:')) for url in sent), sent


def requests(browser) -> list[dict]:
    browser.run('1')  # what has happened is told before its answer
    return [e for e in browser.events if e['method'] == 'Network.requestWillBeSent']


def settled(page) -> None:
    page.wait("document.getElementById('results').ariaBusy === 'false'")


def text(page, selector: str) -> str:
    return page.run(f'document.querySelector({json.dumps(selector)}).textContent')


def shown(page) -> list[str]:
    """Ids of the products on the page, in order."""
    return page.run("[...document.querySelectorAll('.card')].map(c => c.dataset.id)")


def found(search, query=QUERY, **options) -> list[str]:
    return [hit.id for hit in search.text(query, k=100, **options).hits]


def ask(page, query: str) -> None:
    page.run("document.getElementById('query').select()")
    page.write(query)
    page.press('Enter')
    settled(page)


def asked(page) -> str:
    return page.run('decodeURIComponent(location.search).replaceAll("+", " ")')


def test_a_query_typed_in(page, search):
    assert page.run('document.activeElement.id') == 'query'  # ready to type
    assert not shown(page) and 'Write what you look for' in text(page, '#status')
    ask(page, QUERY)
    assert shown(page) == found(search)[:SHOWN]
    assert asked(page) == f'?q={QUERY}'
    marks = page.run(
        "[...document.querySelectorAll('#reading p mark')].map(m => [m.textContent, m.title])"
    )
    assert marks == [['golden goose', 'brand'], ['silk', 'composition']]
    assert text(page, '#reading p') == QUERY
    assert text(page, '#reading li') == 'brandGolden Gooseweight 1.00'
    page.click('#more')
    assert shown(page) == found(search)
    assert page.run("document.getElementById('more').hidden")


def test_the_switch_shows_what_entities_move(page, search):
    page.at(f'?q={QUERY}')
    on, off = found(search), found(search, entities=False)
    assert on[:SHOWN] != off[:SHOWN]
    for here, there in ((on, off), (off, on)):
        assert shown(page) == here[:SHOWN]
        expected = [
            '' if there.index(id_) == i else f'{there.index(id_) + 1} → {i + 1}'
            for i, id_ in enumerate(here[:SHOWN])
        ]
        places = "[...document.querySelectorAll('.place')].map(p => p.querySelector('.up, .down'))"
        assert page.run(f"{places}.map(e => e?.textContent ?? '')") == expected
        moved = sum(place != '' for place in expected)
        assert f'moves {moved} of them' in text(page, '#status')
        before = len(requests(page))
        page.click('#entities')
        page.wait(f"document.querySelector('.card').dataset.id === '{there[0]}'")
        asked_anew = [e['params']['request'] for e in requests(page)[before:]]
        assert not [r for r in asked_anew if r['url'].endswith('/search')]  # both were there
    page.run('history.back()')
    page.wait("location.search.includes('entities=0')")
    settled(page)
    assert shown(page) == off[:SHOWN]
    assert 'switched off' in text(page, '#reading li')


def test_filters(page, search):
    page.at(f'?q={QUERY}')
    chip = f"[data-key='brand={TRICKY}']".replace('"', '\\"')
    assert text(page, chip) == f'{TRICKY} 10'
    page.click(chip)
    settled(page)
    tricky = parse_filters(['brand="Fox, ""Red"" & Sons"'])
    assert shown(page) == found(search, where=tricky)
    assert len(shown(page)) == 10
    assert page.run(f'document.activeElement.matches({json.dumps(chip)})')  # and stays there
    assert page.run('document.activeElement.ariaPressed') == 'true'
    page.click('[data-key="brand=Diesel"]')  # either
    settled(page)
    assert len(shown(page)) == 19  # a/0 has no photo
    page.run('document.querySelector(\'[data-key="price<="]\').focus()')
    page.write('17')
    page.press('Enter')
    settled(page)
    assert sorted(shown(page)) == ['a/3', 'a/4', 'a/7']
    assert asked(page).endswith(f'&filter=brand={TRICKY}&filter=brand=Diesel&filter=price<=17')
    assert text(page, '#filter-count') == ' (3)'
    page.at(
        asked(page).replace('&', '%26').replace('%26filter', '&filter')
    )  # a link that is shared
    assert sorted(shown(page)) == ['a/3', 'a/4', 'a/7']
    for left in (2, 1, 0):
        page.click('#active button')
        settled(page)
        assert page.run("document.querySelectorAll('#active button').length") == left
    assert shown(page) == found(search)[:SHOWN]


def test_a_filter_keeps_what_is_being_typed(page):
    page.at(f'?q={QUERY}')
    page.run("document.getElementById('query').select()")
    page.write('half a quer')
    page.click('[data-key="brand=Diesel"]')
    settled(page)
    assert page.run("document.getElementById('query').value") == 'half a quer'


def test_nothing_found_and_errors_are_sentences(page):
    page.at('?q=tee&filter=price>=1000')
    assert text(page, '#status') == 'No product passes these filters. Remove one to see more.'
    page.at('?q=tee&filter=size=XL')
    assert "no item has 'size'; filters can name" in text(page, '#error')
    assert not shown(page)
    page.click('#active button')
    settled(page)
    assert text(page, '#error') == '' and len(shown(page)) == SHOWN
    page.at('?like=nobody')
    assert text(page, '#error') == 'Product nobody has no photo to search with.'
    offline = dict(latency=0, downloadThroughput=-1, uploadThroughput=-1)
    page.call('Network.emulateNetworkConditions', offline=True, **offline)
    ask(page, 'tee')
    page.call('Network.emulateNetworkConditions', offline=False, **offline)
    assert text(page, '#error') == 'The service does not answer. Is it still running?'


def test_search_by_a_photo(page, search, tmp_path):
    broken = tmp_path / 'notes.jpg'
    broken.write_text('no photo')
    page.upload('#file', broken)
    assert 'notes.jpg is no photo' in page.wait("document.getElementById('error').textContent")
    page.upload('#file', Path(search.index.get(['a/7'])['a/7']['photo']))
    page.wait("document.querySelector('.card') !== null")
    settled(page)
    assert shown(page)[0] == 'a/7'
    assert 'a/0' not in shown(page)
    assert page.run("document.getElementById('asked-photo').naturalWidth") == 36
    assert page.run("document.getElementById('entities').disabled")
    assert page.run("document.getElementById('reading').hidden")
    page.click('#drop-photo')
    settled(page)
    assert not shown(page) and page.run("document.getElementById('asked').hidden")


@pytest.mark.parametrize('event', ['paste', 'drop'])
def test_a_photo_pasted_or_dropped(page, event):
    kind, carrier = dict(paste=('Clipboard', 'clipboardData'), drop=('Drag', 'dataTransfer'))[event]
    page.run(
        "fetch('/photos/a%2F9').then(r => r.blob()).then(blob => { const data = new DataTransfer();"
        " data.items.add(new File([blob], 'x.jpg', {type: 'image/jpeg'}));"
        f" document.body.dispatchEvent(new {kind}Event('{event}',"
        f' {{{carrier}: data, bubbles: true, cancelable: true}})) }})'
    )
    page.wait("document.querySelector('.card') !== null")
    assert shown(page)[0] == 'a/9'


def test_more_like_a_product(page, search):
    page.at(f'?q={QUERY}')
    first = shown(page)[0]
    page.click('.card button')
    settled(page)
    assert asked(page) == f'?like={first}'
    assert first in text(page, '#asked-note')
    assert first not in shown(page) and len(shown(page)) == SHOWN
    page.click('#side [value=product]')  # image -> text
    settled(page)
    assert asked(page) == f'?like={first}&side=product'
    photo = search.index.get([first])[first]['photo']
    near = [hit.id for hit in search.photo(photo, k=41, side='product').hits if hit.id != first]
    assert set(shown(page)[:5]) & set(near[:10])  # the photo was a JPEG on the way
    assert 'a/0' in near  # it has a text
    ask(page, 'blue tee')  # words take the photo's place
    assert asked(page) == '?q=blue tee&side=product'
    assert shown(page) == found(search, 'blue tee', side='product')[:SHOWN]


def test_a_product_without_a_photo(page, search):
    page.at('?q=red tee 0&side=product&filter=price<=10')
    assert shown(page) == ['a/0'] and text(page, '.none') == 'no photo'
    page.click('.card button')
    settled(page)
    assert asked(page).startswith('?q=red tee 0&')


def test_keys_alone(page):
    ask(page, QUERY)
    for _ in range(12):
        page.press('Tab')
        if page.run("document.activeElement.closest('#fields') !== null"):
            break
    else:
        pytest.fail('Tab never reaches the filters')
    chips = page.run("document.querySelectorAll('#fields button, #fields input').length")
    page.press(*['Tab'] * chips)
    focused = "[...document.querySelectorAll('.card button')].indexOf(document.activeElement)"
    assert page.run(focused) == 0
    columns = page.run(
        "getComputedStyle(document.getElementById('results')).gridTemplateColumns.split(' ').length"
    )
    assert columns > 2
    for key, place in (
        ('ArrowLeft', 0), ('ArrowRight', 1), ('ArrowDown', 1 + columns), ('ArrowUp', 1),
    ):  # fmt: skip
        page.press(key)
        assert page.run(focused) == place
    outline = 'getComputedStyle(document.activeElement).outlineStyle'
    assert page.run(outline) == 'solid'
    page.press('Tab')
    assert page.run('document.activeElement.id') == 'more'  # the results are one stop
    page.press('Escape')
    assert page.run('document.activeElement.id') == 'query'
    assert shown(page)  # it only leads back
    page.run("document.querySelectorAll('.card button')[1].focus()")
    second = shown(page)[1]
    page.press('Enter')
    settled(page)
    assert asked(page) == f'?like={second}'
    page.press('Escape')
    settled(page)
    assert asked(page) == '' and not shown(page)


@pytest.mark.parametrize('asked', ['', f'?q={QUERY}&filter=brand=Diesel', '?like=a/9'])
def test_a_narrow_screen(page, asked):
    page.resize(360, 640)
    page.at(asked)
    assert page.run('document.documentElement.scrollWidth') <= 360
    assert not page.run("document.getElementById('filters').open")
    page.click('#filters summary')
    page.wait("document.getElementById('fields').offsetHeight > 0")
    wide = 'e.getBoundingClientRect().right > 360'
    outside = f"[...document.querySelectorAll('body *')].filter(e => {wide})"
    assert page.run(f'{outside}.map(e => e.outerHTML)') == []


def contrast(page, selector: str) -> float:
    """Of an element's text against the page, as WCAG defines it."""
    colours = page.run(
        f"[[document.querySelector('{selector}'), 'color'], [document.body, 'backgroundColor']]"
        '.map(([e, name]) => getComputedStyle(e)[name].match(/\\d+/g).slice(0, 3).map(Number))'
    )
    linear = [
        [v / 3294.6 if v <= 10 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in rgb]
        for rgb in colours
    ]
    light, dark = sorted((np.dot(rgb, (0.2126, 0.7152, 0.0722)) for rgb in linear), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_light_and_dark(page):
    grounds = []
    for dark in (False, True):
        page.resize(1280, dark=dark)
        page.at(f'?q={QUERY}')
        grounds.append(page.run('getComputedStyle(document.body).backgroundColor'))
        for selector in ('body', '.soft', '.up', '.down', 'legend'):
            assert contrast(page, selector) >= 4.5, (selector, dark)
    assert grounds[0] != grounds[1]


def test_everything_has_a_name(page):
    page.at(f'?q={QUERY}&filter=brand=Diesel')
    page.call('Accessibility.enable')
    nodes = page.call('Accessibility.getFullAXTree')['nodes']
    page.call('Accessibility.disable')
    roles = ('button', 'link', 'searchbox', 'spinbutton', 'radio', 'switch', 'image')
    nodes = [n for n in nodes if not n['ignored'] and n['role']['value'] in roles]
    names = {
        role: [n['name']['value'] for n in nodes if n['role']['value'] == role] for role in roles
    }
    assert all(names.values()) and all(name.strip() for own in names.values() for name in own)
    assert names['searchbox'] == ['What are you looking for?']
    assert names['switch'] == ['Entities (intervention)']
    assert names['spinbutton'] == ['price from', 'price to']
    assert 'Remove filter brand: Diesel' in names['button']
    live = "[...document.querySelectorAll('[role=status], [role=alert]')].map(e => e.id)"
    assert page.run(live) == ['error', 'status']


def test_texts_of_shops_stay_texts(page):
    page.at('?q=tee&filter=price<=11')
    assert HOSTILE in page.run("[...document.querySelectorAll('.title')].map(t => t.textContent)")
    page.run(
        "import('/static/draw.js').then(d => document.body.append(d.element('p', {}, '<b id=x>')))"
    )
    assert page.run("document.getElementById('x')") is None
    assert page.run('document.title') == 'tee – Find products'
    script = """new Promise(done => { const p = document.createElement('p');
        p.innerHTML = '<img src=x onerror="window.hit = 1">'; document.body.append(p);
        p.firstChild.addEventListener('error', () => done(window.hit ?? 'nothing ran')) })"""
    assert page.run(script) == 'nothing ran'  # even if a text got in as HTML


def test_marks_count_characters_and_weights_of_zero_are_said(page):
    script = """import('/static/draw.js').then(d => {
        const p = d.reading({text: '👟 Puma tee', entities: [
        {type: 'brand', name: 'Puma', weight: 0, count: 2, start: 2, end: 6},
        {type: 'line', name: 'PUMA', weight: 0.5, count: 1, start: 2, end: 6}]}, true, {});
        const marks = [...p[0].querySelectorAll('mark')].map(m => [m.textContent, m.className]);
        return [p[0].textContent, marks, [...p[1].children].map(e => e.textContent)] })"""
    whole, marked, said = page.run(script)
    assert whole == '👟 Puma tee' and marked == [['Puma', 'out']]
    assert said == ['brandPumaleft out', 'linePUMAweight 0.50']


def client_of(demo, search, host: str = '127.0.0.1:8000'):
    app = demo.demo_app(search, search.encoder)
    return testclient.TestClient(app, base_url=f'http://{host}')


def test_only_this_machine_by_its_own_names(demo, search):
    """Or a page elsewhere reads the catalogue, by a name that it makes lead to 127.0.0.1."""
    for host in ('127.0.0.1:8000', 'localhost:8000', 'LOCALHOST'):
        assert client_of(demo, search, host).get('/health').status_code == 200
    for host in ('example.com', '127.0.0.1.example.com:8000', 'localhost.example.com'):
        for path in ('/', '/health', '/catalogue', '/photos/a/3'):
            answer = client_of(demo, search, host).get(path)
            assert answer.status_code == 400 and 'tee' not in answer.text


def test_photos_are_only_those_of_the_index(demo, search, tmp_path):
    write_mini_fashiongen(tmp_path, 2, 2, 2, seed=0, progress=False)
    secret = tmp_path / 'secret.txt'
    secret.write_text('hunter2')
    row = np.eye(1, search.index.dim, dtype=np.float32)
    names = dict(h5=f'{tmp_path / FILES["train"]}#1', text=str(secret), gone=f'{tmp_path}/no.jpg')
    ids = [f'photo-{name}' for name in names]
    entity = dict(text_fields={}, entities={}, attributes={}, digest='')
    payloads = [entity | dict(photo=photo) for photo in names.values()]
    search.index.upsert(ids, dict(image=np.repeat(row, 3, 0)), payloads)
    try:
        client = client_of(demo, search)
        assert client.get('/photos/photo-h5').headers['content-type'] == 'image/jpeg'
        assert client.get('/photos/a/3').content.startswith(b'\xff\xd8')
        there = search.index.get(['a/3'])['a/3']['photo']
        none = ('photo-text', 'photo-gone', 'a/0', 'nobody', '..%2F..%2Fetc%2Fpasswd')
        for id_ in (*none, str(secret), there):
            answer = client.get(f'/photos/{id_}')
            assert answer.status_code == 404 and 'hunter2' not in answer.text
            assert 'photo' in answer.json()['error']['message']
        assert client.get('/static/..%2Fapp.py').status_code == 404
        policy = client.get('/').headers['content-security-policy']
        assert "default-src 'none'; script-src 'self'" in policy
        assert client.get('/health').headers['x-content-type-options'] == 'nosniff'
    finally:
        search.index.delete(ids)


def test_what_the_page_is_told(demo, search):
    told = client_of(demo, search).get('/catalogue').json()
    assert told['products'] == 40 and told['model'] == 'tiny.pth'
    assert told['fields'] == ['brand', 'composition']
    assert told['numbers'] == {'price': [10, 49]}
    assert {query.split(' cotton')[0].split(' silk')[0] for query in told['examples']} == set(
        BRANDS
    )


def test_the_command_says_what_is_missing(demo, capsys):
    with pytest.raises(SystemExit):
        demo.main(['some.pth'])
    assert 'say what to search: --catalogue FILE, or --index WHERE' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        demo.main(['some.pth', '--index', 'shop', '--images', 'photos'])
    assert '--images are the photos of a --catalogue' in capsys.readouterr().err


def test_photos_may_lie_elsewhere(demo, tmp_path, monkeypatch):
    photos, found = tmp_path / 'photos', []
    photos.mkdir()
    catalogue = write_catalogue(photos, 4).rename(tmp_path / 'shop.csv')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, 'serve', lambda search, _: found.extend(search.index.scan()))
    checkpoint = shop.write_checkpoint(tmp_path / 'tiny.pth')
    demo.main(list(map(str, (checkpoint, '--catalogue', catalogue, '--images', photos))))
    ((_, _, payloads),) = found
    assert sum(payload['photo'] is not None for payload in payloads) == 3
