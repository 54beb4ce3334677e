"""Does CE-Selector keep the right entity types? Its choice beside brute force and what is planted.

python tools/analysis_tools/selection_study.py CONFIG CHECKPOINT... --truth FILE --out FILE

Each checkpoint chooses on the products of val_dataloader by the effect of one type at a time, as
in training. Beside it stands the value of each of the 2^K subsets of types. Counts are pooled over
the checkpoints, usually seeds. Take models trained with all entities: what CE-Selector dropped in
training was not learnt from then on, though all is opened again here. Source: ours.
"""

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from _diagnose import checkpoint_path, fill_cache
from _sense import read_truth
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner, load_checkpoint
from torch import Tensor
from torch.utils.data import DataLoader

import eiclip_mm  # noqa: F401  (checks the installation)
from eiclip_mm.evaluation.report import check_writable, grid
from eiclip_mm.models import EICLIP, EffectCESelector
from eiclip_mm.models.causal_effects import bootstrap_interval, product_features
from eiclip_mm.models.losses import log_prob_of_positives
from eiclip_mm.registry import MODELS
from eiclip_mm.utils import load_config
from eiclip_mm.utils.sentence import told
from eiclip_mm.utils.whole_file import write_whole_text

KEPT, DROPPED = ('confounder', 'informative'), ('useless', 'harmful')  # what a role asks for


def main(argv: Sequence[str] | None = None) -> None:
    """Study each checkpoint; print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config of an EI-CLIP')
    parser.add_argument('checkpoints', nargs='+', metavar='CHECKPOINT', help='of several seeds')
    parser.add_argument('--truth', type=Path, help='truth.json of the mini Fashion-Gen: the roles')
    parser.add_argument('--out', metavar='FILE.json', type=Path, help='write everything here too')
    args = parser.parse_args(argv)
    try:
        cfg = load_config(args.config)
        init_default_scope('eiclip_mm')
        if args.out:
            check_writable(args.out)
        batches = select_products(cfg)
        runs = [study(cfg, trained(cfg, path), batches, path) for path in args.checkpoints]
        roles = read_roles(args.truth, list(runs[0]['effects'])) if args.truth else {}
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    found = dict(config=args.config, roles=roles, runs=runs, agreement=agreement(runs, roles))
    print(*tables(found), sep='\n\n')
    if args.out:
        with told(args.out):
            write_whole_text(args.out, json.dumps(found, indent=1, ensure_ascii=False))


def select_products(cfg: Config) -> DataLoader:
    """Batches of the products that entities are chosen on.

    Raises:
        ValueError: they are no slice of train.
    """
    fold = cfg.val_dataloader.dataset.get('fold', 'all')
    if fold != 'select':
        raise ValueError(
            f"val_dataloader has fold={fold!r}; entities are chosen on fold='select', a slice of "
            'train, never on what is reported.'
        )
    return Runner.build_dataloader(
        dict(cfg.val_dataloader, num_workers=0, persistent_workers=False)
    )


def trained(cfg: Config, checkpoint: str) -> EICLIP:
    """The model with the weights of a checkpoint, and a selector that chooses by effects.

    Raises:
        ValueError: the config's model is no EI-CLIP, or the weights are of another.
        SystemExit: no such checkpoint.
    """
    cfg = Config(cfg.to_dict())  # without the pretrained towers
    path = checkpoint_path(cfg, checkpoint)
    if path is None:
        raise ValueError('nothing is trained in the checkpoint "none"; give one of a training run.')
    model = MODELS.build(cfg.model)
    if not isinstance(model, EICLIP):
        raise ValueError(
            f'the model is {cfg.model.type}, which has no entities to choose; give the config of '
            'an EICLIP, such as configs/eiclip_fashiongen_mini.py.'
        )
    try:
        load_checkpoint(model, str(path), map_location='cpu', strict=True)
    except (RuntimeError, ValueError) as error:  # weights missing, or another vocabulary
        raise ValueError(f'{checkpoint} is of another model than the config: {error}') from error
    if not isinstance(model.selector, EffectCESelector):  # row 4 keeps all
        model.selector = EffectCESelector(model.vocab)
    return model.eval()


def read_roles(path: Path, types: Sequence[str]) -> dict[str, str]:
    """What each type was planted as."""
    roles = {type_: role for type_, role in read_truth(path, 'types', 'role').items() if role}
    if missing := [type_ for type_ in types if type_ not in roles]:
        raise ValueError(f'{path} tells nothing of {missing}, only of {sorted(roles)}.')
    return {type_: roles[type_] for type_ in types}


def study(cfg: Config, model: EICLIP, batches: DataLoader, checkpoint: str) -> dict:
    """What CE-Selector keeps with these weights, and what brute force finds."""
    fill_cache(cfg, model, batches.dataset)
    effects = model.selector.choose(model, batches)
    features = product_features(model, batches)
    everything = torch.ones(features['entity_ids'].shape)  # the choice is not applied

    def encode(entity_ids: Tensor) -> Tensor:
        return F.normalize(model.learner(features['text'], entity_ids, everything), dim=-1)

    scale = model.towers.log_scale.exp().item()
    image, entity_ids, product_id = (features[k] for k in ('image', 'entity_ids', 'product_id'))
    values = subset_values(encode, image, entity_ids, product_id, scale)
    found = brute_force(values, model.selector.confidence)
    types = model.vocab.types
    named = [[t for t, kept in zip(types, s, strict=True) if kept] for s in subsets(len(types))]
    means = values.mean(0).tolist()
    return dict(
        checkpoint=checkpoint,
        products=len(values),
        effects={row['type']: [row['effect'], row['low'], row['high']] for row in effects},
        kept=[row['type'] for row in effects if row['kept']],
        **{name: named[i] for name, i in found.items()},
        values=[dict(types=n, value=v) for n, v in zip(named, means, strict=True)],
    )


def subsets(num_types: int) -> list[tuple[bool, ...]]:
    """All subsets of K types, in the order of :func:`subset_values`: none first, all last."""
    return list(product((False, True), repeat=num_types))


@torch.no_grad()
def subset_values(
    encode: Callable[[Tensor], Tensor],
    image: Tensor,
    entity_ids: Tensor,
    product_id: Tensor,
    scale: float,
    draws: int = 8,
    seed: int = 0,
) -> Tensor:
    """log P(y | do(x)) of each product with only the types of a subset as they are.

    All other types are drawn from P(a), each by itself, as ``causal_effects`` draws one; arguments
    as there. The value of all types less that of all but k is the effect of k, to the draw.

    Returns:
        (P, 2^K), in nats; columns in the order of :func:`subsets`.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.empty(draws, *entity_ids.shape, dtype=entity_ids.dtype)
    for k in range(entity_ids.shape[1]):
        for others in drawn:
            others[:, k] = entity_ids[torch.randperm(len(entity_ids), generator=generator), k]
    right = product_id[:, None] == product_id
    values = []
    for subset in subsets(entity_ids.shape[1]):
        kept = torch.tensor(subset)[:, None]  # (K, 1)
        logs = []
        for others in drawn:
            logits = scale * encode(torch.where(kept, entity_ids, others)) @ image.T
            both = torch.stack([logits, logits.T])  # (2, P, P), from text to image and back
            logs.append(log_prob_of_positives(both, right))
        values.append((torch.stack(logs).logsumexp(0) - math.log(draws)).mean(0))
    return torch.stack(values, dim=1)


