"""Limits: defaults by promise, files, and what happens to numbers that are not there."""

from __future__ import annotations

import importlib.resources
import math
from pathlib import Path

import pytest

from optc.core.errors import PolicyFileError
from optc.parity.metrics import Metrics
from optc.parity.policy import Limits, Policy, load_policy

GOOD = Metrics(1e-5, 1e-7, 1.0, 1e-12, 1.0, 1.0, greedy_equal=64, greedy_total=64, max_rel=1e-6)
INT8 = Metrics(1.0, 0.03, 0.999, 0.02, 0.93, 1.02, greedy_equal=50, greedy_total=64, max_rel=0.05)
ENCODER = Metrics(1.0, 0.03, 0.995, max_rel=0.05)


def write(folder: Path, text: str) -> Path:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("promises", "promise"),
    [([], "exact"), (["exact"], "exact"), (["exact", "measured"], "measured")],
)
def test_one_measured_pass_makes_the_pipeline_measured(promises: list[str], promise: str) -> None:
    assert Policy.default(promises).promise == promise


def test_the_exact_default_takes_round_off_and_nothing_else() -> None:
    policy = Policy.default(["exact"])
    assert policy.violations(GOOD) == []
    broken = policy.violations(INT8)
    assert len(broken) == 3
    assert "50 of 64 greedy tokens are equal, the policy asks for all" in broken


def test_one_greedy_token_breaks_an_exact_promise() -> None:
    moved = Metrics(1e-5, 1e-7, 1.0, 1e-12, 1.0, 1.0, 63, 64, max_rel=1e-6)
    (sentence,) = Policy.default(["exact"]).violations(moved)
    assert sentence == "63 of 64 greedy tokens are equal, the policy asks for all"


def test_the_measured_default_bounds_the_damage() -> None:
    policy = Policy.default(["measured"])
    assert policy.violations(INT8) == []
    naive = Metrics(9.0, 0.5, 0.9, 0.56, 0.64, 1.74)
    assert policy.violations(naive) == [
        "the KL divergence of next-token distributions is 0.56, the policy allows at most 0.15",
        "the top-1 agreement is 0.64, the policy allows at least 0.8",
        "the perplexity ratio is 1.74, the policy allows at most 1.1",
    ]


def test_without_logits_the_measured_default_looks_at_the_cosine() -> None:
    policy = Policy.default(["measured"])
    assert policy.violations(ENCODER) == []
    assert policy.violations(Metrics(1.0, 0.3, 0.98)) == [
        "the cosine is 0.98, the policy allows at least 0.99"
    ]


def test_a_promise_can_be_named_for_one_pass() -> None:
    policy = Policy.default(["measured"])
    assert policy.violations(INT8, "measured") == []
    assert policy.violations(INT8, "exact")


def test_nan_violates_every_limit() -> None:
    nan = math.nan
    broken = Metrics(nan, nan, nan, nan, nan, nan, max_rel=nan, faults=("it has NaN",))
    for promise in ("exact", "measured"):
        checks = Policy().checks(broken, promise)
        assert all(check.holds is False for check in checks if check.value is not None)
        assert Policy().violations(broken, promise)[0] == "it has NaN"


def test_what_could_not_be_measured_is_not_judged() -> None:
    checks = {check.key: check for check in Policy().checks(ENCODER, "exact")}
    assert checks["greedy_equal"].holds is None
    assert "was not judged" in checks["greedy_equal"].sentence


def test_a_policy_of_which_nothing_can_be_judged_is_violated() -> None:
    policy = Policy(measured_without_logits=Limits(kl=0.1))
    assert policy.violations(ENCODER, "measured") == ["no rule of the policy can be judged"]


def test_a_file_replaces_the_sections_it_names(tmp_path: Path) -> None:
    text = """
    [exact]
    max_abs = 1e-3
    greedy_equal = 0.5
    [measured.without_logits]
    cosine_min = 0.9
    """
    policy = load_policy(write(tmp_path, text), ["measured"])
    assert policy.promise == "measured"
    assert policy.source == "policy.toml"
    assert policy.exact == Limits(max_abs=1e-3, greedy_equal=0.5)
    assert policy.measured == Policy().measured
    assert policy.measured_without_logits == Limits(cosine_min=0.9)


def test_every_limit_can_be_set_and_is_held(tmp_path: Path) -> None:
    text = """
    [measured]
    max_abs = 0.0
    max_rel = 0.0
    rel_l2 = 0.0
    cosine_min = 1.0
    kl = 0.0
    top1_min = 1.0
    ppl_ratio = 1.0
    greedy_equal = "all"
    """
    policy = load_policy(write(tmp_path, text), ["measured"])
    assert len(policy.violations(INT8)) == 8


def test_the_documented_defaults_are_the_defaults(tmp_path: Path) -> None:
    import optc.parity.policy as module

    assert module.__doc__ is not None
    snippet = module.__doc__.split("\n\n")[1]
    assert load_policy(write(tmp_path, snippet)) == Policy(source="policy.toml")


def test_the_example_file_can_be_read() -> None:
    folder = importlib.resources.files("optc.parity") / "policies"
    with importlib.resources.as_file(folder / "strict_int8.toml") as path:
        policy = load_policy(path, ["measured"])
    assert policy.exact == Policy().exact
    assert policy.measured.kl is not None
    assert Policy().measured.kl is not None
    assert policy.measured.kl < Policy().measured.kl


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[exakt]\nkl = 1", r"there is no section 'exakt'; did you mean 'exact'\?"),
        ("[exact]\nmax_abz = 1", r"\[exact\] has no key 'max_abz'; did you mean 'max_abs'\?"),
        (
            "[measured.without_logits]\ncosine = 1",
            r"has no key 'cosine'; did you mean 'cosine_min'",
        ),
        ("exact = 3", "'exact' is not a section"),
        ("[measured]\nwithout_logits = 3", "'measured.without_logits' is not a section"),
        ("[exact]\nkl = 'small'", "kl = 'small' is not a number from 0 up"),
        ("[exact]\nkl = true", "kl = True is not a number"),
        ("[exact]\nkl = nan", "kl = nan is not a number"),
        ("[exact]\nkl = inf", "kl = inf is not a number"),
        ("[exact]\nkl = -0.1", "kl = -0.1 is not a number"),
        ("[exact]\ntop1_min = 80", "top1_min = 80 can never hold"),
        ("[exact]\ngreedy_equal = 'most'", "greedy_equal = 'most' is not a number"),
        ("[exact\nkl = 1", "not a TOML file"),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(PolicyFileError, match=message) as error:
        load_policy(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_binary_file(tmp_path: Path) -> None:
    with pytest.raises(PolicyFileError, match="cannot be read: No such file"):
        load_policy(tmp_path / "none.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyFileError, match="not a TOML file"):
        load_policy(binary)


def test_as_dict_has_the_keys_of_the_file() -> None:
    document = Policy.default(["measured"]).as_dict()
    assert document["promise"] == "measured"
    assert document["exact"] == {"max_rel": 1e-4, "rel_l2": 2e-5, "greedy_equal": 1.0}
    assert document["measured"]["without_logits"] == {"cosine_min": 0.99}


def test_a_graph_in_half_precision_has_wider_bounds_and_the_same_tokens() -> None:
    limits = Limits(max_rel=1e-4, rel_l2=2e-5, greedy_equal=1.0)
    half = limits.in_half_precision()
    assert half.rel_l2 == pytest.approx(2e-3)
    assert half.max_rel == pytest.approx(1e-2)
    assert half.greedy_equal == 1.0
