"""`verify`: does a bundle still do, on this machine, what it was built to do?"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from optc.api.policies import policy_of
from optc.api.result import VerifyResult
from optc.api.samples import without_prompts
from optc.api.sessions import opened, target_of
from optc.bundle.read import Bundle, read_bundle
from optc.bundle.sign import verify_signature
from optc.core.context import Progress, no_progress
from optc.core.errors import BundleError
from optc.ir.reference import load_reference
from optc.parity.compare import compare
from optc.parity.metrics import Metrics
from optc.parity.policy import Check, Policy
from optc.parity.unmeasured import UNMEASURED

__all__ = ["verify"]

_ROLES = ("prefill", "decode")


def verify(
    bundle: str | Path,
    *,
    policy: str | Path | None = None,
    public_key: str | Path | None = None,
    progress: Progress = no_progress,
) -> VerifyResult:
    """Check a bundle's files, run its engine on its reference samples, and judge the outcome.

    Of two engines each is judged alone on whole samples, and both together as they are used.
    A bundle that was built without evidence and carries no samples is opened, and not judged.

    Args:
        bundle: The bundle's folder.
        policy: TOML file with limits; those that the bundle was built with by default.
        public_key: Key (PEM) that must have signed the bundle.
        progress: Told how far long steps are.

    Returns:
        The measurement and every rule held against it; `violations` is empty when all is well.

    Raises:
        BundleError: The bundle is damaged, unsafe, or its signature does not hold.
        UnsupportedError: This machine cannot run it.
        PolicyFileError: The policy cannot be read.
    """
    started = time.perf_counter()
    found = read_bundle(bundle, progress=progress)
    limits = policy_of(found.manifest, policy)
    signature = "none" if found.signature is None else "not checked"
    if public_key is not None:
        verify_signature(bundle, public_key)
        signature = "valid"
    source, level, metrics, checks = _replayed(found, limits, progress)
    return VerifyResult(
        bundle=Path(bundle),
        target=found.manifest.target,
        order=found.manifest.order,
        source=source,
        level=level,
        metrics=metrics,
        at_build=found.manifest.evidence.metrics,
        policy=limits,
        checks=checks,
        signature=signature,
        seconds=time.perf_counter() - started,
    )


def _replayed(
    found: Bundle, limits: Policy, progress: Progress
) -> tuple[str, str, Metrics, tuple[Check, ...]]:
    """Source and level of evidence, what was measured, and every rule held against it."""
    if found.reference is None:
        return "none", "built", UNMEASURED, (_opens(found),)
    reference = load_reference(found.reference)
    target, engine = target_of(found), found.manifest.engine
    with opened(target, found.folder, engine) as session:
        metrics = compare(session, reference, progress=progress)
    checks = limits.checks(metrics)
    for role in _ROLES if engine.prefill_from is not None else ():
        with opened(target, found.folder, engine, role=role) as session:
            alone = compare(session, without_prompts(reference), progress=progress)
        checks += [_of_role(role, check) for check in limits.checks(alone)]
    return reference.source, "run", metrics, tuple(checks)


def _of_role(role: str, check: Check) -> Check:
    return dataclasses.replace(check, sentence=f"of the {role} engine alone, {check.sentence}")


def _opens(found: Bundle) -> Check:
    """What can be said without samples: the engine is one that the runtime takes.

    Raises:
        BundleError: It should have samples.
        UnsupportedError: The runtime refuses it.
    """
    if found.manifest.evidence.source != "none":
        raise BundleError("it carries no reference samples to replay", where=found.given)
    engine = found.manifest.engine
    wrote = [(port.name, port.dtype) for port in engine.inputs]
    same = True
    for role in _ROLES if engine.prefill_from is not None else _ROLES[1:]:
        with opened(target_of(found), found.folder, engine, role=role, lightly=True) as session:
            same = same and wrote == [(port.name, port.dtype) for port in session.inputs]
    sentence = (
        "its files are those that were written and the engine opens; whether its numbers are right "
        "cannot be said, it carries no samples"
    )
    if not same:
        sentence = "the engine takes other inputs than its manifest says"
    return Check("opens", None, 0.0, None if same else False, sentence)
