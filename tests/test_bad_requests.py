"""What strangers send to the service: it answers with a reason, or hangs up, and goes on."""

import contextlib
import gzip
import json
import logging
import socket
import threading
import time

import pytest
import shop
from test_service import SERVE, Limits, ask, bomb, create_app, post, raw, refusal, write_index

from eiclip_mm.apis import EICLIPInferencer
from eiclip_mm.apis.rate import ADDRESSES, Rate
from eiclip_mm.apis.search import CatalogueSearch

uvicorn = pytest.importorskip('uvicorn', reason=SERVE)
from eiclip_mm.apis.connections import connection  # noqa: E402

JSON = {'Content-Type': 'application/json'}


@pytest.fixture(scope='module')
def search(tmp_path_factory):
    folder = tmp_path_factory.mktemp('requests')
    encoder = EICLIPInferencer(shop.write_checkpoint(folder / 'tiny.pth'), device='cpu')
    with write_index(folder / 'index', encoder) as index:
        yield CatalogueSearch(encoder, index)


def query(**more):
    return post('/search', query='a tee', **more)


REFUSED = {
    'half a surrogate as a key': (raw('/search', '{"\\ud800": 1}'), 422, 'unicode'),
    'surrogate in UTF-8': (raw('/search', b'{"query": "\xed\xa0\x80"}'), 422, 'unicode'),
    'latin-1': (raw('/search', '{"query": "é"}'.encode('latin-1')), 400, 'must be UTF-8'),
    'not UTF-8': (raw('/search', b'\xff\xfe\xff'), 400, 'must be UTF-8'),
    'gzip': (raw('/search', gzip.compress(b'{"query": "a"}')), 400, 'not compressed'),
    'bomb of gzip': (raw('/search', gzip.compress(bytes(2**24))), 400, 'not compressed'),
    'deep lists': (raw('/embed', '[' * 10**5 + ']' * 10**5), 400, 'not nested deeply'),
    'deep objects': (raw('/search', '{"a":' * 10**5), 400, 'not nested deeply'),
    'digits': (raw('/search', '{"k": ' + '9' * 5000 + '}'), 400, 'thousands of digits'),
    'no body': (raw('/search', ''), 422, 'required'),
    'null': (raw('/search', 'null'), 422, 'JSON object'),
    'text': (raw('/search', '"query"'), 422, 'must be a JSON object'),
    'twice': (raw('/search', '{"query": "a", "query": 5}'), 422, 'query: Input should be'),
    'infinite k': (raw('/search', '{"query": "a", "k": 1e999}'), 422, 'k: Input should be a f'),
    'half a k': (query(k=1.5), 422, 'k: Input should be a valid integer'),
    'negative k': (query(k=-1), 422, 'k: Input should be greater'),
    'list as k': (query(k=[1]), 422, 'k: Input should be a valid integer'),
    'control characters': (post('/search', query='\0\x01'), 422, 'query is empty'),
    'control characters of a product': (post('/embed', products=['\0']), 422, '[0] is empty'),
    'path as a photo': (post('/search', photo='/etc/passwd'), 422, 'photo cannot be read'),
    'address as a photo': (post('/search', photo='file:///etc/passwd'), 422, 'Only base64'),
    'data address as a photo': (post('/search', photo='data:image/png;base64,AA'), 422, 'base64'),
    'surrogate as a photo': (raw('/search', '{"photo": "\\ud800"}'), 422, 'ASCII'),
    'number as a photo': (post('/search', photo=1), 422, 'photo: Input should be'),
    '60,000 x 60,000 pixels': (post('/search', photo=bomb(60_000)), 422, 'at most 25000000'),
    'bomb of zeros': (post('/embed', photos=[bomb(30_000)]), 422, 'photos[0] cannot be read'),
    'path as a filter': (query(filters=['../../etc/passwd=1']), 422, 'no item has'),
    'quotes in a filter': (query(filters=['brand"]=1']), 422, 'no item has'),
    'NUL in a filter': (query(filters=['\0=1']), 422, "no item has '\\x00'"),
    'nan in a filter': (query(filters=['price<=nan']), 422, 'needs one number'),
    'infinity in a filter': (query(filters=['price<=1e400']), 422, 'needs one number'),
    'filters': (query(filters=['brand=x'] * 33), 422, 'at most 32'),
    'long filter': (query(filters=['brand=' + 'x' * 1000]), 422, 'at most 1000'),
    'filter that is none': (query(filters=[None]), 422, 'filters.0'),
    'template': (query(filters=['{{7*7}}']), 422, "filter '{{7*7}}' is not understood"),
    'no switch': (query(entities='perhaps'), 422, 'entities: Input should be a valid boolean'),
    'long entity': (
        post('/embed', products=[dict(description='a', entities=dict(brand=['x' * 201]))]),
        422, 'at most 200 characters',
    ),
    'entities': (
        post('/embed', products=[dict(description='a', entities=dict(brand=['x'] * 65))]),
        422, 'at most 64',
    ),
    'no texts': (post('/embed', queries='tee'), 422, 'queries: Input should be a valid list'),
    'letters without an end': (post('/search', query='鞋' * 9999), 422, 'more than 200 letters'),
    'letters that grow': (post('/search', query='\ufdfa' * 9999), 422, 'more than 200 letters'),
    'facet of NUL': (('GET', '/facets?field=%00', {}), 422, "no item has '\\x00'"),
    'facet that is no text': (('GET', '/facets?field=%ff%fe', {}), 422, 'no item has'),
    'facet of a quote': (('GET', '/facets?field=%22%5D', {}), 422, 'no item has'),
    'facet of a path': (('GET', '/facets?field=../../etc/passwd', {}), 422, 'no item has'),
    'facet without a field': (('GET', '/facets', {}), 422, 'field: Field required'),
    'long facet': (('GET', '/facets?field=' + 'x' * 201, {}), 422, 'at most 200'),
    'path': (('GET', '/%2e%2e/%2e%2e/etc/passwd', {}), 404, 'there is no GET here'),
    'path with a NUL': (('GET', '/search%00', {}), 404, 'there is no GET here'),
    'page of a script': (('GET', '/<script>alert(1)</script>', {}), 404, 'there is no GET here'),
    'method': (('PUT', '/search', {}), 405, 'there is no PUT here'),
    'method of nobody': (('FOO', '/search', {}), 405, 'there is no FOO here'),
    'TRACE': (('TRACE', '/search', {}), 405, 'there is no TRACE here'),
}  # fmt: skip
CODES = {400: 'bad_request', 404: 'not_found', 405: 'method_not_allowed', 422: 'invalid'}


