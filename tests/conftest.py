"""Fixtures that every area uses: a graph from text, and running it on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from optc.core.context import Array, Feeds
from optc.ir.canonical import canonicalize

Run = Callable[[ir.Model, Feeds], dict[str, Array]]
FromText = Callable[[str], ir.Model]


@pytest.fixture(scope="session")
def run() -> Run:
    """Run a small model on ONNX Runtime; outputs by name."""

    def run_model(model: ir.Model, feeds: Feeds) -> dict[str, Array]:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
        names = [o.name for o in session.get_outputs()]
        return dict(zip(names, session.run(None, dict(feeds)), strict=True))

    return run_model


@pytest.fixture(scope="session")
def graph() -> FromText:
    """A canonical model from ONNX text."""

    def from_text(text: str) -> ir.Model:
        model = ir.from_onnx_text(text)
        canonicalize(model)
        return model

    return from_text


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """How tests are shared out where several processes run them (pytest-xdist)."""
    from shares import Shares

    return Shares(config, log)
