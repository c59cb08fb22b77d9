"""Which tests must run in the same process: those that share what takes long to make."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

__all__ = ["Shares"]

# A family of the zoo is exported once, in several spellings: its name begins the test's parameters.
_FAMILY = re.compile(r"tests/zoo/test_\w*(?:families|decoders)\.py::\w+\[(\w+)-")
_REAL_MODEL = "tests/e2e/"


class Shares(LoadScopeScheduling):
    """One test at a time to whoever is free, but for those that belong together."""

    def _split_scope(self, nodeid: str) -> str:
        family = _FAMILY.match(nodeid)
        if family:
            return f"family {family[1]}"
        return _REAL_MODEL if nodeid.startswith(_REAL_MODEL) else nodeid
