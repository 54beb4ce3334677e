"""tools/deployment/serve.py as a process of its own, and load_test.py against it."""

import concurrent.futures
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import shop
from test_service import SERVE, httpx, photo, refusal, write_index
from test_tools import ENV, ROOT

from eiclip_mm.apis import EICLIPInferencer
from eiclip_mm.apis.index import CatalogueIndex

sys.path.insert(0, str(ROOT / 'tools/deployment'))
pytest.importorskip('uvicorn', reason=SERVE)
import load_test
import serve


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A checkpoint and its index, closed."""
    folder = tmp_path_factory.mktemp('serve')
    encoder = EICLIPInferencer(shop.write_checkpoint(folder / 'tiny.pth'), device='cpu')
    write_index(folder / 'index', encoder).close()
    return folder


def start(folder: Path, *options) -> tuple[subprocess.Popen, str]:
    """The service on a free port, and its address."""
    command = [sys.executable, 'tools/deployment/serve.py', folder / 'tiny.pth', '--port', 0]
    with open(folder / 'log', 'w') as log:
        process = subprocess.Popen(
            [*map(str, command), '--index', str(folder / 'index'), *options],
            cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    return process, process.stdout.readline().strip().removesuffix('/docs')


def test_answers_are_sent_at_once():
    with (
        serve.listen('127.0.0.1', 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def send(url: str, **body) -> httpx.Response:
    return httpx.post(f'{url}/search', json=body, timeout=60, trust_env=False)


def test_it_serves_is_loaded_and_ends_without_losing_what_it_accepted(folder, capsys):
    process, url = start(folder, '--max-batch', '4', '--max-wait-ms', '3000', '--threads', '1')
    try:
        assert re.fullmatch(r'http://127\.0\.0\.1:\d+', url), (folder / 'log').read_text()
        with concurrent.futures.ThreadPoolExecutor(7) as pool:
            # four fill a batch, so that nobody waits
            for kind in load_test.KINDS:
                with pytest.raises(SystemExit) as exited:
                    load_test.main([url, '--clients', '4', '--seconds', '0.3', '--kind', kind])
                assert exited.value.code == 0
            large = httpx.post(f'{url}/embed', content=b'a' * (2**23 + 1), timeout=60)
            assert 'may have 8 MiB' in refusal(large, 413, 'too_large')
            # three do not, so they wait for more; they are told to end meanwhile
            waiting = [pool.submit(send, url, query=f'tee {i}') for i in range(3)]
            waiting += [pool.submit(send, url, photo=photo(i)) for i in range(3)]
            until_accepted(url, 3)
            process.send_signal(signal.SIGTERM)
            answers = [each.result() for each in waiting]
        assert [answer.status_code for answer in answers] == [200] * 6
        assert {answer.headers['connection'] for answer in answers} == {'close'}
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    with pytest.raises(httpx.ConnectError):
        send(url, query='tee')
    with CatalogueIndex.open(folder / 'index') as index:  # it was let go
        assert len(index) == 40
    said = capsys.readouterr().out
    assert said.count('\nno request(s) sent and not answered') == 3
    assert len(re.findall(r'^\| 4 \| [1-9]\d* \|.*\| 200: \d+ \| 0 \| 0 \|$', said, re.M)) == 3
    assert 'nan' not in said
    lines = (folder / 'log').read_text().splitlines()
    lines = [line for line in lines if re.search(r'(GET|POST) /', line)]
    assert sum('/search 200' in line for line in lines) >= 10
    form = r'[-\d]+ [\d:,]+ (GET|POST) /\w+ \d{3} \d+\.\d ms'
    assert not [line for line in lines if not re.fullmatch(form, line)]


def test_a_client_is_who_it_is_whatever_it_says(folder):
    process, url = start(folder, '--max-rate', '0.01')
    try:
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            statuses = [
                client.get('/facets?field=brand', headers={'X-Forwarded-For': name}).status_code
                for name in ('10.0.0.1', '10.0.0.2')
            ]
        assert statuses == [200, 429]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def until_accepted(url: str, n: int) -> None:
    """Wait till so many texts and so many photos wait for their batch."""
    for _ in range(500):
        metrics = httpx.get(f'{url}/metrics', trust_env=False).text
        if all(f'eiclip_queue_length{{kind="{k}"}} {n}.0' in metrics for k in ('text', 'photo')):
            return
        time.sleep(0.005)
    raise AssertionError(metrics)


@pytest.fixture()
def handlers():
    """The tool sets handlers of signals; ours come back."""
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures('handlers')
def test_what_cannot_be_served_is_refused(folder, tmp_path, capsys):
    checkpoint = folder / 'tiny.pth'
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        for options, says in (
            (['nothing.pth'], 'nothing.pth does not exist'),
            (['--onnx', tmp_path], r'model\.json'),
            ([checkpoint, '--index', tmp_path / 'none'], 'does not exist'),
            ([checkpoint, '--max-queue', 8], 'has no room for one request of max_items=256'),
            ([checkpoint, '--port', port], f'cannot listen on 127.0.0.1, port {port}'),
        ):
            with pytest.raises(SystemExit, match=says):
                serve.main([*map(str, options)])
    for options, says in (
        ([], 'give CHECKPOINT or --onnx FOLDER'),
        ([checkpoint, '--onnx', tmp_path], 'give CHECKPOINT or --onnx FOLDER'),
        ([checkpoint, '--port', 70000], '--port must be 0 to 65535, got 70000'),
        ([checkpoint, '--threads', 0], '--threads must be at least 1'),
    ):
        with pytest.raises(SystemExit):
            serve.main([*map(str, options)])
        assert says in capsys.readouterr().err


@pytest.mark.usefixtures('handlers')
def test_an_index_of_another_checkpoint_is_refused(folder, tmp_path):
    with CatalogueIndex.open(folder / 'index') as index:
        CatalogueIndex.create(tmp_path / 'index', index.dim, dict(model='a', sha256='b')).close()
    with pytest.raises(SystemExit, match=r'the index was built with a .*not with tiny\.pth'):
        serve.main([str(folder / 'tiny.pth'), '--index', str(tmp_path / 'index')])


@pytest.mark.parametrize(
    'url',
    [
        'http://example.com', 'http://10.0.0.1:8000', 'http://127.0.0.1.example.com',
        'http://127.0.0.1@example.com', 'https://127.0.0.1', '127.0.0.1:8000', 'http://',
    ],
)  # fmt: skip
def test_only_this_machine_is_loaded(url, capsys):
    with pytest.raises(SystemExit) as exited:
        load_test.main([url])
    assert exited.value.code == 2
    assert 'is not on this machine' in capsys.readouterr().err


def test_this_machine_by_any_name():
    for url in ('http://127.0.0.1:80', 'http://127.8.0.1', 'http://localhost:1', 'http://[::1]:8'):
        assert load_test.is_local(url)


@pytest.mark.parametrize('options', [['--clients', '257'], ['--seconds', '121']])
def test_the_load_is_bounded(options):
    with pytest.raises(SystemExit):
        load_test.parse_args(['http://127.0.0.1', *options])


def test_a_request_whose_connection_is_cut_is_counted(capsys):
    """A server that reads requests and hangs up, then is gone."""
    with socket.create_server(('127.0.0.1', 0)) as listener:
        url = f'http://127.0.0.1:{listener.getsockname()[1]}'
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            done = pool.submit(hang_up, listener, 3)  # the metrics, then two clients
            with pytest.raises(SystemExit) as exited:
                load_test.main([url, '--clients', '2', '--seconds', '1'])
            done.result()
    assert exited.value.code == 1
    said = capsys.readouterr().out
    assert '| 2 | 0 | 0.0 | nan | nan | nan |  | 0 | 2 |' in said
    assert '2 request(s) sent and not answered' in said


def hang_up(listener: socket.socket, times: int) -> None:
    for _ in range(times):
        with listener.accept()[0] as connection:
            assert connection.recv(2**16)
    listener.close()


def test_requests_differ_and_are_plain_json():
    for kind in load_test.KINDS:
        own, other = load_test.bodies(kind, 0), load_test.bodies(kind, 1)
        sent = [json.dumps(next(each)) for each in (own, own, own, own, other, other)]
        assert len(set(sent)) > 3
