"""Features of frozen trunks: computed once, kept in files, shared by all runs that agree.

What a frozen trunk makes of a photo or a text never changes, so it is asked once, and heads,
CE-Selector and EA-Learner train from its features.
"""

import hashlib
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import BaseDataset
from mmengine.dist import barrier, get_dist_info, is_main_process
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from eiclip_mm.registry import HOOKS

from . import feature_files
from .hooks import unwrapped


class FeatureCache(Hook):
    """What both caches share: when they fill, and where the features are kept.

    Features lie in ``folder`` as ``.npy`` files whose names hash all that they depend on.
    Several processes compute a share each; after a kill the next run goes on where it was.

    Args:
        folder: where the files go; one that all processes see.
        batch_size: photos or texts a step.
    """

    priority = 'VERY_HIGH'  # before hooks that run the model, such as CausalEffectHook
    CHUNK = 4096  # rows a file until all are there: what a kill may cost

    def __init__(self, folder: str = 'work_dirs/feature_cache', batch_size: int = 64):
        if batch_size < 1:
            raise ValueError(f'batch_size must be at least 1, got {batch_size}.')
        self.folder, self.batch_size = Path(folder), batch_size

    def before_train(self, runner: Runner) -> None:
        """Features for training and for validation in training."""
        self._fill(runner, runner.train_dataloader)
        if runner.val_loop is not None:
            self._fill(runner, runner.val_dataloader)

    def before_val(self, runner: Runner) -> None:
        """Features for ``Runner.val``."""
        self._fill(runner, runner.val_dataloader)

    def before_test(self, runner: Runner) -> None:
        """Features for ``Runner.test``."""
        self._fill(runner, runner.test_dataloader)

    def _fill(self, runner: Runner, loader: DataLoader) -> None:
        if not hasattr(loader.dataset, 'pipeline'):
            raise ValueError(
                f'{type(self).__name__} does not support wrappers of data sets, such as '
                f'{type(loader.dataset).__name__}: give the data set itself, or leave the hook out '
                'of custom_hooks.'
            )
        self.fill(unwrapped(runner.model).towers, loader.dataset, loader.num_workers)

    def fill(self, towers: BaseModule, dataset: BaseDataset, workers: int = 0) -> None:
        """Have ``dataset`` deliver features of ``towers``; compute those that no file holds."""
        raise NotImplementedError

    def _file(
        self,
        digest: str,
        count: int,
        towers: BaseModule,
        compute: Callable[[range, tqdm], np.ndarray],
    ) -> Path:
        """The file of ``count`` features; ``compute`` makes the (rows, F) float32 of a chunk."""
        path = self.folder / f'{digest}.npy'
        folder = path.with_suffix('.parts')
        chunks = [range(i, min(i + self.CHUNK, count)) for i in range(0, count, self.CHUNK)]
        parts = [folder / f'{rows.start}.npy' for rows in chunks]
        rank, world = get_dist_info()
        mine = list(zip(parts, chunks, strict=True))[rank::world]
        if not path.is_file():
            missing = {part: rows for part, rows in mine if feature_files.damage(part, len(rows))}
            if missing:
                feature_files.check_writable(path)
            self._compute(path, missing, towers, compute)
        barrier()  # all parts are there
        if is_main_process():
            if not path.is_file():
                feature_files.join(parts, path, count)
            shutil.rmtree(folder, ignore_errors=True)
        barrier()
        if damage := feature_files.damage(path, count):
            raise ValueError(f'the features in {path} are damaged: {damage}. Delete it.')
        return path

    @torch.no_grad()
    def _compute(
        self, path: Path, missing: dict[Path, range], towers: nn.Module, compute: Callable
    ) -> None:
        training = towers.training
        towers.eval()
        total, name = sum(map(len, missing.values())), type(self).__name__
        with tqdm(total=total, desc=name, mininterval=1, disable=not is_main_process()) as bar:
            for part, rows in missing.items():
                if path.is_file():  # a run beside this one was faster
                    break
                features = compute(rows, bar)
                feature_files.write(part, path, partial(np.save, arr=features))
        towers.train(training)


