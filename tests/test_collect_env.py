"""What is installed, on which machine, and which state of the package runs."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from eiclip_mm.utils import collect_env as module
from eiclip_mm.utils.collect_env import collect_code, collect_env, collect_host

PACKAGE = Path(__file__).resolve().parents[1] / 'eiclip_mm'


def test_the_environment_is_text_and_names_what_computes():
    found = collect_env()
    assert all(isinstance(value, str) and '\n' not in value for value in found.values())
    assert {'torch', 'numpy', 'timm', 'pillow', 'open_clip_torch', 'Python'} <= found.keys()
    assert found == collect_env()  # nothing drawn, no times


def test_the_host_says_what_sums_depend_on_and_no_names():
    found = collect_host()
    assert found['threads'] == torch.get_num_threads()
    assert found['cpu'] and found['instructions'] and found['cores'] >= 1
    assert os.uname().nodename not in json.dumps(found)


def git(folder: Path, *arguments: str) -> str:
    identity = ('-c', 'user.name=a', '-c', 'user.email=a@b')
    done = subprocess.run(
        ['git', '-C', str(folder), *identity, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_code_is_named_by_commit_and_by_content(tmp_path, monkeypatch):
    package = tmp_path / 'eiclip_mm'
    package.mkdir()
    for name in ('__init__.py', 'a.py'):
        (package / name).write_text(f'# {name}\n')
    (package / 'page.html').write_text('no code')
    monkeypatch.setattr(module, 'PACKAGE', package)
    monkeypatch.setenv('GIT_DIR', '/nowhere')  # as inside a hook of git, about another repository
    first = collect_code()
    assert (first['commit'], first['changed']) == (None, None)  # no checkout
    expected = hashlib.sha256()
    for name in ('__init__.py', 'a.py'):
        text = f'# {name}\n'.encode()
        expected.update(name.encode() + b'\0' + str(len(text)).encode() + b'\0' + text)
    assert first['sha256'] == expected.hexdigest()

    monkeypatch.delenv('GIT_DIR')
    git(tmp_path, 'init', '-q')
    assert collect_code()['commit'] is None  # it lies in a repository that does not have it
    git(tmp_path, 'add', '.')
    git(tmp_path, 'commit', '-qm', 'all')
    commit = git(tmp_path, 'rev-parse', 'HEAD')
    assert collect_code() == dict(first, commit=commit, changed=False)
    (package / 'a.py').write_text('# b\n')
    changed = collect_code()
    assert changed['changed'] is True and changed['commit'] == commit
    assert changed['sha256'] != first['sha256']


def test_without_git_the_content_remains(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert shutil.which('git') is None
    found = collect_code()
    assert (found['commit'], found['changed']) == (None, None) and len(found['sha256']) == 64


def test_it_prints_what_a_report_should_hold():
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-m', 'eiclip_mm.utils.collect_env'],
        capture_output=True, text=True, cwd=PACKAGE.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {'torch', 'cpu', 'sha256'} <= {
        line.partition(':')[0] for line in done.stdout.split('\n')
    }
