"""What `bench` lets a bundle generate from: prompts of a given length, made of its own samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optc.api.sessions import OpenBundle
from optc.core.context import Array
from optc.core.errors import UnsupportedError
from optc.ir.interface import LENGTHS, TOKENS, token_name
from optc.ir.reference import Reference, load_reference
from optc.runtime.encoder import encoder_ports, has_encoder, reads_text, text_inputs

__all__ = ["Workload"]

_SHIFT = 7
"""Tokens by which the text of a row is ahead of that of the row before it."""


class Workload:
    """Prompts for one bundle.

    Args:
        opened: The bundle.

    Attributes:
        reference: Its reference samples.
        generates: Whether it makes text at all.
        has_length: Whether prompts have a length that can be chosen; not what an encoder takes
            that reads no text.

    Raises:
        UnsupportedError: It carries no reference samples.
    """

    def __init__(self, opened: OpenBundle):
        path = opened.bundle.reference
        if path is None:
            raise UnsupportedError(
                "it carries no reference samples to run", where=opened.bundle.given
            )
        self.reference = load_reference(path)
        self._session = opened.session
        self._encodes = has_encoder(opened.session)
        self._text = _tokens(self.reference)
        names = {port.name for port in opened.session.inputs}
        self.generates = LENGTHS in names or self._encodes or bool(self.reference.prompts)
        self.has_length = not self._encodes or reads_text(opened.session)

    def make(self, batch: int, length: int) -> tuple[list[list[int]], dict[str, Array]]:
        """What a generation begins with.

        Args:
            batch: Number of prompts.
            length: Tokens of each, the encoder's where there is one.

        Returns:
            Tokens of each row that the decoder continues, and what an encoder is given.

        Raises:
            UnsupportedError: The encoder does not take prompts of this length.
        """
        if self._encodes:
            return [self._start()] * batch, self._encoded(batch, length)
        return self._rows(batch, length), {}

    def _rows(self, batch: int, length: int) -> list[list[int]]:
        rows = (np.resize(np.roll(self._text, -row * _SHIFT), length) for row in range(batch))
        return [row.tolist() for row in rows]

    def _start(self) -> list[int]:
        """Any token would do: it is time that is measured."""
        inputs = self.reference.samples[0].inputs
        tokens = inputs[token_name(inputs) or TOKENS]
        return [int(tokens.flat[0])]

    def _encoded(self, batch: int, length: int) -> dict[str, Array]:
        if self.has_length:
            return text_inputs(self._session, self._rows(batch, length))
        inputs = self.reference.samples[0].inputs
        names = [port.name for port in encoder_ports(self._session)]
        return {name: _repeated(inputs[name], batch) for name in names}


def _repeated(array: Array, batch: int) -> Array:
    """The rows of an array, again and again; what has no axes stays as it is."""
    return np.resize(array, (batch, *array.shape[1:])) if array.ndim else array


def _tokens(reference: Reference) -> Array:
    rows: Sequence[Array] = [
        sample.inputs[TOKENS].reshape(-1) for sample in reference.samples if TOKENS in sample.inputs
    ]
    return np.concatenate([*rows, *reference.prompts]) if rows else np.zeros(1, np.int64)
