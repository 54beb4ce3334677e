"""Files and requests with faults drawn at random: read, or refused with a sentence.

FUZZ=1000 pytest tests/test_fuzz_inputs.py draws more.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import shop
import torch
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from schemas import schema

from eiclip_mm.apis.checkpoint import _config, open_checkpoint
from eiclip_mm.evaluation import Embeddings, Manifest
from eiclip_mm.structures import EntityVocab

FAULTS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(['flip', 'cut', 'double', 'number']), st.binary()),
    min_size=1,
    max_size=4,
)


def spoilt(content: bytes, faults) -> bytes:
    """Bytes with some of them changed, left out, doubled or replaced."""
    data = bytearray(content)
    for share, fault, more in faults:
        place = int(share * max(len(data) - 1, 0))
        if fault == 'flip' and data:
            data[place] ^= 1 + len(more) % 255
        elif fault == 'cut':
            del data[place : place + 1 + len(more)]
        elif fault == 'double':
            data[place:place] = data[place : place + 64]
        else:
            data[place : place + len(more)] = more
    return bytes(data)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**12, -1, 2**63, '', '../..', '/etc/passwd', 'hf-hub:a/b', 'package:this'])
    | st.floats()
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(['type', '_scope_']), inner)
    ),
    max_leaves=8,
)


def places(value, path=()):
    """Where in plain data something stands."""
    yield path
    if not isinstance(value, (dict, list, tuple)):
        return
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield from places(part, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    key, *more = path
    if isinstance(value, dict):
        return value | {key: replaced(value[key], more, new)}
    return [replaced(part, more, new) if i == key else part for i, part in enumerate(value)]


@st.composite
def changed(draw, whole):
    """Plain data with one or two parts replaced."""
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from(list(places(whole))))
        whole = replaced(whole, place, draw(PLAIN))
    return whole


def sentence(error: Exception, name: str) -> None:
    """Ours: it names the file, on at most some lines."""
    assert name in str(error) and len(str(error)) < 1500, str(error)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return shop.write_checkpoint(tmp_path_factory.mktemp('fuzz') / 'best.pth')


@given(faults=FAULTS)
@fuzz
def test_bytes_of_checkpoints(checkpoint, faults):
    """Every byte is under a checksum, so whatever opens has the tensors it had."""
    path = checkpoint.with_name('odd.pth')
    path.write_bytes(spoilt(checkpoint.read_bytes(), faults))
    try:
        opened = open_checkpoint(path)
    except ValueError as error:
        sentence(error, 'odd.pth')
    else:
        own = open_checkpoint(checkpoint).state
        assert all(torch.equal(own[name], value) for name, value in opened.state.items())


def config_of(path: Path) -> dict:
    found = {}
    exec(torch.load(path, weights_only=True)['meta']['cfg'], found)  # our own
    return {key: found[key] for key in ('model', 'test_dataloader')}


@given(data=st.data())
@fuzz
def test_configs_in_checkpoints(checkpoint, data):
    config = data.draw(changed(config_of(checkpoint)))
    if isinstance(config, dict):
        named = {k: v for k, v in config.items() if isinstance(k, str) and k.isidentifier()}
        text = '\n'.join(f'{key} = {value!r}' for key, value in named.items())
    else:
        text = f'model = {config!r}'
    try:
        read = _config(text, Path('odd.pth'))
    except ValueError as error:
        sentence(error, 'odd.pth')
    else:
        assert {'model', 'test_dataloader'} <= set(read)


@given(faults=FAULTS, compressed=st.booleans(), manifest=st.booleans())
@fuzz
def test_bytes_of_arrays(tmp_path_factory, faults, compressed, manifest):
    path = tmp_path_factory.getbasetemp() / 'odd.npz'
    pairs = np.zeros((2, 2), np.int64)
    arrays = dict(
        image=np.eye(4), image_product_id=np.arange(4), product=np.eye(4), product_id=np.arange(4)
    )
    if manifest:
        arrays = dict(i2t_query=pairs, i2t_candidates=pairs[:, None], t2i_query=pairs)
        arrays['t2i_candidates'] = pairs[:, None]
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    path.write_bytes(spoilt(path.read_bytes(), faults))
    try:
        (Manifest if manifest else Embeddings).load(path)
    except ValueError as error:
        sentence(error, 'odd.npz')


VOCAB = EntityVocab(
    dict(brand=('Diesel', 'Puma'), colour=('red',)), dict(brand=(3, 2), colour=(1,))
)
ABOUT = dict(format='eiclip_mm.index/1', dim=4, about=dict(model='a'), items=0)
ABOUT['texts."a"'] = ['texts', 'a']


@given(whole=changed(VOCAB.to_dict()))
@fuzz
def test_schema_and_reader_of_vocabularies(whole):
    """Where the schema refuses, so does the reader; it alone knows what belongs together."""
    fits = schema('entity_vocab').is_valid(whole)
    try:
        read = EntityVocab.from_dict(whole, 'odd.json')
    except ValueError as error:
        sentence(error, 'odd.json')
    else:
        assert fits, whole
        assert schema('entity_vocab').is_valid(read.to_dict())


@given(whole=changed(ABOUT))
@fuzz
def test_schema_and_reader_of_indexes(whole):
    pytest.importorskip('qdrant_edge', reason="needs pip install 'eiclip_mm[search]'")
    from eiclip_mm.apis.index import CatalogueIndex

    class Stored:
        def meta(self):
            return whole

    if not isinstance(whole, dict):
        return
    whole = {key: value for key, value in whole.items() if key != 'items'}  # the engine's
    try:
        CatalogueIndex(Stored())
    except ValueError as error:
        assert 'index' in str(error)
    else:
        assert schema('index').is_valid(whole), whole


BODIES = dict(
    search=dict(query='a tee', k=3, filters=['brand=diesel'], entities=True, side='image'),
    photo=dict(photo='aGVsbG8=', k=3),
    embed=dict(products=[dict(description='a tee', entities=dict(brand=['Diesel'])), 'scarf']),
)


@pytest.fixture(scope='module')
def client(tmp_path_factory):
    service = pytest.importorskip('test_service', exc_type=ImportError, reason='needs [serve]')
    testclient = pytest.importorskip('starlette.testclient', reason='needs [serve]')
    folder = tmp_path_factory.mktemp('client')
    encoder = service.EICLIPInferencer(shop.write_checkpoint(folder / 'tiny.pth'), device='cpu')
    with service.write_index(folder / 'index', encoder) as index:
        limits = service.Limits(max_wait_ms=0, timeout_s=60)
        app = service.create_app(service.CatalogueSearch(encoder, index), encoder, limits)
        with testclient.TestClient(app, raise_server_exceptions=False) as client:
            yield client


@given(data=st.data())
@fuzz
def test_requests(client, data):
    kind = data.draw(st.sampled_from(list(BODIES)))
    body = json.dumps(data.draw(changed(BODIES[kind]))).encode()
    if data.draw(st.booleans()):
        body = spoilt(body, data.draw(FAULTS))
    path = '/embed' if kind == 'embed' else '/search'
    answer = client.post(path, content=body, headers={'Content-Type': 'application/json'})
    assert answer.status_code in (200, 400, 422), (body, answer.text)
    if answer.status_code != 200:
        assert set(answer.json()['error']) == {'code', 'message'}
        assert '.py' not in answer.text and 'Traceback' not in answer.text