def test_requests_are_refused_with_a_reason(search, caplog):
    app = create_app(search, search.encoder)
    with caplog.at_level(logging.INFO, 'eiclip_mm.service'):
        answers = ask(app, *(request for request, _, _ in REFUSED.values()), query())
    for name, answer in zip(REFUSED, answers, strict=False):
        _, status, says = REFUSED[name]
        message = refusal(answer, status, CODES[status])
        assert says.lower() in message.lower(), (name, message)
        assert len(message) < 600 and 'Traceback' not in message, name
        assert 'site-packages' not in message and '.py' not in message, name
    assert answers[-1].status_code == 200  # it goes on
    assert 'alert' not in caplog.text and 'passwd' not in caplog.text


def test_nothing_of_other_sites_is_let_in(search):
    """No page elsewhere may read an answer, whatever it says that it is."""
    origin = {'Origin': 'https://evil.example', 'Access-Control-Request-Method': 'POST'}
    app = create_app(search, search.encoder)
    answers = ask(
        app,
        ('OPTIONS', '/search', dict(headers=origin)),
        ('POST', '/search', dict(json=dict(query='a'), headers=origin)),
        ('POST', '/search', dict(content='{"query": "a"}', headers={'Content-Type': 'text/plain'})),
    )
    assert [answer.status_code for answer in answers] == [405, 200, 422]
    for answer in answers:
        assert not [name for name in answer.headers if name.startswith('access-control')]


def test_an_address_may_ask_so_often(search):
    app = create_app(search, search.encoder, Limits(max_rate=2))
    *answers, health = ask(app, *[query()] * 4, ('GET', '/health', {}))
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert 'may ask 2 times a second' in refusal(answers[2], 429, 'too_many')
    assert answers[2].headers['retry-after'] == '1'
    assert health.status_code == 200


def test_rate_counts_each_address_and_forgets():
    rate = Rate(4)
    assert [rate.wait('a', 0.0) for _ in range(5)] == [0, 0, 0, 0, pytest.approx(0.25)]
    assert rate.wait('b', 0.0) == 0  # another
    assert rate.wait('a', 0.26) == 0 and rate.wait('a', 0.26) > 0
    assert all(rate.wait('a', 1 + i / 4) == 0 for i in range(20))  # at that pace, for ever
    assert Rate(0.1).wait('a', 0) == 0 and Rate(0.1).wait('', 0) == 0
    six = Rate(1)
    assert [six.wait(f'2001:db8::{i}', 0.0) for i in range(2)] == [0, pytest.approx(1)]
    for i in range(ADDRESSES + 50):
        rate.wait(str(i), 100.0)
    assert len(rate.due) == ADDRESSES


# On a real socket.


