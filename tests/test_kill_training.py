"""Three kills of a real training, each at another kind of moment, and what is left at the end."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_a_killed_training_ends_as_the_unbroken_one():
    """In a process of its own, which has one thread and adopts the orphans of what it kills."""
    done = subprocess.run(
        [sys.executable, 'tools/dev/kill_training.py', '--kills', '3', '--epochs', '2'],
        cwd=ROOT, env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert '| all | 3 |' in done.stdout
