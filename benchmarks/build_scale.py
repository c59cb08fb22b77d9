"""What a build takes as models grow: peak memory, processor time, disk; beside onnxruntime's.

    python benchmarks/build_scale.py [--sizes 0.5,1,3,8] [--folder DIR] [--write]

Every size is a Llama graph of random float16 weights (`llama_graph.py`), written when it is needed
and deleted afterwards: 8 billion weights need 21 GB of disk. Each build is a process of its own,
and what it took is what the system says of it and of all processes that it waited for.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from page import PAGE, machine, replace_section

from optc.core.machine import free_memory_bytes

ROOT = Path(__file__).resolve().parents[1]
TITLE = "## Builds of any size"
PASSES = "flash,kv,quant:scheme=int4:method=rtn:group=32"
OPTC, PEER = "optc build", "onnxruntime, MatMulNBits quantiser"
SIZES = ("0.5", "1", "3", "8")
_GIB = 2**30
_QUANTISER = """
import sys, onnx
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
model = onnx.load(sys.argv[1])
quantiser = MatMulNBitsQuantizer(
    model, block_size=32, is_symmetric=False, accuracy_level=4
)
quantiser.process()
quantiser.model.save_model_to_file(sys.argv[2], use_external_data_format=True)
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """One build.

    Attributes:
        size: Name of the model's size.
        name: Who built.
        weights: Bytes of the weights that went in.
        rss: Peak resident memory, bytes: of the largest process, where there were several.
        cpu: Seconds of processors, of all processes.
        wall: Seconds.
        written: Bytes that came out.
        problem: Why it did not end well; empty if it did.
    """

    size: str
    name: str
    weights: int
    rss: int
    cpu: float
    wall: float
    written: int
    problem: str = ""


def optc_command(model: Path, out: Path) -> list[str]:
    """Our build, without evidence: the graph is not run."""
    build = [sys.executable, "-m", "optc.cli.main", "build", str(model), "--passes", PASSES]
    return [*build, "--evidence", "none", "-o", str(out / "model.optc")]


def peer_command(model: Path, out: Path) -> list[str]:
    """The quantiser that comes with the runtime: 4 bits, blocks of 32, with zero points."""
    return [sys.executable, "-c", _QUANTISER, str(model), str(out / "model.onnx")]


COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {OPTC: optc_command, PEER: peer_command}


NEEDS = {OPTC: 0.0, PEER: 1.7}
"""Memory over the size of the weights, about, to know what is better not tried."""


def weights_of(model: Path) -> int:
    """Bytes of the weights beside a graph."""
    return model.with_name(f"{model.name}.data").stat().st_size


def measure(size: str, name: str, model: Path, folder: Path) -> Row:
    """Run one build and delete what it wrote; one that would not fit in memory is not tried."""
    needs, free = NEEDS[name] * weights_of(model), free_memory_bytes() or 0
    if needs > free:
        problem = f"not tried: it needs about {needs / _GIB:.0f} GiB, {free / _GIB:.0f} are free"
        return Row(size, name, weights_of(model), 0, 0, 0, 0, problem)
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    started = time.perf_counter()
    log = folder / "log"
    with log.open("wb") as said:
        process = subprocess.Popen(
            COMMANDS[name](model, out),
            stdout=said,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    written = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    problem = ""
    if process.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        problem = lines[-1] if lines else f"exit code {process.returncode}"
    shutil.rmtree(out)
    return Row(
        size=size,
        name=name,
        weights=weights_of(model),
        rss=usage.ru_maxrss * 1024,
        cpu=usage.ru_utime + usage.ru_stime,
        wall=time.perf_counter() - started,
        written=written,
        problem=problem,
    )


def measure_size(size: str, folder: Path, names: Sequence[str]) -> list[Row]:
    """All builds of one size; the graph is deleted afterwards."""
    graph = folder / size
    if not (graph / "model.onnx").is_file():
        script = [sys.executable, str(ROOT / "benchmarks" / "llama_graph.py"), size, str(graph)]
        subprocess.run(script, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    rows = []
    for name in names:
        row = measure(size, name, graph / "model.onnx", folder)
        print(text_of(row), file=sys.stderr, flush=True)
        rows.append(row)
    shutil.rmtree(graph)
    return rows


def text_of(row: Row) -> str:
    """One line for people."""
    if not row.rss:
        return f"{row.size} B, {row.name}: {row.problem}"
    end = f", {row.problem}" if row.problem else ""
    numbers = f"{row.rss / _GIB:.2f} GiB, {row.cpu:.1f} processor seconds, {row.wall:.1f} s"
    return f"{row.size} B, {row.name}: {numbers}, {row.written / 1e9:.2f} GB written{end}"


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown."""
    lines = [
        "| weights | | peak memory GiB | to weights | processor s | s per GB | written GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bold = "**" if row.name == OPTC else ""
        cells = [f"{row.weights / 2e9:.2f} billion", f"{bold}{row.name}{bold}"]
        if row.problem:
            cells += [row.problem, "", "", "", ""]
        else:
            cells += [f"{row.rss / _GIB:.2f}", f"{row.rss / row.weights:.2f}"]
            cells += [f"{row.cpu:.1f}", f"{row.cpu / row.weights * 1e9:.1f}"]
            cells.append(f"{row.written / 1e9:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def section(rows: Sequence[Row], note: str = "") -> str:
    """What the documentation says under `TITLE`."""
    packages = ("onnxruntime", "onnx", "onnx-ir", "numpy")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    processor = machine()
    head = (
        f"`benchmarks/build_scale.py`, {datetime.date.today().isoformat()}, {processor}: Llama "
        f"graphs of random float16 weights, `optc build --passes {PASSES} --evidence none`, "
        "which reads back what it wrote, beside onnxruntime's quantiser (4 bits, blocks of 32), "
        "which does the quantising alone. Each in a process of its own. *To weights*: peak memory "
        "over the size of the weights that go in; below 1 they are never in memory at once. How "
        "it is done: [Builds of any size](scale.md)."
    )
    parts = [head, table(rows), note, f"Versions: {versions}."]
    return "\n\n".join(part for part in parts if part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", default=",".join(SIZES), help="by commas")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "scale")
    parser.add_argument("--only", choices=list(COMMANDS), help="one of those that build")
    parser.add_argument("--json", type=Path, help="add all numbers to this file, a row a line")
    parser.add_argument("--write", action="store_true", help="put the table into the docs")
    parser.add_argument("--from", dest="source", type=Path, help="rows of an earlier --json")
    parser.add_argument("--note", default="", help="a paragraph under the table")
    options = parser.parse_args()
    rows: list[Row] = []
    if options.source is not None:
        lines = options.source.read_text(encoding="utf-8").splitlines()
        rows = [Row(**json.loads(line)) for line in lines]
    else:
        for size in options.sizes.split(","):
            names = [options.only] if options.only else list(COMMANDS)
            found = measure_size(size, options.folder, names)
            rows += found
            if options.json is not None:
                with options.json.open("a", encoding="utf-8") as file:
                    file.writelines(f"{json.dumps(dataclasses.asdict(row))}\n" for row in found)
    text = section(rows, options.note)
    print(text)
    if options.write:
        PAGE.write_text(replace_section(PAGE.read_text(encoding="utf-8"), TITLE, text), "utf-8")


if __name__ == "__main__":
    main()
