"""The stream of requests, and that every way to serve it gives every request its tokens."""

from __future__ import annotations

import numpy as np
import pytest
from batching import WAYS, Served, measure, numbers, stream, table
from page import replace_section
from tiny_generator import VOCAB, tiny_language_model

from optc.runtime.generate import generate
from optc.targets.evaluate import open_model
from optc.targets.ort import Ort

TEXT = np.arange(VOCAB)


def test_the_same_seed_gives_the_same_stream_and_another_gives_another() -> None:
    one = stream(TEXT, 3, 20, 4.0, 64)
    assert one == stream(TEXT, 3, 20, 4.0, 64)
    assert one != stream(TEXT, 4, 20, 4.0, 64)


def test_a_stream_has_mixed_lengths_and_arrives_at_its_rate() -> None:
    arrivals = stream(TEXT, 0, 2000, 4.0, 64)
    gaps = np.diff([arrival.at for arrival in arrivals])
    # Four standard errors of the mean of 1999 exponential gaps of 0.25 s.
    assert abs(gaps.mean() - 0.25) < 4 * 0.25 / np.sqrt(1999)
    lengths = {len(arrival.request.prompt) for arrival in arrivals}
    assert (min(lengths), max(lengths)) == (8, 64)
    assert len(lengths) > 40


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("slots", [1, 3, 16])
def test_every_way_serves_every_request_after_its_arrival(way: str, slots: int) -> None:
    arrivals = stream(TEXT, 1, 8, 50.0, 16)
    places = sum((a.request.max_new_tokens for a in arrivals), 16)
    with open_model(Ort().lower(tiny_language_model("concat", places=places))) as session:
        served = WAYS[way](session, arrivals, slots)
        for arrival, one in zip(arrivals, served, strict=True):
            asked = arrival.request
            alone = generate(session, [asked.prompt], max_new_tokens=asked.max_new_tokens)
            assert one.tokens == alone.tokens[0]
            assert arrival.at <= one.first <= one.done


def test_what_is_reported_adds_up() -> None:
    arrivals = stream(TEXT, 1, 2, 1.0, 16)
    later = arrivals[1].at
    served = [Served(1.0, 2.0, (1, 2, 3)), Served(later + 3.0, later + 4.0, (1,))]
    found = numbers(arrivals, served)
    assert found["tokens/s"] == 4 / (later + 4.0)
    assert found["first, median"] == 2.0
    assert found["done, median"] == 3.0


def test_the_table_has_a_line_per_way() -> None:
    with open_model(Ort().lower(tiny_language_model("concat", places=200))) as session:
        rows = measure(session, stream(TEXT, 1, 4, 50.0, 16), slots=2, repeats=1)
    assert [row["way"] for row in rows] == list(WAYS)
    assert rows[0]["ratio"] == 1
    assert all(row["same tokens"] == 4 for row in rows)
    assert [line.count("|") for line in table(rows, 4).splitlines()] == [7] * 5


PAGE = "# Page\n\n## One\n\nold\n\n## Two\n\nrest\n"


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("## One", "# Page\n\n## One\n\nnew\n\n## Two\n\nrest\n"),
        ("## Two", "# Page\n\n## One\n\nold\n\n## Two\n\nnew\n"),
        ("## Three", PAGE + "\n## Three\n\nnew\n"),
    ],
)
def test_a_section_is_replaced_where_it_is(title: str, expected: str) -> None:
    page = PAGE
    for _ in range(2):
        page = replace_section(page, title, "\nnew\n")
        assert page == expected
