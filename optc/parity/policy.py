"""What distance from the reference is acceptable: limits per promise, from a TOML file or default.

    [exact]                    # passes that promise round-off only
    rel_l2 = 2e-5
    max_rel = 1e-4
    greedy_equal = "all"

    [measured]                 # passes whose damage is bounded: int8, pruning, ...
    kl = 0.15
    top1_min = 0.80
    ppl_ratio = 1.10

    [measured.without_logits]  # used instead, where outputs are not next-token logits
    cosine_min = 0.99

These are the defaults. A section in a file replaces the default section of that name whole; a
section that the file leaves out or empty keeps its default. Limits that a comparison gave no number
for (greedy tokens of an encoder) are reported as not judged; when that leaves nothing to judge, the
policy is violated.

Why these. Exact: float32 round-off scales with the outputs, so the bounds are relative. ONNX
Runtime against PyTorch on a 30-layer, 135M-parameter model differs by rel_l2 1.3e-6 and max_rel
2.5e-6 (absolute 1e-4 on logits up to 42); half precision costs rel_l2 1.5e-3. The bounds lie
between, more than an order of magnitude from either, and greedy tokens must not move at all. A
graph whose weights are float16 rounds to 11 bits where float32 has 24; for it the two bounds are a
hundred times wider, about what half precision costs, and far less than 13 bits would explain.
Measured: careful int8 stays below KL 0.07 and perplexity ratio 1.07, careless int8 starts at KL 0.5
and ratio 1.7.

| key | of `Metrics` | holds when |
|---|---|---|
| `max_abs`, `max_rel`, `rel_l2`, `kl`, `ppl_ratio` | the same name | value <= limit |
| `cosine_min`, `top1_min` | `cosine`, `top1` | value >= limit |
| `greedy_equal` | `greedy_equal / greedy_total` | value >= limit, `"all"` is 1 |
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from optc.core.base import Promise
from optc.core.errors import PolicyFileError
from optc.core.registry import suggestion
from optc.parity.left_out import unjudged
from optc.parity.metrics import Metrics

__all__ = ["Check", "Limits", "Policy", "load_policy"]

_WITHOUT_LOGITS = "without_logits"
_HALF = 100.0  # how much wider exact limits are in half precision


@dataclasses.dataclass(frozen=True)
class Check:
    """One rule of a policy held against one comparison.

    Attributes:
        key: Key of the policy file, or `faults`.
        value: What was measured; None where there was nothing to measure.
        limit: What the policy allows.
        holds: Whether the rule holds; None when it could not be judged.
        sentence: The outcome in words.
    """

    key: str
    value: float | None
    limit: float
    holds: bool | None
    sentence: str

    @property
    def allowed(self) -> str:
        """The limit in words: `at most 0.15`."""
        if self.key not in _NAMES:
            return "none"
        return f"{'at least' if self.key in _AT_LEAST else 'at most'} {self.limit:.4g}"


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on metrics; None where there is none. See the module for the meaning of each."""

    max_abs: float | None = None
    max_rel: float | None = None
    rel_l2: float | None = None
    cosine_min: float | None = None
    kl: float | None = None
    top1_min: float | None = None
    ppl_ratio: float | None = None
    greedy_equal: float | None = None

    def checks(self, metrics: Metrics) -> list[Check]:
        """Hold every limit against `metrics`."""
        rules = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]
        return [_check(key, limit, metrics) for key, limit in rules if limit is not None]

    def in_half_precision(self) -> Limits:
        """The same limits for a graph that rounds to float16."""
        wider = {
            key: limit * _HALF
            for key, limit in self.as_dict().items()
            if key in {"max_abs", "max_rel", "rel_l2"}
        }
        return dataclasses.replace(self, **wider)

    def as_dict(self) -> dict[str, float]:
        """The limits that are set."""
        return {key: limit for key, limit in dataclasses.asdict(self).items() if limit is not None}


_AT_LEAST = {"cosine_min": "cosine", "top1_min": "top1", "greedy_equal": "greedy_equal"}
_NAMES = {
    "max_abs": "the largest absolute error",
    "max_rel": "the largest error relative to the largest output",
    "rel_l2": "the relative L2 error",
    "cosine_min": "the cosine",
    "kl": "the KL divergence of next-token distributions",
    "top1_min": "the top-1 agreement",
    "ppl_ratio": "the perplexity ratio",
    "greedy_equal": "the fraction of equal greedy tokens",
}


def _check(key: str, limit: float, metrics: Metrics) -> Check:
    value = _value(key, metrics)
    name = _NAMES[key]
    if value is None:
        why = unjudged(metrics.notes) if key == "greedy_equal" else None
        sentence = why or f"{name} was not judged, there is nothing to measure"
        return Check(key, None, limit, None, sentence)
    low = key in _AT_LEAST
    holds = value >= limit if low else value <= limit  # False for NaN
    shown = _counts(metrics) if key == "greedy_equal" else f"{value:.4g}"
    relation = "at least" if low else "at most"
    sentence = f"{name} is {shown}, the policy allows {relation} {limit:.4g}"
    if key == "greedy_equal" and limit == 1:
        sentence = f"{shown} greedy tokens are equal, the policy asks for all"
    return Check(key, value, limit, holds, sentence)


def _value(key: str, metrics: Metrics) -> float | None:
    if key == "greedy_equal":
        if metrics.greedy_equal is None or not metrics.greedy_total:
            return None
        return metrics.greedy_equal / metrics.greedy_total
    value: float | None = getattr(metrics, _AT_LEAST.get(key, key))
    return value


