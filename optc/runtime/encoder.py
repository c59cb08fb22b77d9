"""What the encoder of an encoder-decoder is given: a batch of texts, or arrays by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optc.core.context import Array
from optc.core.errors import UnsupportedError, UsageError
from optc.core.session import Port, Session, encoder_limits
from optc.ir.interface import (
    DECODER_PADDING,
    DECODER_POSITIONS,
    DECODER_TOKENS,
    LENGTHS,
    NEW_LENGTHS,
    PADDING,
    TOKENS,
    cache_ports,
    token_name,
)
from optc.runtime.arguments import check_rows, named

__all__ = [
    "check_encoded",
    "encoder_ports",
    "has_encoder",
    "reads_text",
    "say_ports",
    "text_inputs",
]


def has_encoder(session: Session) -> bool:
    """Whether the tokens that the logits follow are a decoder's, beside an encoder's inputs."""
    tokens = token_name(port.name for port in session.inputs)
    return tokens == DECODER_TOKENS and bool(encoder_ports(session))


def encoder_ports(session: Session) -> tuple[Port, ...]:
    """What an encoder-decoder takes beside what is about the decoder's tokens, and the caches."""
    tokens = {DECODER_TOKENS, DECODER_PADDING, DECODER_POSITIONS, LENGTHS, NEW_LENGTHS}
    own = tokens.union(cache.past for cache in cache_ports(session.inputs))
    return tuple(port for port in session.inputs if port.name not in own)


def reads_text(session: Session) -> bool:
    """Whether a tokenizer's ids, and a mask of what is no padding, are all the encoder takes."""
    names = {port.name for port in encoder_ports(session)}
    return TOKENS in names and names <= {TOKENS, PADDING}


def say_ports(ports: Sequence[Port]) -> str:
    """Names, dtypes and shapes, such as `input_features float32 [batch, 80, 3000]`."""
    return ", ".join(f"{p.name} {p.dtype} [{', '.join(map(str, p.shape))}]" for p in ports)


def text_inputs(
    session: Session, rows: Sequence[Sequence[int]], *, padding: int = 0
) -> dict[str, Array]:
    """Texts as the inputs of an encoder that reads text.

    Args:
        session: An encoder-decoder.
        rows: Token ids of each text.
        padding: The token behind the end of shorter texts.

    Returns:
        `input_ids` [rows, tokens], and `attention_mask`, 1 for words, where the graph has it.

    Raises:
        UnsupportedError: The encoder takes something else; texts of different lengths, or shorter
            than a fixed length, without a mask to tell padding by; a text that is too long.
        UsageError: No text, or one without tokens.
    """
    ports = {port.name: port for port in encoder_ports(session)}
    if not reads_text(session):
        raise UnsupportedError(f"the encoder takes no text but {say_ports(tuple(ports.values()))}")
    check_rows(rows)
    check_encoded(session, rows)
    counts = np.array([len(row) for row in rows], np.int64)
    width = _width(ports[TOKENS], counts, masked=PADDING in ports)
    tokens = np.full((len(rows), width), padding, ports[TOKENS].dtype)
    for index, row in enumerate(rows):
        tokens[index, : len(row)] = row
    inputs = {TOKENS: tokens}
    if PADDING in ports:
        seen = np.arange(width) < counts[:, None]
        inputs[PADDING] = seen.astype(ports[PADDING].dtype)
    return inputs


def check_encoded(session: Session, rows: Sequence[Sequence[int]]) -> None:
    """See that an encoder has the ids, and positions for the tokens, of each row.

    Raises:
        UsageError: It has not an id.
        UnsupportedError: A row is longer than its table of positions.
    """
    limits = encoder_limits(session)
    for number, row in enumerate(rows, start=1):
        which = named("prompt", number, len(rows))
        low, high = min(row), max(row)
        if low < 0 or (limits.ids is not None and high >= limits.ids):
            known = "" if limits.ids is None else f", the encoder has 0 to {limits.ids - 1}"
            raise UsageError(f"{which} has token {low if low < 0 else high}{known}")
        if limits.tokens is not None and len(row) > limits.tokens:
            problem = f"{which} has {len(row)} tokens, the encoder has positions for"
            raise UnsupportedError(f"{problem} {limits.tokens}", remedy="give a shorter prompt")


def _width(port: Port, counts: Array, *, masked: bool) -> int:
    """Columns of the batch: the longest text, or what the graph fixes."""
    longest, fixed = int(counts.max()), port.shape[-1]
    if isinstance(fixed, int) and longest > fixed:
        which = named("prompt", int(counts.argmax()) + 1, len(counts))
        problem = f"{which} has {longest} tokens, the encoder takes {fixed}"
        raise UnsupportedError(problem, remedy="give a shorter prompt")
    width = fixed if isinstance(fixed, int) else longest
    if masked or int(counts.min()) == width:
        return width
    if isinstance(fixed, int):
        problem = f"a prompt has {int(counts.min())} tokens, the encoder takes exactly {fixed}"
    else:
        given = ", ".join(map(str, counts))
        problem = f"prompts of different lengths ({given} tokens) cannot go in together"
    reason = f"the graph has no input '{PADDING}' to tell padding by"
    remedy = f"run prompts one by one, or export the model with {PADDING}"
    raise UnsupportedError(f"{problem}: {reason}", remedy=remedy)
