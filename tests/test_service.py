"""eiclip_mm/apis/service.py: the real application on a small real model and index."""

import asyncio
import base64
import io
import json
import logging
import threading

import numpy as np
import pytest
import shop
from PIL import Image

from eiclip_mm.apis import EICLIPInferencer
from eiclip_mm.apis.index import CatalogueIndex, parse_filters
from eiclip_mm.apis.search import CatalogueSearch, about

SERVE = "needs pip install 'eiclip_mm[serve]'"
httpx = pytest.importorskip('httpx', reason='needs httpx')
pytest.importorskip('qdrant_edge', reason=SERVE)
service = pytest.importorskip('eiclip_mm.apis.service', reason=SERVE, exc_type=ImportError)
Limits, create_app = service.Limits, service.create_app

QUERIES = ['golden goose sneakers', 'a silk scarf', "levi's jeans", 'red cotton tee', 'shoes']


def photo(seed: int, size=(40, 36), form: str = 'PNG') -> str:
    """Noise, as base64 of a file."""
    pixels = np.random.default_rng(seed).integers(256, size=(*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return base64.b64encode(file.getvalue()).decode()


def write_index(where, encoder, n: int = 40) -> CatalogueIndex:
    """Photos of noise, with brands and prices."""
    index = CatalogueIndex.create(where, encoder.dim, about(encoder))
    images = encoder.encode_images([base64.b64decode(photo(i)) for i in range(n)], output='numpy')
    products = encoder.encode_products([f'thing {i}' for i in range(n)], output='numpy')
    payloads = [
        dict(
            text_fields=dict(description=f'thing {i}'),
            entities=dict(brand=[('Diesel', 'Golden Goose')[i % 2]]),
            attributes=dict(price=float(i)),
            photo=None,
            digest=str(i),
        )
        for i in range(n)
    ]
    ids = [f'id-{i}' for i in range(n)]
    index.upsert(ids, dict(image=images, product=products), payloads)
    return index


@pytest.fixture(scope='module')
def search(tmp_path_factory):
    folder = tmp_path_factory.mktemp('service')
    encoder = EICLIPInferencer(shop.write_checkpoint(folder / 'tiny.pth'), device='cpu')
    with write_index(folder / 'index', encoder) as index:
        yield CatalogueSearch(encoder, index)


def talk(app, conversation):
    """Run ``await conversation(client)`` against an app that has started."""

    async def all_of_it():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url='http://test') as client,
        ):
            return await conversation(client)

    return asyncio.run(all_of_it())


def ask(app, *requests):
    """Answers to (method, path, keywords of httpx), one after the other."""

    async def conversation(client):
        return [await client.request(method, path, **more) for method, path, more in requests]

    return talk(app, conversation)


def refusal(answer, status: int, code: str) -> str:
    """The message of an error; it has the form that all errors have."""
    assert answer.status_code == status, answer.text
    assert answer.headers['content-type'] == 'application/json'
    assert set(answer.json()) == {'error'}
    assert set(answer.json()['error']) == {'code', 'message'}
    assert answer.json()['error']['code'] == code
    return answer.json()['error']['message']


def post(path, **body):
    return ('POST', path, dict(json=body))


