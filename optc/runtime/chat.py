"""Chat templates: Jinja text that came with a model, rendered in a sandbox and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from optc.core.errors import UnsupportedError

__all__ = ["render_chat"]


_BROKEN = (
    jinja2.TemplateError,
    ArithmeticError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


def render_chat(
    template: str, messages: Sequence[Mapping[str, str]], special: Mapping[str, str]
) -> str:
    """Render a conversation, up to where the assistant speaks.

    Templates see what Hugging Face documents for them: `messages`, `add_generation_prompt`, the
    special tokens, `raise_exception`, the filter `tojson`; and nothing that can change anything.

    Raises:
        UnsupportedError: The template is wrong, refuses the conversation, or reaches for more.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages], add_generation_prompt=True, **special
        )
    except _BROKEN as error:
        problem = f"the chat template cannot be rendered: {error}"
        raise UnsupportedError(problem, remedy="run it without --chat") from error


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes for HTML, which would change what the model reads.
    return json.dumps(value, ensure_ascii=False, indent=indent)
