"""How far a quantised model's next tokens are from PyTorch's float32, end to end on ONNX Runtime.

    python benchmarks/quant_metrics.py MODEL... [--sequences N] [--text docs] [--json]

MODEL is an ONNX file with `input_ids` and `logits`, by whatever tool, or a bundle of ours. Every
sequence goes through it whole, without a cache. What PyTorch answers is computed once and kept
beside the model: log-probabilities, float32, which is 100 MB a sequence, memory-mapped.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import quant_model
import quant_texts
from quant_model import FOLDER

TEXTS = ("docs", "prose")
# Rows of [., 49152] that stay in a processor's cache.
_BLOCK = 64

Run = Callable[[np.ndarray], np.ndarray]
"""Token ids, int64 [1,S], to the output asked for, such as logits, float32 [1,S,V]."""


@dataclasses.dataclass(frozen=True)
class Score:
    """One model on one text.

    Attributes:
        ppl_ratio: Perplexity over that of PyTorch in float32.
        kl: Mean KL(PyTorch || model) of the next-token distributions, nats.
        top1: Fraction of positions whose most likely token is PyTorch's.
        tokens: Positions that were judged.
        ppl: PyTorch's perplexity.
    """

    ppl_ratio: float
    kl: float
    top1: float
    tokens: int
    ppl: float

    @property
    def top1_error(self) -> float:
        """Standard error of `top1`, if positions were independent."""
        return math.sqrt(self.top1 * (1 - self.top1) / self.tokens)


class Sums:
    """Adds up sequences; only sums stay."""

    def __init__(self) -> None:
        self._kl = self._expected = self._actual = 0.0
        self._agreed = self._positions = self._known = 0

    def add(self, log_p: np.ndarray, logits: np.ndarray, ids: np.ndarray) -> None:
        """Add one sequence.

        Args:
            log_p: PyTorch's log-probabilities, float32 [S,V].
            logits: The model's, [S,V].
            ids: The sequence's tokens, int64 [S]; token i+1 is what position i predicts.

        Raises:
            ValueError: A logit is not finite.
        """
        following = np.append(ids[1:], -1)
        for start in range(0, len(ids), _BLOCK):
            part = slice(start, start + _BLOCK)
            self._add(np.asarray(log_p[part]), logits[part], following[part])

    def _add(self, log_p: np.ndarray, logits: np.ndarray, following: np.ndarray) -> None:
        if not np.isfinite(logits).all():
            raise ValueError("there are logits that are not finite")
        log_q = log_softmax(logits)
        # The sum of p (log p - log q): pairwise over the vocabulary, in float64 over positions.
        rows = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        self._kl += float(rows.sum(dtype=np.float64))
        self._agreed += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
        self._positions += len(following)
        at = np.flatnonzero(following >= 0)
        self._known += len(at)
        self._expected -= float(log_p[at, following[at]].sum(dtype=np.float64))
        self._actual -= float(log_q[at, following[at]].sum(dtype=np.float64))

    def score(self) -> Score:
        """The means."""
        return Score(
            ppl_ratio=math.exp((self._actual - self._expected) / self._known),
            kl=max(0.0, self._kl / self._positions),  # round-off can leave -1e-9
            top1=self._agreed / self._positions,
            tokens=self._positions,
            ppl=math.exp(self._expected / self._known),
        )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities, float32 [S,V]; numpy sums pairwise, which keeps 6 digits."""
    shifted = logits - logits.max(-1, keepdims=True)
    found: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return found


def truth(folder: Path, text: str) -> tuple[np.ndarray, np.ndarray]:
    """A text, int64 [N,S], and PyTorch's log-probabilities, float32 [N,S,V], memory-mapped."""
    ids = np.load(folder / "texts" / f"{text}.npy")
    path = folder / "truth" / f"{text}.npy"
    if not path.is_file():
        _write_truth(folder, ids, path)
    return ids, np.load(path, mmap_mode="r")


def _write_truth(folder: Path, ids: np.ndarray, path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    print(f"PyTorch's answers: {path.stem}", file=sys.stderr)
    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32).eval()
    path.parent.mkdir(exist_ok=True)
    aside = path.with_suffix(".part")
    shape = (*ids.shape, model.config.vocab_size)
    kept = np.lib.format.open_memmap(aside, "w+", np.float32, shape)
    with torch.inference_mode():
        for row, into in zip(ids, kept, strict=True):
            logits = model(torch.from_numpy(row)[None]).logits[0]
            into[:] = logits.double().log_softmax(-1).float().numpy()
    kept.flush()
    aside.rename(path)