def test_a_search_is_that_of_the_library(search):
    app = create_app(search, search.encoder)
    cases = [
        dict(query='Golden Goose sneakers of silk', k=5),
        dict(query='Golden Goose sneakers', entities=False, side='product'),
        dict(query='a tee', filters=['brand=diesel', 'price<=9'], k=30),
        dict(photo=photo(3), k=4),
        dict(photo=photo(4, form='JPEG'), side='product', filters=['price>=30']),
    ]
    for body, answer in zip(cases, ask(app, *(post('/search', **c) for c in cases)), strict=True):
        assert answer.status_code == 200, answer.text
        found, options = answer.json(), dict(body)
        where = parse_filters(options.pop('filters', ()))
        if 'photo' in body:
            expected = search.photo(base64.b64decode(options.pop('photo')), where=where, **options)
        else:
            expected = search.text(options.pop('query'), where=where, **options)
        assert found['reading'] == json.loads(json.dumps(expected.to_dict()['reading']))
        assert [hit['id'] for hit in found['hits']] == [hit.id for hit in expected.hits]
        for hit, whole in zip(found['hits'], expected.hits, strict=True):
            own = {k: v for k, v in whole.payload.items() if k not in ('digest', 'photo')}
            assert hit['payload'] == own | dict(photo=whole.payload['photo'] is not None)
        scores = [hit['score'] for hit in found['hits']]
        np.testing.assert_allclose(scores, [hit.score for hit in expected.hits], atol=1e-5)
        assert len(found['hits']) == (5 if 'price<=9' in body.get('filters', ()) else len(scores))
        assert found['took_ms'] > 0
    assert found['hits'][0]['payload']['attributes']['price'] >= 30


def test_embeddings_are_those_of_the_encoder(search):
    encoder = search.encoder
    products = [dict(description='a tee', entities=dict(brand=['Diesel'])), 'silk scarf']
    photos = [photo(1), photo(2, (90, 50), 'JPEG')]
    answers = ask(
        create_app(None, encoder),
        post('/embed', photos=photos),
        post('/embed', products=products),
        post('/embed', queries=QUERIES),
    )
    expected = [
        encoder.encode_images([base64.b64decode(each) for each in photos], output='numpy'),
        encoder.encode_products(products, output='numpy'),
        encoder.encode_queries(QUERIES, output='numpy'),
    ]
    for answer, rows in zip(answers, expected, strict=True):
        body = answer.json()
        assert (body['dim'], body['model']) == (32, 'tiny.pth')
        np.testing.assert_allclose(body['embeddings'], rows, atol=1e-5)


def test_requests_of_one_moment_are_encoded_together(search):
    encoder = search.encoder
    app = create_app(None, encoder, Limits(max_wait_ms=1000, max_batch=8))
    texts = [f'{query} {i}' for i in range(4) for query in QUERIES]  # 20: batches of 8, 8, 4

    async def conversation(client):
        bodies = [dict(queries=[text]) for text in texts]
        bodies.append(dict(photos=[photo(0)]))
        answers = await asyncio.gather(*(client.post('/embed', json=body) for body in bodies))
        return answers, (await client.get('/metrics')).text

    answers, metrics = talk(app, conversation)
    rows = [answer.json()['embeddings'][0] for answer in answers[:-1]]
    alone = np.concatenate([encoder.encode_queries(text, output='numpy') for text in texts])
    np.testing.assert_allclose(rows, alone, atol=1e-5)
    assert 'eiclip_batch_size_count{kind="text"} 3.0' in metrics
    assert 'eiclip_batch_size_sum{kind="text"} 20.0' in metrics
    assert 'eiclip_batch_size_bucket{kind="text",le="4.0"} 1.0' in metrics
    assert 'eiclip_batch_size_count{kind="photo"} 1.0' in metrics
    assert 'eiclip_requests_total{route="/embed",status="200"} 21.0' in metrics
    assert 'eiclip_request_seconds_count{route="/embed"} 21.0' in metrics
    assert 'eiclip_queue_length{kind="text"} 0.0' in metrics


