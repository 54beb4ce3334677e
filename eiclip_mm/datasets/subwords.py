"""Text to sub-word ids, as open_clip gives them."""

import html
from collections.abc import Callable, Mapping, Sequence
from copy import copy

import numpy as np
import open_clip
from open_clip.tokenizer import get_clean_fn

from eiclip_mm.structures import is_plain, resolve_path

from .long_words import LONG, merged
from .memo import Memo

MAX_ESCAPES = 8  # of one another; ftfy decodes them one at a time


class SubWords:
    """One face for open_clip's two tokenizers: sub-word ids, special ids, sizes.

    Args:
        model: an open_clip model name, or an architecture as ``OpenCLIPTowers`` takes it.
        context_length: tokens L of a text, the special ones included; the model's by default.

    Attributes:
        hugging_face: the tokenizer of transformers, ``None`` for open_clip's own.
        open_clip: open_clip's own tokenizer, where there is no other.
        clean: what open_clip does to a text before it cuts it.
        start, end, pad: ids of the special tokens.
        size: number of tokens.
    """

    def __init__(self, model: str | Mapping, context_length: int | None = None):
        if isinstance(model, str):
            inner = open_clip.get_tokenizer(model, context_length=context_length)
        else:
            text_cfg = model['text_cfg']
            length = context_length
            if length is None:
                length = text_cfg.get('context_length', 77)
            if 'hf_model_name' in text_cfg:
                folder = resolve_path(text_cfg.get('hf_tokenizer_name', text_cfg['hf_model_name']))
                inner = open_clip.tokenizer.HFTokenizer(folder, context_length=length)
            else:
                inner = open_clip.SimpleTokenizer(context_length=length)
        self.context_length, self.clean = inner.context_length, inner.clean_fn
        plain: dict[Callable, Callable[[str], str]] = {
            get_clean_fn('lower'): str.lower,
            get_clean_fn('whitespace'): str,
        }
        self._plain = plain.get(inner.clean_fn)
        if hasattr(inner, 'sot_token_id'):
            self.start, self.end, self.pad = inner.sot_token_id, inner.eot_token_id, 0
            self.size, self.hugging_face = inner.vocab_size, None
            self.open_clip, self._bare = inner, copy(inner)
            self._bare.bpe = self._bpe
            self._bare.clean_fn = str  # texts are cleaned whole, before they are split
            self._special = dict(inner.cache)
            self._ids = Memo(self._encode_word)
        else:
            self.hugging_face = hf = inner.tokenizer
            self.start = hf.cls_token_id if hf.cls_token_id is not None else hf.bos_token_id
            self.end = hf.sep_token_id if hf.sep_token_id is not None else hf.eos_token_id
            self.pad, self.size = hf.pad_token_id, len(hf)
            if self.start is None or self.end is None or self.pad is None:
                raise ValueError(
                    f'the tokenizer of {model!r} lacks a start, end or padding token; '
                    'EntityTokenizer needs all three.'
                )

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special ones; as many as it takes."""
        if self.hugging_face is None:
            return self.encode_all([text])[0].tolist()
        return self.hugging_face.encode(
            self._cleaned(text), add_special_tokens=False, verbose=False
        )

    def encode_all(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text, int32: those of :meth:`encode`, several times faster."""
        clean = [self._cleaned(text) for text in texts]
        if self.hugging_face is None:
            # No sub-word reaches beyond a space, so ids of words can be put together.
            of_word = self._ids.__getitem__
            joined = [b''.join(map(of_word, text.split(' '))) for text in clean]
            return [np.frombuffer(ids, dtype=np.int32) for ids in joined]
        if not clean:  # which transformers refuses
            return []
        found = self.hugging_face(clean, add_special_tokens=False, verbose=False)['input_ids']
        return [np.array(ids, dtype=np.int32) for ids in found]

    def _cleaned(self, text: str) -> str:
        """What the inner tokenizer's own cleaning makes of a text."""
        if self._plain is not None and is_plain(text):
            return ' '.join(self._plain(text).split())
        return self.clean(_few_escapes(text))

    def _encode_word(self, word: str) -> bytes:
        if len(self._bare.cache) > self._ids.size:  # open_clip remembers words without a bound
            self._bare.cache = dict(self._special)
        return np.array(self._bare.encode(word), dtype=np.int32).tobytes()

    def _bpe(self, word: str) -> str:
        if len(word) <= LONG:
            return type(self._bare).bpe(self._bare, word)
        return merged(word, self._bare.bpe_ranks)


def _few_escapes(text: str) -> str:
    """The text, less its ampersands where escapes of escapes take long to decode, or fail."""
    inner = text
    try:
        for _ in range(MAX_ESCAPES):
            inner, outer = html.unescape(inner), inner
            if inner == outer:
                return text
    except ValueError:  # a number of thousands of digits, which is no character
        pass
    return text.replace('&', ' ')
