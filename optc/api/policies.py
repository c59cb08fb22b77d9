"""Which limits a build or a bundle is judged by."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from optc.bundle.manifest import Manifest
from optc.core.base import Pass
from optc.core.errors import BundleError
from optc.parity.policy import Limits, Policy, load_policy

__all__ = ["fitted", "policy_for", "policy_of"]


def policy_for(path: str | Path | None, passes: Iterable[Pass]) -> Policy:
    """The limits of a policy file, or the default ones, for what passes promise."""
    promises = [p.promised for p in passes]
    return Policy.default(promises) if path is None else load_policy(path, promises)


def fitted(policy: Policy, graph: ir.Model) -> Policy:
    """The default limits for the precision that a graph has; limits from a file as they are."""
    half = any(v.dtype == ir.DataType.FLOAT16 for v in graph.graph.initializers.values())
    if policy.source != "default" or not half:
        return policy
    return dataclasses.replace(policy, exact=policy.exact.in_half_precision())


def policy_of(manifest: Manifest, path: str | Path | None) -> Policy:
    """The limits of a policy file, or those that a bundle was built with.

    Raises:
        BundleError: The limits in the manifest cannot be understood.
        PolicyFileError: The file cannot be read.
    """
    stored = manifest.evidence.policy
    try:
        promise = str(stored["promise"])
        if path is not None:
            return load_policy(path, [promise])
        measured = dict(stored["measured"])
        without = measured.pop("without_logits")
        return Policy(
            promise,
            exact=_limits(stored["exact"]),
            measured=_limits(measured),
            measured_without_logits=_limits(without),
            source="bundle",
        )
    except (KeyError, TypeError, ValueError) as error:
        problem = f"the policy in its manifest cannot be understood ({error})"
        raise BundleError(problem) from error


def _limits(rows: Mapping[str, Any]) -> Limits:
    return Limits(**{key: float(value) for key, value in rows.items()})
