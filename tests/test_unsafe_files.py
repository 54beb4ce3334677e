"""Checkpoints, dumps, manifests, exported models and indexes of strangers are read or refused."""

import copy
import gc
import io
import json
import os
import shutil
import socket
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import shop
import tiny
import torch
from confined import confined
from mmengine import Config

from eiclip_mm.apis import EICLIPInferencer, open_checkpoint, save_checkpoint
from eiclip_mm.evaluation import Embeddings, Manifest
from eiclip_mm.models.checkpoints import read_towers
from eiclip_mm.utils import load_config
from eiclip_mm.utils.checkpoint_file import read_checkpoint

NUMPY = np.lib.format


def refused(call, *args) -> str:
    """The sentence; it names the file, is short, and is no other program's."""
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        call(*args)
    message = str(raised.value)
    assert type(raised.value).__name__ in ('ValueError', 'CheckpointError', 'FileNotFoundError')
    assert Path(args[0]).name in message, message
    assert len(message) < 900 and 'Traceback' not in message and message.isprintable(), message
    assert 'unsafely' not in message
    return message


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A checkpoint as it was loaded, and its config as a dict."""
    path = shop.write_checkpoint(tmp_path_factory.mktemp('whole') / 'best.pth')
    loaded = torch.load(path, weights_only=True)
    config = {}
    exec(loaded['meta']['cfg'], config)  # our own
    return loaded, {key: config[key] for key in ('model', 'test_dataloader')}


def written(loaded, path: Path, text: str | None = None, **state) -> Path:
    """The checkpoint with another config, or with other tensors."""
    meta = dict(loaded['meta'], cfg=loaded['meta']['cfg'] if text is None else text)
    torch.save(dict(meta=meta, state_dict=loaded['state_dict'] | state), path)
    return path


def change(config: dict, place: str, value: object) -> str:
    """A config as mmengine writes it, one value of which is another; ``place`` as a.b.c."""
    config = copy.deepcopy(config)
    *folders, name = place.split('/')
    part = config
    for folder in folders:
        part = part.setdefault(folder, {}) if isinstance(part, dict) else part[int(folder)]
    part[name] = value
    return '\n'.join(f'{key} = {value!r}' for key, value in config.items())


TIMM = dict(tiny.ARCHITECTURE, vision_cfg=dict(timm_model_name='hf-hub:a/b', image_size=32))
TEXT = tiny.ARCHITECTURE['text_cfg']
PIPELINE = 'test_dataloader/dataset/pipeline'
CONFIGS = {
    'keys of mmengine': ('filename', 'a.py', 'reserved'),
    'variables': ('env_variables', dict(HOME='x'), 'reserved'),
    'text': ('text', 'x', 'reserved'),
    'scope of a selector': ('model/selector/_scope_', 'this', "names scope 'this'"),
    'scope of a step': (PIPELINE, [dict(type='PackProduct', _scope_='this')], 'names scope'),
    'model of timm': ('model/towers/model', TIMM, "timm_model_name 'hf-hub:a/b'"),
    'package in a package': (
        'model/towers/model', dict(text_cfg=dict(hf_model_name='package:this.s/x')), 'no folder',
    ),
    'package and up': (
        'model/towers/model', dict(text_cfg=dict(hf_model_name='package:torch/../..')), 'no folder',
    ),
    'folder that is a number': (
        'model/towers/model', dict(text_cfg=dict(hf_model_name=3)), 'no folder here',
    ),
    'tokenizer of a hub': (
        'model/tokenizer/model', dict(text_cfg=dict(hf_tokenizer_name='a/b')), 'no folder here',
    ),
    'part that reads a file': (
        'model/selector', dict(type='TIMMBackbone', model_name='resnet18', checkpoint_path='x'),
        "names type 'TIMMBackbone'",
    ),
    'part that unpickles': ('model/learner', dict(type='mmengine.load'), "type 'mmengine.load'"),
    'weights from elsewhere': (
        'model/init_cfg', dict(type='Pretrained', checkpoint='http://a.b/c'), "type 'Pretrained'",
    ),
    'command': ('model/data_preprocessor', dict(type='os.system'), "type 'os.system'"),
    'data of a hub': ('val_dataloader', dict(dataset=dict(type='a.b')), "type 'a.b'"),
    'type that is a list': ('model/selector/type', ['KeepAll'], 'damaged or lacks'),
    '_delete_': ('model/_delete_', True, "argument '_delete_'"),
    'unknown argument': ('model/bogus', 1, "argument 'bogus'"),
    'text_cfg': ('model/towers/model', dict(text_cfg=5), 'damaged or lacks'),
    'towers': ('model/towers', 5, 'damaged or lacks'),
    'model': ('model/towers/model', 5, 'damaged or lacks'),
    'no model of the tokenizer': ('model/tokenizer', dict(type='EntityTokenizer'), "'model'"),
    'no such model': ('model/towers/model', 'ViT-B-99', 'is not an open_clip model'),
    'pipeline': (PIPELINE, 5, 'cannot be sized'),
    'step': (PIPELINE, [dict(scale=3)], 'cannot be sized'),
    'photos': (PIPELINE, [dict(type='Resize', scale=(10**5, 10**5))], 'beyond 10000 pixels'),
    'photos beyond numbers': (PIPELINE, [dict(type='Resize', scale=1e308)], 'beyond 10000'),
    'values': ('model/tokenizer/max_values', 10**9, 'max_values=1000000000'),
    'tokens': ('model/tokenizer/context_length', 10**8, 'context_length=100000000'),
    'no tokens': ('model/tokenizer/context_length', -1, 'context_length=-1'),
    'tokens of the tower': (
        'model/towers/model', dict(tiny.ARCHITECTURE, text_cfg=dict(TEXT, context_length=1e9)),
        'context_length=1000000000.0',
    ),
}  # fmt: skip
LARGE = {
    'width': dict(tiny.ARCHITECTURE, embed_dim=10**12),
    'square': dict(tiny.ARCHITECTURE, text_cfg=dict(TEXT, width=10**5)),
    'words': dict(tiny.ARCHITECTURE, text_cfg=dict(TEXT, vocab_size=10**10)),
    'layers': dict(tiny.ARCHITECTURE, text_cfg=dict(TEXT, width=4, heads=1, layers=10**9)),
}


@pytest.mark.parametrize('case', CONFIGS)
def test_a_config_that_does_more_than_say_what_the_model_is(whole, tmp_path, case, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError('it asks the network')

    monkeypatch.setattr(socket.socket, 'connect', no_network)
    monkeypatch.delitem(sys.modules, 'this', raising=False)
    place, value, says = CONFIGS[case]
    path = written(whole[0], tmp_path / 'odd.pth', change(whole[1], place, value))
    assert says in refused(EICLIPInferencer, path, 'cpu')
    assert 'this' not in sys.modules  # importing it prints a poem


@pytest.mark.parametrize('case', [*LARGE, 'adapters'])
def test_sizes_that_no_memory_holds(whole, tmp_path, case):
    place, value = 'model/towers/model', LARGE.get(case)
    if case == 'adapters':
        place, value = 'model/towers/lora', dict(rank=10**9)
    path = written(whole[0], tmp_path / 'odd.pth', change(whole[1], place, value))
    kind, message = confined(EICLIPInferencer, path, 'cpu')
    assert kind == 'ValueError' and 'odd.pth: no model can be built' in message
    assert 'far beyond those of the weights' in message


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('x = "' + 'a' * 2**20 + '"', 'at most 1048576 are read'),
        ('model = {{ $HOME:x }}', 'not plain data'),
        ("_base_ = '/etc/passwd'", 'holds no config'),
        ('model = dict(a=1)["a"]', 'not plain data'),
        ('model = [dict(a=b) for b in (1,)]', 'not plain data'),
        ('model = "a" * 10**9', 'not plain data'),
        ('model = (lambda: 0)()', 'not plain data'),
        ('model: dict = dict()', 'not plain data'),
        ('model = 9' + '9' * 5000, 'not plain data'),
        ('model = "\0"', 'not plain data'),
        ('model = "\ud800"', 'not plain data'),
        (5, 'not plain data'),
    ],
)
def test_a_config_that_is_no_data(whole, tmp_path, text, says):
    path = written(whole[0], tmp_path / 'odd.pth', text)
    assert says in refused(open_checkpoint, path)


def test_what_only_training_does_is_left_out(whole, tmp_path):
    """Paths and imports for training stay words: nothing reads them."""
    text = change(whole[1], 'model/towers/pretrained', '/etc/passwd')
    text += "\ncustom_imports = dict(imports=['this'])\n_base_ = '/etc/passwd'"
    text += "\nload_from = 'http://a.b/c.pth'\nhook = dict(type='os.system')"
    encoder = EICLIPInferencer(written(whole[0], tmp_path / 'a.pth', text), 'cpu')
    assert encoder.dim == 32 and 'this' not in sys.modules


def extra(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


VOCAB = dict(format='eiclip_mm.entity_vocab/1', names=dict(a=['x']), counts=dict(a=[1]))
WEIGHT = 'towers.clip.visual.conv1.weight'
STATES = {
    'deep': ({'_extra_state': extra('[' * 10**5)}, 'no vocabulary that can be read'),
    'no JSON': ({'_extra_state': extra('{')}, 'no vocabulary'),
    'names': ({'_extra_state': extra(json.dumps(VOCAB | dict(names=dict(a=5))))}, 'no vocabulary'),
    'counts': ({'_extra_state': extra(json.dumps(VOCAB | dict(counts={})))}, 'no vocabulary'),
    'no bytes': ({'_extra_state': torch.full((3,), 300)}, 'no vocabulary'),
    'a number of zeros': ({'_extra_state': torch.tensor(10**7)}, 'int64 of shape ()'),
    'columns': ({'_extra_state': extra('{}')[None]}, 'uint8 of shape (1, 2)'),
    'vocabulary nowhere': ({'_extra_state': extra('{}').to('meta')}, 'must be a row of bytes'),
    'sparse vocabulary': ({'_extra_state': extra('{}').to_sparse()}, 'must be a row of bytes'),
    'other vocabulary': ({'_extra_state': extra(json.dumps(VOCAB))}, 'the checkpoint was trained'),
    'number as a name': ({5: torch.ones(1)}, '5 is no dense tensor'),
    'text': (dict(x='y'), "'x' is no dense tensor"),
    'complex': ({WEIGHT: torch.ones(2, dtype=torch.complex64)}, 'no dense tensor'),
    'sparse': ({WEIGHT: torch.eye(3).to_sparse()}, 'no dense tensor'),
    'no place': ({WEIGHT: torch.ones(3, device='meta')}, 'no dense tensor'),
    'NaN': ({WEIGHT: torch.full((32, 3, 8, 8), torch.nan)}, 'holds NaN'),
    'infinite': ({WEIGHT: torch.full((32, 3, 8, 8), torch.inf)}, 'holds NaN or infinite'),
    'shape': ({WEIGHT: torch.ones(3)}, 'do not fit the config'),
    'more than the file': ({WEIGHT: torch.zeros(1).expand(10**6, 10**6)}, 'tensors would take'),
}


@pytest.mark.parametrize('case', STATES)
def test_weights_that_are_none(whole, tmp_path, case):
    state, says = STATES[case]
    path = written(whole[0], tmp_path / 'odd.pth', **{k: v for k, v in state.items() if k != 5})
    if 5 in state:
        torch.save(dict(whole[0], state_dict=whole[0]['state_dict'] | state), path)
    if case == 'other vocabulary':
        with pytest.raises(ValueError, match=says):
            EICLIPInferencer(path, 'cpu')
    else:
        assert says in ' '.join(refused(lambda p: EICLIPInferencer(p, 'cpu'), path).split())


class Evil:
    def __reduce__(self):
        return os.mkdir, ('ran',)


KINDS = {
    'pickle': 'it names', 'bomb': 'tensors would take', 'packed': 'are compressed',
    'flipped': 'differs from its checksum', 'cut': 'is damaged', 'header': '', 'empty': '',
    'module': 'compressed',
}  # fmt: skip


@pytest.mark.parametrize('read', [open_checkpoint, read_towers, read_checkpoint])
@pytest.mark.parametrize('kind', KINDS)
def test_files_of_weights(whole, tmp_path, monkeypatch, read, kind):
    monkeypatch.chdir(tmp_path)
    path = written(whole[0], tmp_path / 'odd.pth')
    if kind == 'pickle':
        torch.save(dict(state_dict=dict(a=Evil())), path)
    elif kind in ('bomb', 'packed'):  # whole ones, one of 40 MB in 40 kB
        many = 10**7 if kind == 'bomb' else 10
        torch.save(dict(whole[0], more=torch.zeros(many)), tmp_path / 'large.pth')
        with (
            zipfile.ZipFile(tmp_path / 'large.pth') as file,
            zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as packed,
        ):
            for record in file.namelist():
                packed.writestr(record, file.read(record))
        assert len(torch.load(path, weights_only=True)['more']) == many
    elif kind == 'flipped':
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif kind == 'module':  # TorchScript is a program
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    else:
        path = path.with_suffix('.safetensors' if kind == 'header' else '.pth')
        head = (2**62).to_bytes(8, 'little') + b'{'
        cut = (tmp_path / 'odd.pth').read_bytes()[:1000]
        path.write_bytes(dict(cut=cut, header=head, empty=b'')[kind])
    message = refused(read, path)
    assert read is read_checkpoint or 'cannot be read safely' in message
    assert KINDS[kind] in message
    assert not Path('ran').exists()


@pytest.mark.parametrize('read', [open_checkpoint, read_towers, read_checkpoint])
def test_lists_of_one_list_do_not_hang_who_reads_them(whole, tmp_path, read):
    many = ['a']
    for _ in range(40):
        many = [many, many]
    path = tmp_path / 'odd.pth'
    torch.save(dict(whole[0], meta=dict(whole[0]['meta'], many=many)), path)
    kind, message = confined(read, path, seconds=20)
    assert kind in ('ValueError', 'CheckpointError')
    assert 'lists, texts and tensors would take 3,298,' in message


def test_safetensors_hold_a_whole_checkpoint(whole, tmp_path):
    path = written(whole[0], tmp_path / 'best.pth')
    opened = open_checkpoint(path)
    save_checkpoint(tmp_path / 'best.safetensors', opened.state, opened.meta)
    again = open_checkpoint(tmp_path / 'best.safetensors')
    assert again.meta == json.loads(json.dumps(opened.meta)) and again.vocab == opened.vocab
    both = [EICLIPInferencer(p, 'cpu') for p in (path, again.path)]
    one, other = (encoder.encode_queries('golden goose tee') for encoder in both)
    assert torch.equal(one, other)
    assert read_towers(again.path).keys() == read_towers(path).keys()


def not_plain_yaml(path: Path) -> bool:
    message = refused(load_config, path)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ResourceWarning)  # mmengine leaves its own copy open
        gc.collect()
    return 'plain YAML' in message


def test_a_config_in_yaml_runs_nothing(tmp_path):
    path = tmp_path / 'config.yaml'
    path.write_text(f'a: !!python/object/apply:os.mkdir ["{tmp_path}/ran"]')
    assert not_plain_yaml(path)
    assert not (tmp_path / 'ran').exists()
    path.write_text('a: [1, {b: 2}]')
    assert load_config(path).a[1].b == 2


def test_of_python_a_config_in_yaml_holds_tuples_alone(tmp_path):
    path = tmp_path / 'config.yaml'
    Config(dict(scale=(3, (4, [5])), empty=())).dump(path)
    assert 'python/tuple' in path.read_text()
    loaded = load_config(path)
    assert loaded.to_dict() == dict(scale=(3, (4, [5])), empty=())
    assert type(loaded.scale) is type(loaded.scale[1]) is tuple
    for tag in ('python/name:os.mkdir', 'python/object/new:tuple', 'python/list', 'python/tuple:x'):
        path.write_text(f'a: !!{tag} [[1]]')
        assert not_plain_yaml(path)
    for text in ('a: !!python/tuple {b: 1}', 'a: &a !!python/tuple [*a]', 'a: !!python/tuple 1'):
        path.write_text(text)
        assert not_plain_yaml(path)


# Dumps and manifests.

ARRAYS = dict(
    image=np.eye(4, dtype=np.float32), image_product_id=np.arange(4),
    product=np.eye(4, dtype=np.float32), product_id=np.arange(4),
)  # fmt: skip
LISTS = dict(
    i2t_query=np.zeros((1, 2), int), i2t_candidates=np.zeros((1, 2, 2), int),
    t2i_query=np.zeros((1, 2), int), t2i_candidates=np.zeros((1, 2, 2), int),
)  # fmt: skip


def header(shape: tuple, descr: str = '<f4') -> bytes:
    """Of a .npy, without what it announces."""
    file = io.BytesIO()
    NUMPY.write_array_header_1_0(file, dict(descr=descr, fortran_order=False, shape=shape))
    return file.getvalue()


def npz(path: Path, arrays: dict) -> Path:
    """Arrays, and bytes as they are."""
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
        for name, array in arrays.items():
            content = io.BytesIO()
            if not isinstance(array, bytes):
                NUMPY.write_array(content, array)
            file.writestr(f'{name}.npy', array if isinstance(array, bytes) else content.getvalue())
    return path


DUMPS = {
    'terabytes': (dict(image=header((10**12, 2))), '8,000,000,000,000 bytes, there are 128'),
    'beyond numbers': (dict(image=header((10**30,))), 'says it has'),
    'many axes': (dict(image=header((2,) * 40)), 'says it has'),
    'negative': (dict(image=header((-1, 2))), 'negative'),
    'no columns': (dict(image=header((10**12, 0))), 'image_product_id as many integers'),
    'objects': (dict(image=header((4, 2), '|O')), 'Object arrays cannot be loaded'),
    'texts of no size': (dict(labels=header((10**9,), '<U0')), '1,000,000,000 bytes'),
    'labels of no size': ({'label.a': header((10**9,), '<U0')}, '1,000,000,000 bytes'),
    'bytes of no size': ({'label.a': header((10**9,), '|S0')}, '1,000,000,000 bytes'),
    'long texts': ({'label.a': header((4,), '<U100000000')}, '1,600,000,000 bytes'),
    'numbers of no size': (dict(product_id=header((4,), '|V0')), 'must be integers'),
    'climbing': ({'../../x': np.ones(1)}, "unknown ['../../x']"),
    'long name': ({'x' * 60_000: np.ones(1)}, f'unknown [{"x" * 50!r}]'),
    'escapes': ({'\x1b[2J': np.ones(1)}, 'unknown'),
    'deep card': (dict(card=np.array('[' * 10**5)), 'card is not JSON'),
    'digits': (dict(card=np.array('9' * 10**4)), 'card is not JSON'),
    'card of no size': (dict(card=header((), '<U0')), 'card'),
    'card that is a list': (dict(card=np.array('[]')), 'card must be a JSON object'),
    'no array': (dict(image=b'text'), 'does not hold embeddings'),
    'version 3': (dict(image=b'\x93NUMPY\x03\x00' + b'\0' * 99), 'version (3, 0)'),
}


@pytest.mark.parametrize('case', DUMPS)
def test_dumps(tmp_path, case):
    arrays, says = DUMPS[case]
    assert says in refused(Embeddings.load, npz(tmp_path / 'dump.npz', ARRAYS | arrays))


@pytest.mark.parametrize(
    ('lists', 'says'),
    [
        (dict(i2t_candidates=header((10**12, 2, 2), '<i8')), 'says it has 32,000,000,000,000'),
        (dict(t2i_candidates=header((1, 10**12, 2), '<i8')), 'says it has'),
        (dict(i2t_query=header((1, 2), '|O')), 'Object arrays'),
        (dict(t2i_query=np.array([['a', 'b']])), 'must be integers'),
        (dict(origin=np.array('[' * 10**5)), 'origin is not JSON'),
        (dict(origin=np.array('3')), 'origin must be a JSON object'),
    ],
)
def test_manifests(tmp_path, lists, says):
    assert says in refused(Manifest.load, npz(tmp_path / 'lists.npz', LISTS | lists))


@pytest.mark.parametrize('read', [Embeddings.load, Manifest.load])
@pytest.mark.parametrize('content', [b'', b'PK' + bytes(99), b'PK\x03\x04', b'\x80\x04.', b'\x93N'])
def test_files_that_are_no_arrays(tmp_path, read, content):
    path = tmp_path / 'dump.npz'
    path.write_bytes(content)
    refused(read, path)


def test_arrays_packed_to_fill_the_memory(tmp_path):
    """1.2 GB of zeros in 1 MB; under a limit that lets no such array through."""
    path = npz(tmp_path / 'dump.npz', {n: a for n, a in ARRAYS.items() if n != 'image'})
    zeros = bytes(10**7)
    with (
        zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open('image.npy', 'w', force_zip64=True) as array,
    ):
        array.write(header((3 * 10**8, 1)))
        for _ in range(120):
            array.write(zeros)
    kind, message = confined(Embeddings.load, path, memory=2**29)
    assert kind == 'ValueError' and 'that unpack to 1,200,000,' in message


def test_pipes_and_devices_are_no_dumps(tmp_path):
    os.mkfifo(tmp_path / 'a.npz')
    (tmp_path / 'folder').mkdir()
    os.mkfifo(tmp_path / 'folder/image.npy')
    neither = 'it is neither a file nor a folder'
    for path, what in (
        (tmp_path / 'a.npz', neither),
        (tmp_path / 'folder', 'image.npy is no file'),
        (Path('/dev/zero'), neither),
    ):
        says = f'{path} does not hold embeddings: {what}'
        assert confined(Embeddings.load, path, seconds=20) == ('ValueError', says)
        kind, message = confined(Manifest.load, path, seconds=20)
        assert kind == 'FileNotFoundError' and f'manifest {path} does not exist' in message


@pytest.mark.parametrize(
    'about',
    [
        '[' * 10**5, '[]', '{}', '{"items": 1, "shard_size": 1, "shards": 1}', 'NaN',
        '{"items": 1e9, "shard_size": 1, "shards": 1, "card": {}}',
        '{"items": 1000000000000, "shard_size": 1, "shards": 1000000000000, "card": {}}',
    ],
)  # fmt: skip
def test_folders_of_shards(tmp_path, about):
    (tmp_path / 'shards.json').write_text(about)
    assert 'shards' in refused(Embeddings.load, tmp_path)


# Indexes.

INDEXES = {
    'deep': ('[' * 10**5, 'damaged'),
    'list': ('[]', 'its format is None'),
    'dim': (dict(dim='x'), 'the dim of its metadata'),
    'no about': (dict(about=None), 'lacks "about"'),
    'field': ({'texts."a"': 5}, 'its field'),
    'kind': ({'texts."a"': ['paths', 'a']}, 'its field'),
    'items': (dict(items=10**12), 'it has 0 of 1000000000000 items'),
    'format': (dict(format='other'), "not 'eiclip_mm.index/1'"),
}


@pytest.mark.parametrize('case', INDEXES)
def test_indexes(tmp_path, case):
    pytest.importorskip('qdrant_edge', reason="needs pip install 'eiclip_mm[search]'")
    from eiclip_mm.apis.index import CatalogueIndex

    change, says = INDEXES[case]
    CatalogueIndex.create(tmp_path / 'index', 4, dict(model='a')).close()
    path = tmp_path / 'index/index.json'
    about = json.loads(path.read_text())
    path.write_text(change if isinstance(change, str) else json.dumps(about | change))
    with pytest.raises(ValueError) as raised:
        CatalogueIndex.open(tmp_path / 'index')
    assert says in str(raised.value) and len(str(raised.value)) < 500


# Exported models.


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """Two graphs made by hand, which give one vector whatever they are asked, and model.json."""
    onnx = pytest.importorskip('onnx', reason="needs pip install 'eiclip_mm[onnx]'")
    pytest.importorskip('onnxruntime', reason="needs pip install 'eiclip_mm[onnx]'")
    folder = tmp_path_factory.mktemp('exported')
    tokenizer = tiny.tokenizer()
    graphs = dict(image=('pixels', onnx.TensorProto.UINT8, ['b', 3, 32, 32]))
    graphs['product'] = ('text', onnx.TensorProto.INT64, ['b', 't'])
    for name, given in graphs.items():
        (folder / f'{name}.onnx').write_bytes(graph(onnx, given))
    about = dict(
        format='eiclip_mm.onnx/1', name='a', sha256='b', dim=4,
        image=dict(sizing=shop.PIPELINE[1:3]),
        text=dict(
            fields=['description'], mention='keep', mention_types=None, tags='given', text_types=[],
            max_values=2, subwords='bpe.json', context_length=16,
        ),
        vocab=tokenizer['vocab'].to_dict(),
    )  # fmt: skip
    (folder / 'model.json').write_text(json.dumps(about))
    return folder, about, onnx


def graph(onnx, given: tuple, node: str = 'Identity', **attributes) -> bytes:
    """Bytes of a graph with one node, whose output is ``vectors`` of 4 numbers."""
    make = onnx.helper
    weight = make.make_tensor('w', onnx.TensorProto.FLOAT, [1, 4], [1.0, 0, 0, 0])
    if 'location' in attributes:
        weight = onnx.TensorProto(name='w', data_type=1, dims=[1, 4], data_location=1)
        weight.external_data.add(key='location', value=attributes['location'])
    parts = [make.make_node(node, ['w'], ['vectors'], domain=attributes.get('domain', ''))]
    output = make.make_tensor_value_info('vectors', onnx.TensorProto.FLOAT, ['b', 4])
    whole = make.make_graph(parts, 'g', [make.make_tensor_value_info(*given)], [output], [weight])
    sets = [make.make_opsetid(domain, 17) for domain in {'', attributes.get('domain', '')}]
    return make.make_model(whole, opset_imports=sets, ir_version=8).SerializeToString()


MODELS = {
    'climbing': (dict(text=dict(subwords='../../x.json')), "got '../../x.json'"),
    'elsewhere': (dict(text=dict(subwords='/etc/passwd')), "got '/etc/passwd'"),
    'tokens': (dict(text=dict(context_length=10**9)), 'context_length=1000000000'),
    'values': (dict(text=dict(max_values=10**9)), 'max_values=1000000000'),
    'fields': (dict(text=dict(fields=5)), 'damaged'),
    'mention': (dict(text=dict(mention='x')), 'damaged'),
    'dim': (dict(dim='x'), 'dim must be int'),
    'other dim': (dict(dim=10**12), 'vectors of 1000000000000 numbers'),
    'name': (dict(name=None), 'name must be str'),
    'vocab': (dict(vocab='/etc/passwd'), 'vocab must be dict'),
    'photos': (dict(image=dict(sizing=[dict(type='Resize', scale=10**6)])), 'beyond 10000'),
    'scope': (dict(image=dict(sizing=[dict(type='Resize', _scope_='this')])), 'names scope'),
    'step': (dict(image=dict(sizing=[dict(type='os.system')])), "type 'os.system'"),
    'format': (dict(format=[1]), 'is no exported model'),
}
GRAPHS = {
    'empty': (b'', 'cannot be opened'),
    'junk': (b'\x08\x08' + b'\xff' * 99, 'cannot be opened'),
    'other input': (dict(given=('x', 2, ['b'])), "from {'x': 'tensor(uint8)'}"),
    'data above': (dict(location='../../../etc/passwd'), 'cannot be opened'),
    'data elsewhere': (dict(location='/etc/passwd'), 'cannot be opened'),
    'operator': (dict(node='Evil', domain='evil'), 'cannot be opened'),
}


@pytest.mark.parametrize('case', [*MODELS, *GRAPHS])
def test_exported_models(exported, tmp_path, case, capfd):
    from eiclip_mm.apis.onnx import OnnxEncoder

    folder, about, onnx = exported
    shutil.copytree(folder, tmp_path / 'odd')
    if case in MODELS:
        (changes, says), name = MODELS[case], 'model.json'
        parts = {k: about[k] | v for k, v in changes.items() if k in ('text', 'image')}
        (tmp_path / 'odd/model.json').write_text(json.dumps(about | changes | parts))
    else:
        (made, says), name = GRAPHS[case], 'image.onnx'
        given = ('pixels', onnx.TensorProto.UINT8, ['b', 3, 32, 32])
        made = made if isinstance(made, bytes) else graph(onnx, **(dict(given=given) | made))
        (tmp_path / 'odd/image.onnx').write_bytes(made)
    with pytest.raises(ValueError) as raised:
        OnnxEncoder(tmp_path / 'odd', threads=1)
    message = str(raised.value)
    assert says in message and len(message) < 900
    assert name in message or 'image.onnx' in message
    assert 'Traceback' not in capfd.readouterr().err
