"""Error per site: what the page draws of it, and the list of the worst."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from optc.parity.metrics import Metrics
from optc.parity.report import Row, render_html
from optc.parity.site_plot import HEIGHT, WIDTH, SitePlot, site_plot

KL = "KL divergence (nats)"


def site(name: str, width: str = "w8a8", **more: object) -> dict[str, object]:
    return {"site": name, "width": width, **more}


def plot(*sites: object, **more: object) -> SitePlot:
    found = site_plot({"sites": list(sites), **more})
    assert found is not None
    return found


def page(details: dict[str, Any]) -> str:
    metrics = Metrics(0.1, 0.1, 0.99)
    row = Row("quant", "quant", "measured", metrics, details=details)
    return render_html([row], title="m", pipeline="quant", source="graph")


def heights(drawn: SitePlot) -> list[float]:
    return [HEIGHT - bar.top for bar in drawn.bars]


def test_bars_are_in_graph_order_and_ten_times_the_cost_is_one_tick_more() -> None:
    drawn = plot(site("a", cost=1e-3), site("b", cost=1e-1), site("c", cost=1e-2))
    assert [bar.text.split(":")[0] for bar in drawn.bars] == ["a", "b", "c"]
    assert [label for _, label in drawn.ticks] == ["1e-4", "1e-3", "1e-2", "1e-1"]
    nothing, *ticks = (HEIGHT - top for top, _ in drawn.ticks)
    assert nothing == 0
    assert heights(drawn) == pytest.approx([ticks[0], ticks[2], ticks[1]])


def test_bars_fill_the_width_and_do_not_touch() -> None:
    drawn = plot(*(site(f"s{n}", cost=0.5) for n in range(400)))
    ends = [bar.x + bar.width for bar in drawn.bars]
    assert drawn.bars[0].x > 0
    assert ends[-1] < WIDTH
    assert ends[-1] > 0.99 * WIDTH
    starts = [bar.x for bar in drawn.bars[1:]]
    assert all(end < start for end, start in zip(ends, starts, strict=False))


def test_a_cost_of_nothing_and_one_far_below_the_others_are_still_seen() -> None:
    drawn = plot(site("a", cost=0.0), site("b", cost=1e-30), site("c", cost=1.0))
    assert heights(drawn)[0] == heights(drawn)[1] > 0
    assert len(drawn.ticks) == 7


@pytest.mark.parametrize("values", [(0.0, 0.0), (1.0, 1.0), (0.3, 0.3), (1e-300, 5e-324)])
def test_any_costs_give_a_scale(values: tuple[float, float]) -> None:
    drawn = plot(*(site(f"s{n}", cost=value) for n, value in enumerate(values)))
    assert len(drawn.ticks) >= 2
    assert all(0 < height <= HEIGHT for height in heights(drawn))


def test_sites_that_read_one_activation_are_one_place() -> None:
    drawn = plot(
        site("q", activation="x", cost=0.1, weight_error=0.01),
        site("k", activation="x", cost=0.1, weight_error=0.03),
        site("up", activation="y", cost=0.1, weight_error=0.02),
    )
    assert [place.sites for place in drawn.worst] == [("q", "k"), ("up",)]
    assert drawn.worst[0].numbers["weight_error"] == 0.03
    assert len(drawn.bars) == 2


def test_sites_of_one_activation_with_different_widths_stay_apart() -> None:
    """One of them may read a weight that is kept in float."""
    drawn = plot(site("q", activation="x", cost=0.1), site("k", "float", activation="x", cost=0.1))
    assert [kind for kind, _, _ in drawn.legend] == ["width-w8a8", "width-float"]


def test_the_legend_counts_places_by_width_in_words() -> None:
    drawn = plot(site("a", "w8", cost=1.0), site("b", "w4", cost=1.0), site("c", "w2", cost=1.0))
    assert drawn.legend == (
        ("width-w4", "4-bit weights", 1),
        ("width-w8", "8-bit weights", 1),
        ("width-other", "w2", 1),
    )
    assert [bar.kind for bar in drawn.bars] == ["width-w8", "width-w4", "width-other"]


def test_without_costs_the_error_of_products_is_drawn_or_that_of_weights() -> None:
    products = plot(site("a", activation_error=0.1, weight_error=0.2), drift_metric=KL)
    assert products.title == "Relative error of the products at each place"
    weights = plot(site("a", weight_error=0.2), drift_metric=KL)
    assert weights.title == "Relative rounding error of each weight"
    costs = plot(site("a", cost=0.1, weight_error=0.2), drift_metric=KL)
    assert costs.title == f"Drift that each place causes by itself, {KL}"
    assert costs.columns == ("drift by itself", "weight error")


def test_costs_that_were_not_measured_are_said_to_be_estimated() -> None:
    drawn = plot(site("a", cost=0.1), drift_metric=KL, costs_measured=False)
    words = "estimated from rounding errors"
    assert drawn.title == f"Drift that each place causes by itself, {words}, {KL}"
    assert "the graph takes no batch" in drawn.note
    measured = plot(site("a", cost=0.1), drift_metric=KL, costs_measured=True)
    assert "estimated" not in measured.title + measured.note
    errors = plot(site("a", weight_error=0.1), costs_measured=False)
    assert "estimated" not in errors.title


def test_what_has_no_value_has_no_bar_and_is_counted() -> None:
    drawn = plot(site("table"), site("a", cost=0.1), site("b", cost="much"))
    assert len(drawn.bars) == 1
    assert drawn.unmeasured == 2
    assert [place.sites for place in drawn.worst] == [("a",)]


@pytest.mark.parametrize("cost", [None, math.inf, math.nan])
def test_a_cost_beyond_all_numbers_is_the_worst_and_leaves_the_scale_alone(cost: object) -> None:
    drawn = plot(site("a", cost=0.02), site("b", cost=cost))
    assert heights(drawn)[1] == HEIGHT > heights(drawn)[0]
    assert [place.cells["drift by itself"] for place in drawn.worst] == ["inf", "2.0e-02"]
    assert drawn.ticks[-1][1] == "1e-1"


def test_the_list_has_the_worst_twenty_first_things_first() -> None:
    drawn = plot(*(site(f"s{n}", cost=n / 100) for n in range(30)))
    assert [place.sites[0] for place in drawn.worst] == [f"s{n}" for n in range(29, 9, -1)]


@pytest.mark.parametrize(
    "details",
    [
        {},
        {"sites": []},
        {"sites": "many"},
        {"sites": [3, None, {"cost": 1.0}, {"site": 4, "cost": 1.0}]},
        {"sites": [{"site": "a", "cost": "much"}, {"site": "b", "cost": True}]},
    ],
)
def test_details_of_another_kind_are_left_to_themselves(details: dict[str, Any]) -> None:
    assert site_plot(details) is None
    assert '<figure class="sites">' not in page(details)


DETAILS: dict[str, Any] = {
    "drift_metric": KL,
    "scheme": "int8",
    "sites": [site("a", cost=0.1), site("</title><script>", "w8", cost=0.2), site("table")],
}


def test_the_page_has_a_bar_for_each_place_and_their_names_are_escaped() -> None:
    text = page(DETAILS)
    bars = re.findall(r'<rect class="(width-\w+)" x=[^>]*><title>([^<]*)</title></rect>', text)
    assert bars == [
        ("width-w8a8", "a: 1.00e-01, 8-bit weights and activations"),
        ("width-w8", "&lt;/title&gt;&lt;script&gt;: 2.00e-01, 8-bit weights"),
    ]
    assert "<script" not in text
    assert "1 of the sites has no value and no bar" in text
    assert text == page(DETAILS)


def test_every_colour_is_defined_for_light_and_dark_pages() -> None:
    text = page(DETAILS)
    for width in ("w4", "w8a8", "w8", "float"):
        assert f".width-{width} {{ fill: var(--{width}); }}" in text
        assert text.count(f"--{width}: #") == 2


def test_long_lists_in_details_are_folded_one_entry_a_line() -> None:
    text = page({**DETAILS, "kept": ["a", "b"]})
    assert "<dt>sites</dt><dd><details><summary>3 entries</summary>" in text
    assert text.count("&#34;site&#34;: &#34;a&#34;") == 1
    assert "<dt>scheme</dt><dd><pre>int8</pre></dd>" in text
    assert re.search(r"<dt>kept</dt><dd><pre>\[\s", text)
