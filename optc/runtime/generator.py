"""What tells a generator from an engine that answers once."""

from __future__ import annotations

from optc.core.errors import UnsupportedError
from optc.core.session import Session
from optc.ir.interface import LOGITS, token_name

__all__ = ["generator_tokens"]


def generator_tokens(session: Session) -> str:
    """Name of the token input of what gives the logits of next tokens.

    Args:
        session: An open engine.

    Raises:
        UnsupportedError: It does not generate; the message says what is missing.
    """
    ids = token_name(port.name for port in session.inputs)
    if ids is None:
        raise UnsupportedError("it does not generate: the engine has no input 'input_ids'")
    shapes = {port.name: port.shape for port in session.outputs}
    if LOGITS not in shapes:
        has = ", ".join(name for name in shapes)
        problem = f"it does not generate: the engine has no output '{LOGITS}' (it has {has})"
        raise UnsupportedError(problem)
    if len(shapes[LOGITS]) != 3:
        shape = ", ".join(map(str, shapes[LOGITS]))
        problem = f"it does not generate: its '{LOGITS}' are [{shape}], not of a next token"
        raise UnsupportedError(problem)
    return ids
