"""`OrtSession`: an ONNX file, open in ONNX Runtime on the CPU.

Arrays go in and come out by `run`; caches that the graph may update in place stay where they are,
by `new_cache` (`optc.targets.ort_cache`).

Feeds are checked here and not by the runtime, so that a wrong sample is told apart from a graph
that the runtime cannot run: the first is a `SampleError`, the second an `UnsupportedError`.
"""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType
from typing import Any

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from optc.core.context import Array, Feeds
from optc.core.errors import ModelFileError, OptcError, SampleError, UnsupportedError
from optc.core.registry import suggestion
from optc.core.session import EncoderLimits, Port
from optc.ir.interface import LENGTHS, cache_ports, padding_ids_in
from optc.targets.feeds import check_feeds
from optc.targets.ort_cache import IN_PLACE, MOST_TOKENS, OrtCache
from optc.targets.ort_faults import EVERYTHING, Optimised
from optc.targets.room import check_room

__all__ = ["ENCODER_IDS", "ENCODER_TOKENS", "OrtSession"]

ENCODER_IDS = "optc.encoder_ids"
"""Metadata of an engine: how many token ids its encoder has, where a table says so."""

ENCODER_TOKENS = "optc.encoder_tokens"
"""Metadata of an engine: how many tokens its encoder has positions for, where a table says so."""


# The package re-exports its classes in a way that type checkers do not follow.
_ort: Any = onnxruntime

_DTYPES = {
    "float": "float32",
    "double": "float64",
    "string": "object",
    "float8e4m3fn": "float8_e4m3fn",
    "float8e4m3fnuz": "float8_e4m3fnuz",
    "float8e5m2": "float8_e5m2",
    "float8e5m2fnuz": "float8_e5m2fnuz",
    "float4e2m1": "float4_e2m1fn",
}
_NODE_IN_MESSAGE = (
    re.compile(r"Name:'([^']+)'"),
    re.compile(r'In Node, \("([^"]+)"'),
    re.compile(r"node with name '([^']+)'"),
)
_NOISE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .*? failed:)?")
_FATAL_ONLY = 4
_SPIN_MICROSECONDS = "50"

# The runtime's exceptions share no base class; RuntimeError is what its Python layer raises.
_FAILURES: tuple[type[Exception], ...] = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    RuntimeError,
)
_DAMAGED: tuple[type[Exception], ...] = (
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
)


