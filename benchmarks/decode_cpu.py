"""How fast is one prompt on this CPU: time to the first token, tokens per second, memory.

    python benchmarks/decode_cpu.py [--model smollm2] [--only 'optc*;OpenVINO*'] [--write]

Every contender runs the same checkpoint, the same 512 tokens and 128 greedy tokens after them, in
a process of its own. Contenders take turns: each round asks every one once, so what the machine
does meanwhile falls on all. The first round warms up and is dropped; numbers are medians, ratios
are to PyTorch eager in float32. Memory is the process's peak. The first run makes the environments
of the peers and converts the models, in `build/`: that takes a while.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fnmatch
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from decode_contenders import CONTENDERS, PEERS, Contender
from decode_table import TITLE, Result, Row, section
from page import PAGE, machine, replace_section
from peer_environments import ROOT

MODELS = ("smollm2", "llama")
BASE = CONTENDERS[0]


class Worker:
    """A contender, waiting for its turn."""

    def __init__(self, contender: Contender, folder: Path, threads: int):
        self.contender = contender
        self._process = contender.start(folder, threads)
        self.size = contender.size(folder)
        self.version = str(self._read()["version"])

    def ask(self, prompt: Sequence[int], new_tokens: int) -> Result:
        """One prompt."""
        assert self._process.stdin is not None
        request = {"prompt": list(prompt), "new_tokens": new_tokens}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Result(**self._read())

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.contender.name} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def workers(chosen: Sequence[Contender], folder: Path, threads: int) -> Iterator[list[Worker]]:
    """All that can be prepared; the others are named with their reason."""
    found: list[Worker] = []
    try:
        for contender in chosen:
            print(f"preparing {contender.name}", file=sys.stderr)
            try:
                found.append(Worker(contender, folder, threads))
            except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                print(f"left out: {contender.name}: {error}", file=sys.stderr)
        yield found
    finally:
        for worker in found:
            worker.close()


def prepare_model(name: str) -> Path:
    """The folder that all contenders make their files from."""
    folder = ROOT / "build" / "decode" / name
    if not (folder / "f32.gguf").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(PEERS / "prepare_models.py"), name, str(folder)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return folder


def prompt_of(name: str, folder: Path, length: int) -> list[int]:
    """Text of our own documentation; random tokens for the model with random weights."""
    import numpy as np
    import tokenizers

    if name == "llama":
        return np.random.default_rng(0).integers(3, 32000, length).tolist()
    text = "\n".join(p.read_text(encoding="utf-8") for p in sorted((ROOT / "docs").glob("*.md")))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "hf" / "tokenizer.json"))
    return list(tokenizer.encode(text[: 16 * length]).ids[:length])


def measure(found: list[Worker], prompt: list[int], new_tokens: int, rounds: int) -> list[Row]:
    """Rounds in turns, the first one dropped."""
    results: dict[str, list[Result]] = {worker.contender.name: [] for worker in found}
    for turn in range(rounds + 1):
        for worker in found:
            result = worker.ask(prompt, new_tokens)
            results[worker.contender.name].append(result)
            print(
                f"round {turn}: {worker.contender.name}: {result.ttft * 1e3:.0f} ms, "
                f"{result.rate:.1f} tokens/s",
                file=sys.stderr,
            )
    return [_row(worker, results[worker.contender.name]) for worker in found]


def _row(worker: Worker, results: list[Result]) -> Row:
    timed = results[1:]
    return Row(
        name=worker.contender.name,
        version=worker.version,
        exact=worker.contender.exact,
        ttft=statistics.median(r.ttft for r in timed),
        rate=statistics.median(r.rate for r in timed),
        size=worker.size,
        rss=max(r.rss for r in results),
        tokens=results[0].tokens,
        overhead=max((r.overhead for r in timed if r.overhead is not None), default=None),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, action="append", help="default: both")
    parser.add_argument("--only", default="*", help="patterns of contenders, by semicolons")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--new", type=int, default=128, help="new tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true", help="all numbers, as JSON")
    parser.add_argument("--write", action="store_true", help="put the tables into the docs")
    options = parser.parse_args()
    if min(options.prompt, options.rounds, options.threads, options.new - 1) < 1:
        parser.error("--prompt, --rounds and --threads start at 1, --new at 2")
    patterns = options.only.split(";")
    chosen = [c for c in CONTENDERS if any(fnmatch.fnmatch(c.name, p) for p in patterns)]
    if not chosen:
        parser.error(f"no contender is called {options.only}")
    if BASE not in chosen:
        chosen.insert(0, BASE)
    tables = {}
    for name in options.model or MODELS:
        folder = prepare_model(name)
        prompt = prompt_of(name, folder, options.prompt)
        with workers(chosen, folder, options.threads) as found:
            tables[name] = measure(found, prompt, options.new, options.rounds)
    text = section(tables, options, machine())
    if options.json:
        rows = {name: [dataclasses.asdict(r) for r in table] for name, table in tables.items()}
        print(json.dumps(rows, indent=1))
    else:
        print(text)
    if options.write:
        PAGE.write_text(replace_section(PAGE.read_text(encoding="utf-8"), TITLE, text), "utf-8")


if __name__ == "__main__":
    main()