def _counts(metrics: Metrics) -> str:
    return f"{metrics.greedy_equal} of {metrics.greedy_total}"


EXACT = Limits(max_rel=1e-4, rel_l2=2e-5, greedy_equal=1.0)
MEASURED = Limits(kl=0.15, top1_min=0.80, ppl_ratio=1.10)
MEASURED_WITHOUT_LOGITS = Limits(cosine_min=0.99)


@dataclasses.dataclass(frozen=True)
class Policy:
    """Limits for each kind of promise.

    Attributes:
        promise: What the whole pipeline promises; the limits that are used when none is named.
        exact: Limits for passes that promise round-off.
        measured: Limits for passes whose change is bounded.
        measured_without_logits: The same, where outputs are not next-token logits.
        source: Where the limits are from: `default` or the name of a file.
    """

    promise: str = Promise.EXACT
    exact: Limits = EXACT
    measured: Limits = MEASURED
    measured_without_logits: Limits = MEASURED_WITHOUT_LOGITS
    source: str = "default"

    @classmethod
    def default(cls, promises: Iterable[str] = ()) -> Policy:
        """The default limits, for a pipeline of passes with these promises."""
        return cls().promising(promises)

    def promising(self, promises: Iterable[str]) -> Policy:
        """The same limits for another pipeline: measured as soon as one pass is."""
        measured = Promise.MEASURED in set(promises)
        return dataclasses.replace(self, promise=Promise.MEASURED if measured else Promise.EXACT)

    def limits(self, metrics: Metrics, promise: str | None = None) -> Limits:
        """The limits that apply to `metrics`, for one promise or for the whole pipeline."""
        if (promise or self.promise) == Promise.EXACT:
            return self.exact
        return self.measured if metrics.kl is not None else self.measured_without_logits

    def checks(self, metrics: Metrics, promise: str | None = None) -> list[Check]:
        """Hold every rule against `metrics`; faults of the outputs come first."""
        faults = [Check("faults", None, 0.0, False, fault) for fault in metrics.faults]
        rules = self.limits(metrics, promise).checks(metrics)
        if rules and all(rule.holds is None for rule in rules):
            faults.append(Check("faults", None, 0.0, False, "no rule of the policy can be judged"))
        return faults + rules

    def violations(self, metrics: Metrics, promise: str | None = None) -> list[str]:
        """The rules that do not hold, each a sentence; empty when all is well."""
        return [c.sentence for c in self.checks(metrics, promise) if c.holds is False]

    def as_dict(self) -> dict[str, Any]:
        """The policy as JSON types, with the keys of the file."""
        measured: dict[str, Any] = dict(self.measured.as_dict())
        measured[_WITHOUT_LOGITS] = self.measured_without_logits.as_dict()
        return {
            "source": self.source,
            "promise": self.promise,
            "exact": self.exact.as_dict(),
            "measured": measured,
        }


def load_policy(path: str | Path, promises: Iterable[str] = ()) -> Policy:
    """Read a policy file.

    Args:
        path: A TOML file as described in this module.
        promises: Promises of the passes of the pipeline.

    Raises:
        PolicyFileError: No such file, not TOML, an unknown section or key, or a bad limit.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PolicyFileError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PolicyFileError(f"not a TOML file ({error})", where=str(path)) from error
    known = [Promise.EXACT, Promise.MEASURED]
    for section, table in document.items():
        if section not in known:
            problem = f"there is no section '{section}'"
            raise PolicyFileError(problem, where=str(path), remedy=suggestion(section, known))
        if not isinstance(table, dict):
            raise PolicyFileError(f"'{section}' is not a section", where=str(path))
    return _assemble(document, path).promising(promises)


def _assemble(document: Mapping[str, dict[str, Any]], path: Path) -> Policy:
    policy = Policy(source=path.name)
    if document.get(Promise.EXACT):
        limits = _limits(document[Promise.EXACT], Promise.EXACT, path)
        policy = dataclasses.replace(policy, exact=limits)
    measured = dict(document.get(Promise.MEASURED, {}))
    without = measured.pop(_WITHOUT_LOGITS, None)
    if without is not None:
        limits = _limits(without, f"{Promise.MEASURED}.{_WITHOUT_LOGITS}", path)
        policy = dataclasses.replace(policy, measured_without_logits=limits)
    if measured:
        limits = _limits(measured, Promise.MEASURED, path)
        policy = dataclasses.replace(policy, measured=limits)
    return policy


def _limits(table: Any, section: str, path: Path) -> Limits:
    if not isinstance(table, dict):
        raise PolicyFileError(f"'{section}' is not a section", where=str(path))
    known = [f.name for f in dataclasses.fields(Limits)]
    for key in table:
        if key not in known:
            problem = f"[{section}] has no key '{key}'"
            raise PolicyFileError(problem, where=str(path), remedy=suggestion(key, known))
    return Limits(**{key: _limit(key, value, section, path) for key, value in table.items()})


def _limit(key: str, value: Any, section: str, path: Path) -> float:
    if key == "greedy_equal" and value == "all":
        return 1.0
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0:
        problem = f"[{section}] {key} = {value!r} is not a number from 0 up"
        raise PolicyFileError(problem, where=str(path))
    if key in _AT_LEAST and value > 1:
        problem = f"[{section}] {key} = {value!r} can never hold, the largest is 1"
        raise PolicyFileError(problem, where=str(path))
    return float(value)
