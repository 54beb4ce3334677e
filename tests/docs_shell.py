"""Commands of documents run by bash as printed, where ``python`` is a process that waits already.

A tool's imports take as long as its work here. So one process imports once and forks for each
``python TOOL``, in that call's folder, with its environment and its files.
"""

import contextlib
import json
import multiprocessing
import os
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import threading
import traceback
import warnings
from pathlib import Path

from docs_pages import ROOT

FORK = multiprocessing.get_context('fork')
# What a test cannot run: the script is there, and its parser has to accept the options.
CHECKED = {
    r'srun ': 'needs Slurm',
    r'torch\.distributed\.run': 'several processes; tests/test_tools.py runs them',
    r'benchmark_\w+\.py': 'measures for minutes',
    r'soak\.py': 'takes half an hour; tests/test_soak.py runs it',
    r'load_test\.py': 'measures for half a minute; tests/test_serve_tool.py runs it',
    r'reproduce_table\.py': 'trains for hours',
    r'work_dirs/table/': 'needs what trains for hours',
    r'http://HOST': 'needs a Qdrant server',
    r'--compile': 'compiles for minutes; tests/test_compile.py does',
}
SHIMS = {
    'python': """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = dict(argv=sys.argv[1:], cwd=os.getcwd(), env=dict(os.environ))
socket.send_fds(server, [json.dumps(call).encode() + b'\\n'], [0, 1, 2])
sys.exit(int(server.recv(9) or b'1'))
""",
    'pip': '#!/usr/bin/env bash\nexec python pip "$@"\n',
    'pytest': '#!/usr/bin/env bash\n[ $# = 0 ] || { echo "not alone: $@"; exit 1; }\n',
    'srun': '#!/usr/bin/env bash\nuntil [ "$1" = python ]; do shift; done\n'
    'shift 2\nexec python srun "$@"\n',
    'serve': """#!/usr/bin/env bash
python tools/deployment/serve.py "$@" > served.log 2>&1 &
echo $! >> served.pid
until grep -q http:// served.log; do kill -0 $! || { cat served.log; exit 1; }; sleep 0.1; done
""",
}


class Shell:
    """A folder of commands that stand in front of those of the machine.

    Args:
        folder: for the commands and their socket.
    """

    def __init__(self, folder: Path):
        folder.mkdir()
        address = str(folder / 'socket')
        for name, text in SHIMS.items():
            if name == 'python':
                text = text.format(python=sys.executable, address=address)
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        # `make test ARGS=...` is no part of what a page's `make` is given
        bare = {k: v for k, v in os.environ.items() if k != 'ARGS' and not k.startswith('MAKE')}
        self.environment = bare | dict(
            PATH=f'{folder}:{os.environ["PATH"]}', PYTHON='python', PYTHONPATH=str(ROOT),
            OMP_NUM_THREADS='1', NO_COLOR='1', COLUMNS='100',
        )  # fmt: skip
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(address)
        listening.listen()
        self._process = FORK.Process(target=_serve, args=(listening,))
        self._process.start()
        listening.close()

    def close(self) -> None:
        """End the process that waits."""
        self._process.terminate()
        self._process.join()


def _serve(listening: socket.socket) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        call, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _answer(call)
        call.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _answer(call: socket.socket) -> None:
    """Be ``python ARGV``, to the end of the process."""
    code = 1
    try:
        message, files, *_ = socket.recv_fds(call, 1 << 20, 3)
        while not message.endswith(b'\n'):
            message += call.recv(1 << 20)
        for target, file in enumerate(files):
            os.dup2(file, target)
        threading.Thread(target=_end_with, args=(call,), daemon=True).start()
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = os.fdopen(1, 'w', buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, 'w', buffering=1, closefd=False)
        request = json.loads(message)
        os.chdir(request['cwd'])
        os.environ.clear()
        os.environ.update(request['env'])
        warnings.simplefilter('ignore')  # the tests' own stay errors
        _run(request['argv'])
        code = 0
    except SystemExit as end:
        code = int(end.code) if isinstance(end.code, int) else int(bool(end.code))
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        for process in multiprocessing.active_children():
            process.terminate()
        sys.stdout.flush()
        call.sendall(str(code).encode())
    os._exit(code)


def _end_with(call: socket.socket) -> None:
    call.recv(1)  # nothing more comes but its end
    os.kill(os.getpid(), signal.SIGTERM)


def _run(argv: list[str]) -> None:
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    if argv[0] == '-u':  # of torchrun
        return _run(argv[1:])
    if argv[0] == '-c':
        sys.exit(subprocess.call([sys.executable, *argv]))
    if argv[0] == 'pip':
        return check_install(argv[1:])
    reason = next((r for p, r in CHECKED.items() if re.search(p, ' '.join([*argv, '']))), None)
    if reason:
        return check(argv)
    sys.argv = list(argv)
    # what the interpreter does at its start
    sys.path[:0] = [str(Path(argv[0]).resolve().parent), *_python_path()]
    runpy.run_path(argv[0], run_name='__main__')


def _python_path() -> list[str]:
    return [os.path.abspath(part) for part in os.environ['PYTHONPATH'].split(os.pathsep) if part]


def check(argv: list[str]) -> None:
    """A command that is not run: its script's parser, and torchrun's, must accept it.

    Raises:
        SystemExit: one of them refuses it.
    """
    if argv[0] == 'make':
        return
    if argv[:2] == ['-m', 'torch.distributed.run']:
        from torch.distributed.run import get_args_parser

        given = get_args_parser().parse_args(argv[2:])
        argv = [given.training_script, *given.training_script_args]
    argv = [argument for argument in argv if argument not in ('srun', '-u')]
    if not Path(argv[0]).is_file():
        raise SystemExit(f'{argv[0]} does not exist.')
    sys.path.insert(0, str(ROOT / 'docs/_site'))
    import tools_help

    tools_help.parser_of(Path(argv[0]).resolve(), argv[1:])


def check_install(arguments: list[str]) -> None:
    """``pip install``: nothing is installed; files, extras and options must be there.

    Raises:
        SystemExit: something is not.
    """
    from packaging.requirements import Requirement
    from pip._internal.commands import create_command

    options, wanted = create_command(arguments[0]).parse_args(arguments[1:])
    extras = {path.stem for path in (ROOT / 'requirements').glob('*.txt')}
    for file in options.requirements:
        if not (ROOT / file).is_file():
            raise SystemExit(f'pip install: {file} does not exist.')
    for name in [*wanted, *options.editables]:
        name = re.sub(r'^\.', 'eiclip_mm', name)
        if name.endswith('.whl'):
            continue
        requirement = Requirement(name)
        unknown = requirement.extras - extras
        if requirement.name == 'eiclip_mm' and unknown:
            raise SystemExit(f'pip install: no extras {unknown}; there are {sorted(extras)}.')


def python_calls(text: str) -> list[list[str]]:
    """The calls of ``python`` in the lines of a block that is not run, as lists of arguments."""
    calls = []
    for line in text.replace('\\\n', ' ').splitlines():
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r'\w+=\S*', words[0]):
            words = words[1:]
        if words and words[0] in ('python', 'pip'):
            calls.append(words[words[0] == 'python' :])
    return calls
