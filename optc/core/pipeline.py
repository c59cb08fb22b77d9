"""`Pipeline`: passes in an order that respects what each declares, with hooks between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from optc.core.base import Pass, PassResult
from optc.core.context import Context
from optc.core.errors import NoRewriteError, OptcError, PassContractError
from optc.core.grammar import parse_passes, print_pass, print_passes
from optc.core.hooks import Hook, Step
from optc.core.registry import Registry

__all__ = ["Pipeline", "schedule"]


def schedule(passes: Sequence[Pass]) -> list[Pass]:
    """Order passes by their `after` declarations; ties keep the order written.

    Kahn's algorithm; at each step the first pass in written order whose predecessors are done.

    Raises:
        PassContractError: The declarations form a cycle.
    """
    waiting = list(passes)
    ordered: list[Pass] = []
    while waiting:
        names = {p.name for p in waiting}
        ready = next((p for p in waiting if not names & set(p.after)), None)
        if ready is None:
            cycle = ", ".join(sorted(names))
            raise PassContractError(f"the `after` declarations of {cycle} form a cycle")
        ordered.append(ready)
        waiting.remove(ready)
    return ordered


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Passes in effective order.

    Attributes:
        passes: The passes as they will run.
        allow_noop: Whether a pass that rewrites nothing is accepted.
    """

    passes: tuple[Pass, ...]
    allow_noop: bool = False

    @classmethod
    def parse(cls, text: str, registry: Registry[Pass], *, allow_noop: bool = False) -> Pipeline:
        """Read pipeline text and put the passes in order."""
        return cls(tuple(schedule(parse_passes(text, registry))), allow_noop)

    def __str__(self) -> str:
        return print_passes(self.passes)

    @property
    def texts(self) -> list[str]:
        """Canonical text of each pass, in the order they run."""
        return [print_pass(p) for p in self.passes]

    def run(self, model: ir.Model, ctx: Context, hooks: Sequence[Hook] = ()) -> list[Step]:
        """Run all passes on `model`, in place.

        Args:
            model: The graph; changed in place.
            ctx: Surroundings given to every pass.
            hooks: Called around each pass, in order.

        Returns:
            One step per pass.

        Raises:
            NoRewriteError: A pass did nothing and `allow_noop` is off.
            PassContractError: A pass raised something that is not an `OptcError`.
        """
        for hook in hooks:
            hook.start(model)
        steps: list[Step] = []
        for p in self.passes:
            for hook in hooks:
                hook.before(p, model)
            result = _run_one(p, model, ctx, steps)
            if not result.rewrites and not self.allow_noop:
                raise _nothing_done(p, result)
            step = Step(p.name, print_pass(p), result)
            for hook in hooks:
                hook.after(p, model, step)
            steps.append(step)
        return steps


def _run_one(p: Pass, model: ir.Model, ctx: Context, done: list[Step]) -> PassResult:
    try:
        p.requires(model, ctx)
        result = p.run(model, ctx)
        p.ensures(model, result)
    except OptcError:
        raise
    except Exception as error:
        before = ", ".join(s.text for s in done) or "none"
        problem = f"stopped with {type(error).__name__}: {error} (passes run before it: {before})"
        raise PassContractError(problem, where=f"pass '{p.name}'") from error
    return result


def _nothing_done(p: Pass, result: PassResult) -> NoRewriteError:
    reasons = "; ".join(f"{r.site}: {r.reason}" for r in result.refusals[:3])
    more = len(result.refusals) - 3
    tail = f" (and {more} more)" if more > 0 else ""
    why = reasons + tail if reasons else "; ".join(result.notes) or "no site was found"
    return NoRewriteError(
        f"nothing was rewritten: {why}",
        [(r.site, r.reason) for r in result.refusals],
        where=f"pass '{p.name}'",
        remedy="drop the pass or give --allow-noop",
    )
