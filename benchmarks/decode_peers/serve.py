"""What every contender of `decode_cpu.py` does: answer requests on a pipe, and time its own tokens.

A request is one line of JSON, `{"prompt": [ids], "new_tokens": n}`; so is the answer:
`ttft`, seconds from the prompt to its first new token; `decode`, seconds of the tokens after it;
`tokens`; `rss`, the largest resident memory of the process so far, in bytes. A worker that waits
for its turn sleeps in `readline` and costs nothing.

This file needs nothing but Python: it runs in the environment of each contender.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable

Emit = Callable[[int], None]
Generate = Callable[[list[int], int, Emit], None]
"""Emits greedy tokens after a prompt, as they come, past any end-of-sequence token."""


def serve(generate: Generate, version: str) -> None:
    """Answer until the pipe closes."""
    # Libraries print what they like; answers go where only we write.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _write(answers, {"version": version})
    for line in sys.stdin:
        request = json.loads(line)
        _write(answers, _timed(generate, request["prompt"], request["new_tokens"]))


def _write(answers: object, answer: dict[str, object]) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def _timed(generate: Generate, prompt: list[int], new_tokens: int) -> dict[str, object]:
    times, tokens = [time.perf_counter()], list[int]()

    def emit(token: int) -> None:
        times.append(time.perf_counter())
        tokens.append(token)

    generate(prompt, new_tokens, emit)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    first, last = times[1] - times[0], times[-1] - times[1]
    return {"ttft": first, "decode": last, "tokens": tokens, "rss": peak}