@contextlib.contextmanager
def served(search, **limits):
    """The service on a free port of this machine."""
    limits = Limits(**limits)
    app = create_app(search, search.encoder, limits)
    config = uvicorn.Config(
        app, http=connection(limits), ws='none', log_level='critical', port=0, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname(), server
    finally:
        server.should_exit = True
        thread.join()


def talk(address, *parts: bytes, pause: float = 0) -> bytes:
    """Send the parts, then read till the other side hangs up."""
    with socket.create_connection(address, timeout=20) as link:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                link.sendall(part)
                time.sleep(pause)
        return rest(link)


def rest(link: socket.socket) -> bytes:
    found = b''
    with contextlib.suppress(ConnectionError):
        while part := link.recv(2**16):
            found += part
    return found


def body_of(answer: bytes) -> dict:
    head, _, body = answer.partition(b'\r\n\r\n')
    assert b'Traceback' not in answer
    return json.loads(body) if b'chunked' not in head.lower() else {}


HEAD = b'POST /search HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n'
CLOSE = b'GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n'


def test_clients_that_take_their_time_are_cut(search):
    """A byte now and then of headers or body, or none at all, holds no place for longer."""
    with served(search, timeout_s=0.5) as (address, server):
        slow_head = [b'GET /health HTTP/1.1\r\n'] + [b'X: 1\r\n'] * 100
        assert talk(address, *slow_head, pause=0.05) == b''
        assert talk(address, *([b'G'] * 100), pause=0.05) == b''
        assert talk(address) == b''  # it says nothing
        begun = HEAD + b'Content-Length: 1000\r\n\r\n{'
        assert b' 504 ' in talk(address, begun, *([b' '] * 100), pause=0.05)
        chunked = HEAD + b'Transfer-Encoding: chunked\r\n\r\n'
        assert b' 504 ' in talk(address, chunked, *([b'1\r\n \r\n'] * 100), pause=0.05)
        assert b'"ok":true' in talk(address, CLOSE)
        for _ in range(200):
            if not server.server_state.connections:
                break
            time.sleep(0.01)
        assert not server.server_state.connections


def test_a_client_that_does_not_read_is_cut(search):
    with served(search, timeout_s=0.5) as (address, server):
        with socket.create_connection(address, timeout=20) as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            asked = b'GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n' * 500
            with contextlib.suppress(ConnectionError, TimeoutError):
                link.settimeout(5)
                link.sendall(asked)
            for _ in range(1000):
                if not server.server_state.connections:
                    break
                time.sleep(0.01)
            assert not server.server_state.connections
        assert b'"ok":true' in talk(address, CLOSE)


ODD = {
    'no HTTP': (b'\x16\x03\x01\x02\x00\x01\x00\r\n\r\n', 400),
    'large header': (b'GET / HTTP/1.1\r\nX: ' + b'a' * 2**17 + b'\r\n\r\n', 400),
    'many headers': (b'GET / HTTP/1.1\r\n' + b'X: 1\r\n' * 20_000 + b'\r\n', 400),
    'long address': (b'GET /' + b'a' * 2**17 + b' HTTP/1.1\r\nHost: a\r\n\r\n', 400),
    'NUL in a header': (b'GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n', 400),
    'negative length': (HEAD + b'Content-Length: -5\r\n\r\n', 400),
    'two lengths': (HEAD + b'Content-Length: 1\r\nContent-Length: 2\r\n\r\n{}', 400),
    'length beyond numbers': (HEAD + b'Content-Length: ' + b'9' * 30 + b'\r\n\r\n', 400),
    'large length': (HEAD + b'Content-Length: 999999999999\r\nConnection: close\r\n\r\n', 413),
    'unknown coding': (HEAD + b'Transfer-Encoding: gzip\r\n\r\n', 501),
    'bad chunk': (HEAD + b'Transfer-Encoding: chunked\r\n\r\nzz\r\n', 400),
    'no host': (b'GET /health HTTP/1.1\r\n\r\n', 400),
    'above the root': (
        b'GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n', 404,
    ),
    'other site': (
        b'GET http://evil.example/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n', 404,
    ),
}  # fmt: skip


def test_what_is_no_request(search):
    with served(search, timeout_s=5) as (address, _):
        for name, (sent, status) in ODD.items():
            answer = talk(address, sent)
            assert answer.startswith(b'HTTP/1.1 '), name
            assert int(answer.split()[1]) in (status, 400), (name, answer[:100])
            error = body_of(answer)['error']
            assert error['message'] and 'passwd' not in error['message'], name
        upgrade = b'GET /search HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\n'
        upgrade += b'Upgrade: websocket\r\nSec-WebSocket-Key: AA==\r\n\r\n'
        assert b' 405 ' in talk(address, upgrade)
        assert b'"ok":true' in talk(address, CLOSE)


def test_a_body_without_an_end_is_cut(search):
    with served(search, timeout_s=5, max_body_mb=1) as (address, _):
        chunks = [b'10000\r\n' + b' ' * 2**16 + b'\r\n'] * 40
        assert b' 413 ' in talk(address, HEAD + b'Transfer-Encoding: chunked\r\n\r\n', *chunks)
        assert b'"ok":true' in talk(address, CLOSE)


def test_so_many_connections_and_no_more(search):
    with served(search, timeout_s=5, max_connections=20) as (address, server):
        links = [socket.create_connection(address, timeout=20) for _ in range(60)]
        cut = [link for link in links[20:] if rest(link) == b'']
        assert len(cut) == 40
        links[0].sendall(CLOSE)
        assert b'"ok":true' in rest(links[0])  # those that are in are served
        for link in links:
            link.close()
        for _ in range(500):
            if len(server.server_state.connections) == 0:
                break
            time.sleep(0.01)
        assert b'"ok":true' in talk(address, CLOSE)
