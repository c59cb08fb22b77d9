"""How many tokens per second for a stream of requests: one at a time, in batches, continuously?

    python benchmarks/batching.py BUNDLE [--requests 24] [--rate 4] [--slots 8] [--repeats 3]
                                  [--write] [--json FILE]

Requests arrive as a Poisson process; prompts and answers have mixed lengths. The same seed gives
the same stream. Three ways to serve it take turns, each on the same open engine:

* one at a time, in order of arrival;
* static batching: wait until a batch is full, run it until all of it is done (rows that are done
  leave it, none joins);
* continuous batching (`optc.runtime.batching`).

Time in which there is nothing to do is skipped, not waited for: the clock jumps to the next
arrival. `tokens/s` counts new tokens from the first arrival to the last token; `first` and `done`
are a request's seconds from its arrival to its first and last token; `same tokens` counts the
requests that got what they get alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from page import PAGE, replace_section

from optc.api.sessions import OpenBundle, open_bundle
from optc.core.session import Session
from optc.ir.interface import TOKENS
from optc.ir.reference import load_reference
from optc.runtime.batching import Batcher
from optc.runtime.generate import generate
from optc.runtime.request import Request

TITLE = "## Many requests at once, CPU"


@dataclasses.dataclass(frozen=True)
class Arrival:
    """One request of the stream, `at` seconds after the start."""

    at: float
    request: Request


@dataclasses.dataclass
class Served:
    """What became of one request; seconds on the stream's clock."""

    first: float = 0.0
    done: float = 0.0
    tokens: tuple[int, ...] = ()


class Clock:
    """Seconds since it was made, idle time skipped."""

    def __init__(self) -> None:
        self._zero = time.perf_counter()

    def __call__(self) -> float:
        """Now."""
        return time.perf_counter() - self._zero

    def wait_until(self, moment: float) -> None:
        """Let time pass at once."""
        self._zero -= max(0.0, moment - self())


def stream(text: np.ndarray, seed: int, count: int, rate: float, longest: int) -> list[Arrival]:
    """Arrivals at `rate` per second; prompts of 8 to `longest` tokens, 8 to 64 new ones."""
    rng = np.random.default_rng(seed)
    moments = np.cumsum(rng.exponential(1 / rate, count))
    prompts = np.clip(rng.lognormal(np.log(longest / 4), 0.8, count), 8, longest).astype(int)
    news = np.clip(rng.lognormal(np.log(24), 0.7, count), 8, 64).astype(int)
    found = []
    for at, prompt, new in zip(moments - moments[0], prompts, news, strict=True):
        start = int(rng.integers(0, len(text)))
        tokens = np.resize(np.roll(text, -start), int(prompt))
        found.append(Arrival(float(at), Request(tuple(tokens.tolist()), int(new))))
    return found


def one_at_a_time(session: Session, arrivals: list[Arrival], slots: int) -> list[Served]:
    return in_batches(session, arrivals, 1)


def in_batches(session: Session, arrivals: list[Arrival], slots: int) -> list[Served]:
    clock, served = Clock(), [Served() for _ in arrivals]
    for start in range(0, len(arrivals), slots):
        group, rows = arrivals[start : start + slots], served[start : start + slots]
        clock.wait_until(group[-1].at)
        _run_batch(session, group, rows, clock)
    return served


def _run_batch(
    session: Session, group: list[Arrival], rows: list[Served], clock: Callable[[], float]
) -> None:
    def heard(row: int, token: int) -> bool:
        one = rows[row]
        one.first, one.done = one.first or clock(), clock()
        one.tokens += (token,)
        return len(one.tokens) == group[row].request.max_new_tokens

    longest = max(arrival.request.max_new_tokens for arrival in group)
    prompts = [arrival.request.prompt for arrival in group]
    generate(session, prompts, max_new_tokens=longest, on_token=heard)


def continuously(session: Session, arrivals: list[Arrival], slots: int) -> list[Served]:
    clock = Clock()
    room = max(len(a.request.prompt) + a.request.max_new_tokens for a in arrivals)
    batcher = Batcher(session, slots=slots, max_tokens=room, clock=clock)
    tickets, coming = [], list(arrivals)
    while coming or not batcher.idle:
        if batcher.idle:
            clock.wait_until(coming[0].at)
        while coming and coming[0].at <= clock():
            tickets.append(batcher.submit(coming.pop(0).request))
        batcher.step()
    return [Served(t.first or 0.0, t.finished or 0.0, t.tokens) for t in tickets]


