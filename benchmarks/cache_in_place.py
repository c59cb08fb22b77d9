"""What does a decoding step cost, with the cache where it is, and with arrays in and out?

    python benchmarks/cache_in_place.py BUNDLE [--used 256] [--rooms 512,4096] [--steps 32]

A cache holds `used` tokens and has room for more. `in place` is the session's own cache, `arrays`
feeds past keys and values to `run` and takes the present ones back. Ways take turns; each number is
the median over all steps, in processor milliseconds of one thread, which waiting for a processor
does not enter. `ours` is the share of a step spent outside the runtime, in wall time: feeding,
choosing the token, keeping account.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import numpy as np

from optc.bundle.read import read_bundle
from optc.core.session import Cache, Session
from optc.ir.interface import LENGTHS, LOGITS, TOKENS
from optc.runtime.cache import ArrayCache, make_cache
from optc.runtime.sampling import GREEDY, choose
from optc.targets.ort import Ort

WAYS = {"in place": make_cache, "arrays": ArrayCache}
ROUNDS = 3


@dataclasses.dataclass
class Cost:
    """Seconds of each step: processor time, wall time, and of the latter inside the runtime."""

    processor: list[float] = dataclasses.field(default_factory=list)
    wall: list[float] = dataclasses.field(default_factory=list)
    inside: list[float] = dataclasses.field(default_factory=list)

    @property
    def lists(self) -> tuple[list[float], ...]:
        """All three."""
        return self.processor, self.wall, self.inside


def prefilled(session: Session, way: str, room: int, used: int) -> Cache:
    """A cache of one row with room for `room` tokens, of which `used` are there."""
    cache = WAYS[way](session, 1, room)
    tokens = np.random.default_rng(0).integers(0, 1000, (1, used))
    cache.step({TOKENS: tokens, LENGTHS: np.zeros(1, np.int64)}, (LOGITS,))
    return cache


def decode(cache: Cache, used: int, steps: int, cost: Cost) -> None:
    """Greedy steps after `used` tokens, the first of which is not counted."""
    token, rng = 1, GREEDY.rng(0)
    for index in range(steps + 1):
        before = time.process_time(), time.perf_counter(), cache.seconds
        feeds = {TOKENS: np.array([[token]]), LENGTHS: np.array([used + index])}
        token = choose(cache.step(feeds, (LOGITS,))[LOGITS][0, 0], GREEDY, rng)
        after = time.process_time(), time.perf_counter(), cache.seconds
        if index:
            for found, start, end in zip(cost.lists, before, after, strict=True):
                found.append(end - start)


def measure(session: Session, rooms: list[int], used: int, steps: int) -> dict[tuple, Cost]:
    found = {(way, room): Cost() for room in rooms for way in WAYS}
    for (way, room), cost in list(found.items()) * ROUNDS:
        decode(prefilled(session, way, room, used), used, steps, cost)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--used", type=int, default=256, help="tokens in the cache")
    parser.add_argument("--rooms", default="512,4096", help="tokens that it has room for")
    parser.add_argument("--steps", type=int, default=32)
    given = parser.parse_args()
    folder = read_bundle(given.bundle).folder
    with Ort(threads=1).open(folder) as session:
        rooms = [int(room) for room in given.rooms.split(",")]
        found = measure(session, rooms, given.used, given.steps)
    print("| cache | room | processor ms per step | ours |\n|---|---|---|---|")
    for (way, room), cost in found.items():
        ours = 1 - sum(cost.inside) / sum(cost.wall)
        print(f"| {way} | {room} | {1e3 * statistics.median(cost.processor):.1f} | {ours:.1%} |")


if __name__ == "__main__":
    main()
