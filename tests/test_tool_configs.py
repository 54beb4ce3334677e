"""Tools that take a config: one that is not there, one of the package, what is read of it."""

import copy
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from eiclip_mm.evaluation import Embeddings
from eiclip_mm.registry import MODELS
from eiclip_mm.structures import EntityVocab
from eiclip_mm.utils import load_config

TOOLS = Path(__file__).resolve().parents[1] / 'tools'
OF_A_CONFIG = {  # with what else each must be given
    'analysis_tools/diagnose.py': ['tail', 'CONFIG', 'x.pth'],
    'analysis_tools/find_duplicates.py': ['CONFIG'],
    'analysis_tools/selection_study.py': ['CONFIG', 'x.pth'],
    'dataset_converters/build_entities.py': ['CONFIG'],
    'dataset_converters/hold_out_entities.py': ['CONFIG', '--out', 'x'],
    'dataset_converters/pack_images.py': ['CONFIG'],
    'extract_features.py': ['CONFIG', 'none', '--out', 'x'],
    'misc/verify_dataset.py': ['CONFIG'],
    'test.py': ['CONFIG', 'none'],
    'train.py': ['CONFIG'],
    'visualization/browse_dataset.py': ['CONFIG', '--out', 'x.html'],
    'visualization/compare_retrievals.py': ['CONFIG', 'a.npz', 'b.npz', '--out', 'x.html'],
    'visualization/retrieval_gallery.py': ['CONFIG', 'a.npz', '--out', 'x.html'],
}
DUMPS = {'a.npz', 'b.npz'}
FILES = {
    'notes.txt': '',
    'empty.yaml': '',
    'list.yml': '- 1',
    'of_a_list.yml': '_base_: list.yml',
    'of_a_number.json': '{"_base_": 3}',
    'deep.json': '{"a":' + '[' * 10**5 + ']' * 10**5 + '}',
    # nine times the list before it, eleven times
    'naming.yaml': '\n'.join(
        f'a{i}: &a{i} [{", ".join([f"*a{i - 1}" if i else "1"] * 9)}]' for i in range(12)
    ),
}
UNFIT = {
    'empty.yaml': 'config empty.yaml, or one in its _base_, is no plain YAML or JSON (the',
    'of_a_list.yml': 'config of_a_list.yml, or one in its _base_, is no plain YAML or JSON (the',
    'of_a_number.json': 'config of_a_number.json, or one in its _base_, is no plain YAML or JSON (',
    'deep.json': 'config deep.json, or one in its _base_, is no plain YAML or JSON (maximum',
    'naming.yaml': 'config naming.yaml, or one in its _base_, is no plain YAML or JSON (a file',
    'other::no.py': 'config other::no.py does not exist; name a file of configs/ or your own',
    'no.py': 'config no.py does not exist; name a file of configs/ or your own',
    'folder': 'config folder is no file; name a file of configs/ or your own',
    'notes.txt': "config notes.txt must end in one of ('.py', '.json', '.yml', '.yaml'), got",
    'eiclip_mm::no.py': "eiclip_mm has no config 'no.py'; a name is a path below",
}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A function (tool, arguments), which runs it as the command line would, in this process."""
    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)

    def run(tool, *arguments):
        monkeypatch.syspath_prepend(TOOLS / Path(tool).parent)
        monkeypatch.setattr(sys, 'argv', [tool, *arguments])
        return runpy.run_path(str(TOOLS / tool), run_name='__main__')

    return run


def test_the_walk_is_over_all_tools():
    takes_config = re.compile(r"add(_argument)?\('config'")
    found = {
        str(path.relative_to(TOOLS))
        for path in TOOLS.rglob('*.py')
        if takes_config.search(path.read_text(encoding='utf-8'))
    }
    by_helper = {'analysis_tools/_diagnose.py': 'analysis_tools/diagnose.py'}
    assert {by_helper.get(path, path) for path in found} == set(OF_A_CONFIG)


@pytest.mark.parametrize('name', UNFIT)
@pytest.mark.parametrize('tool', OF_A_CONFIG)
def test_an_absent_or_damaged_config_is_named(run, tmp_path, tool, name):
    vector, id_ = torch.ones(1, 2), torch.ones(1, dtype=torch.long)
    dump = Embeddings(image=vector, image_product_id=id_, product=vector, product_id=id_)
    for file in DUMPS:
        dump.save(tmp_path / file)
    (tmp_path / 'folder').mkdir()
    for file, content in FILES.items():
        (tmp_path / file).write_text(content)
    with pytest.raises(SystemExit) as stopped:
        run(tool, *(name if word == 'CONFIG' else word for word in OF_A_CONFIG[tool]))
    assert isinstance(stopped.value.code, str)  # which is printed, without a traceback
    assert stopped.value.code.startswith(UNFIT[name])
    assert {path.name for path in tmp_path.iterdir()} == DUMPS | {'folder', *FILES}


def test_a_config_of_the_package_goes_by_name(run):
    sys.path.insert(0, str(TOOLS))
    try:
        import _cli
        import train
    finally:
        sys.path.remove(str(TOOLS))
    name = 'baselines/clip_fashiongen_mini.py'
    cfg = _cli.read_config(train.parse_args([f'eiclip_mm::{name}']))
    assert cfg.work_dir == 'work_dirs/clip_fashiongen_mini'
    assert cfg.model == load_config(TOOLS.parent / 'configs' / name).model


@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'extract_features.py'])
@pytest.mark.parametrize(
    ('given', 'said'),
    [
        (['--cfg-options', 'seed'], "'seed' is no key=value, such as randomness.seed=1"),
        (['--launcher', 'pytorch'], '--launcher pytorch is for processes that tools/dist_*.sh or'),
        (['--launcher', 'slurm'], '--launcher slurm is for processes that tools/dist_*.sh or'),
    ],
)
def test_options_that_fit_no_run(run, capfd, tool, given, said):
    name = 'eiclip_mm::baselines/clip_fashiongen_mini.py'
    words = [name if word == 'CONFIG' else word for word in OF_A_CONFIG[tool]]
    with pytest.raises(SystemExit) as stopped:
        run(tool, *words, *given)
    assert said in f'{stopped.value.code}{capfd.readouterr().err}'


PURE = """
import torch
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from torch import float64

