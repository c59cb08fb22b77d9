"""What a generation begins with: a decoder with the prompt, an encoder-decoder with a start token.

1. *Decoder*: the prompt's tokens.
2. *Encoder-decoder, text*: the prompt's tokens, with those the tokenizer puts around a text, are
   the encoder's input; the decoder begins with what the model's configuration says.
3. *Encoder-decoder, arrays*: what the encoder takes is given by name.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from optc.api.arrays import check_arrays
from optc.api.sessions import OpenBundle
from optc.core.context import Array, Feeds
from optc.core.errors import UnsupportedError, UsageError
from optc.runtime.arguments import check_text, named
from optc.runtime.encoder import encoder_ports, has_encoder, reads_text, say_ports, text_inputs
from optc.runtime.start import read_start

__all__ = ["Beginning", "begin"]


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What a generation begins with.

    Attributes:
        prompts: The text of each row; None for a row of arrays.
        rows: Tokens of each row that the decoder continues.
        inputs: What an encoder takes, the first axis is the row; empty for a decoder.
        prompt_tokens: Tokens of all prompts together, or those that decoders start with.
        too_long: What to say if the encoder fails, as a prompt is longer than its configuration
            allows; empty where none is. It may not fail: for some models that is a mere number.
    """

    prompts: tuple[str | None, ...]
    rows: tuple[tuple[int, ...], ...]
    inputs: dict[str, Array]
    prompt_tokens: int
    too_long: str = ""

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Say that a prompt is too long where the engine would only speak of its tables.

        To be entered around the engine's work on the prompts: what goes wrong before and after it
        has other reasons.
        """
        try:
            yield
        except UnsupportedError as error:
            if not self.too_long:
                raise
            problem = f"{self.too_long} ({error.problem})"
            others = f", or {error.remedy}" if error.remedy else ""
            remedy = f"give a shorter prompt{others}"
            raise UnsupportedError(problem, where=error.where, remedy=remedy) from error


def begin(
    opened: OpenBundle,
    prompts: Sequence[str],
    *,
    inputs: Feeds | None = None,
    chat: bool = False,
    decoder_start: Sequence[int] | None = None,
) -> Beginning:
    """Tokenise prompts, and give an encoder its inputs and its decoder a start.

    Args:
        opened: The bundle.
        prompts: Texts.
        inputs: What the encoder takes, by name, in place of texts.
        chat: Whether each prompt is what a user says to the model's chat template.
        decoder_start: What a decoder beside an encoder starts with; the model's configuration says
            it when None.

    Raises:
        UnsupportedError: No tokenizer, no chat template, no start token, an encoder that takes no
            text, or prompts that it does not take together.
        UsageError: Neither prompts nor inputs, or both; an empty prompt; a start or inputs for a
            decoder that has no encoder.
        SampleError: Inputs that do not fit the graph.
    """
    if has_encoder(opened.session):
        return _with_encoder(opened, prompts, inputs, chat, decoder_start)
    if decoder_start is not None:
        raise UsageError("this bundle is a decoder, which starts with the prompt")
    if inputs is not None:
        raise UsageError("this bundle is a decoder, which takes a prompt and no other inputs")
    rows = _tokens(opened, prompts, chat)
    return Beginning(tuple(prompts), rows, {}, sum(map(len, rows)))


def _with_encoder(
    opened: OpenBundle,
    prompts: Sequence[str],
    inputs: Feeds | None,
    chat: bool,
    decoder_start: Sequence[int] | None,
) -> Beginning:
    session = opened.session
    if prompts and inputs is not None:
        raise UsageError("give prompts or inputs of the encoder, not both")
    if inputs is None and not reads_text(session):
        problem = f"its encoder takes no text but {say_ports(encoder_ports(session))}"
        remedy = "give these arrays with --inputs file.npz"
        raise UnsupportedError(problem, where=opened.bundle.given, remedy=remedy)
    config = read_start(opened.bundle.tokenizer)
    start = config.tokens() if decoder_start is None else tuple(decoder_start)
    if inputs is not None:
        count = check_arrays(session, inputs)
        return Beginning((None,) * count, (start,) * count, dict(inputs), len(start) * count)
    texts = _tokens(opened, prompts, chat)
    feeds = text_inputs(session, texts, padding=config.padding)
    counts = [len(text) for text in texts]
    too_long = _too_long(max(counts), config.encoder_tokens)
    return Beginning(tuple(prompts), (start,) * len(texts), feeds, sum(counts), too_long)


def _too_long(longest: int, limit: int | None) -> str:
    if limit is None or longest <= limit:
        return ""
    return f"a prompt has {longest} tokens, the model's config.json allows {limit}"


def _tokens(opened: OpenBundle, prompts: Sequence[str], chat: bool) -> tuple[tuple[int, ...], ...]:
    if not prompts:
        raise UsageError("there is no prompt", remedy="give one with --prompt")
    for number, text in enumerate(prompts, start=1):
        check_text(text, named("prompt", number, len(prompts)))
    tokenizer = opened.tokenizer
    if chat:
        talks = [[{"role": "user", "content": text}] for text in prompts]
        return tuple(tuple(tokenizer.encode_chat(talk)) for talk in talks)
    return tuple(tuple(tokenizer.encode(text)) for text in prompts)
