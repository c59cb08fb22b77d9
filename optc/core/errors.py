"""The one exception tree of optc.

```
OptcError                     4  a bug of ours, unless a subclass says otherwise
├── InputError                2  what we were given is wrong
│   ├── UsageError            2  an option, a pass name, a combination of arguments
│   ├── ModelFileError        2  a model file cannot be read as ONNX
│   ├── SampleError           2  reference or calibration data does not fit the model
│   ├── PolicyFileError       2  a policy file cannot be read
│   ├── BundleError           2  a bundle is damaged, incomplete or unsafe
│   └── OutputError           2  the result cannot be written
├── EvidenceError             1  numbers say no
│   ├── ParityError           1  a pass moved the outputs further than it promised
│   └── PolicyError           1  a bundle misses its policy on this machine
├── UnsupportedError          3  this machine, target or graph cannot
│   ├── MissingDependencyError 3 an optional package is not installed
│   ├── NotYetError           3  planned, not in this version
│   ├── NotEnoughMemoryError  3  this machine has not the memory for it
│   ├── NotEnoughDiskError    3  this machine has not the disk for it
│   └── RefusedError          3  a pass left places alone that it was asked to rewrite
│       └── NoRewriteError    3  a pass was asked for and found nothing it may rewrite
└── PassContractError         4  a pass broke its contract
```

The number is the process exit code of the command line. Every message is one sentence that says
what is wrong; `where` names the node, file or option, `remedy` says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "BundleError",
    "EvidenceError",
    "InputError",
    "MissingDependencyError",
    "ModelFileError",
    "NoRewriteError",
    "NotEnoughDiskError",
    "NotEnoughMemoryError",
    "NotYetError",
    "OptcError",
    "OutputError",
    "ParityError",
    "PassContractError",
    "PolicyError",
    "PolicyFileError",
    "RefusedError",
    "SampleError",
    "UnsupportedError",
    "UsageError",
]


class OptcError(Exception):
    """Anything optc refuses or fails to do.

    Args:
        problem: What is wrong, without a final full stop.
        where: The node, file or option concerned.
        remedy: What the reader can do about it.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, problem: str, *, where: str | None = None, remedy: str | None = None):
        super().__init__(problem)
        self.problem = problem
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        prefix = f"{self.where}: " if self.where else ""
        suffix = f"; {self.remedy}" if self.remedy else ""
        return " ".join(f"{prefix}{self.problem}{suffix}".split())


class InputError(OptcError):
    """What we were given is wrong."""

    exit_code = 2


class UsageError(InputError):
    """An option, a pass name or a combination of arguments is wrong."""


class ModelFileError(InputError):
    """A model file is missing, is not ONNX, or has damaged external data."""


class SampleError(InputError):
    """Reference or calibration data does not fit the model."""


class PolicyFileError(InputError):
    """A policy file cannot be read or names an unknown metric."""


class BundleError(InputError):
    """A bundle is damaged, incomplete, or points outside itself."""


class OutputError(InputError):
    """The result cannot be written where it was asked for."""


class EvidenceError(OptcError):
    """The numbers say no."""

    exit_code = 1


class ParityError(EvidenceError):
    """A pass moved the outputs further than it promised."""


class PolicyError(EvidenceError):
    """A bundle misses its policy on this machine."""


class UnsupportedError(OptcError):
    """This machine, target or graph cannot do what was asked."""

    exit_code = 3


class MissingDependencyError(UnsupportedError):
    """An optional package is not installed."""


class NotYetError(UnsupportedError):
    """Planned, and not in this version."""


class NotEnoughMemoryError(UnsupportedError):
    """This machine has not the memory that it would take."""


class NotEnoughDiskError(UnsupportedError):
    """This machine has not the disk that it would take."""


class RefusedError(UnsupportedError):
    """A pass left places alone that it was asked to rewrite.

    Args:
        problem: What is wrong, without a final full stop.
        refusals: Each place and why it was left alone.
        where: The pass.
        remedy: What the reader can do about it.
    """

    def __init__(
        self,
        problem: str,
        refusals: Sequence[tuple[str, str]] = (),
        *,
        where: str | None = None,
        remedy: str | None = None,
    ):
        super().__init__(problem, where=where, remedy=remedy)
        self.refusals = tuple(refusals)


class NoRewriteError(RefusedError):
    """A pass was asked for and found nothing that it may rewrite."""


class PassContractError(OptcError):
    """A pass broke its contract; the message addresses the pass author."""
