"""open_clip's own training loop on Fashion-Gen's files: the peer of the training benchmarks."""

from pathlib import Path
from types import SimpleNamespace

import h5py
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

FIELDS = ('composition', 'subcategory', 'brand', 'season', 'description')


class Pairs(Dataset):
    """Photos and texts as open_clip's own data sets give them: transformed, tokenised one by one.

    Args:
        path: an HDF5 file of Fashion-Gen.
        tokenizer, transform: open_clip's.
        rows: how many of its rows; all by default.
    """

    def __init__(self, path: str | Path, tokenizer, transform, rows: int | None = None):
        self.file = h5py.File(path)
        self.tokenizer, self.transform = tokenizer, transform
        self.rows = len(self.file['input_image']) if rows is None else rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int):
        text = ' '.join(self.file[f'input_{f}'][i, 0].decode('latin-1') for f in FIELDS)
        image = Image.fromarray(self.file['input_image'][i])
        return self.transform(image), self.tokenizer([text])[0]


class Trainer:
    """``train_one_epoch`` with ``ClipLoss`` and the optimiser groups of open_clip's main.

    Args:
        model: an open_clip model made with ``output_dict=True``.
        precision: in open_clip's words, such as ``'amp_bf16'``.
    """

    def __init__(self, model, device: str, batch_size: int, precision: str):
        self.model = model.to(device)
        named = list(model.named_parameters())
        exempt = ('ln', 'bn', 'bias', 'logit_scale')
        plain = {n for n, p in named if p.ndim < 2 or any(word in n for word in exempt)}
        self.optimizer = torch.optim.AdamW(
            [
                dict(params=[p for n, p in named if n in plain], weight_decay=0.0),
                dict(params=[p for n, p in named if n not in plain], weight_decay=0.2),
            ],
            lr=5e-4, betas=(0.9, 0.98), eps=1e-6,
        )  # fmt: skip
        self.options = SimpleNamespace(
            device=device, precision=precision, batch_size=batch_size, grad_clip_norm=1.0,
            distill=False, accum_freq=1, horovod=False, skip_scheduler=True, world_size=1, rank=0,
            local_rank=0, log_every_n_steps=50, log_local=False, save_logs=False, wandb=False,
        )  # fmt: skip

    def epoch(self, loader: DataLoader) -> None:
        """One pass over the loader."""
        from open_clip import ClipLoss
        from open_clip_train.train import train_one_epoch

        loader.num_batches = len(loader)
        loader.num_samples = len(loader) * self.options.batch_size
        data = dict(train=SimpleNamespace(dataloader=loader, set_epoch=lambda epoch: None))
        train_one_epoch(
            self.model, data, ClipLoss(), 0, self.optimizer, None, None, None, self.options
        )
