"""`optc run`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from optc.cli import options
from optc.cli.console import harmless, print_json, reporting, size

if TYPE_CHECKING:
    from optc.api.run import RunResult
    from optc.core.context import Feeds


@click.command()
@click.argument("bundle")
@click.option(
    "--prompt", "prompts", metavar="TEXT", multiple=True,
    help="Text to continue, or for an encoder to read; give it several times for a batch.",
)  # fmt: skip
@click.option(
    "--inputs", "arrays", metavar="FILE.npz",
    help="What an encoder takes, by name, in place of a prompt.",
)  # fmt: skip
@click.option(
    "--decoder-start-token", "decoder_start", metavar="ID,ID", callback=options.numbers,
    help="What a decoder beside an encoder starts with.  [default: as config.json says]",
)  # fmt: skip
@click.option(
    "--max-tokens", type=click.IntRange(min=1), metavar="N",
    help="New tokens.  [default: 128, or what fits]",
)  # fmt: skip
@click.option(
    "--stream/--no-stream", default=None,
    help="Show text as it comes.  [default: for one prompt]",
)  # fmt: skip
@click.option("--chat", is_flag=True, help="Put the prompt through the model's chat template.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=int, default=0, help="Keep the K most likely tokens.  [default: all]")
@click.option("--top-p", type=float, default=1.0, help="Keep this much probability. [default: all]")
@options.seed
@click.option("--stop", metavar="TEXT", multiple=True, help="End at this text; may be repeated.")
@options.as_json
def run(
    bundle: str,
    prompts: tuple[str, ...],
    arrays: str | None,
    decoder_start: tuple[int, ...] | None,
    max_tokens: int | None,
    stream: bool | None,
    chat: bool,
    temperature: float,
    top_k: int,
    top_p: float,
    seed: int,
    stop: tuple[str, ...],
    as_json: bool,
) -> None:
    """Generate text with a bundle."""
    from optc.api.arrays import load_arrays
    from optc.api.run import run as generate
    from optc.runtime.sampling import Sampling

    inputs = None if arrays is None else load_arrays(arrays)
    alone = not as_json and _rows(prompts, inputs) <= 1
    if stream and not alone:
        raise click.UsageError("--stream shows one prompt as text")
    stream = alone if stream is None else stream

    def show(row: int, text: str) -> None:
        if stream:
            click.echo(_shown(text), nl=False)

    sampling = Sampling(temperature, top_k, top_p, seed)
    with reporting(quiet=True) as report:
        result = generate(
            bundle,
            prompts,
            inputs=inputs,
            decoder_start=decoder_start,
            max_tokens=max_tokens,
            chat=chat,
            sampling=sampling,
            stop=stop,
            on_text=show,
            progress=report.progress,
            log=report.log,
        )
    if as_json:
        print_json(result.as_json())
    elif stream:
        click.echo()
    else:
        _print_texts(result)
    _print_stats(result)


def _rows(prompts: tuple[str, ...], inputs: Feeds | None) -> int:
    """Texts that there will be."""
    counts = [len(array) for array in (inputs or {}).values() if array.ndim]
    return max([len(prompts), *counts])


def _print_short(result: RunResult) -> None:
    """Say which texts ended because there was no more room."""
    from optc.runtime.row import Finish

    finish = result.completion.finish
    for number, why in enumerate(finish, start=1):
        if why in (Finish.CACHE, Finish.CONTEXT):
            which = f"prompt {number}: " if len(finish) > 1 else ""
            count = len(result.completion.tokens[number - 1])
            click.echo(f"{which}{why} after {count} new tokens", err=True)


def _shown(text: str) -> str:
    """As the model said it, but for what a terminal would obey."""
    return harmless(text) if sys.stdout.isatty() else text


def _print_texts(result: RunResult) -> None:
    texts = result.completion.texts
    for number, (prompt, text) in enumerate(zip(result.prompts, texts, strict=True), start=1):
        if len(texts) > 1:
            click.echo(f"--- {number}: {' '.join((prompt or '').split())}".rstrip(": "))
        click.echo(_shown(text))


def _print_stats(result: RunResult) -> None:
    _print_short(result)
    stats = result.completion.stats
    rate = stats.decode_tokens_per_second
    speed = f", {rate:.1f} tokens/s" if rate is not None else ""
    click.echo(
        f"{stats.prompt_tokens} + {stats.new_tokens} tokens, first after "
        f"{stats.ttft_seconds * 1e3:.0f} ms{speed}, peak memory {size(stats.peak_rss_bytes)}",
        err=True,
    )
