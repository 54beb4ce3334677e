"""Tables of results."""

import re

import pytest

from eiclip_mm.evaluation import recall_table


def results(**recalls):
    """Results as evaluate() gives them, of one recall each; more keys than a table shows."""
    return {f'{d}/R@{k[1:]}': v for d in ('t2i', 'i2t') for k, v in recalls.items()} | {
        'i2t/median_rank': 2.0,
        'i2t/mAP': 0.5,
        'num_images': 20,
    }


class TestTable:
    def test_rows_and_columns(self):
        rows = {
            'CLIP | zero-shot': results(R10=100.0, R1=0.0, R5=100.0),
            'EI-CLIP': results(R10=100.0, R1=100.0, R5=100.0) | {'SumR': 600.0},
        }
        head, rule, baseline, ours = recall_table(rows).splitlines()
        assert re.findall(r'[^|]+', head)[1:] == [
            ' I2T R@1 ', ' I2T R@5 ', ' I2T R@10 ', ' T2I R@1 ', ' T2I R@5 ', ' T2I R@10 ',
            '   SumR ',
        ]  # fmt: skip
        assert len(head) == len(rule) == len(baseline) == len(ours)
        assert baseline.startswith(r'| CLIP \| zero-shot |    0.00 |  100.00 |')
        assert baseline.endswith('|      – |')
        assert ours.endswith('| 600.00 |')

    def test_errors(self):
        for wrong in ({}, {'a': {}}, {'a': {'full/first-image/i2t/R@1': 1.0}}):
            with pytest.raises(ValueError, match=r"needs the keys of evaluate\(\), as 'i2t/R@1'"):
                recall_table(wrong)
