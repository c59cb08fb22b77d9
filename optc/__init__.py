"""optc: a compiler for transformer inference.

The public functions, imported on first use so that `import optc` costs nothing:

    optc.export("models/smollm2", "build/smollm2")
    optc.build("build/smollm2/model.onnx", "quant,flash,kv", out="smollm2.optc")
    optc.verify("smollm2.optc").violations
    optc.run("smollm2.optc", ["Once upon a time"]).completion.texts
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime reports use to its maker over the network since 1.29, unless this is set before it is
# imported. A compiler has no business doing that to people's models; their own setting stands.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from optc.api.bench import BenchResult, bench
    from optc.api.bisect import bisect
    from optc.api.build import build
    from optc.api.export import export, reference
    from optc.api.inspect_bundle import BundleReport, inspect_bundle
    from optc.api.inspect_model import ModelReport, inspect_model
    from optc.api.package import PackageResult, package
    from optc.api.result import BuildResult, VerifyResult
    from optc.api.run import RunResult, run
    from optc.api.sessions import OpenBundle, open_bundle
    from optc.api.verify import verify
    from optc.core.base import Pass, PassResult, Promise, Refusal, option
    from optc.core.context import Context
    from optc.core.errors import OptcError
    from optc.core.session import Port, Session
    from optc.runtime.sampling import Sampling
    from optc.targets.base import Target

__all__ = [
    "BenchResult",
    "BuildResult",
    "BundleReport",
    "Context",
    "ModelReport",
    "OpenBundle",
    "OptcError",
    "PackageResult",
    "Pass",
    "PassResult",
    "Port",
    "Promise",
    "Refusal",
    "RunResult",
    "Sampling",
    "Session",
    "Target",
    "VerifyResult",
    "__version__",
    "bench",
    "bisect",
    "build",
    "export",
    "inspect_bundle",
    "inspect_model",
    "open_bundle",
    "option",
    "package",
    "reference",
    "run",
    "verify",
]

__version__ = "0.1.0"

_MODULES = {
    "optc.api.bench": ("BenchResult", "bench"),
    "optc.api.bisect": ("bisect",),
    "optc.api.build": ("build",),
    "optc.api.export": ("export", "reference"),
    "optc.api.inspect_bundle": ("BundleReport", "inspect_bundle"),
    "optc.api.inspect_model": ("ModelReport", "inspect_model"),
    "optc.api.package": ("PackageResult", "package"),
    "optc.api.result": ("BuildResult", "VerifyResult"),
    "optc.api.run": ("RunResult", "run"),
    "optc.api.sessions": ("OpenBundle", "open_bundle"),
    "optc.api.verify": ("verify",),
    "optc.core.base": ("Pass", "PassResult", "Promise", "Refusal", "option"),
    "optc.core.context": ("Context",),
    "optc.core.errors": ("OptcError",),
    "optc.core.session": ("Port", "Session"),
    "optc.runtime.sampling": ("Sampling",),
    "optc.targets.base": ("Target",),
}
_OWNER = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _OWNER:
        raise AttributeError(f"module 'optc' has no attribute '{name}'")
    return getattr(importlib.import_module(_OWNER[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
