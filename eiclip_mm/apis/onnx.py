"""A model as tools/deployment/export_onnx.py wrote it: two graphs and plain data, no checkpoint."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eiclip_mm.datasets.tokenizer import EntityTokenizer
from eiclip_mm.registry import TRANSFORMS

from .checkpoint import MISFIT
from .encoder import Encoder
from .foreign import check_sizes, check_types
from .photos import PhotoSizing

FORMAT = 'eiclip_mm.onnx/1'
SUBWORDS = ('bpe.json', 'tokenizer/tokenizer.json')  # CLIP's, and a Hugging Face model's


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
            self.name, self.dim, self.sha256 = (about[key] for key in ('name', 'dim', 'sha256'))
            _check_about(about, text)
            check_types(sizing, TRANSFORMS)
            check_sizes(sizing, text)
            architecture = dict(context_length=text['context_length'])
            if text['subwords'] != 'bpe.json':
                architecture['hf_model_name'] = str((folder / text['subwords']).parent)
            keys = ('fields', 'mention', 'mention_types', 'tags', 'text_types', 'max_values')
            tokenizer = EntityTokenizer(
                dict(text_cfg=architecture), about['vocab'], **{key: text[key] for key in keys}
            )
            sizing = PhotoSizing(sizing)
        except MISFIT as error:
            raise ValueError(
                f'{folder / "model.json"} is damaged ({type(error).__name__}: {error}); export the '
                'model again with tools/deployment/export_onnx.py.'
            ) from error
        super().__init__(tokenizer, sizing, batch_size)
        self.image = open_graph(folder / 'image.onnx', threads)
        self.product = open_graph(folder / 'product.onnx', threads)
        _check_graph(folder / 'image.onnx', self.image, dict(pixels='uint8'), self.dim)
        self.has_entities = len(self.product.get_inputs()) == 2
        ids = dict(text='int64') | (dict(entity_ids='int64') if self.has_entities else {})
        _check_graph(folder / 'product.onnx', self.product, ids, self.dim)

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


def _check_about(about: Mapping, text: Mapping) -> None:
    """Refuse values of other types, and sub-words elsewhere on the disk."""
    for key, type_ in (('name', str), ('dim', int), ('sha256', str), ('vocab', dict)):
        if type(about[key]) is not type_:
            raise TypeError(f'{key} must be {type_.__name__}, got {about[key]!r:.50}')
    if text['subwords'] not in SUBWORDS:
        raise ValueError(f'its subwords are {SUBWORDS}, got {text["subwords"]!r:.50}')


def _check_graph(path: Path, graph: Any, inputs: Mapping[str, str], dim: int) -> None:
    """Refuse a graph that takes or gives something else."""
    found = {each.name: each.type for each in graph.get_inputs()}
    outputs = {each.name: each.shape for each in graph.get_outputs()}
    names = {'vectors', 'weights'} if 'entity_ids' in inputs else {'vectors'}
    wanted = {name: f'tensor({type_})' for name, type_ in inputs.items()}
    if found != wanted or outputs.keys() != names or outputs['vectors'][1:] != [dim]:
        raise ValueError(
            f'{path} must make {sorted(names)}, vectors of {dim} numbers, from {wanted}; it makes '
            f'{outputs} from {found}. Export the model again with '
            'tools/deployment/export_onnx.py.'
        )


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
