"""`Pass`: a frozen dataclass whose fields are its options.

The shape of the contract (`requires`, `run`, `ensures`; typed errors; a pass that reports what it
did and what it refused) is described in `docs/write-a-pass.md`.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from optc.core.context import Context

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["Aside", "Pass", "PassResult", "Promise", "Refusal", "option"]


class Promise:
    """What a pass promises about the outputs; the default policy follows from it."""

    EXACT = "exact"
    MEASURED = "measured"


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A place that a pass looked at and left alone.

    Attributes:
        site: Name of the place: the output value of its anchor node.
        reason: Why, in words that a user can act on.
    """

    site: str
    reason: str


@dataclasses.dataclass(frozen=True)
class PassResult:
    """What a pass did.

    Attributes:
        sites: Names of the places it rewrote, in graph order.
        beside: Names of places rewritten beside them, which do not count as its sites: `flash`
            counts attention, and fuses norms on the way.
        refusals: Places it looked at and left alone, with reasons.
        notes: Sentences worth printing.
        details: Anything else for the report; JSON types only.
    """

    sites: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    beside: tuple[str, ...] = ()

    @property
    def places(self) -> tuple[str, ...]:
        """Everything that was rewritten: what bisection looks through."""
        return (*self.beside, *self.sites)

    @property
    def rewrites(self) -> int:
        """How many places were rewritten."""
        return len(self.sites)


@dataclasses.dataclass(frozen=True)
class Aside:
    """What a pass takes beside the running graph while it measures, in bytes.

    Attributes:
        trial: What it adds to a copy of the graph that it runs: on disk, and in memory.
        kept: What it puts aside on disk until the bundle is written.
    """

    trial: int = 0
    kept: int = 0


@dataclasses.dataclass(frozen=True)
class Pass(abc.ABC):
    """A rewrite of a graph, in place. Fields are options; there is no other state.

    Class attributes:
        name: What users type; also the module's and the test's name.
        after: Names of passes that must have run before this one, when they run at all.
        needs: Those of them without which it has nothing to do.
        promise: `Promise.EXACT` if outputs may move by round-off only and greedy tokens not at
            all; `Promise.MEASURED` if the change is bounded by a policy.
    """

    name: ClassVar[str]
    after: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    promise: ClassVar[str] = Promise.EXACT

    @property
    def promised(self) -> str:
        """What the pass promises with the options it has; by default what its class does."""
        return self.promise

    def requires(self, model: ir.Model, ctx: Context) -> None:  # noqa: B027 - optional hook
        """Raise an `OptcError` if the pass cannot start on this graph."""

    @abc.abstractmethod
    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        """Rewrite `model` in place and say what was done."""

    def footprint(self, model: ir.Model, weights: int) -> int:
        """Bytes of all weights after the pass, about, told before anything is done.

        Args:
            model: The graph as it was read, before any pass.
            weights: Bytes of its weights after the passes before this one.
        """
        return weights

    def aside(self, model: ir.Model) -> Aside:
        """What it takes to measure, about, where graphs are run; nothing is read.

        Args:
            model: The graph as it was read, before any pass.
        """
        return Aside()

    def ensures(self, model: ir.Model, result: PassResult) -> None:  # noqa: B027 - optional hook
        """Raise `PassContractError` if the pass did not leave what it promises."""


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[Any, ...] | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    shared: bool = False,
) -> Any:
    """A documented, validated option of a pass.

    Args:
        default: Value when the user says nothing.
        help: One sentence for `optc passes NAME`.
        choices: The allowed values, if they are few.
        minimum: Smallest allowed value, inclusive.
        maximum: Largest allowed value, inclusive.
        shared: Whether it changes what a graph takes and gives, so that engines which share caches
            must have the same value.
    """
    metadata = {"help": help, "choices": choices, "minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata={**metadata, "shared": shared})
