"""Attention as `torch.nn` has it, without Transformers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from family import Family, Site
from torch import nn

__all__ = ["PLAIN_TORCH"]

_WIDTH, _HEADS, _INNER = 32, 4, 48
_ALL_SEEN = Site()


class _Encoder(nn.Module):
    def __init__(self, *, norm_first: bool = False, batch_first: bool = True, causal: bool = False):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            _WIDTH, _HEADS, _INNER, norm_first=norm_first, batch_first=batch_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.causal = causal

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        padding = None if mask is None else mask == 0
        if not self.causal:
            return self.encoder(hidden, src_key_padding_mask=padding)
        later = nn.Transformer.generate_square_subsequent_mask(hidden.shape[1])
        return self.encoder(hidden, mask=later, is_causal=True)


class _Attention(nn.Module):
    def __init__(self, *, weights: bool):
        super().__init__()
        self.attention = nn.MultiheadAttention(_WIDTH, _HEADS, batch_first=True)
        self.weights = weights

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.attention(hidden, hidden, hidden, need_weights=self.weights)[0]


def _whole() -> nn.Module:
    return nn.Transformer(_WIDTH, _HEADS, 1, 1, _INNER, batch_first=True)


def _plain(
    module: Callable[[], nn.Module], site: Site = _ALL_SEEN, layers: int = 2, *more: str
) -> Family:
    return Family(
        "",
        {},
        (site,) * layers,
        module=module,
        inputs=("hidden", *more),
        output="answer",
        sdpa=False,
        traced=False,  # its Python code asks for sizes, so that tracing writes those it saw
    )


PLAIN_TORCH = {
    "torch_encoder": _plain(_Encoder),
    "torch_encoder_prenorm": _plain(lambda: _Encoder(norm_first=True)),
    "torch_encoder_words_first": _plain(lambda: _Encoder(batch_first=False)),
    "torch_encoder_causal": _plain(lambda: _Encoder(causal=True), Site(causal=True)),
    "torch_encoder_padded": _plain(_Encoder, Site(mask="bool"), 2, "attention_mask"),
    "torch_attention": _plain(lambda: _Attention(weights=False), _ALL_SEEN, 1),
    "torch_attention_weights": _plain(lambda: _Attention(weights=True), _ALL_SEEN, 1),
    "torch_transformer": _plain(_whole, _ALL_SEEN, 3, "target_hidden"),
}
