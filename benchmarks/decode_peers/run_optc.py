"""optc: `run_optc.py BUNDLE THREADS`. Also says how much of the decoding was outside the engine."""

from __future__ import annotations

import importlib.metadata
import sys

from serve import Emit, serve

from optc.api.sessions import open_bundle
from optc.runtime.generate import generate as run

bundle, threads = sys.argv[1:]

with open_bundle(bundle) as opened:
    session = opened.session

    def generate(prompt: list[int], new_tokens: int, emit: Emit) -> None:
        """The generation loop that `optc run` uses."""
        run(session, [prompt], max_new_tokens=new_tokens, on_token=lambda _, token: emit(token))

    serve(generate, f"optc {importlib.metadata.version('optc')}")
