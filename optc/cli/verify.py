"""`optc verify`."""

from __future__ import annotations

import click

from optc.cli import options
from optc.cli.console import print_json, print_table, reporting


@click.command()
@click.argument("bundle")
@options.policy
@click.option("--public-key", metavar="FILE", help="Key (PEM) that must have signed the bundle.")
@click.option("--junit", metavar="FILE", help="Write the checks as JUnit XML.")
@options.as_json
def verify(
    bundle: str, policy: str | None, public_key: str | None, junit: str | None, as_json: bool
) -> None:
    """Replay a bundle's reference samples on this machine and judge the outcome."""
    with reporting() as report:
        from optc.api.verify import verify as run
        from optc.core.errors import PolicyError

        result = run(bundle, policy=policy, public_key=public_key, progress=report.progress)
    if junit is not None:
        from optc.parity.junit import write_junit

        write_junit(junit, result.bundle.name, result.checks)
    if as_json:
        print_json(result.as_json())
    else:
        verdicts = {True: "holds", False: "FAILS", None: "not judged"}
        rows = [(check.key, verdicts[check.holds], check.sentence) for check in result.checks]
        print_table("check", "verdict", "what was found", rows=rows)
        click.echo(f"evidence: {result.evidence}; signature: {result.signature}")
        for sentence in result.metrics.notes:
            click.echo(f"note: {sentence}")
        click.echo(f"verified in {result.seconds:.1f} s")
    if result.violations:
        raise PolicyError("; ".join(result.violations), where=bundle)