def test_one_bad_photo_fails_its_own_request(search):
    app = create_app(None, search.encoder, Limits(max_wait_ms=100))
    broken = base64.b64encode(base64.b64decode(photo(1))[:500]).decode()

    async def conversation(client):
        bodies = [[photo(0)], [photo(1), broken], [photo(2), photo(3)]]
        return await asyncio.gather(*(client.post('/embed', json=dict(photos=b)) for b in bodies))

    first, bad, last = talk(app, conversation)
    assert 'photos[1] cannot be read: image file is truncated' in refusal(bad, 422, 'invalid')
    expected = search.encoder.encode_images([base64.b64decode(photo(i)) for i in (0, 2, 3)])
    found = first.json()['embeddings'] + last.json()['embeddings']
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_an_item_that_breaks_the_encoder_fails_alone(search, tmp_path, caplog):
    class Fragile(EICLIPInferencer):
        """One that has a fault in the weights' way: some texts cannot be embedded."""

        def embed_tokens(self, text, entity_ids):
            if (text == self.tokenizer.subwords.encode('scarf')[0]).any():
                raise RuntimeError('secret text')
            return super().embed_tokens(text, entity_ids)

    encoder = Fragile(search.encoder.checkpoint, device='cpu')
    app = create_app(None, encoder, Limits(max_wait_ms=100))

    async def conversation(client):
        return await asyncio.gather(
            *(client.post('/embed', json=dict(queries=[query])) for query in QUERIES)
        )

    with caplog.at_level(logging.INFO, 'eiclip_mm.service'):
        answers = talk(app, conversation)
    assert [answer.status_code for answer in answers] == [200, 500, 200, 200, 200]
    assert 'secret' not in refusal(answers[1], 500, 'internal')
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 5  # one a request
    assert [line for line in lines if 'RuntimeError at' in line and 'test_service.py:' in line]
    assert not any('secret' in line or 'scarf' in line for line in lines)
    rows = [answer.json()['embeddings'][0] for answer in answers if answer.status_code == 200]
    alone = search.encoder.encode_queries([q for q in QUERIES if 'scarf' not in q])
    np.testing.assert_allclose(rows, alone.numpy(), atol=1e-5)


def raw(path, body):
    return ('POST', path, dict(content=body, headers={'Content-Type': 'application/json'}))


def bomb(width: int, height: int | None = None) -> str:
    """A PNG of few bytes and many pixels."""
    file = io.BytesIO()
    Image.new('1', (width, height or width)).save(file, 'PNG')
    return base64.b64encode(file.getvalue()).decode()