model = dict(type=torch.nn.Linear, in_features=2, out_features=2, dtype=torch.float64)
several = [dict(dtype=float64)]
optim_wrapper = dict(
    type=OptimWrapper,
    constructor=DefaultOptimWrapperConstructor,
    optimizer=dict(type=torch.optim.SGD, lr=0.1),
)
"""


def test_of_a_pure_python_config_only_components_are_named(tmp_path):
    """mmengine hands the other values on as they are; only its dumps hold their import paths."""
    path = tmp_path / 'pure.py'
    path.write_text(PURE, encoding='utf-8')
    cfg = copy.deepcopy(load_config(path))
    cfg.merge_from_dict({'optim_wrapper.optimizer.lr': 0.2})
    assert cfg.several[0].dtype is torch.float64
    assert dict(cfg.optim_wrapper) == dict(
        type='mmengine.optim.OptimWrapper',
        constructor='mmengine.optim.DefaultOptimWrapperConstructor',
        optimizer=dict(type='torch.optim.SGD', lr=0.2),
    )
    model = MODELS.build(cfg.model)
    assert model.weight.dtype is torch.float64
    assert isinstance(build_optim_wrapper(model, cfg.optim_wrapper).optimizer, torch.optim.SGD)
    cfg.dump(tmp_path / 'dumped.py')
    dumped = Config.fromfile(tmp_path / 'dumped.py')
    assert dumped.to_dict() == cfg.to_dict() and dumped.model.dtype == 'torch.float64'


@pytest.mark.parametrize(
    ('given', 'said'),
    [
        (['--keywords', '-3'], '--keywords: found -3, expected 1 or more, or 0 for none.'),
        (['--min-count', '0'], '--min-count: found 0, expected 1 or more.'),
    ],
)
def test_numbers_that_none_could_miss(run, given, said):
    with pytest.raises(SystemExit) as stopped:
        run('dataset_converters/build_entities.py', 'config.py', *given)
    assert stopped.value.code == said


@pytest.mark.parametrize(
    ('given', 'types'),
    [
        ([], ('brand',)),
        (['--keywords', '0'], ('brand',)),
        (['--keywords', '2'], ('brand', 'keyword')),
    ],
)
def test_keywords_are_those_that_are_asked_for(run, tmp_path, given, types):
    images = [dict(id=i, file_name=f'{i}.jpg') for i in (1, 2)]
    annotations = [
        dict(id=i, image_id=i, caption=f'a striped tee {i}', entities=dict(brand=['Puma']))
        for i in (1, 2)
    ]
    (tmp_path / 'train.json').write_text(json.dumps(dict(images=images, annotations=annotations)))
    (tmp_path / 'config.py').write_text(
        "train_dataloader = dict(dataset=dict(type='CocoProducts', ann_file='train.json'))\n"
        "model = dict(tokenizer=dict(vocab='entities.json'))\n"
    )
    run('dataset_converters/build_entities.py', 'config.py', '--min-count', '1', *given)
    assert EntityVocab.load(tmp_path / 'entities.json').types == types