@HOOKS.register_module()
class ImageFeatureCache(FeatureCache):
    """Run a frozen image trunk once over every photo, and never again.

    Serves the data sets whose pipeline begins with ``LoadImageFeature``. The name hashes the
    trunk and its weights, mean and std of the pixels, the loading pipeline and the photos (path,
    size, time; of packs, too). A pipeline that draws, such as random crops, is refused: no one
    feature is a photo's then.
    """

    def fill(self, towers: BaseModule, dataset: BaseDataset, workers: int = 0) -> None:
        """See :class:`FeatureCache`."""
        transform = dataset.pipeline.transforms[0]
        if getattr(transform, 'ready', True):  # only LoadImageFeature can be not ready
            return
        trunk = towers.image_trunk_module()
        _check_frozen(trunk, 'image', 'load pixels with LoadProductImage')
        images = dataset.images()
        photos = _Photos(list(images.values()), transform.transforms)
        tensors = [*trunk.parameters(), *trunk.buffers(), towers.mean, towers.std]
        state = dataset.state_of_photos(transform.transforms)
        described = (repr(trunk), _settings(trunk), transform.pipeline, list(images), state)
        digest = _digest(tensors, *described)

        def compute(rows: range, bar: tqdm) -> np.ndarray:
            # convolutions run half again as fast so, and a frozen trunk does not mind
            trunk.to(memory_format=torch.channels_last)
            features = []
            for batch in DataLoader(Subset(photos, rows), self.batch_size, num_workers=workers):
                batch = batch.to(towers.mean.device, memory_format=torch.channels_last)
                features.append(towers.image_trunk(batch).float().cpu())
                bar.update(len(batch))
            return torch.cat(features).numpy()

        path = self._file(digest, len(photos), towers, compute)
        transform.use(str(path), {key: row for row, key in enumerate(images)})


class _Photos(Dataset):
    """(3, height, width) uint8 of each image, loaded by a pipeline that must not draw."""

    def __init__(self, images: list[dict], transforms: list[Callable]):
        self.images, self.transforms = images, transforms
        before = _random_state()
        self[0]
        if _random_state() != before:
            raise ValueError(
                'the pipeline of LoadImageFeature draws at random, so a photo has no one feature: '
                f'leave random transforms out of it, got {[type(t).__name__ for t in transforms]}. '
                'To train on random crops, load pixels with LoadProductImage.'
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> torch.Tensor:
        results = dict(self.images[i])
        for transform in self.transforms:
            results = transform(results)
        return torch.from_numpy(np.ascontiguousarray(results['img'].transpose(2, 0, 1)))


def _random_state() -> tuple:
    numpy = np.random.get_state(legacy=False)['state']
    keys, place = numpy['key'].tobytes(), numpy['pos']
    return random.getstate(), keys, place, torch.get_rng_state().numpy().tobytes()


@HOOKS.register_module()
class TextFeatureCache(FeatureCache):
    """Run a frozen text trunk once over every text, and never again.

    Serves data sets that hold their texts encoded (``ProductDataset.encoded``): the features take
    the place of the tokens. The name hashes the trunk, its weights, those of added tokens
    included, and the tokens, in which vocabulary and reading have come to bear.
    """

    def fill(self, towers: BaseModule, dataset: BaseDataset, workers: int = 0) -> None:
        """See :class:`FeatureCache`."""
        encoded = getattr(dataset, 'encoded', None)
        if encoded is None:
            raise ValueError(
                f'TextFeatureCache finds no encoded texts in {type(dataset).__name__}: give the '
                "data set a tokenizer, or leave dict(type='TextFeatureCache') out of custom_hooks."
            )
        if np.issubdtype(encoded.text.dtype, np.floating):  # before every validation
            return
        trunk = towers.text_trunk_module()
        _check_frozen(trunk, 'text', "leave dict(type='TextFeatureCache') out of custom_hooks")
        tokens, length = encoded.text, encoded.length
        # a causal mask is a buffer that state_dict leaves out
        tensors = [*trunk.parameters(), *trunk.buffers()]
        tensors.append(torch.from_numpy(np.ascontiguousarray(tokens)))
        digest = _digest(tensors, repr(trunk), _settings(trunk), tokens.shape)

        def compute(rows: range, bar: tqdm) -> np.ndarray:
            order = np.argsort(length[rows.start : rows.stop], kind='stable')
            features = []
            for i in range(0, len(rows), self.batch_size):  # texts of about one length
                some = rows.start + order[i : i + self.batch_size]
                batch = torch.from_numpy(tokens[some, : length[some].max()]).long()
                features.append(towers.text_trunk(batch.to(towers.mean.device)).float().cpu())
                bar.update(len(some))
            return torch.cat(features).numpy()[np.argsort(order)]

        path = self._file(digest, len(tokens), towers, compute)
        # mode c: torch wants arrays that it may write to, and what it writes never meets the file
        dataset.encoded = replace(encoded, text=np.load(path, mmap_mode='c'))


def _check_frozen(trunk: nn.Module, side: str, instead: str) -> None:
    if any(p.requires_grad for p in trunk.parameters()):
        raise ValueError(
            f'the {side} trunk trains, so its features cannot be cached: set '
            f'towers=dict({side}_unlocked=0), or {instead}.'
        )


def _settings(module: nn.Module) -> list:
    """Numbers and names that a module computes by, such as heads, which its repr may leave out."""
    return [
        (name, key, value)
        for name, part in module.named_modules()
        for key, value in sorted(vars(part).items())
        if isinstance(value, (int, float, str)) and key != 'training' and key[0] != '_'
    ]


def _digest(tensors: list[torch.Tensor], *described: object) -> str:
    digest = hashlib.sha256(repr(described).encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:16]
