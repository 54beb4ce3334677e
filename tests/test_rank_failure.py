"""A process that fails ends all of them, and says why; nothing is left."""

import sys

import pytest
from small import TOOLS


@pytest.fixture
def rank_faults(monkeypatch):
    """The harness of tools/dev, which has more faults than a suite has time for."""
    monkeypatch.syspath_prepend(f'{TOOLS}/dev')
    import rank_faults

    yield rank_faults
    for name in ('rank_faults', '_faults'):
        sys.modules.pop(name, None)


def test_a_damaged_row_of_one_process_ends_all(rank_faults, tmp_path):
    data = rank_faults.write_data(tmp_path)
    ending = rank_faults.run_fault('row', data, limit=200, timeout=300)
    assert ending.good, ending.output[-3000:]
    # torchrun's table closes with what failed first, loader worker and all
    assert ending.reason.startswith('ValueError: product 1') and ending.reason.endswith('damaged')
