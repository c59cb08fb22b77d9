"""From PyTorch to a verified bundle that generates text: what `make demo` runs.

Each step is a command that you can type yourself. What an earlier run left behind is used again
unless something that it was made from, optc's own code included, has changed since.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fetch_smollm2 import FOLDER, fetch
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from optc import open_bundle
from optc.ir.reference import load_reference
from optc.runtime.generate import generate

ROOT = Path(__file__).resolve().parent.parent
SOURCE = FOLDER.relative_to(ROOT)
EXPORT = Path("build/smollm2")
MODEL = EXPORT / "model.onnx"
BUNDLE = Path("build/smollm2.optc")
RECORD = Path("build/smollm2.json")
PASSES = "quant,flash,kv"
PROMPT = "Gravity is"

console = Console()


def main() -> None:
    """Run the five steps, then show what came of them."""
    started = time.perf_counter()
    step("The model: SmolLM2-135M-Instruct")
    weights = fetch()
    console.print(f"{weights.relative_to(ROOT)}, {weights.stat().st_size / 1e6:.0f} MB")

    step("Export: PyTorch to ONNX, with PyTorch's own answers beside it")
    if is_newer(EXPORT / "reference.npz", [weights, *code("optc/frontend")]):
        console.print(f"using {MODEL} of an earlier run")
    else:
        optc("export", SOURCE, "-o", EXPORT)

    step("Build: three passes, measured after each")
    if is_newer(RECORD, [ROOT / MODEL, *code("optc", "passes", "plugins")]):
        console.print(f"using {BUNDLE} of an earlier run")
    else:
        optc("build", MODEL, "--passes", PASSES, "-o", BUNDLE, "--json", into=RECORD)

    step("Verify: the bundle on this machine, without PyTorch")
    optc("verify", BUNDLE)

    step("Run")
    optc("run", BUNDLE, "--prompt", PROMPT, "--max-tokens", "40")

    step("What was built")
    record = json.loads((ROOT / RECORD).read_text(encoding="utf-8"))
    console.print(passes_table(record))
    console.print(f"evidence: {record['evidence']['text']}")
    step("One of the reference prompts, PyTorch and the bundle")
    show_side_by_side()
    console.print(f"\nDone in {time.perf_counter() - started:.0f} s. The bundle is {BUNDLE}.")


def step(title: str) -> None:
    """Print a heading."""
    console.print()
    console.print(Rule(title, align="left"))


def optc(*arguments: str | Path, into: Path | None = None) -> None:
    """Show a command, then run it; leave with its exit code if it fails.

    Args:
        arguments: What follows `optc`.
        into: File for its output, as `>` would do it; written only if the command succeeds.
    """
    words = [str(argument) for argument in arguments]
    redirect = f" > {into}" if into else ""
    console.print(f"$ optc {shlex.join(words)}{redirect}", style="bold", soft_wrap=True)
    command = [sys.executable, "-m", "optc.cli.main", *words]
    output = subprocess.PIPE if into else None
    done = subprocess.run(command, cwd=ROOT, stdout=output, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    if into:
        (ROOT / into).write_bytes(done.stdout)


def is_newer(result: Path, origins: Iterable[Path]) -> bool:
    """Whether `result` is there and younger than all it was made from."""
    path = ROOT / result
    if not path.is_file():
        return False
    made = path.stat().st_mtime
    return all(origin.stat().st_mtime <= made for origin in origins)


def code(*folders: str) -> list[Path]:
    """Our own source files in `folders`."""
    return [path for folder in folders for path in (ROOT / folder).rglob("*.py")]


def passes_table(record: dict[str, Any]) -> Table:
    """One line per pass, from the document that `optc build --json` printed."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("pass", overflow="fold")
    for heading in ("rewrites", "seconds", "size MB", "rel L2", "KL", "top-1", "ppl", "greedy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in record["rows"]:
        table.add_row(*cells(row))
    return table


def cells(row: dict[str, Any]) -> list[str]:
    """What the table shows of one row."""
    metrics = row["metrics"]
    is_pass = row["rewrites"] > 0
    greedy = metrics["greedy_total"]
    return [
        row["text"],
        str(row["rewrites"]) if is_pass else "",
        f"{row['seconds']:.1f}" if is_pass else "",
        f"{row['weight_bytes'] / 1e6:.1f}",
        number(metrics["rel_l2"], ".1e"),
        number(metrics["kl"], ".1e"),
        number(metrics["top1"], ".1%"),
        number(metrics["ppl_ratio"], ".4f"),
        "-" if greedy is None else f"{metrics['greedy_equal']}/{greedy}",
    ]


def number(value: float | None, form: str) -> str:
    """`value`, or a dash where there is none."""
    return "-" if value is None else f"{value:{form}}"


def show_side_by_side() -> None:
    """PyTorch's greedy continuation, from the reference, beside the bundle's, generated now."""
    reference = load_reference(ROOT / BUNDLE / "reference.npz")
    prompt, expected = reference.prompts[0], reference.continuations[0]
    with open_bundle(ROOT / BUNDLE, verify_hashes=False) as opened:
        found = generate(opened.session, [prompt.tolist()], max_new_tokens=len(expected))
        tokenizer = opened.tokenizer
    theirs, ours = expected.tolist(), list(found.tokens[0])
    pairs = enumerate(zip(theirs, ours, strict=True))
    same = next((at for at, (one, other) in pairs if one != other), len(theirs))
    table = Table(show_lines=True)
    table.add_column("PyTorch, float32", ratio=1)
    table.add_column("the bundle", ratio=1)
    texts = [
        common_then_rest(tokenizer.decode(t[:same]), tokenizer.decode(t)) for t in (theirs, ours)
    ]
    table.add_row(*texts)
    console.print(Text("prompt: ", style="bold") + Text(tokenizer.decode(prompt.tolist())))
    console.print(table)
    console.print(f"the first {same} of {len(theirs)} tokens are the same")


def common_then_rest(common: str, whole: str) -> Text:
    """`whole`, with what follows the common beginning set apart."""
    at = len(common) if whole.startswith(common) else 0
    return Text(whole[:at]) + Text(whole[at:], style="italic yellow")


if __name__ == "__main__":
    main()
