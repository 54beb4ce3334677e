"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT [--out embeddings.npz]"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from _cli import (
    add_common,
    add_trust,
    checkpoint_path,
    load_checkpoint,
    read_config,
    start_processes,
)
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from eiclip_mm.engine.checkpoint_files import check_writable
from eiclip_mm.evaluation import RetrievalMetric
from eiclip_mm.evaluation.files import npz_path
from eiclip_mm.evaluation.report import check_writable as check_out
from eiclip_mm.utils.sentence import refusals_told, told
from eiclip_mm.utils.whole_together import whole_files


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        'checkpoint', help='checkpoint of a training run, or "none" for the towers as pretrained'
    )
    parser.add_argument(
        '--out', help='write the embeddings to this .npz file, for report.py and compare.py'
    )
    add_trust(parser)
    add_common(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the config, load the checkpoint, run, write the results beside the log."""
    args = parse_args(argv)
    cfg = read_config(args)
    path = checkpoint_path(cfg, args.checkpoint)
    start_processes(cfg)
    with refusals_told(cfg.work_dir):
        test(cfg, path, args.out)


def test(cfg: Config, path: Path | None, out: str | None) -> None:
    """Score the weights in ``path``; tables go to the work dir, embeddings to ``out``."""
    check_writable(cfg.work_dir)
    if out:
        check_out(npz_path(out))
    runner = Runner.from_cfg(cfg)
    metrics = prepared_metrics(runner, out, load_checkpoint(runner, cfg.filename, path))
    results = runner.test()
    if is_main_process():
        cards = {name: card for metric in metrics for name, card in metric.protocol_cards.items()}
        paths = [Path(cfg.work_dir) / f'{n}.json' for n in ('test_results', 'protocol_cards')]
        with told(cfg.work_dir), whole_files(*paths) as files:
            for file, content in zip(files, (results, cards), strict=True):
                file.write(json.dumps(content, indent=1, ensure_ascii=False).encode())
        runner.logger.info(f'results and what they rest on are in {cfg.work_dir}')


def prepared_metrics(runner: Runner, out: str | None, card: dict) -> list[RetrievalMetric]:
    """The retrieval metrics, told which model they measure and where to write its embeddings."""
    evaluator = runner.test_loop.evaluator
    metrics = [m for m in evaluator.metrics if isinstance(m, RetrievalMetric)]
    if out and len(metrics) != 1:
        raise SystemExit(
            f'--out needs one RetrievalMetric in test_evaluator, the config has {len(metrics)}.'
        )
    for metric in metrics:
        metric.card['model'] = card
        if out:
            metric.out = npz_path(out)
    return metrics


if __name__ == '__main__':
    main()
