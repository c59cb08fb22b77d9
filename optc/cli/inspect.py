"""`optc inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from optc.cli import options
from optc.cli.console import harmless, print_fields, print_json, print_table, reporting, size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from optc.api.inspect_bundle import BundleReport
    from optc.api.inspect_model import ModelReport
    from optc.bundle.manifest import Manifest
    from optc.core.session import Port

_MOST = 12


@click.command()
@click.argument("path", metavar="MODEL.onnx|BUNDLE")
@click.option(
    "--explain-attention", is_flag=True,
    help="List every attention site, and whether and why (not) the flash pass fuses it.",
)  # fmt: skip
@options.as_json
def inspect(path: str, explain_attention: bool, as_json: bool) -> None:
    """Say what is in a model file or a bundle."""
    if Path(path).is_dir():
        if explain_attention:
            raise click.UsageError("--explain-attention is for model files")
        from optc.api.inspect_bundle import inspect_bundle

        with reporting(quiet=True) as report:
            bundle = inspect_bundle(path, progress=report.progress)
        print_json(bundle.as_json()) if as_json else _print_bundle(bundle)
        return
    from optc.api.inspect_model import inspect_model

    with reporting(quiet=True) as report:
        model = inspect_model(path, explain=explain_attention, progress=report.progress)
    print_json(model.as_json()) if as_json else _print_model(model, explain_attention)


def _print_model(report: ModelReport, explain: bool) -> None:
    opsets = ", ".join(f"{domain} {version}" for domain, version in report.opsets.items())
    weights = ", ".join(f"{kind} {size(n)}" for kind, n in report.parameter_bytes.items())
    kinds = [site.kind for site in report.attention]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    fields = [
        ("model", str(report.path)),
        ("format", f"ONNX, IR version {report.ir_version}, opset {opsets}"),
        ("made by", report.producer),
        ("parameters", f"{report.parameters:,} ({weights or 'no weights'})"),
        ("inputs", _ports(report.inputs)),
        ("outputs", _ports(report.outputs)),
        ("cache", report.cache or "none"),
        ("attention", counts or "none"),
        ("nodes", _operators(report)),
    ]
    print_fields(fields)
    if explain:
        verdicts = {True: "yes", False: "no", None: "-"}
        rows = [(s.name, s.kind, verdicts[s.fuses], s.detail) for s in report.attention]
        print_table("site", "kind", "fuses", "detail", rows=rows)
        for site in report.attention:
            if site.subgraph:
                click.echo(harmless("\n".join(["", f"{site.name}: {site.detail}", *site.subgraph])))


def _operators(report: ModelReport) -> str:
    frequent = list(report.operators.items())[:_MOST]
    more = len(report.operators) - len(frequent)
    listed = ", ".join(f"{name} {count}" for name, count in frequent)
    tail = f", and {more} more kinds" if more > 0 else ""
    return f"{sum(report.operators.values()):,}: {listed}{tail}"


def _ports(ports: Iterable[Port]) -> str:
    listed = [f"{p.name} {p.dtype}[{','.join(str(d) for d in p.shape)}]" for p in ports]
    more = len(listed) - 4
    return ", ".join(listed[:4]) + (f", and {more} more" if more > 0 else "")


def _engines(manifest: Manifest) -> str:
    """Each file that plays a role with its size, weights included, and when it plays it."""
    engine, found = manifest.engine, []
    for role, file in sorted(engine.roles.items()):
        start = engine.prefill_from if role == "prefill" else None
        when = "" if start is None else f" from {start} new tokens on"
        found.append((file, f"{role}{when}"))
    names = list(dict.fromkeys(file for file, _ in found))
    return "; ".join(
        f"{name} ({size(_bytes(manifest, name))}): {', '.join(r for f, r in found if f == name)}"
        for name in names
    )


def _bytes(manifest: Manifest, name: str) -> int:
    files = [file for file in manifest.engine.files if file.startswith(name)]
    return sum(manifest.files[file].size for file in files)


def _print_bundle(report: BundleReport) -> None:
    manifest = report.manifest
    engine, evidence = manifest.engine, manifest.evidence
    measured = {k: v for k, v in evidence.metrics.items() if isinstance(v, int | float)}
    verdict = "within its policy" if evidence.passed else "MISSES its policy, forced"
    if evidence.source == "none":
        verdict = "not measured"
    fields = [
        ("bundle", str(report.path)),
        ("size", f"{size(report.bytes)} in {len(manifest.files)} files, all intact"),
        ("model", str(manifest.extra.get("model", "?"))),
        ("passes", f"{', '.join(manifest.order) or 'none'} (asked for: {manifest.pipeline})"),
        ("target", f"{manifest.target}: {engine.runtime} {engine.runtime_version}"),
        ("runs on", engine.hardware),
        ("engines", _engines(manifest)),
        ("inputs", _ports(engine.inputs)),
        ("outputs", _ports(engine.outputs)),
        ("evidence", f"{report.evidence}; {verdict}"),
        ("measured", ", ".join(f"{k} {v:.4g}" for k, v in measured.items()) or "nothing"),
        ("made with", ", ".join(f"{k} {v}" for k, v in manifest.versions.items())),
        ("signature", "there, not checked" if report.signed else "none"),
    ]
    print_fields(fields)
