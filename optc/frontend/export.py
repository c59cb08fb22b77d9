"""`export_model` and `write_reference`: from SOURCE to files. torch is imported when called."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from optc.core.context import Log, Progress, no_progress, silent
from optc.core.errors import OutputError, SampleError, UsageError
from optc.frontend.dependencies import require
from optc.ir.interface import ports
from optc.ir.load import load_model
from optc.ir.reference import save_reference
from optc.ir.save import save_model

if TYPE_CHECKING:
    from optc.frontend.source import Source

__all__ = ["export_model", "write_reference"]

MODEL, REFERENCE = "model.onnx", "reference.npz"
_NEEDS = ("torch", "transformers", "onnxscript")


def export_model(
    source: str,
    out: Path,
    *,
    opset: int = 18,
    texts: Path | None = None,
    samples: int = 8,
    seed: int = 0,
    progress: Progress = no_progress,
    log: Log = silent,
) -> Path:
    """Export SOURCE to ONNX and record what PyTorch answers.

    Writes `model.onnx` (weights in `model.onnx.data`), `reference.npz`, the tokenizer's files,
    `generation_config.json` (end-of-text ids) and `config.json`, all aside first. An earlier export
    in `out` is replaced; other files there stay.

    Args:
        source: A model folder, a GGUF file or `package.module:factory`.
        out: Folder to write.
        opset: Opset of the graph, 18 to 24.
        texts: Text of the user's own for samples, see `optc.frontend.paragraphs`.
        samples: Number of judged samples.
        seed: Seed of everything random.
        progress: Told about each stage.
        log: Given a line for each input that the graph or the samples make little of.

    Returns:
        Path of `model.onnx`.

    Raises:
        InputError: The source or the text cannot be used.
        UnsupportedError: The model cannot be exported.
        OutputError: `out` cannot be written, or holds something that is not an export.
        MissingDependencyError: torch or transformers is not installed.
    """
    require(*_NEEDS)
    from optc.frontend.load import load_source
    from optc.frontend.paragraphs import load_texts
    from optc.frontend.samples import make_reference
    from optc.frontend.torch_onnx import check_opset, to_onnx
    from optc.frontend.unread import check_read

    check_opset(opset)
    _check_samples(samples)
    text = load_texts(texts)
    with _written_aside(Path(out).resolve()) as aside:
        progress("load the model", 0, 1)
        loaded = load_source(source, seed=seed)
        progress("load the model", 1, 1)
        _save_tokenizer(loaded, aside)
        _save_config(loaded, aside)
        progress(f"export to ONNX, opset {opset}", 0, 1)
        graph = to_onnx(loaded, opset)
        shapes = check_read(graph, source)
        save_model(graph, aside / MODEL)
        progress(f"export to ONNX, opset {opset}", 1, 1)
        signature = ports(graph.graph.inputs), ports(graph.graph.outputs)
        del graph
        for sentence in shapes:
            log(sentence)
        reference = make_reference(
            loaded, text, samples=samples, seed=seed, progress=progress, log=log
        )
        reference.check(*signature, where=source)
        save_reference(reference, aside / REFERENCE)
    return Path(out) / MODEL


def _check_samples(samples: int) -> None:
    if samples < 1:
        raise UsageError("at least one judged sample is needed", where="--samples")


def _save_tokenizer(source: Source, folder: Path) -> None:
    """Write tokenizer and end-of-text ids.

    Done before the first use: a tokenizer called with truncation would write that setting too.
    """
    if source.tokenizer is not None:
        source.tokenizer.save_pretrained(folder)
    if source.eos:
        text = json.dumps({"eos_token_id": list(source.eos)}, indent=2)
        (folder / "generation_config.json").write_text(text + "\n", encoding="utf-8")


def _save_config(source: Source, folder: Path) -> None:
    """Write the configuration of a transformers model, without the place it was loaded from."""
    describe = getattr(getattr(source.module, "config", None), "to_json_string", None)
    if describe is not None:
        found = json.loads(describe())
        found.pop("_name_or_path", None)
        text = json.dumps(found, indent=2, sort_keys=True)
        (folder / "config.json").write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def _written_aside(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`; its files move into `out` when the block succeeds."""
    _refuse_foreign(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror or error}", where=str(out)
        ) from error
    try:
        yield aside
        _move_in(aside, out)
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror or error}", where=str(out)
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise OutputError("it is a file, not a folder", where=str(out))
    if not out.exists() or not any(out.iterdir()):
        return
    if not ((out / MODEL).is_file() and (out / REFERENCE).is_file()):
        problem = "it is not empty and holds no earlier export"
        raise OutputError(problem, where=str(out), remedy="give a new folder")


def _move_in(aside: Path, out: Path) -> None:
    """Move files one by one, `model.onnx` away first and in last: without it nothing is valid."""
    if not out.exists():
        aside.chmod(0o755)
        aside.rename(out)
        return
    (out / MODEL).unlink(missing_ok=True)
    for file in sorted(aside.iterdir(), key=lambda f: f.name == MODEL):
        if file.is_dir():
            shutil.rmtree(out / file.name, ignore_errors=True)
        file.replace(out / file.name)


def write_reference(
    model: Path,
    source: str,
    out: Path,
    *,
    texts: Path | None = None,
    samples: int = 8,
    seed: int = 0,
    progress: Progress = no_progress,
    log: Log = silent,
) -> Path:
    """Record what PyTorch answers, for an ONNX file that was exported elsewhere.

    Args:
        model: The ONNX file; its signature says what the samples look like.
        source: What it was exported from, as for `export_model`.
        out: File to write, usually `reference.npz` beside the model.
        texts: Text of the user's own for samples.
        samples: Number of judged samples.
        seed: Seed of everything random.
        progress: Told about each stage.
        log: Given a line for each input that the graph or the samples make little of.

    Returns:
        `out`.

    Raises:
        InputError: The model, the source or the text cannot be used.
        SampleError: The source does not fit the graph.
        OutputError: `out` cannot be written.
        MissingDependencyError: torch or transformers is not installed.
    """
    require(*_NEEDS)
    from optc.frontend.fit import fit_source
    from optc.frontend.load import load_source
    from optc.frontend.paragraphs import load_texts
    from optc.frontend.samples import make_reference

    _check_samples(samples)
    text, graph = load_texts(texts), load_model(model).graph
    inputs, outputs = ports(graph.inputs), ports(graph.outputs)
    with _file_aside(Path(out)) as aside:
        progress("load the model", 0, 1)
        fit = fit_source(load_source(source, seed=seed), inputs, outputs, str(model))
        progress("load the model", 1, 1)
        reference = make_reference(
            fit.source,
            text,
            samples=samples,
            seed=seed,
            progress=progress,
            limits=fit.limits,
            log=log,
        )
        reference = fit.renamed(reference)
        try:
            reference.check(inputs, outputs, where=source)
        except SampleError as error:
            problem = f"'{source}' does not fit this graph: {error.problem}"
            raise SampleError(problem, where=str(model)) from error
        save_reference(reference, aside)
    return Path(out)


@contextlib.contextmanager
def _file_aside(out: Path) -> Iterator[Path]:
    """A file beside `out`, made at once to see that it can be; it becomes `out` on success."""
    aside = out.with_name(f".{out.name}.partial")
    try:
        aside.touch()
        yield aside
        aside.replace(out)
    except OSError as error:
        problem = f"cannot be written: {error.strerror or error}"
        raise OutputError(problem, where=str(out)) from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
