"""The two sides of a trained model as ONNX graphs: whole, and in 8-bit integers."""

import copy
import itertools
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from eiclip_mm.models import EICLIP, OpenCLIP
from eiclip_mm.models.entity_table import EntityTable
from eiclip_mm.models.text_tower import hugging_face

BATCH = 16  # photos that quantisation is calibrated with at a time


class ImageGraph(nn.Module):
    """(B, 3, height, width) uint8 pixels -> (B, D) unit vectors."""

    def __init__(self, model: OpenCLIP):
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        return self.model.encode_image(pixels)


class TextGraph(nn.Module):
    """(B, L) token ids -> (B, D) unit vectors, of a model without entities."""

    def __init__(self, model: OpenCLIP):
        super().__init__()
        self.towers = model.towers

    def forward(self, text: Tensor) -> Tensor:
        """See the class."""
        return F.normalize(self.features(text), dim=-1)

    def features(self, text: Tensor) -> Tensor:
        """(B, D), before normalisation."""
        if hugging_face(self.towers.clip) is None:
            return self.towers.encode_text(text)
        # without cutting what all rows pad, which asks for the values of the ids
        tower = self.towers.clip.text
        mask = (text != tower.config.pad_token_id).long()
        hidden = tower.transformer(input_ids=text, attention_mask=mask)
        return tower.proj(tower.pooler(hidden, mask))


class ProductGraph(TextGraph):
    """(B, L) token ids, (B, K, M) entity ids -> (B, D) unit vectors, (B, K, M) weights."""

    def __init__(self, model: EICLIP):
        super().__init__(model)
        self.selector, self.learner = model.selector, copy.deepcopy(model.learner)
        self.learner.table = GatheredTable(model.vocab)

    def forward(self, text: Tensor, entity_ids: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        features = self.features(text)
        weights = self.selector(features, entity_ids)
        return F.normalize(self.learner(features, entity_ids, weights), dim=-1), weights


class GatheredTable(EntityTable):
    """The same sums without an embedding bag, which ONNX knows as a loop over rows only."""

    def mean(self, values: Tensor, entity_ids: Tensor, weights: Tensor | float = 1.0) -> Tensor:
        """See :class:`EntityTable`."""
        share = self.share(entity_ids) * weights  # (B, K, M)
        return (values[self.rows(entity_ids)] * share[..., None].to(values.dtype)).sum(2)


def write_graphs(
    model: OpenCLIP, pixels: Tensor, text: Tensor, entity_ids: Tensor, folder: Path, opset: int
) -> None:
    """Write image.onnx and product.onnx.

    Args:
        model: in evaluation mode, LoRA merged.
        pixels, text, entity_ids: a batch of two; of text and batch the sizes may vary later.
        folder: exists.
        opset: version of the ONNX operators.
    """
    batch = Dim('batch')
    # The tower pads what is shorter than its length, so the tracer wants it shorter; the graph
    # takes all of it, too.
    tokens = Dim('tokens', min=3, max=text.shape[1] - 1)
    text = text[:, : max(3, text.shape[1] // 2)]
    _write(ImageGraph(model), dict(pixels=pixels), ({0: batch},), folder / 'image.onnx', opset)
    kind, inputs, sizes = TextGraph, dict(text=text), ({0: batch, 1: tokens},)
    if isinstance(model, EICLIP):
        kind, sizes = ProductGraph, (*sizes, {0: batch})
        inputs['entity_ids'] = entity_ids
    _write(kind(model), inputs, sizes, folder / 'product.onnx', opset)


def _write(graph: nn.Module, inputs: dict[str, Tensor], sizes: tuple, path: Path, opset: int):
    graph.training = False  # not eval(): the parts are in evaluation mode already
    outputs = ['vectors', 'weights'] if 'entity_ids' in inputs else ['vectors']
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the exporter's, about itself
        program = torch.onnx.export(
            graph,
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=sizes,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    for node in program.model.graph.all_nodes():  # where it was traced: paths of this machine
        node.metadata_props.clear()
    program.save(path)  # weights of 2 GB and more go to a second file beside it
    onnx.checker.check_model(path, full_check=True)


def quantise(source: Path, target: Path, photos: Iterable[np.ndarray]) -> str:
    """Write a graph in 8-bit integers; returns how it was done.

    Convolutions need to know beforehand how large values get, so photos run through them.

    Args:
        source, target: files.
        photos: (3, height, width) uint8 each; of a graph without many convolutions none is read.
    """
    from onnxruntime.quantization import QuantFormat, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    kinds = Counter(node.op_type for node in onnx.load(source).graph.node)
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / source.name
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        if kinds['Conv'] <= kinds['MatMul'] + kinds['Gemm']:
            quantize_dynamic(prepared, target, per_channel=True)
            return 'dynamic'
        reader = _Batches(photos)
        quantize_static(prepared, target, reader, quant_format=QuantFormat.QDQ, per_channel=True)
    return f'static, calibrated on {reader.count} photos'


class _Batches:
    """What onnxruntime calls a CalibrationDataReader."""

    def __init__(self, photos: Iterable[np.ndarray]):
        self.photos, self.count = iter(photos), 0

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, ``None`` at the end."""
        part = list(itertools.islice(self.photos, BATCH))
        self.count += len(part)
        return dict(pixels=np.stack(part)) if part else None
