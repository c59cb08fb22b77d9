"""`Pipeline.run`: passes in order, hooks around each, and a clear stop when something is wrong."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from toy_passes import Broken, Idle, Late, Plain, Tune, empty_model

from optc.core.base import Pass
from optc.core.context import Context
from optc.core.errors import NoRewriteError, ParityError, PassContractError, UnsupportedError
from optc.core.hooks import Hook, Step, TimeHook
from optc.core.pipeline import Pipeline
from optc.core.registry import Registry


class Diary(Hook):
    """Writes down what it is called with, and whether the pass had run by then."""

    def __init__(self, name: str, pages: list[str]):
        self.name = name
        self.pages = pages

    def _write(self, what: str, model: ir.Model) -> None:
        self.pages.append(f"{self.name} {what} [{model.metadata_props.get('marks', '')}]")

    def start(self, model: ir.Model) -> None:
        self._write("start", model)

    def before(self, p: Pass, model: ir.Model) -> None:
        self._write(f"before {p.name}", model)

    def after(self, p: Pass, model: ir.Model, step: Step) -> None:
        self._write(f"after {step.name}", model)


class Judge(Hook):
    """Refuses what the named pass left."""

    def __init__(self, name: str):
        self.name = name

    def after(self, p: Pass, model: ir.Model, step: Step) -> None:
        if p.name == self.name:
            raise ParityError("the outputs moved by 0.5", where=f"pass '{p.name}'")


def test_text_becomes_passes_in_effective_order(registry: Registry[Pass]) -> None:
    pipeline = Pipeline.parse("late,tune:level=5,plain", registry)
    assert pipeline.passes == (Tune(level=5), Plain(), Late())
    assert str(pipeline) == "tune:level=5,plain,late"
    assert pipeline.texts == ["tune:level=5", "plain", "late"]
    assert Pipeline(()).texts == []
    assert Pipeline.parse(str(pipeline), registry) == pipeline


def test_passes_edit_the_model_in_place_and_leave_one_step_each() -> None:
    model = empty_model()
    steps = Pipeline((Plain(), Tune(level=4))).run(model, Context())
    assert model.metadata_props["marks"] == "plain tune"
    assert [step.text for step in steps] == ["plain", "tune:level=4"]
    assert [step.result.rewrites for step in steps] == [1, 1]


def test_hooks_run_around_each_pass_in_the_order_given() -> None:
    pages: list[str] = []
    Pipeline((Plain(), Late())).run(
        empty_model(), Context(), [Diary("1", pages), Diary("2", pages)]
    )
    assert pages == [
        "1 start []",
        "2 start []",
        "1 before plain []",
        "2 before plain []",
        "1 after plain [plain]",
        "2 after plain [plain]",
        "1 before late [plain]",
        "2 before late [plain]",
        "1 after late [plain late]",
        "2 after late [plain late]",
    ]


def test_a_hook_that_raises_stops_the_pipeline_before_the_next_pass() -> None:
    model = empty_model()
    with pytest.raises(ParityError, match="pass 'plain': the outputs moved"):
        Pipeline((Plain(), Late())).run(model, Context(), [Judge("plain")])
    assert model.metadata_props["marks"] == "plain"


def test_a_pass_that_does_nothing_is_an_error_with_its_reasons() -> None:
    with pytest.raises(NoRewriteError) as caught:
        Pipeline((Idle(sites=2),)).run(empty_model(), Context())
    assert str(caught.value) == (
        "pass 'idle': nothing was rewritten: site0: too narrow by 0; site1: too narrow by 1; "
        "drop the pass or give --allow-noop"
    )
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("idle", "why"),
    [
        (Idle(sites=5), "site2: too narrow by 2 (and 2 more)"),
        (
            Idle(note="the model has no attention"),
            "nothing was rewritten: the model has no attention",
        ),
        (Idle(), "nothing was rewritten: no site was found"),
    ],
)
def test_the_reason_is_short_and_never_missing(idle: Idle, why: str) -> None:
    with pytest.raises(NoRewriteError) as caught:
        Pipeline((idle,)).run(empty_model(), Context())
    assert why in str(caught.value)


def test_a_pass_that_does_nothing_can_be_allowed() -> None:
    steps = Pipeline((Idle(sites=1), Plain()), allow_noop=True).run(empty_model(), Context())
    assert [step.result.rewrites for step in steps] == [0, 1]
    assert steps[0].result.refusals[0].reason == "too narrow by 0"


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("run", "KeyError: 'hidden_size'"),
        ("ensures", "ZeroDivisionError: no sites to average over"),
    ],
)
def test_a_foreign_exception_becomes_a_contract_error_that_names_the_history(
    where: str, what: str
) -> None:
    with pytest.raises(PassContractError) as caught:
        Pipeline((Plain(), Tune(level=2), Broken(where))).run(empty_model(), Context())
    expected = f"pass 'broken': stopped with {what} (passes run before it: plain, tune:level=2)"
    assert str(caught.value) == expected
    assert caught.value.exit_code == 4
    assert type(caught.value.__cause__).__name__ in what


def test_the_history_of_the_first_pass_is_none() -> None:
    with pytest.raises(PassContractError, match=r"\(passes run before it: none\)"):
        Pipeline((Broken("run"),)).run(empty_model(), Context())


@pytest.mark.parametrize(
    ("where", "kind"), [("requires", UnsupportedError), ("told", PassContractError)]
)
def test_our_own_errors_pass_through_as_they_are(where: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        Pipeline((Broken(where),)).run(empty_model(), Context())
    assert caught.value.__cause__ is None


def test_a_pass_whose_requirement_fails_leaves_the_model_alone() -> None:
    model = empty_model()
    with pytest.raises(UnsupportedError):
        Pipeline((Broken("requires"),)).run(model, Context())
    assert "marks" not in model.metadata_props


def test_the_time_hook_fills_in_seconds_and_memory() -> None:
    (step,) = Pipeline((Plain(),)).run(empty_model(), Context(), [TimeHook()])
    assert 0 < step.seconds < 60
    assert step.peak_rss > 2**20
