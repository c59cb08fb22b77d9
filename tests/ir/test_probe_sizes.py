"""Graphs are probed at sizes that tell axes apart and leave nothing empty."""

from __future__ import annotations

from optc.ir.probe import Probe
from optc.ir.probe_sizes import probe_sizes


def test_no_size_is_like_another_or_like_one_in_the_graph(graph):
    model = graph("""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,s,5] x) => (float[b,s,5] y) { y = Neg(x) }""")
    sizes = probe_sizes(model)
    assert len({*sizes.values(), 5}) == 3


def test_what_is_cut_down_is_not_cut_to_nothing(graph):
    model = graph("""<ir_version: 10, opset_import: ["": 18]>
    agraph (float[b,1,n] sound, float[4,1,400] w) => (float[b,4,m] y) {
        z = Conv<strides = [320]>(sound, w)
        y = Neg(z)
    }""")
    sizes = probe_sizes(model)
    shape = Probe(model, sizes).shape_of(model.graph[0].outputs[0])
    assert sizes["n"] > 400
    assert shape is not None
    assert min(shape) > 0
