"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT [--out embeddings.npz]"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from _cli import add_common, checkpoint_path, load_checkpoint, read_config, start_processes
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from eiclip_mm.evaluation import RetrievalMetric
from eiclip_mm.evaluation.files import npz_path


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
    add_common(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the config, load the checkpoint, run, write the results beside the log."""
    args = parse_args(argv)
    cfg = read_config(args)
    path = checkpoint_path(cfg, args.checkpoint)
    start_processes(cfg)
    runner = Runner.from_cfg(cfg)
    metrics = prepared_metrics(runner, args.out, load_checkpoint(runner, cfg.filename, path))
    results = runner.test()
    if is_main_process():
        cards = {name: card for metric in metrics for name, card in metric.protocol_cards.items()}
        for name, content in (('test_results', results), ('protocol_cards', cards)):
            path = Path(cfg.work_dir) / f'{name}.json'
            path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding='utf-8')
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
