"""The runs behind a table of results: which there are, and having each trained and tested once."""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from pathlib import Path

from mmengine.config import Config

from eiclip_mm.utils.whole_file import write_whole_text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the tools run there import _cli

from _runs import CORES, best_checkpoint, check_start, draw_mini, make_start, run

from eiclip_mm.utils import load_config

SUFFIXES = dict(products='products', mini='fashiongen_mini', fashiongen='fashiongen')
ROWS = {
    1: 'configs/baselines/clip-zeroshot',
    2: 'configs/baselines/clip',
    3: 'configs/baselines/clip-meta',
    4: 'configs/ablations/eiclip-all',
    5: 'configs/eiclip',
}
# what a config holds beside the experiment: no number depends on it
NO_RESULT = ('compare_with', 'env_cfg', 'log_level', 'vis_backends', 'visualizer')
WATCHING = ('NonFiniteHook', 'RunRecordHook')


@dataclass(frozen=True)
class Entry:
    """One row of a table: a row of the poster, or an ablation, where ``row`` is ``None``.

    A config may say ``checkpoint_of = CONFIG``: nothing is trained, the checkpoint of that config
    is tested in this one's way; and ``compare_with = CONFIG``: what it is compared with.
    """

    config: str
    row: int | None = None

    @property
    def stem(self) -> str:
        """The config's name."""
        return Path(self.config).stem

    @cached_property
    def cfg(self) -> Config:
        """The config, resolved."""
        return load_config(self.config)

    @property
    def trained(self) -> bool:
        """Whether its runs train, and not only test."""
        return self.row != 1 and self.source is None

    @property
    def source(self) -> 'Entry | None':
        """What it takes its checkpoints from, if not from itself."""
        config = self.cfg.get('checkpoint_of')
        return Entry(config) if config else None

    @property
    def start(self) -> tuple[Path, 'Entry'] | None:
        """Weights that it starts from, and the config of this repository that makes them."""
        weights = Path((self.cfg.model.get('towers') or {}).get('pretrained') or '')
        config = Path('configs') / f'{weights.parent.name}.py'
        if weights.parts[:1] != ('work_dirs',) or not config.is_file():
            return None
        return weights, Entry(str(config))

    def seeds(self, seeds: Sequence[int]) -> Sequence[int]:
        """Those that make a difference: weights that are all loaded have none."""
        loaded = self.row == 1 and (self.cfg.model.get('towers') or {}).get('pretrained')
        return seeds[:1] if loaded else seeds

    @cached_property
    def settings(self) -> list:
        """Config, vocabulary and what it starts from; data files and code are not watched."""
        cfg = {k: v for k, v in self.cfg.to_dict().items() if k not in NO_RESULT}
        cfg['custom_hooks'] = [h for h in cfg.get('custom_hooks', ()) if h['type'] not in WATCHING]
        hooks = {k: dict(v) for k, v in (cfg.get('default_hooks') or {}).items()}
        hooks.get('checkpoint', {}).pop('type', None)  # how files are written
        cfg['default_hooks'] = hooks
        vocab = (cfg['model'].get('tokenizer') or {}).get('vocab')
        file = Path(vocab) if isinstance(vocab, str) else None
        entities = file and file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest()
        others = [self.source, self.start and self.start[1]]
        return [cfg, entities or None, *(other and other.settings for other in others)]


@dataclass(frozen=True)
class Run:
    """One config with one seed, in a folder of its own."""

    entry: Entry
    seed: int
    root: Path

    @property
    def name(self) -> str:
        """For messages."""
        return f'{self.entry.stem} seed {self.seed}'

    @property
    def folder(self) -> Path:
        """Its logs, checkpoints and embeddings."""
        return self.root / self.entry.stem / f'seed{self.seed}'

    @property
    def dump(self) -> Path:
        """Its embeddings of the test split."""
        return self.folder / 'embeddings.npz'

    @property
    def card(self) -> dict:
        """What ``run.json`` holds: another hash means that it was another experiment."""
        sha256 = digest([self.entry.settings, self.seed])
        return dict(config=self.entry.config, seed=self.seed, sha256=sha256)

    @property
    def found(self) -> dict:
        """``run.json`` as it lies there, empty if it does not."""
        path = self.folder / 'run.json'
        return json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}

    @property
    def done(self) -> bool:
        """Whether its embeddings are complete, of whatever settings."""
        return self.dump.is_file() and self.found.get('done', False)

    @property
    def current(self) -> bool:
        """Whether it was made, or begun, with the settings of now."""
        return self.found.get('sha256') == self.card['sha256']