WAYS = {
    "one at a time": one_at_a_time,
    "static batches": in_batches,
    "continuous": continuously,
}


def numbers(arrivals: list[Arrival], served: list[Served]) -> dict[str, float]:
    """What one run says."""
    first = [one.first - arrival.at for one, arrival in zip(served, arrivals, strict=True)]
    done = [one.done - arrival.at for one, arrival in zip(served, arrivals, strict=True)]
    return {
        "tokens/s": sum(len(one.tokens) for one in served) / max(one.done for one in served),
        "first, median": statistics.median(first),
        "first, 90 %": float(np.quantile(first, 0.9)),
        "done, median": statistics.median(done),
    }


def measure(session: Session, arrivals: list[Arrival], slots: int, repeats: int) -> list[dict]:
    """One row per way; ways take turns, the first turn warms up and is dropped."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    answers: dict[str, list[tuple[int, ...]]] = {}
    for turn in range(repeats + 1):
        for name, way in WAYS.items():
            served = way(session, arrivals, slots)
            answers[name] = [one.tokens for one in served]
            if turn:
                runs[name].append(numbers(arrivals, served))
    return [_row(name, runs, answers) for name in WAYS]


def _row(
    name: str,
    runs: dict[str, list[dict[str, float]]],
    answers: dict[str, list[tuple[int, ...]]],
) -> dict:
    base = next(iter(WAYS))
    medians = {key: statistics.median(run[key] for run in runs[name]) for key in runs[name][0]}
    pairs = zip(runs[name], runs[base], strict=True)
    ratio = statistics.median(mine["tokens/s"] / other["tokens/s"] for mine, other in pairs)
    same = sum(a == b for a, b in zip(answers[name], answers[base], strict=True))
    return {"way": name, **medians, "ratio": ratio, "same tokens": same}


def table(rows: list[dict], count: int) -> str:
    lines = [
        "| | tokens/s | x | first token: median, 90 % (s) | done: median (s) | same tokens |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        first = f"{row['first, median']:.2f}, {row['first, 90 %']:.2f}"
        cells = [row["way"], f"{row['tokens/s']:.1f}", f"{row['ratio']:.2f}", first]
        cells += [f"{row['done, median']:.2f}", f"{row['same tokens']} of {count}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def section(given: argparse.Namespace, pipeline: str, arrivals: list[Arrival], made: str) -> str:
    prompts = sum(len(arrival.request.prompt) for arrival in arrivals)
    news = sum(arrival.request.max_new_tokens for arrival in arrivals)
    return (
        f"`python benchmarks/batching.py {given.bundle.name} --rate {given.rate:g} "
        f"--repeats {given.repeats}`, {datetime.date.today().isoformat()}, ONNX Runtime "
        f"{onnxruntime.__version__}, CPU. The bundle's passes: `{pipeline}`. {len(arrivals)} "
        f"requests arrive at random, {given.rate:g} a second, with {prompts} prompt tokens and "
        f"{news} new ones in all; {given.slots} run at once. Ways take turns; medians of "
        f"{given.repeats} runs.\n\n{made}"
    )


def tokens_of(opened: OpenBundle) -> np.ndarray:
    """All text of the bundle's reference, one after the other."""
    path = opened.bundle.reference
    if path is None:
        raise SystemExit("the bundle carries no reference samples to take text from")
    samples = load_reference(path).samples
    return np.concatenate([sample.inputs[TOKENS].reshape(-1) for sample in samples])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--rate", type=float, default=4.0, help="requests per second")
    parser.add_argument("--slots", type=int, default=8, help="requests that run at once")
    parser.add_argument("--longest", type=int, default=256, help="tokens of the longest prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="put the table into the page")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    given = arguments()
    with open_bundle(given.bundle, verify_hashes=False) as opened:
        text = tokens_of(opened)
        arrivals = stream(text, given.seed, given.requests, given.rate, given.longest)
        rows = measure(opened.session, arrivals, given.slots, given.repeats)
        pipeline = opened.bundle.manifest.pipeline
    made = table(rows, len(arrivals))
    print(made)
    if given.json:
        facts = {key: str(value) for key, value in vars(given).items()}
        given.json.write_text(json.dumps({"facts": facts, "rows": rows}, indent=2) + "\n")
    if given.write:
        body = section(given, pipeline, arrivals, made)
        PAGE.write_text(replace_section(PAGE.read_text(encoding="utf-8"), TITLE, body))


if __name__ == "__main__":
    main()