@contextlib.contextmanager
def opened(path: Path, threads: int | None = None, output: str = "logits") -> Iterator[Run]:
    """Open an ONNX file or a bundle, to be run for one of its outputs."""
    with contextlib.ExitStack() as stack:
        if is_bundle(path):
            yield _of_bundle(path, output, stack)
        else:
            yield _of_file(path, output, threads)


def is_bundle(path: Path) -> bool:
    """Whether it is a folder that `optc build` wrote."""
    return (path / "manifest.json").is_file()


def _of_bundle(path: Path, output: str, stack: contextlib.ExitStack) -> Run:
    from optc.api.sessions import open_bundle
    from optc.ir.interface import complete_feeds

    session = stack.enter_context(open_bundle(path)).session

    def run(ids: np.ndarray) -> np.ndarray:
        feeds = feeds_of([port.name for port in session.inputs], ids)
        return session.run(complete_feeds(session.inputs, feeds), (output,))[output]

    return run


def _of_file(path: Path, output: str, threads: int | None) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda ids: session.run([output], feeds_of(names, ids))[0]


def feeds_of(names: Sequence[str], ids: np.ndarray) -> dict[str, np.ndarray]:
    """What a graph is given of ids [B,S]: nothing is padding."""
    known = {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape),
        "token_type_ids": np.zeros_like(ids),
    }
    return {name: array for name, array in known.items() if name in names}


def measure(run: Run, folder: Path = FOLDER, text: str = "docs", sequences: int = 0) -> Score:
    """One model on one text; on its first `sequences` sequences, if given."""
    ids, log_p = truth(folder, text)
    sums = Sums()
    for row, expected in list(zip(ids, log_p, strict=True))[: sequences or None]:
        sums.add(expected, run(row[None])[0], row)
    return sums.score()


def engine_bytes(path: Path) -> int:
    """Bytes of an ONNX file with the external data that it names, or of a bundle's engine."""
    if not is_bundle(path):
        return path.stat().st_size + sum(file.stat().st_size for file in external_files(path))
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    return sum((path / name).stat().st_size for name in manifest["engine"]["files"])


def external_files(path: Path) -> list[Path]:
    """Files of external data that an ONNX file names."""
    import onnx
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    model = onnx.load(path, load_external_data=False)
    tensors = [t for t in _get_all_tensors(model) if uses_external_data(t)]
    names = {entry.value for t in tensors for entry in t.external_data if entry.key == "location"}
    return sorted(path.parent / name for name in names)


def prepare(folder: Path = FOLDER) -> Path:
    """The model, the texts and what PyTorch answers, made if they are not there."""
    quant_model.prepare(folder)
    quant_texts.prepare(folder)
    for text in TEXTS:
        truth(folder, text)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", type=Path, nargs="+", help="ONNX files or bundles")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="the model's folder")
    parser.add_argument("--text", choices=TEXTS, action="append", help="default: both")
    parser.add_argument("--sequences", type=int, default=0, help="the first ones; default: all")
    parser.add_argument("--threads", type=int, help="threads of one operator")
    parser.add_argument("--json", action="store_true", help="one JSON document a model")
    options = parser.parse_args()
    prepare(options.folder)
    for path in options.models:
        found, started = {}, time.perf_counter()
        with opened(path, options.threads) as run:
            for text in options.text or TEXTS:
                found[text] = measure(run, options.folder, text, options.sequences)
        seconds = time.perf_counter() - started
        print(_line(path, found, seconds, as_json=options.json), flush=True)


def _line(path: Path, found: dict[str, Score], seconds: float, *, as_json: bool) -> str:
    size = engine_bytes(path)
    if as_json:
        scores = {text: dataclasses.asdict(score) for text, score in found.items()}
        return json.dumps({"model": str(path), "bytes": size, **scores})
    parts = [
        f"{text}: ppl x{s.ppl_ratio:.4f} (of {s.ppl:.2f}), KL {s.kl:.4f}, "
        f"top-1 {s.top1:.4f} +-{s.top1_error:.4f}"
        for text, s in found.items()
    ]
    return f"{path}: {size / 1e6:.1f} MB; {'; '.join(parts)}; {seconds:.0f} s"


if __name__ == "__main__":
    main()
