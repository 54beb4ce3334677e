"""The tests over the versions that requirements/*.txt allow.

    pip install nox uv
    nox                         all environments, one after the other
    nox --list                  which there are
    nox -s oldest               one of them
    nox -s lock-3.12            the lock on one Python
    nox -s audit                known faults of the lock's packages, and risky calls in the code

Each session makes an environment below .nox/, runs ``TESTS`` there, and adds a row of the table in
docs/install.md to .nox/versions.md. It removes the environment if no test failed: PyTorch for Linux
comes with CUDA, 6 to 9 GB an environment, and as much in uv's cache (``uv cache clean``).
"""

import shutil
from pathlib import Path
from xml.etree import ElementTree

import nox

nox.needs_version = '>=2025.2'
nox.options.default_venv_backend = 'uv'
nox.options.error_on_missing_interpreters = True

# One of each thing that can break with a version, in a minute of one core.
TESTS = (
    'tests/test_compat.py',
    'tests/test_datasets.py',
    'tests/test_tokenizer.py',
    'tests/test_checkpoints.py',
    'tests/test_ei_clip.py',
    'tests/test_losses.py::test_value_and_gradient_equal_loops',
    'tests/test_losses.py::test_equals_open_clip',
    'tests/test_engine.py',  # training, resuming, bfloat16
    'tests/test_metrics.py',
    'tests/test_configs.py::test_config_builds[eiclip_fashiongen_mini.py]',
    'tests/test_configs.py::test_config_builds[baselines/clip_fashiongen_mini.py]',
    'tests/test_configs.py::test_config_builds[eiclip_products.py]',
)
TOOLS = (  # tools/train.py and tools/test.py on the mini Fashion-Gen
    'tests/test_tools.py::test_training_leaves_losses_effects_and_checkpoints',
    'tests/test_tools.py::test_test_writes_results_and_embeddings',
)
EXTRAS = (  # not ONNX: its exporter changes with each PyTorch, and only the lock is promised
    'tests/test_embeddings.py',
    'tests/test_index.py',
    'tests/test_service.py',
)
REQUIRED = ('-r', 'requirements/runtime.txt', '-r', 'requirements/mminstall.txt')
DEV = (*REQUIRED, '-r', 'requirements/dev.txt')
LOCK = 'requirements/lock.txt'
FORKS = ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain')
CODE = ('eiclip_mm', 'tools', 'demo', 'projects', 'setup.py')
ANSWERED = {  # rules of bandit, and why what they find is meant
    'B101': 'asserts say what our own code promises; input is checked by exceptions',
    'B108': '/dev/shm is looked at, never written to by name',
    'B311': 'random draws are repeatable on purpose; no key is made of them',
    'B404': 'programs are started, see B603',
    'B603': 'always with a list of arguments and without a shell; they come from the command line',
    'B607': 'git and the like are found on the PATH, as the user calls them',
}
SHOWN = (
    'torch', 'torchvision', 'numpy', 'h5py', 'mmengine', 'mmcv', 'mmpretrain', 'open_clip_torch',
    'timm', 'pillow', 'transformers',
)  # fmt: skip


@nox.session(python='3.11')
def oldest(session: nox.Session) -> None:
    """The lowest version of each range."""
    session.install('--resolution=lowest-direct', '--no-build', *DEV)
    check(session, *TESTS, *TOOLS, *EXTRAS, strict=False)


@nox.session(python=['3.11', '3.12', '3.13'])
def lock(session: nox.Session) -> None:
    """requirements/lock.txt."""
    session.install('-r', LOCK)
    check(session, *TESTS)


@nox.session(python='3.13')
def newest(session: nox.Session) -> None:
    """The highest version of each range."""
    session.install('--upgrade', *DEV)
    check(session, *TESTS, *TOOLS, *EXTRAS, strict=False)


@nox.session(python='3.11')
def forks(session: nox.Session) -> None:
    """The onedl-* forks in the place of mmengine, mmcv and mmpretrain."""
    session.install('-r', LOCK)
    session.run('uv', 'pip', 'uninstall', 'mmengine', 'mmcv-lite', 'mmpretrain', external=True)
    session.install('--no-deps', *FORKS)  # built beside no torch, onedl-mmcv compiles nothing
    check(session, *TESTS, strict=False, complete=False)


@nox.session(python='3.11')
def bare(session: nox.Session) -> None:
    """No extra at all: what ``pip install .`` brings, at the versions of the lock."""
    session.install('.', '-c', LOCK)
    session.run('uv', 'pip', 'check', external=True)
    session.install('pytest', 'hypothesis', '-c', LOCK)
    check(session, *TESTS, *TOOLS)


@nox.session(python='3.11', default=False)
def audit(session: nox.Session) -> None:
    """pip-audit on the lock, which asks PyPI what is known of it, and bandit on the code."""
    session.install('bandit', 'pip-audit')
    session.run('bandit', '-q', '-r', *CODE, '--skip', ','.join(ANSWERED))
    session.run('pip-audit', '-r', LOCK, '--no-deps', '--disable-pip', '--strict')


def check(session: nox.Session, *tests: str, strict: bool = True, complete: bool = True) -> None:
    """Install the package, run the tests and write the row of the table.

    Args:
        session: with the dependencies installed.
        tests: files, or tests in them.
        strict: a warning is an error; only for the versions of the lock.
        complete: every installed package has what it asks for.
    """
    if session.name != 'bare':
        session.install('--no-deps', '.')
    if complete:
        session.run('uv', 'pip', 'check', external=True)
    report = Path(session.create_tmp()) / 'report.xml'
    done = session.run(
        *('python', '-m', 'pytest', '-q', '-p', 'no:cacheprovider', f'--junitxml={report}'),
        *(() if strict else ('-W', 'default')),
        *tests,
        *session.posargs,
        env=dict(OMP_NUM_THREADS='1'),
        success_codes=[0, 1],
    )
    if done is None:  # nox --install-only
        return
    failed = write_row(session, report)
    if failed:
        session.error(f'{failed} tests failed')
    shutil.rmtree(session.virtualenv.location)


def write_row(session: nox.Session, report: Path) -> int:
    """Add the session's row to the table; how many tests failed."""
    code = (
        'import platform; from importlib.metadata import distributions; '
        "found = {d.name.replace('-', '_').lower().removeprefix('onedl_').removesuffix('_lite'): "
        'd.version for d in distributions()}; '
        f"print(platform.python_version(), *(found.get(n, '–') for n in {SHOWN}), sep=' | ')"
    )
    versions = session.run('python', '-c', code, silent=True).strip()
    suite = ElementTree.parse(report).getroot().find('testsuite')
    total, failures, errors, skipped = (
        int(suite.get(key)) for key in ('tests', 'failures', 'errors', 'skipped')
    )
    failed = failures + errors
    name = session.name.partition('-')[0]
    row = f'| {name} | {versions} | {total - failed - skipped} / {skipped} / {failed} |\n'
    with Path('.nox/versions.md').open('a', encoding='utf-8') as table:
        table.write(row)
    session.log(row.strip())
    return failed
