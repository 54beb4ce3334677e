"""EI-CLIP, on one page: towers, CE-Selector, EA-Learner, loss, in reading order.

X is a product's text, Y its image. Contrastive learning fits P(Y|X), where an entity of X keeps the
sense it has in the general domain; the intervention P(Y|do(X)) = Σ_z P(Y|X,z) P(z) averages over
its senses z with a prior that does not look at X. Source: poster and paper; the modules' insides
are ours where their files say so.
"""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor

from eiclip_mm.registry import MODELS, TOKENIZER
from eiclip_mm.structures import EntityVocab

MODES = ('loss', 'predict', 'tensor')


@MODELS.register_module()
class OpenCLIP(BaseModel):
    """CLIP as it is: rows 1 to 3 of the poster's table.

    Args:
        towers: config of ``OpenCLIPTowers``.
        tokenizer: config of ``EntityTokenizer``, the same as the pipeline's.
        loss: config of the contrastive loss; InfoNCE as it is by default.
        **kwargs: of ``mmengine.model.BaseModel``.
    """

    def __init__(self, towers: dict, tokenizer: dict, loss: dict | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.tokenizer = TOKENIZER.build(tokenizer)
        self.towers = MODELS.build(towers)
        subwords = self.tokenizer.subwords
        self.towers.prepare_tokens(
            subwords.end, subwords.size, self.tokenizer.extra_tokens, subwords.pad
        )
        self.loss = MODELS.build(loss or dict(type='eiclip_mm.InfoNCE'))

    @property
    def vocab(self) -> EntityVocab:
        """What the entity ids mean."""
        return self.tokenizer.vocab

    def forward(
        self, image: Tensor, text: Tensor, entity_ids: Tensor, mode: str = 'tensor', **ids: Tensor
    ) -> dict[str, Tensor] | list[dict]:
        """One of mmengine's three modes.

        Args:
            image: (B, 3, height, width) uint8, or (B, F) features of a frozen trunk.
            text: (B, L') token ids, L' <= L, or (B, F) features of a frozen trunk.
            entity_ids: (B, K, M).
            mode: ``'loss'``, ``'predict'`` (a dict a product, for metrics) or ``'tensor'``.
            **ids: ``product_id, text_id, entities_id, view, caption, sample_idx``, each (B,).

        Raises:
            ValueError: another mode.
        """
        if mode not in MODES:
            raise ValueError(f'mode={mode!r} is not known; choose one of {MODES}.')
        if mode == 'loss':
            return self.losses(self.encode_image(image), text, entity_ids, ids)
        embeddings = dict(
            image=self.encode_image(image), product=self.encode_product(text, entity_ids)
        )
        return embeddings if mode == 'tensor' else unbatch(**embeddings, **ids)

    def encode_image(self, image: Tensor) -> Tensor:
        """(B, D) unit length. Entities never reach this side."""
        return F.normalize(self.towers.encode_image(image), dim=-1)

    def encode_product(self, text: Tensor, entity_ids: Tensor) -> Tensor:
        """(B, D) unit length."""
        return F.normalize(self.towers.encode_text(text), dim=-1)

    def losses(self, image: Tensor, text: Tensor, entity_ids: Tensor, ids: dict) -> dict:
        """Loss terms for mmengine, which adds up those named ``loss*``."""
        product = self.encode_product(text, entity_ids)[None]  # (1, B, D)
        return self.contrast(image, product, product.new_zeros(product.shape[:2]), ids)

    def contrast(self, image: Tensor, product: Tensor, log_prior: Tensor, ids: dict) -> dict:
        """The contrastive term over (C, B, D) products, and the temperature for the log."""
        log_scale = self.towers.log_scale
        loss = self.loss(image, product, log_prior, log_scale, ids['product_id'], ids['text_id'])
        return dict(loss_contrast=loss, logit_scale=log_scale.detach().exp())

    def get_extra_state(self) -> Tensor:
        """Vocabulary and reading of texts, as bytes of JSON: what the ids of a checkpoint mean."""
        text = json.dumps(self.vocab.to_dict() | dict(reading=self.tokenizer.reading))
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse a checkpoint whose entity ids mean something else, or that read other texts."""
        vocab = vocab_of_state(state)
        reading = json.loads(bytes(state.cpu().tolist())).get('reading')
        if reading != self.tokenizer.reading:
            raise ValueError(
                f'the checkpoint was trained on texts read as {reading}, here the tokenizer reads '
                f'{self.tokenizer.reading}. Take the config that the checkpoint was trained with.'
            )
        # dicts may be equal in another order, but the types' order numbers the columns
        if vocab != self.vocab or vocab.types != self.vocab.types:
            theirs, ours = ({t: v.size(t) - 1 for t in v.types} for v in (vocab, self.vocab))
            raise ValueError(
                f'the checkpoint was trained with another entity vocabulary: {theirs} '
                f'entities, here {ours}. Give the vocabulary it was trained with.'
            )


def vocab_of_state(state: Tensor) -> EntityVocab:
    """The vocabulary in a checkpoint's ``state_dict['_extra_state']``.

    Raises:
        ValueError: it is none.
    """
    plain = isinstance(state, Tensor) and state.layout is torch.strided and not state.is_meta
    if not (plain and state.ndim == 1 and state.dtype == torch.uint8):
        found = f'{state.dtype} of shape {tuple(state.shape)}' if plain else type(state).__name__
        raise ValueError(f'_extra_state must be a row of bytes, torch.uint8, got {found}')
    return EntityVocab.from_dict(json.loads(bytes(state.cpu().tolist())), 'the checkpoint')


@MODELS.register_module()
class EICLIP(OpenCLIP):
    """CLIP with CE-Selector and EA-Learner on the product side: rows 4 and 5.

    Args:
        towers, tokenizer, loss: see :class:`OpenCLIP`.
        selector: config of a ``CESelector``.
        learner: config of ``EALearner``.
        entity_loss_weight: λ_ent of L_ent.
        gate_price: λ_0 of L_0, for selectors that learn by a price.
        **kwargs: see :class:`OpenCLIP`.
    """

    def __init__(
        self,
        towers: dict,
        tokenizer: dict,
        selector: dict,
        learner: dict,
        entity_loss_weight: float = 0.1,
        gate_price: float = 0.1,
        **kwargs: Any,
    ):
        super().__init__(towers, tokenizer, **kwargs)
        if not self.vocab.types:
            raise ValueError(
                'EICLIP intervenes on entities, and its tokenizer has no type of them: give it a '
                'vocab of at least one type, or take OpenCLIP.'
            )
        self.entity_loss_weight, self.gate_price = entity_loss_weight, gate_price
        self.selector = MODELS.build(dict(selector, vocab=self.vocab))
        self.learner = MODELS.build(
            dict(
                learner,
                vocab=self.vocab,
                dim=self.towers.dim,
                classify=entity_loss_weight > 0,
            )
        )
        self._set_general_sense()

    @torch.no_grad()
    @torch.compiler.set_stance('force_eager')  # else towers are compiled for names, on the CPU
    def _set_general_sense(self) -> None:
        self.towers.eval()
        self.learner.set_general_sense(read_names(self.tokenizer, self.towers.encode_text))
        self.towers.train()

    def encode_product(self, text: Tensor, entity_ids: Tensor) -> Tensor:
        """(B, D) unit length: one vector, so that products can be indexed."""
        return self.product_and_weights(text, entity_ids)[0]

    def product_and_weights(self, text: Tensor, entity_ids: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`encode_product`, and what CE-Selector made of the entities, (B, K, M)."""
        text = self.towers.encode_text(text)  # (B, D)
        weights = self.selector(text, entity_ids)  # (B, K, M)
        return F.normalize(self.learner(text, entity_ids, weights), dim=-1), weights

    def losses(self, image: Tensor, text: Tensor, entity_ids: Tensor, ids: dict) -> dict:
        """L = ½(L_i2t + L_t2i) + λ_ent L_ent + λ_0 L_0."""
        text = self.towers.encode_text(text)  # (B, D)
        weights = self.selector(text, entity_ids)  # (B, K, M)
        product, log_prior = self.learner.expand(text, entity_ids, weights)  # (C, B, D), (C, B)
        # products of one description and different entities are not the same text; those that
        # entity dropout alone parts are, as both photos are right for both
        text_id = ids['text_id'] + ids['entities_id']  # wraps around
        ids = dict(ids, text_id=text_id)
        losses = self.contrast(image, F.normalize(product, dim=-1), log_prior, ids)
        if self.entity_loss_weight:
            entity_loss = self.learner.entity_loss(image, entity_ids)
            losses['loss_entity'] = self.entity_loss_weight * entity_loss
        if (penalty := self.selector.penalty()) is not None:
            losses['loss_gate'] = self.gate_price * penalty
        return losses


def read_names(tokenizer: Any, read: Callable[[Tensor], Tensor]) -> Tensor:
    """(N, F) what ``read``, token ids (n, L') -> (n, F), makes of every entity's bare name."""
    names = torch.from_numpy(tokenizer.encode_names())  # (N, L)
    features = []
    for part in names.split(256):  # names are short: most of L is padding
        last = (part == tokenizer.subwords.end).int().argmax(1).max()
        features.append(read(part[:, : last + 1]))
    return torch.cat(features)


def unbatch(**columns: Tensor) -> list[dict]:
    """One dict a row, as mmengine's evaluators count samples."""
    names = list(columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
