"""See that what a session is fed fits, before a runtime sees it."""

from __future__ import annotations

from collections.abc import Mapping

from optc.core.context import Array
from optc.core.errors import SampleError
from optc.core.registry import suggestion
from optc.core.session import Port

__all__ = ["check_feeds"]


def check_feeds(inputs: tuple[Port, ...], feeds: Mapping[str, Array]) -> None:
    """See that `feeds` has each input once, with its dtype, rank and fixed sizes.

    Raises:
        SampleError: It does not; the message names the input.
    """
    known = [port.name for port in inputs]
    for name in feeds:
        if name not in known:
            raise SampleError(f"there is no input '{name}'", remedy=suggestion(name, known))
    for port in inputs:
        if port.name not in feeds:
            raise SampleError(f"the input '{port.name}' is missing")
        _check_array(port, feeds[port.name])


def _check_array(port: Port, array: Array) -> None:
    if port.dtype not in (array.dtype.name, "object"):
        problem = f"the input '{port.name}' is {array.dtype.name}, the graph takes {port.dtype}"
        raise SampleError(problem)
    fits = len(port.shape) == array.ndim and all(
        not isinstance(want, int) or want == size
        for want, size in zip(port.shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(dim) for dim in port.shape)
        problem = f"the input '{port.name}' has shape {list(array.shape)}, the graph takes"
        raise SampleError(f"{problem} [{wanted}]")