WRONG = {
    'no json': (raw('/search', '{"query": '), 422, 'not JSON: Expecting value at character 10'),
    'NaN': (raw('/search', '{"query": "a", "k": NaN}'), 422, 'k: Input should be a finite number'),
    'no json type': (('POST', '/embed', dict(content='{}')), 422, 'Content-Type: application/json'),
    'no object': (('POST', '/embed', dict(json=[1])), 422, 'must be a JSON object'),
    'deep': (raw('/embed', '[' * 10**5), 400, 'not nested deeply'),
    'nothing': (post('/search'), 422, 'give one of query, photo; got none'),
    'both': (post('/search', query='a', photo='b'), 422, 'got query, photo'),
    'empty query': (post('/search', query=' \n'), 422, 'query is empty'),
    'long query': (post('/search', query='ab ' * 5000), 422, 'query: String should have at most'),
    'text of megabytes': (post('/embed', queries=['a' * 2**22]), 422, 'at most 10000 characters'),
    'long word': (post('/embed', products=['a tee', 'x' * 201]), 422, 'products[1] has a word of'),
    'long word of a product': (
        post('/embed', products=[dict(description='y' * 5000)]), 422, 'products[0] has a word of',
    ),
    'long word in pieces': (
        post('/embed', queries=['x\x01' * 201]), 422, 'queries[0] has a word of more than 200',
    ),
    'long word in pieces for the tokenizer': (
        post('/search', query='a tee ' + 'x\u206a' * 201), 422, 'query has a word of more than 200',
    ),
    'half a surrogate': (raw('/search', '{"query": "\\ud800"}'), 422, 'query: Input should be a'),
    'no text': (post('/embed', queries=[3]), 422, 'queries.0: Input should be a valid string'),
    'k of 0': (post('/search', query='a', k=0), 422, 'k: Input should be greater than or equal'),
    'huge k': (post('/search', query='a', k=10**9), 422, 'k: Input should be less than or equal'),
    'mistyped key': (post('/search', query='a', filter=['x']), 422, 'filter: Extra inputs'),
    'long key': (post('/search', query='a', **{'q' * 10**6: 1}), 422, f'{"q" * 100}: Extra inputs'),
    'side': (post('/search', query='a', side='photo'), 422, "'image' or 'product'"),
    'filter': (post('/search', query='a', filters=['brand']), 422, "e.g. 'brand=Puma,Nike'"),
    'filter of spaces': (post('/search', query='a', filters=[' =b']), 422, 'is not understood'),
    'field': (post('/search', query='a', filters=['colour=red']), 422, "['brand', 'price']"),
    'text as number': (post('/search', query='a', filters=['brand<3']), 422, 'needs numbers'),
    'no base64': (post('/search', photo='?!'), 422, 'photo cannot be read: Only base64'),
    'no photo': (post('/search', photo='aGVsbG8='), 422, 'it is no image of JPEG, PNG'),
    'empty photo': (post('/embed', photos=['']), 422, 'photos[0] cannot be read'),
    'bomb': (post('/search', photo=bomb(14_000)), 422, 'at most 25000000'),
    'smaller bomb': (post('/search', photo=bomb(10_000)), 422, 'at most 25000000'),
    'pixels': (post('/search', photo=bomb(6_000)), 422, '6000 x 6000 pixels; at most'),
    'strip': (post('/search', photo=bomb(20_000, 1)), 422, 'sides up to 50:1'),
    'no items': (post('/embed', photos=[]), 422, 'photos must be 1 to 256 items, got 0'),
    'many items': (post('/embed', queries=['a'] * 257), 422, 'got 257'),
    'product': (post('/embed', products=[{}]), 422, "('description', 'entities')"),
    'product field': (post('/embed', products=[dict(name='a')]), 422, 'and no other key'),
    'entities': (post('/embed', products=[dict(entities=3)]), 422, 'valid dictionary'),
    'large': (('POST', '/embed', dict(content=b'a' * (2**23 + 1))), 413, 'may have 8 MiB'),
    'path': (('GET', '/nothing/here', {}), 404, 'there is no GET here; GET /docs lists'),
    'method': (('GET', '/search', {}), 405, 'there is no GET here'),
    'facet': (('GET', '/facets?field=colour', {}), 422, "['brand', 'price']"),
    'facet of numbers': (('GET', '/facets?field=price', {}), 422, "'price' is a number"),
    'facet limit': (('GET', '/facets?field=brand&limit=0', {}), 422, 'limit: Input should be'),
    'facet filter': (('GET', '/facets?field=brand&filter=x', {}), 422, 'FIELD=VALUE'),
    'facet long filter': (
        ('GET', '/facets?field=brand&filter=' + '+' * 1001, {}), 422, 'at most 1000 characters',
    ),
}  # fmt: skip
CODES = {400: 'bad_request', 404: 'not_found', 405: 'method_not_allowed', 413: 'too_large'}


def test_what_cannot_be_answered_is_refused_with_a_reason(search):
    answers = ask(
        create_app(search, search.encoder), *(request for request, _, _ in WRONG.values())
    )
    for name, answer in zip(WRONG, answers, strict=True):
        _, status, says = WRONG[name]
        assert says in refusal(answer, status, CODES.get(status, 'invalid')), name
    assert answers[list(WRONG).index('method')].headers['allow'] == 'POST'


def test_a_body_without_a_length_is_counted(search):
    async def chunks():
        for _ in range(20):
            yield b' ' * 2**16

    app = create_app(None, search.encoder, Limits(max_body_mb=1))
    headers = {'Content-Type': 'application/json'}
    (answer,) = ask(app, ('POST', '/embed', dict(content=chunks(), headers=headers)))
    assert 'may have 1 MiB' in refusal(answer, 413, 'too_large')


class Slow(EICLIPInferencer):
    """Takes its time, till it is let go."""

    go = None

    def embed_tokens(self, text, entity_ids):
        assert self.go.wait(20)
        return super().embed_tokens(text, entity_ids)


@pytest.fixture()
def slow(search):
    encoder = Slow(search.encoder.checkpoint, device='cpu')
    encoder.go = threading.Event()
    yield encoder
    encoder.go.set()


