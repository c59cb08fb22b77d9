"""Pipeline text reads as passes and prints back as the same passes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_passes import TABLE, Late, Plain, Tune

from optc.core.base import Pass
from optc.core.errors import UsageError
from optc.core.grammar import parse_pass, parse_passes, print_pass, print_passes
from optc.core.registry import Registry

REGISTRY: Registry[Pass] = Registry("pass", "passes", Pass, TABLE, points=[])

tunes = st.builds(
    Tune,
    level=st.integers(1, 9),
    ratio=st.floats(0, 1),
    keep_last=st.booleans(),
    scheme=st.sampled_from(["int8", "int4", "fp8"]),
    group=st.sampled_from([32, 64, 128]),
    limit=st.none() | st.integers(0, 10**12),
)


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("plain", [Plain()]),
        ("late,plain", [Late(), Plain()]),
        (" late , plain ", [Late(), Plain()]),
        ("tune:level=5", [Tune(level=5)]),
        ("tune:keep-last=yes", [Tune(keep_last=True)]),
        ("tune:keep_last=yes", [Tune(keep_last=True)]),
        ("tune:ratio=1e-1:scheme=int4:group=32", [Tune(ratio=0.1, scheme="int4", group=32)]),
        ("tune:limit=7,plain", [Tune(limit=7), Plain()]),
        ("tune:limit=none", [Tune()]),
    ],
)
def test_text_reads_as_passes_in_the_order_written(text: str, passes: list[Pass]) -> None:
    assert parse_passes(text, REGISTRY) == passes


def test_a_bare_value_sets_the_first_option() -> None:
    assert parse_pass("tune:7:scheme=int4", REGISTRY) == Tune(level=7, scheme="int4")


def test_printing_leaves_out_defaults_and_keeps_field_order() -> None:
    assert print_passes([Late(), Tune()]) == "late,tune"
    assert (
        print_pass(Tune(limit=4, keep_last=True, level=1)) == "tune:level=1:keep-last=true:limit=4"
    )


@given(tunes)
@settings(deadline=None)
def test_printed_options_read_back_as_the_same_pass(tune: Tune) -> None:
    assert parse_pass(print_pass(tune), REGISTRY) == tune


@given(st.permutations([Tune(level=2, group=64), Late(), Plain()]), st.integers(1, 3))
@settings(deadline=None)
def test_printed_pipelines_read_back_as_the_same_passes(passes: list[Pass], count: int) -> None:
    text = print_passes(passes[:count])
    assert parse_passes(text, REGISTRY) == passes[:count]
    assert print_passes(parse_passes(text, REGISTRY)) == text


words = st.sampled_from(
    [
        "tune",
        "plain",
        "late",
        "level",
        "ratio",
        "limit",
        "9",
        "-1",
        "nan",
        "none",
        ":",
        ",",
        "=",
        "",
    ]
)


def parse(text: str) -> list[Pass] | UsageError:
    try:
        return parse_passes(text, REGISTRY)
    except UsageError as error:
        return error


@given(st.text(max_size=20) | st.lists(words, max_size=12).map("".join))
@settings(deadline=None, max_examples=300)
def test_any_text_gives_passes_or_one_sentence(text: str) -> None:
    answer = parse(text)
    if isinstance(answer, UsageError):
        assert len(str(answer).splitlines()) == 1
    else:
        assert parse(print_passes(answer)) == answer


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--passes: no pass is named; for example 'flash,kv'"),
        (" , ", "--passes: no pass is named; for example 'flash,kv'"),
        ("plain,,late", "--passes: 'plain,,late' has an empty entry between commas"),
        ("plain,late,plain", "--passes: the pass 'plain' is named twice"),
        ("tune:level=1:level=2", "tune:level: the option is given twice"),
        ("tune:level=1:7", "--passes tune: '7' is not of the form option=value"),
        ("tune:", "--passes tune: '' is not of the form option=value"),
        ("tune:scheme", "--passes tune: 'scheme' is not of the form option=value"),
        ("tune:ratio=inf", "tune:ratio: 'inf' is not a finite number"),
        ("tune:ratio=-1e999", "tune:ratio: '-1e999' is not a finite number"),
        ("tune:ratio=nan", "tune:ratio: 'nan' is not a finite number"),
    ],
)
def test_malformed_text_is_one_sentence_that_names_the_place(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_passes(text, REGISTRY)
    assert str(caught.value) == message
