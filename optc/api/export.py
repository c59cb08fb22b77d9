"""`export` and `reference`: from a PyTorch model to files. Needs the extra `optc[export]`."""

from __future__ import annotations

from pathlib import Path

from optc.core.context import Log, Progress, no_progress, silent
from optc.frontend.export import export_model, write_reference

__all__ = ["export", "reference"]


def export(
    source: str,
    out: str | Path,
    *,
    opset: int = 18,
    texts: str | Path | None = None,
    samples: int = 8,
    seed: int = 0,
    progress: Progress = no_progress,
    log: Log = silent,
) -> Path:
    """Export a model to ONNX, with what PyTorch answers on real inputs.

    Arguments, files and errors are those of `optc.frontend.export.export_model`.

    Returns:
        Path of `model.onnx`.
    """
    return export_model(
        source, Path(out), opset=opset, texts=_path(texts), samples=samples, seed=seed,
        progress=progress, log=log,
    )  # fmt: skip


def reference(
    model: str | Path,
    source: str,
    *,
    out: str | Path | None = None,
    texts: str | Path | None = None,
    samples: int = 8,
    seed: int = 0,
    progress: Progress = no_progress,
    log: Log = silent,
) -> Path:
    """Write what PyTorch answers for an ONNX file that came from elsewhere.

    Args:
        model: The ONNX file.
        source: The PyTorch model that it was exported from.
        out: The file to write; `reference.npz` beside the model by default.
        texts: Text for samples.
        samples: Number of judged samples.
        seed: Seed of everything random.
        progress: Told about each stage.
        log: Given a line for each input that the samples prove little about.

    Returns:
        Path of the file.
    """
    where = Path(model).with_name("reference.npz") if out is None else Path(out)
    return write_reference(
        Path(model), source, where, texts=_path(texts), samples=samples, seed=seed,
        progress=progress, log=log,
    )  # fmt: skip


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value)