async def until(client, line: str) -> None:
    """Wait till the metrics say so."""
    for _ in range(1000):
        if line in (await client.get('/metrics')).text:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f'never: {line}')


def test_a_full_queue_says_so_and_loses_nothing(slow):
    app = create_app(None, slow, Limits(max_queue=6, max_items=4, max_wait_ms=0, timeout_s=30))

    async def conversation(client):
        def send(n):
            return asyncio.ensure_future(client.post('/embed', json=dict(queries=['a tee'] * n)))

        accepted = [send(2), send(3)]
        await until(client, 'eiclip_queue_length{kind="text"} 5.0')
        refused = await send(2)
        last = send(1)
        await until(client, 'eiclip_queue_length{kind="text"} 6.0')
        health = await client.get('/health')  # answers under load
        photos = await client.post('/embed', json=dict(photos=[photo(0)]))  # their own queue
        slow.go.set()
        return await asyncio.gather(*accepted, last), refused, health, photos

    accepted, refused, health, photos = talk(app, conversation)
    assert [len(answer.json()['embeddings']) for answer in accepted] == [2, 3, 1]
    assert '5 of 6 places are taken' in refusal(refused, 503, 'busy')
    assert refused.headers['retry-after'] == '1'
    assert health.json()['ok'] and photos.status_code == 200


def test_photos_that_are_decoded_hold_up_nothing_else(search):
    encoder = EICLIPInferencer(search.encoder.checkpoint, device='cpu')
    go, sizing = threading.Event(), encoder.sizing
    encoder.sizing = lambda image: sizing(image) if go.wait(20) else None
    app = create_app(CatalogueSearch(encoder, search.index), encoder, Limits(timeout_s=3))

    async def conversation(client):
        body = dict(photos=[photo(i) for i in range(16)])  # more than there are threads
        photos = asyncio.ensure_future(client.post('/embed', json=body))
        try:
            await until(client, 'eiclip_queue_length{kind="photo"} 16.0')
            held = [
                await client.get('/health'),
                await client.get('/facets?field=brand'),
                await client.post('/search', json=dict(query='a tee')),
            ]
        finally:
            go.set()
        return held, await photos

    held, photos = talk(app, conversation)
    assert [answer.status_code for answer in held] == [200] * 3
    assert len(photos.json()['embeddings']) == 16


def test_too_many_requests_are_refused_before_they_are_read(slow):
    app = create_app(None, slow, Limits(max_queue=2, max_items=2, timeout_s=30))

    async def conversation(client):
        body = dict(queries=['a tee'])
        held = [asyncio.ensure_future(client.post('/embed', json=body)) for _ in range(2)]
        await until(client, 'eiclip_queue_length{kind="text"} 2.0')
        refused = await client.post('/embed', content='no json')
        slow.go.set()
        return refused, await asyncio.gather(*held)

    refused, held = talk(app, conversation)
    assert '2 requests are being answered' in refusal(refused, 503, 'busy')
    assert [answer.status_code for answer in held] == [200, 200]


def test_what_takes_too_long_is_given_up(slow):
    app = create_app(None, slow, Limits(timeout_s=1, max_wait_ms=0, max_batch=2))

    async def conversation(client):
        body = dict(queries=['a tee'])
        late = await asyncio.gather(*(client.post('/embed', json=body) for _ in range(6)))
        slow.go.set()
        return late, await client.post('/embed', json=body), (await client.get('/metrics')).text

    late, after, metrics = talk(app, conversation)
    for answer in late:
        assert 'no answer within 1 s' in refusal(answer, 504, 'timeout')
    assert after.status_code == 200
    # what was given up while it waited is not computed
    assert 'eiclip_batch_size_count{kind="text"} 2.0' in metrics
    assert 'eiclip_requests_total{route="/embed",status="504"} 6.0' in metrics


