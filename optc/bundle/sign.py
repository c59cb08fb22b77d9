"""Sign a bundle and check its signature, with the `model-signing` package.

The signature is a Sigstore bundle in DSSE form, as `model_signing` on the command line makes and
reads it: `model_signing verify key BUNDLE --signature BUNDLE/model.sig --public_key KEY`.
It covers every file, `manifest.json` included, but itself.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from optc.bundle.layout import SIGNATURE
from optc.bundle.read import read_bundle
from optc.core.errors import BundleError, MissingDependencyError, OutputError, UsageError

__all__ = ["check_private_key", "sign_bundle", "verify_signature"]


def check_private_key(private_key: str | Path) -> None:
    """See that `sign_bundle` will be able to use a key, before there is anything to sign.

    Raises:
        UsageError: The key cannot be used.
        MissingDependencyError: `model-signing` is not installed.
    """
    _signer(private_key)


def _signer(private_key: str | Path) -> Any:
    signing, _, _ = _modules()
    try:
        return signing.Config().use_elliptic_key_signer(private_key=Path(private_key))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _bad_key(private_key, "private", error) from error


def sign_bundle(path: str | Path, private_key: str | Path) -> Path:
    """Write `model.sig` into a bundle, in place of one that is there.

    Args:
        path: The bundle; it is checked first, hashes included.
        private_key: PEM file with an unencrypted elliptic-curve private key (P-256, P-384, P-521).

    Returns:
        The path of the signature.

    Raises:
        BundleError: The bundle is damaged.
        UsageError: The key cannot be used.
        OutputError: The signature cannot be written.
        MissingDependencyError: `model-signing` is not installed.
    """
    _, _, hashing = _modules()
    folder = read_bundle(path).folder
    config = _signer(private_key)
    signature, fresh = folder / SIGNATURE, folder / f".{SIGNATURE}.tmp"
    try:
        config.set_hashing_config(_hashing(hashing)).sign(folder, fresh)
        fresh.replace(signature)
    except OSError as error:
        raise OutputError(f"cannot be written: {error.strerror}", where=str(signature)) from error
    finally:
        fresh.unlink(missing_ok=True)
    return signature


def verify_signature(path: str | Path, public_key: str | Path) -> None:
    """See that a bundle is what the owner of a key signed.

    Args:
        path: The bundle; it is checked first, hashes included.
        public_key: PEM file with the elliptic-curve public key.

    Raises:
        BundleError: Damaged, not signed, signed by someone else, or changed since.
        UsageError: The key cannot be used.
        MissingDependencyError: `model-signing` is not installed.
    """
    _, verifying, hashing = _modules()
    bundle = read_bundle(path)
    if bundle.signature is None:
        raise BundleError("it is not signed", where=str(path), remedy="build it with --sign-key")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=Path(public_key))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise _bad_key(public_key, "public", error) from error
    from cryptography.exceptions import InvalidSignature

    try:
        config.set_hashing_config(_hashing(hashing)).verify(bundle.folder, bundle.signature)
    except (ValueError, TypeError, LookupError, AttributeError, InvalidSignature) as error:
        # A hostile signature file makes the package stumble in any of these ways.
        problem = "its signature does not hold: it was changed, or another key signed it"
        raise BundleError(problem, where=str(path)) from error


def _modules() -> tuple[ModuleType, ModuleType, ModuleType]:
    try:
        from model_signing import hashing, signing, verifying
    except ImportError as error:
        raise MissingDependencyError(
            f"signatures need the package 'model-signing' ({error})",
            remedy="pip install 'optc[sign]'",
        ) from error
    return signing, verifying, hashing


def _hashing(hashing: Any) -> Any:
    """Hash all files but the signature; by default the package would skip `.git*` files too."""
    return hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _bad_key(path: str | Path, kind: str, error: Exception) -> UsageError:
    reason = error.strerror if isinstance(error, OSError) else error
    problem = f"it cannot be used as an elliptic-curve {kind} key ({reason})"
    return UsageError(problem, where=str(path))