class OrtSession:
    """A graph on ONNX Runtime's CPU kernels.

    Implements `CachedSession`, `PaddedSession` and `EncodingSession`.

    Usable as a context manager, which closes it.

    Args:
        path: An `.onnx` file; its external data lies beside it.
        threads: Threads of one operator; the runtime's own choice when None.
        light: Open to see that it opens, and what it takes and gives: weights stay in their file,
            nothing is folded or packed for speed.
        optimised: What the runtime's optimiser may do with it.

    Raises:
        ModelFileError: No such file, or not ONNX.
        UnsupportedError: The runtime refuses the graph.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        light: bool = False,
        optimised: Optimised = EVERYTHING,
    ):
        self._path = Path(path)
        options = _light_options() if light else _options_to_run(threads)
        self._session: Any = _open(self._path, options, optimised)
        notes = self._session.get_modelmeta().custom_metadata_map
        self._in_place = frozenset(notes.get(IN_PLACE, "").split())
        self._most_tokens = int(notes[MOST_TOKENS]) if MOST_TOKENS in notes else None
        self._padding_ids = padding_ids_in(notes)
        tokens, ids = (int(notes.get(key, 0)) or None for key in (ENCODER_TOKENS, ENCODER_IDS))
        self._encoder_limits = EncoderLimits(tokens, ids)
        self._inputs = tuple(_port(arg) for arg in self._session.get_inputs())
        self._outputs = tuple(_port(arg) for arg in self._session.get_outputs())

    @property
    def inputs(self) -> tuple[Port, ...]:
        """What the graph takes, in graph order."""
        return self._inputs

    @property
    def outputs(self) -> tuple[Port, ...]:
        """What the graph gives, in graph order."""
        return self._outputs

    def run(self, feeds: Feeds, fetch: tuple[str, ...] | None = None) -> dict[str, Array]:
        """Run once.

        Args:
            feeds: Every input, by name.
            fetch: Names of the outputs wanted; all when None.

        Returns:
            The outputs by name, in the order asked for.

        Raises:
            SampleError: A missing, unknown or ill-fitting input, or an unknown output.
            UnsupportedError: New tokens do not fit in a fixed cache, or the runtime failed.
        """
        check_feeds(self._inputs, feeds)
        check_room(self._inputs, feeds)
        names = self._names(fetch)
        return dict(zip(names, self._call(names, dict(feeds)), strict=True))

    def _names(self, fetch: tuple[str, ...] | None) -> list[str]:
        known = [port.name for port in self._outputs]
        if fetch is None:
            return known
        for name in fetch:
            if name not in known:
                raise SampleError(f"there is no output '{name}'", remedy=suggestion(name, known))
        return list(fetch)

    def _call(self, names: list[str], feeds: dict[str, Array]) -> list[Array]:
        try:
            found: list[Array] = self._opened().run(names, feeds)
        except _FAILURES as error:
            raise _refusal(error, self._path) from error
        return found

    @property
    def most_tokens(self) -> int | None:
        """Tokens of a row that the engine knows positions for; None where it has no table."""
        return self._most_tokens

    @property
    def padding_ids(self) -> frozenset[int]:
        """Tokens that the graph takes for padding: they may stand behind a row's tokens only."""
        return self._padding_ids

    @property
    def encoder_limits(self) -> EncoderLimits:
        """What the encoder takes, as the engine says."""
        return self._encoder_limits

    @property
    def keeps_caches(self) -> bool:
        """Whether the graph says that all its caches may be updated where they are."""
        caches = cache_ports(self._inputs)
        stays = self._in_place.issuperset(cache.past for cache in caches)
        return bool(caches) and stays and any(port.name == LENGTHS for port in self._inputs)

    def engine_for(self, tokens: int) -> OrtSession:
        """Itself: it runs every call."""
        return self

    def new_cache(self, rows: int, tokens: int) -> OrtCache | None:
        """Buffers that the graph updates in place; None if it does not say that all may be.

        Args:
            rows: Number of rows.
            tokens: Tokens that a row must have room for.

        Raises:
            UnsupportedError: The engine's caches have a fixed size, and it is smaller.
        """
        if not self.keeps_caches:
            return None
        return OrtCache(self, cache_ports(self._inputs), rows, tokens)

    def binding(self) -> Any:
        """A new, empty I/O binding."""
        return self._opened().io_binding()

    def run_bound(self, binding: Any) -> None:
        """Run once on what is bound.

        Raises:
            UnsupportedError: The runtime failed on the graph.
        """
        try:
            self._opened().run_with_iobinding(binding)
        except _FAILURES as error:
            raise _refusal(error, self._path) from error

    def _opened(self) -> Any:
        if self._session is None:
            raise OptcError("the session is closed", where=self._path.name)
        return self._session

    def close(self) -> None:
        """Give back the runtime's memory; the session cannot be run any more."""
        self._session = None

    def __enter__(self) -> OrtSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _quiet_options() -> Any:
    options = _ort.SessionOptions()
    # What goes wrong arrives as an exception; nothing may be printed beside it.
    options.log_severity_level = _FATAL_ONLY
    return options


def _options_to_run(threads: int | None) -> Any:
    options = _quiet_options()
    # From one operator to the next a sleeping thread costs more than a short wait; longer waits
    # would take processors from other sessions, and from other processes.
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_MICROSECONDS)
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def _light_options() -> Any:
    """Memory does not grow with the weights then: they are mapped, and not touched."""
    options = _quiet_options()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = _ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def _open(path: Path, options: Any, optimised: Optimised) -> Any:
    if not path.is_file():
        raise ModelFileError("no such file", where=str(path))
    for key, entry in optimised.settings.items():
        options.add_session_config_entry(key, entry)
    how = {"disabled_optimizers": list(optimised.without)} if optimised.without else {}
    try:
        return _ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], **how)
    except _DAMAGED as error:
        raise ModelFileError("not an ONNX model", where=str(path)) from error
    except _FAILURES as error:
        raise _refusal(error, path) from error


def _refusal(error: Exception, path: Path) -> UnsupportedError:
    """The first line of the runtime's message, with the node it names."""
    first = (str(error).splitlines() or [type(error).__name__])[0]
    matches = (pattern.search(first) for pattern in _NODE_IN_MESSAGE)
    node = next((match.group(1) for match in matches if match), None)
    where = f"{path.name}, node '{node}'" if node else path.name
    return UnsupportedError(f"onnxruntime: {_NOISE.sub('', first).rstrip('.')}", where=where)


def _port(arg: Any) -> Port:
    element = re.fullmatch(r"tensor\((\w+)\)", arg.type)
    dtype = _DTYPES.get(element.group(1), element.group(1)) if element else arg.type
    return Port(arg.name, dtype, tuple("?" if dim is None else dim for dim in arg.shape))