def brute_force(values: Tensor, confidence: float) -> dict[str, int]:
    """Columns of the best subset, and of the smallest that is not surely worse.

    A type whose removal costs nothing is not needed: a subset is as good when the paired bootstrap
    interval of its loss against the best, over products, reaches down to 0. Of equally small
    ones the better is taken.

    Args:
        values: (P, 2^K).
        confidence: of the interval.
    """
    means = values.mean(0)
    best = int(means.argmax())
    low, _ = bootstrap_interval(values[:, best, None] - values, confidence, seed=0)
    sizes = [sum(subset) for subset in subsets(int(math.log2(values.shape[1])))]
    as_good = (low <= 0).nonzero()[:, 0].tolist()
    return dict(best=best, smallest=min(as_good, key=lambda i: (sizes[i], -means[i].item())))


def agreement(runs: Sequence[Mapping], roles: Mapping[str, str]) -> dict[str, dict]:
    """Types that CE-Selector kept, against brute force and against the roles, over all runs.

    Types of other roles, redundant or weak, count neither way against the roles. Precision or
    recall is None where nothing was kept or nothing was to keep.
    """
    planted = {type_ for type_, role in roles.items() if role in KEPT}
    judged = {type_ for type_, role in roles.items() if role in KEPT + DROPPED}
    pairs = {'brute force': [(set(run['kept']), set(run['smallest'])) for run in runs]}
    if roles:
        pairs['what is planted'] = [(set(run['kept']) & judged, planted) for run in runs]
    found = {}
    for name, pooled in pairs.items():
        right = sum(len(kept & wanted) for kept, wanted in pooled)
        wrong = sum(len(kept - wanted) for kept, wanted in pooled)
        missed = sum(len(wanted - kept) for kept, wanted in pooled)
        found[name] = dict(
            right=right,
            wrong=wrong,
            missed=missed,
            precision=right / (right + wrong) if right + wrong else None,
            recall=right / (right + missed) if right + missed else None,
        )
    return found


def tables(found: Mapping) -> list[str]:
    """Types, checkpoints and agreement as Markdown."""
    runs, roles = found['runs'], found['roles']
    types = [['type', 'planted as', 'effect, nats', 'kept', 'needed by brute force']]
    for type_ in runs[0]['effects']:
        effect = sum(run['effects'][type_][0] for run in runs) / len(runs)
        counts = (sum(type_ in run[key] for run in runs) for key in ('kept', 'smallest'))
        counts = [f'{count} of {len(runs)}' for count in counts]
        types.append([type_, roles.get(type_, '–'), f'{effect:+.3f}', *counts])
    choices = [['checkpoint', 'CE-Selector (value)', 'smallest as good as the best', 'best']]
    for run in runs:
        value = {tuple(row['types']): row['value'] for row in run['values']}
        sets = (run[key] for key in ('kept', 'smallest', 'best'))
        named = [f'{", ".join(s) or "none"} ({value[tuple(s)]:.3f})' for s in sets]
        choices.append(['/'.join(Path(run['checkpoint']).parts[-2:]), *named])
    counts = ('right', 'wrong', 'missed')
    judged = [['CE-Selector against', *counts, 'precision', 'recall']]
    for name, row in found['agreement'].items():
        rates = ['–' if row[k] is None else f'{row[k]:.2f}' for k in ('precision', 'recall')]
        judged.append([name, *(str(row[k]) for k in counts), *rates])
    return [grid(types), grid(choices), grid(judged)]


if __name__ == '__main__':
    main()
