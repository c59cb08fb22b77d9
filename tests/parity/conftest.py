from __future__ import annotations

import pytest
from tiny_lm import open_model, plain_lm

from optc.ir.reference import Reference
from optc.parity.oracle import make_reference


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Samples and greedy continuations of the tiny language model."""
    return make_reference(plain_lm(), open_model, seed=1)
