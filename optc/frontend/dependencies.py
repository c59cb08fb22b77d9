"""What exporting needs and a plain install does not bring."""

from __future__ import annotations

import importlib.util

from optc.core.errors import MissingDependencyError

__all__ = ["require"]


def require(*modules: str) -> None:
    """See that `modules` can be imported, without importing them.

    Raises:
        MissingDependencyError: One of them is not installed.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        problem = f"{' and '.join(missing)} not installed"
        remedy = 'install what exporting needs: pip install "optc[export]"'
        raise MissingDependencyError(problem, remedy=remedy)
