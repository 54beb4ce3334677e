"""A model as tools/deployment/export_onnx.py wrote it: two graphs and plain data, no checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eiclip_mm.datasets.tokenizer import EntityTokenizer
from eiclip_mm.registry import TRANSFORMS

from .checkpoint import check_types
from .encoder import Encoder
from .photos import PhotoSizing

FORMAT = 'eiclip_mm.onnx/1'


class OnnxEncoder(Encoder):
    """Embeds photos, products and queries with onnxruntime, on the CPU.

    Args:
        folder: what ``export_onnx.py`` wrote, or the folder ``int8`` in it.
        batch_size: rows at a time.
        threads: that each of the two graphs may use; all cores by default.

    Attributes:
        sha256: of the checkpoint that was exported; an index that it built can be asked.

    Raises:
        FileNotFoundError: a file is missing from the folder.
        ValueError: it holds something else, or is damaged.
        ImportError: onnxruntime is not installed.
    """

    def __init__(self, folder: str | Path, batch_size: int = 64, threads: int | None = None):
        folder = Path(folder)
        about = read_about(folder)
        try:
            text, sizing = dict(about['text']), about['image']['sizing']
            self.name, self.dim, self.sha256 = about['name'], about['dim'], about['sha256']
            architecture = dict(context_length=text['context_length'])
            if text['subwords'] != 'bpe.json':
                architecture['hf_model_name'] = str((folder / text['subwords']).parent)
            keys = ('fields', 'mention', 'mention_types', 'tags', 'text_types', 'max_values')
            tokenizer = EntityTokenizer(
                dict(text_cfg=architecture), about['vocab'], **{key: text[key] for key in keys}
            )
            check_types(sizing, TRANSFORMS)
            sizing = PhotoSizing(sizing)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{folder / "model.json"} is damaged ({type(error).__name__}: {error}); export the '
                'model again with tools/deployment/export_onnx.py.'
            ) from error
        super().__init__(tokenizer, sizing, batch_size)
        self.image = open_graph(folder / 'image.onnx', threads)
        self.product = open_graph(folder / 'product.onnx', threads)
        self.has_entities = len(self.product.get_inputs()) == 2

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """See :class:`Encoder`."""
        (vectors,) = self.image.run(['vectors'], dict(pixels=pixels.numpy()))
        return torch.from_numpy(vectors)

    def embed_tokens(self, text: Tensor, entity_ids: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Encoder`."""
        inputs = dict(text=text.numpy())
        if not self.has_entities:
            (vectors,) = self.product.run(['vectors'], inputs)
            return torch.from_numpy(vectors), torch.zeros(entity_ids.shape)
        inputs['entity_ids'] = entity_ids.numpy()
        vectors, weights = self.product.run(['vectors', 'weights'], inputs)
        return torch.from_numpy(vectors), torch.from_numpy(weights)


def read_about(folder: Path) -> dict:
    """The model.json of an exported model.

    Raises:
        FileNotFoundError, ValueError: see :class:`OnnxEncoder`.
    """
    path = folder / 'model.json'
    for needed in (path, folder / 'image.onnx', folder / 'product.onnx'):
        if not needed.is_file():
            raise FileNotFoundError(
                f'{needed} does not exist; tools/deployment/export_onnx.py writes such a folder.'
            )
    try:
        about = json.loads(path.read_text(encoding='utf-8'))
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{path} is not JSON: {error}') from error
    if not isinstance(about, dict) or about.get('format') != FORMAT:
        got = about.get('format') if isinstance(about, dict) else type(about).__name__
        raise ValueError(
            f'{path} is no exported model: its "format" is {got!r}, expected {FORMAT!r}. Write one '
            'with tools/deployment/export_onnx.py.'
        )
    return about


def open_graph(path: Path, threads: int | None = None) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "exported models run in onnxruntime: pip install 'eiclip_mm[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0  # 0: all cores
    try:
        return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    except Exception as error:  # onnxruntime's own errors have no common class
        raise ValueError(f'{path} cannot be opened by onnxruntime: {error!s:.300}') from error