def test_a_body_that_never_ends_is_given_up(search):
    async def dripping():
        while True:
            yield b' '
            await asyncio.sleep(0.05)

    app = create_app(None, search.encoder, Limits(timeout_s=0.3))
    headers = {'Content-Type': 'application/json'}
    (answer,) = ask(app, ('POST', '/embed', dict(content=dripping(), headers=headers)))
    refusal(answer, 504, 'timeout')


def test_health_facets_and_two_apps_in_one_process(search):
    both, alone = create_app(search, search.encoder), create_app(None, search.encoder)
    health, brands, few, metrics = ask(
        both,
        ('GET', '/health', {}),
        ('GET', '/facets?field=brand', {}),
        ('GET', '/facets?field=brand&filter=price<=2&filter=brand!=diesel&limit=1', {}),
        ('GET', '/metrics', {}),
    )
    assert health.json()['products'] == 40
    assert {k: health.json()[k] for k in ('ok', 'model', 'dim')} == dict(
        ok=True, model='tiny.pth', dim=32
    )
    assert brands.json() == dict(brand={'Diesel': 20, 'Golden Goose': 20})
    assert few.json() == dict(brand={'Golden Goose': 1})
    assert metrics.headers['content-type'].startswith('text/plain')
    assert 'eiclip_requests_total{route="/facets",status="200"} 2.0' in metrics.text
    without, search_, other = ask(
        alone, ('GET', '/health', {}), post('/search', query='a'), ('GET', '/metrics', {})
    )
    assert without.json()['products'] is None
    refusal(search_, 404, 'not_found')
    assert '/facets' not in other.text
    assert 'eiclip_requests_total{route="none",status="404"} 1.0' in other.text


def test_openapi_describes_every_answer(search):
    (answer,) = ask(create_app(search, search.encoder), ('GET', '/openapi.json', {}))
    described = answer.json()
    assert {'/search', '/embed', '/facets', '/health', '/metrics'} == set(described['paths'])
    for path in ('/search', '/embed'):
        answers = described['paths'][path]['post']['responses']
        assert set(answers) == {'200', '413', '422', '429', '500', '503', '504'}
        for status in set(answers) - {'200'}:
            schema = answers[status]['content']['application/json']['schema']
            assert schema['$ref'].endswith('/ErrorResponse'), (path, status)
    schemas = described['components']['schemas']
    for name in ('SearchRequest', 'EmbedRequest', 'ErrorResponse', 'Product'):
        assert schemas[name]['examples'], name
    examples = schemas['SearchRequest']['examples'] + schemas['EmbedRequest']['examples']
    searched, *embedded = [
        ask(create_app(search, search.encoder), post(path, **body))[0]
        for path, body in zip(('/search', '/embed', '/embed'), examples, strict=True)
    ]
    assert len(searched.json()['hits']) == 3
    assert [len(each.json()['embeddings']) for each in embedded] == [1, 1]


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP', 'GIF', 'BMP'])
def test_damaged_photos_are_read_or_refused(search, form):
    """Whatever bytes come, the answer is a vector or a reason."""
    draw, file = np.random.default_rng(0), base64.b64decode(photo(0, form=form))
    damaged = []
    for _ in range(40):
        data = np.frombuffer(file, dtype=np.uint8).copy()
        data[draw.integers(len(data), size=4)] = draw.integers(256, size=4)
        data = data[: draw.integers(len(data) // 2, len(data) + 1)]
        damaged.append(base64.b64encode(data.tobytes()).decode())
    app = create_app(None, search.encoder, Limits(max_wait_ms=0))
    answers = ask(app, *(post('/embed', photos=[each]) for each in damaged))
    assert {answer.status_code for answer in answers} <= {200, 422}
    refused = [answer for answer in answers if answer.status_code == 422]
    assert refused
    for answer in refused:
        assert 'photos[0] cannot be read: ' in refusal(answer, 422, 'invalid')


@pytest.mark.parametrize('wrong', [dict(max_batch=0), dict(timeout_s=-1), dict(max_queue=100)])
def test_limits_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=r'must be positive|has no room for one request'):
        Limits(**wrong)
