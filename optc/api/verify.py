"""`verify`: does a bundle still do, on this machine, what it was built to do?"""

from __future__ import annotations

import time
from pathlib import Path

from optc.api.policies import policy_of
from optc.api.result import VerifyResult
from optc.api.sessions import opened, target_of
from optc.bundle.read import read_bundle
from optc.bundle.sign import verify_signature
from optc.core.context import Progress, no_progress
from optc.core.errors import BundleError
from optc.ir.reference import load_reference
from optc.parity.compare import compare

__all__ = ["verify"]


def verify(
    bundle: str | Path,
    *,
    policy: str | Path | None = None,
    public_key: str | Path | None = None,
    progress: Progress = no_progress,
) -> VerifyResult:
    """Check a bundle's files, run its engine on its reference samples, and judge the outcome.

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
    if found.reference is None:
        raise BundleError("it carries no reference samples to replay", where=str(bundle))
    reference = load_reference(found.reference)
    with opened(target_of(found), found.folder) as session:
        metrics = compare(session, reference, progress=progress)
    return VerifyResult(
        bundle=Path(bundle),
        target=found.manifest.target,
        order=found.manifest.order,
        source=reference.source,
        metrics=metrics,
        at_build=found.manifest.evidence.metrics,
        policy=limits,
        checks=tuple(limits.checks(metrics)),
        signature=signature,
        seconds=time.perf_counter() - started,
    )
