"""How fast is each way to write attention, on ONNX Runtime's CPU kernels?

    python benchmarks/attention_ort.py [--layers 2] [--rounds 5] [--clock cpu] [--alone]

The decoder around the attention is the same for all: Llama-like, random weights, float32. Ways take
turns; every number is the median over the rounds, and every ratio is to the unfused graph of the
same rounds. Each way's logits are compared with those of the unfused graph first.

On a machine that others use too, `--clock cpu` counts the seconds of processors that this process
used, on one thread: waiting for a processor is not in it.

`--alone` leaves the feed-forward layers and the vocabulary all but out, so that ratios are those of
attention and its projections.

A growing cache (`concat`) is an input that the runtime copies into a new output; a fixed one
(`static`) is one buffer, input and output at once, twice as long as what is in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
from attention_graphs import decoder
from attention_ways import WAYS, Size, Way

from optc.ir.interface import LENGTHS, LOGITS, TOKENS, past_name, present_name
from optc.ir.save import save_model
from optc.targets.ort_attention import attention_choices

UNFUSED = WAYS[0]
CLOCKS = {"wall": (time.perf_counter, 0), "cpu": (time.process_time, 1)}
"""Seconds, and threads of one operator (0: the runtime's own choice)."""


@dataclasses.dataclass(frozen=True)
class Case:
    """New tokens against tokens that are in the cache already."""

    name: str
    past: int
    new: int
    batch: int = 1

    def feeds(self, size: Size, layout: str) -> dict[str, np.ndarray]:
        """Tokens, lengths and caches; the same numbers for both layouts."""
        rng = np.random.default_rng(self.past)
        room = self.past if layout == "concat" else 2 * (self.past + self.new)
        tokens = rng.integers(0, size.vocabulary, (self.batch, self.new))
        feeds = {TOKENS: tokens, LENGTHS: np.full(self.batch, self.past)}
        shape = (self.batch, size.kv_heads, self.past, size.dim)
        for name in _caches(size, past_name):
            feeds[name] = np.zeros((*shape[:2], room, size.dim), np.float32)
            feeds[name][:, :, : self.past] = rng.standard_normal(shape, np.float32)
        return feeds


def cases(lengths: list[int]) -> list[Case]:
    return [Case(f"prefill {n}", 0, n) for n in lengths] + [
        Case(f"decode {n}", n, 1) for n in lengths
    ]


class Runner:
    """One way, open in the runtime, with inputs and outputs bound."""

    def __init__(self, size: Size, way: Way, threads: int):
        self.size, self.way = size, way
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        # Sessions in one process would spin against each other.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        model = decoder(size, way)
        self.kernels = sorted({choice.kernel for choice in attention_choices(model)})
        with tempfile.TemporaryDirectory() as folder:
            path = save_model(model, Path(folder) / "model.onnx")
            self.session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])

    def bind(self, case: Case) -> ort.IOBinding:
        """Static caches are bound to one buffer on both sides, everything else as usual."""
        binding = self.session.io_binding()
        wanted = {value.name for value in self.session.get_inputs()}
        feeds = case.feeds(self.size, self.way.layout)
        held = {name: ort.OrtValue.ortvalue_from_numpy(a) for name, a in feeds.items()}
        for name in wanted:
            binding.bind_ortvalue_input(name, held[name])
        binding.bind_output(LOGITS)
        names = _caches(self.size, past_name), _caches(self.size, present_name)
        for past, present in zip(*names, strict=True):
            if self.way.layout == "static":
                binding.bind_ortvalue_output(present, held[past])
            else:
                binding.bind_output(present)
        return binding

    def logits(self, case: Case) -> np.ndarray:
        """[B,1,V]."""
        binding = self.bind(case)
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[0].numpy()

    def seconds(self, case: Case, clock: Callable[[], float]) -> float:
        """Median of a few runs, binding not counted."""
        binding, found = self.bind(case), []
        for _ in range(1 if case.new > 1 else 12):
            started = clock()
            self.session.run_with_iobinding(binding)
            found.append(clock() - started)
        return statistics.median(found)


def _caches(size: Size, name: object) -> list[str]:
    return [name(layer, part) for layer in range(size.layers) for part in ("key", "value")]


def check(runners: list[Runner], case: Case) -> dict[Way, float]:
    """Largest difference of the logits from the unfused graph's, in units of their spread."""
    expected = runners[0].logits(case)
    return {r.way: float(np.abs(r.logits(case) - expected).max() / expected.std()) for r in runners}


def measure(
    runners: list[Runner], todo: list[Case], rounds: int, clock: Callable[[], float]
) -> dict[tuple[Way, Case], list[float]]:
    """Seconds of each round; the first round warms up and is dropped."""
    found: dict[tuple[Way, Case], list[float]] = {}
    for turn in range(rounds + 1):
        for case in todo:
            for runner in runners:
                seconds = runner.seconds(case, clock)
                if turn:
                    found.setdefault((runner.way, case), []).append(seconds)
    return found


def table(runners: list[Runner], todo: list[Case], found: dict, errors: dict) -> list[dict]:
    rows = []
    for runner in runners:
        way = runner.way
        row = {"way": way.name, "layout": way.layout, "error": errors[way], "cases": {}}
        row["picks"] = runner.kernels
        for case in todo:
            pairs = zip(found[UNFUSED, case], found[way, case], strict=True)
            row["cases"][case.name] = {
                "ms": 1e3 * statistics.median(found[way, case]),
                "ratio": statistics.median(base / mine for base, mine in pairs),
            }
        rows.append(row)
    return rows


def show(rows: list[dict], todo: list[Case]) -> None:
    heads = ["way", "cache", *(f"{c.name}: ms, x" for c in todo), "error"]
    print("| " + " | ".join(heads) + " |")
    print("|" + "---|" * len(heads))
    for row in rows:
        timings = [f"{t['ms']:.1f}, {t['ratio']:.2f}" for t in row["cases"].values()]
        name = row["way"]
        if row["picks"]:
            name = f"**{name}** (picks {', '.join(row['picks'])})"
        print("| " + " | ".join([name, row["layout"], *timings, f"{row['error']:.0e}"]) + " |")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: one thread")
    parser.add_argument("--lengths", default="512,2048", help="tokens of prompts and caches")
    parser.add_argument("--only", default="", help="ways whose name contains this, and unfused")
    parser.add_argument("--alone", action="store_true", help="next to nothing but attention")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    rest = {"hidden": 8, "vocabulary": 64} if given.alone else {}
    size = Size(layers=given.layers, **rest)
    todo = cases([int(n) for n in given.lengths.split(",")])
    chosen = [way for way in WAYS if way is UNFUSED or given.only in way.name]
    clock, threads = CLOCKS[given.clock]
    runners = [Runner(size, way, threads) for way in chosen]
    errors = check(runners, Case("check", 40, 9))
    found = measure(runners, todo, given.rounds, clock)
    rows = table(runners, todo, found, errors)
    show(rows, todo)
    if given.json:
        facts = {"onnxruntime": ort.__version__, "machine": platform.machine(), **vars(given)}
        facts["json"] = str(given.json)
        given.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
