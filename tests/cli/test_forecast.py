"""A build that will not fit is refused before it starts, with numbers and a way out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from optc.api import forecast
from optc.api.evidence import Wanted
from optc.api.forecast import Machine, check_forecast, make_forecast
from optc.core.base import Aside, Pass, PassResult
from optc.core.context import Context, silent
from optc.core.errors import NotEnoughDiskError, NotEnoughMemoryError
from optc.ir.streamed import StreamedTensor

GB = 10**9
MODEL = "tiny/model.onnx"
Optc = Callable[..., Any]


class Quarter(Pass):
    """Leaves a quarter of every weight."""

    name = "quarter"

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        raise AssertionError("a forecast runs nothing")

    def footprint(self, model: ir.Model, weights: int) -> int:
        return weights // 4


class Fake(Machine):
    """A machine with so many bytes of memory, and of disk where a name begins so."""

    def __init__(self, memory: int | None, **disks: int):
        self._memory, self._disks = memory, disks

    def memory(self) -> int | None:
        return self._memory

    def disk(self, folder: Path) -> tuple[int, int]:
        for number, (name, free) in enumerate(self._disks.items()):
            if name in folder.parts:
                return number, free
        return -1, 1000 * GB


def model(count: int, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    """A graph with `count` bytes of weights that nobody reads."""

    def part(rows: slice, columns: slice) -> Any:
        raise AssertionError("a forecast reads no weight")

    made = ir.from_onnx_text(
        '<ir_version: 11, opset_import: ["": 24]> g (float[n] x) => (float[n] y) { y = Neg(x) }'
    )
    shape = (count // int(dtype.itemsize) // 1000, 1000)
    tensor = StreamedTensor(part, dtype, shape)
    made.graph.register_initializer(ir.Value(name="w", const_value=tensor))
    return made


def needs(
    count: int,
    passes: tuple[Pass, ...] = (),
    *,
    dtype: ir.DataType = ir.DataType.FLOAT,
    way_out: str = "give --evidence none",
    dump: str | None = None,
) -> forecast.Forecast:
    return make_forecast(
        model(count, dtype),
        [passes],
        Path("/out/model.optc"),
        None if dump is None else Path(dump),
        way_out=way_out,
    )


def test_without_evidence_memory_does_not_grow_with_the_weights() -> None:
    small, large = (needs(size, way_out="").memory for size in (GB, 100 * GB))
    assert small == large < 1.5 * 2**30


def test_with_evidence_it_does() -> None:
    assert needs(10 * GB).memory > 15 * GB


def test_calibrating_runs_the_graph_too() -> None:
    assert not Wanted("none").way_out
    assert Wanted("none", calibration="some.npz").way_out


def test_half_precision_is_widened_where_it_runs() -> None:
    assert needs(10 * GB, dtype=ir.DataType.FLOAT16).memory > needs(10 * GB).memory + 10 * GB


def test_weights_in_memory_count_as_such() -> None:
    held = model(GB)
    held.graph.initializers["w"].const_value = ir.Tensor(np.zeros((1000, 1000), np.float32))
    frugal = make_forecast(held, [()], Path("/o/m.optc"), way_out="")
    assert frugal.memory - needs(GB, way_out="").memory == 2 * 4_000_000


def test_the_bundle_is_as_large_as_the_last_pass_leaves_it() -> None:
    folder = Path("/out")
    small, large = (needs(8 * GB, p, way_out="").disk[folder] for p in ((Quarter(),), ()))
    assert large - small == 6 * GB


def test_graphs_are_written_where_temporary_files_go_only_if_they_are_run() -> None:
    folder = Path(tempfile.gettempdir())
    assert needs(8 * GB, (Quarter(),)).disk[folder] == 8 * GB
    assert folder not in needs(8 * GB, (Quarter(),), way_out="").disk


class Trying(Quarter):
    """Adds a gigabyte to a graph that it tries, and puts another two aside."""

    def aside(self, model: ir.Model) -> Aside:
        return Aside(trial=GB, kept=2 * GB)


def test_what_passes_try_and_put_aside_counts_where_graphs_are_run() -> None:
    folder = Path(tempfile.gettempdir())
    plain, trying = (needs(8 * GB, (p,)) for p in (Quarter(), Trying()))
    assert trying.memory - plain.memory == GB
    assert trying.disk[folder] - plain.disk[folder] == 3 * GB
    assert needs(8 * GB, (Trying(),), way_out="") == needs(8 * GB, (Quarter(),), way_out="")


def test_two_engines_try_one_after_the_other_and_keep_both() -> None:
    folder, chains = Path(tempfile.gettempdir()), [(Trying(),), (Trying(),)]
    both = make_forecast(model(8 * GB), chains, Path("/o/m.optc"), way_out="-")
    assert both.disk[folder] == 8 * GB + GB + 4 * GB
    assert both.memory == needs(8 * GB, (Trying(),)).memory


def test_graphs_that_are_kept_add_up() -> None:
    assert needs(8 * GB, (Quarter(),), dump="/keep").disk[Path("/keep")] == 10 * GB


def test_what_fits_is_not_refused() -> None:
    check_forecast(needs(8 * GB), log=silent, machine=Fake(40 * GB))
    check_forecast(needs(8 * GB), log=silent, machine=Fake(None))


def test_too_little_memory_names_both_numbers_and_a_way_out() -> None:
    said = r"needs about 12\.8 GB of memory, 6 GB are free; give --evidence none: no graph is run "
    said += r"then, and it takes about 0\.805 GB; or give --force"
    with pytest.raises(NotEnoughMemoryError, match=said):
        check_forecast(needs(8 * GB), log=silent, machine=Fake(6 * GB))
    frugal = needs(8 * GB, way_out="")
    with pytest.raises(NotEnoughMemoryError, match="end other programs, or give --force"):
        check_forecast(frugal, log=silent, machine=Fake(GB // 2))


@pytest.mark.parametrize(
    ("evidence", "calibration", "said"),
    [
        ("full", None, "; give --evidence none: no graph"),
        ("full", "c.npz", "; give --evidence none and leave out --calibration ("),
        ("none", "c.npz", "; leave out --calibration (quant:scheme=w8 and quant:method=rtn need"),
    ],
)
def test_the_way_out_is_one_that_was_not_taken_yet(
    evidence: str, calibration: str | None, said: str
) -> None:
    wanted = Wanted(evidence, calibration=calibration)
    with pytest.raises(NotEnoughMemoryError) as caught:
        check_forecast(needs(8 * GB, way_out=wanted.way_out), log=silent, machine=Fake(6 * GB))
    assert said in str(caught.value)


def test_too_little_disk_for_temporary_files_names_the_folder_and_tmpdir() -> None:
    machine = Fake(100 * GB, **{Path(tempfile.gettempdir()).parts[1]: 5 * GB})
    with pytest.raises(NotEnoughDiskError) as caught:
        check_forecast(needs(8 * GB), log=silent, machine=machine)
    said = str(caught.value)
    assert f"{tempfile.gettempdir()}: the build writes about 8 GB, 5 GB are free there" in said
    assert "point TMPDIR to another disk" in said
    assert caught.value.exit_code == 3


def test_folders_on_one_disk_share_its_room() -> None:
    together = needs(8 * GB, way_out="", dump="/out/keep")
    check_forecast(together, log=silent, machine=Fake(100 * GB, out=17 * GB))
    with pytest.raises(
        NotEnoughDiskError, match=r"^/out and /out/keep: .* 16\.1 GB, 16 GB are free"
    ):
        check_forecast(together, log=silent, machine=Fake(100 * GB, out=16 * GB))


def test_force_goes_on_and_says_so() -> None:
    said: list[str] = []
    check_forecast(needs(8 * GB), force=True, log=said.append, machine=Fake(GB, out=GB))
    assert len(said) == 2
    assert "12.8 GB of memory" in said[0]
    assert said[1].endswith("going on, since --force was given")


def test_the_command_refuses_before_anything_is_run(
    here: Path, optc: Optc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast, "free_memory_bytes", lambda: 1000)
    outcome = optc("build", MODEL, "--passes", "flash,kv")
    assert outcome.code == 3
    assert "give --evidence none: no graph is run then" in outcome.err
    assert not (here / "tiny.optc").exists()
    outcome = optc("build", MODEL, "--passes", "flash,kv", "--force")
    assert outcome.code == 0, outcome.err
    assert "going on, since --force was given" in outcome.err