def digest(settings: list) -> str:
    """SHA-256 of what can be plain JSON."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def entries(data: str, rows: Sequence[int], ablations: Sequence[str] | None) -> list[Entry]:
    """Rows and ablations of one of :data:`SUFFIXES`; ``[]`` means all ablations, ``None`` none.

    Raises:
        SystemExit: there is no such row or ablation; names those that there are.
    """
    suffix = f'_{SUFFIXES[data]}.py'
    if unknown := sorted(set(rows) - set(ROWS)):
        raise SystemExit(f'--rows {unknown}: the table has rows {list(ROWS)}.')
    own = {row: f'{path}{suffix}' for row, path in ROWS.items()}
    found = {
        path.name.removesuffix(suffix): str(path)
        for path in sorted(Path('configs/ablations').glob(f'*{suffix}'))
        if str(path) not in own.values()
    }
    if unknown := sorted(set(ablations or ()) - set(found)):
        raise SystemExit(f'--ablations {unknown}: for --data {data} there are {list(found)}.')
    chosen = [] if ablations is None else [found[name] for name in ablations or found]
    return [Entry(own[row], row) for row in sorted(set(rows))] + [*map(Entry, chosen)]


def runs_of(entry: Entry, seeds: Sequence[int], root: Path) -> list[Run]:
    """A run for each seed that makes a difference."""
    return [Run(entry, seed, root) for seed in entry.seeds(seeds)]


def prepare(data: str, chosen: Sequence[Entry]) -> None:
    """Draw what is drawn, with the vocabularies that configs name; other data are the user's."""
    if data != 'mini':
        return
    draw_mini()
    for entry in chosen:
        if not Path(entry.cfg.model.tokenizer.vocab).is_file():
            run('tools/dataset_converters/build_entities.py', entry.config)


def carry_out(runs: Sequence[Run], jobs: int) -> list[str]:
    """Have all runs done, some side by side; returns what failed, in words, after all others.

    Raises:
        SystemExit: they start from weights that were made with other settings.
    """
    # current first: it reads the configs, which threads must not do at once
    todo = [r for r in with_sources(runs) if not (r.current and r.done)]
    labels = {r: f'[{number}/{len(todo)}] {r.name}' for number, r in enumerate(todo, 1)}
    print(f'{len(todo)} runs to do', flush=True)
    failed = []

    def attempt(label: str, do: Callable[[], None]) -> None:
        try:
            do()
        except SystemExit as error:
            failed.append(f'{label}: {error}')
            print(failed[-1], flush=True)

    starts = dict(filter(None, (r.entry.start for r in todo))).items()
    of = {start.config: digest(start.settings) for _, start in starts}
    for weights, start in starts:
        check_start(weights, start.config, of[start.config])
    for weights, start in starts:
        if not weights.is_file():
            attempt(start.stem, partial(make_start, weights, start.config, of[start.config]))
    threads = max(CORES // jobs, 1)
    for borrows in (False, True):  # what others take their checkpoints from comes first
        pool = ThreadPoolExecutor(jobs)
        try:
            own = [r for r in todo if bool(r.entry.source) is borrows]
            list(pool.map(lambda r: attempt(labels[r], partial(have, r, labels[r], threads)), own))
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C none begins
    return failed


def with_sources(runs: Sequence[Run]) -> list[Run]:
    """The runs, and those whose checkpoints they test."""
    found = {r.folder: r for r in runs}
    for r in runs:
        if r.entry.source:
            source = Run(r.entry.source, r.seed, r.root)
            found.setdefault(source.folder, source)
    return list(found.values())


def have(r: Run, label: str, threads: int) -> None:
    """Train and test one run, from where it was; one of other settings is put aside."""
    source = Run(r.entry.source, r.seed, r.root) if r.entry.source else r
    if source is not r and not source.found.get('done'):
        raise SystemExit(f'{source.name}, whose checkpoint it tests, is not finished; run again.')
    if r.folder.exists() and not r.current:
        aside = (r.folder.with_name(f'{r.folder.name}.{n}') for n in count(1))
        old = r.folder.rename(next(path for path in aside if not path.exists()))
        print(f'{label}: made with other settings before, kept in {old}; made again', flush=True)
    r.folder.mkdir(parents=True, exist_ok=True)
    write(r, done=False)
    common = ['--work-dir', str(r.folder), '--cfg-options', f'randomness.seed={r.seed}']
    options = dict(threads=threads, log=r.folder / 'run.log', label=label)
    if r.entry.trained:
        run('tools/train.py', r.entry.config, '--resume', 'auto', *common, **options)
    checkpoint = 'none' if r.entry.row == 1 else str(best_checkpoint(source.folder))
    out = ['--out', str(r.dump)]
    run('tools/test.py', r.entry.config, checkpoint, *out, *common, **options)
    write(r, done=True)
    print(f'{label}: done', flush=True)


def write(r: Run, done: bool) -> None:
    """Say of which settings the folder is, and whether it is complete."""
    text = json.dumps(r.card | dict(done=done), indent=1) + '\n'
    write_whole_text(r.folder / 'run.json', text)
