"""What is in a model file: read from its structure, weights untouched."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

from optc.api.registries import passes
from optc.core.base import Refusal
from optc.core.context import Context, Progress, no_progress
from optc.core.errors import OptcError
from optc.core.grammar import parse_pass
from optc.core.session import Port
from optc.ir.canonical import canonicalize
from optc.ir.flash_attention import DOMAIN, read_spec
from optc.ir.interface import LENGTHS, cache_ports, ports
from optc.ir.load import load_model
from optc.rewrite.attention import match_attention
from optc.rewrite.explain import attention_subgraph
from optc.rewrite.plain_products import spell_plainly
from optc.targets.ort_attention import attention_choice

__all__ = ["AttentionSite", "ModelReport", "inspect_model"]


@dataclasses.dataclass(frozen=True)
class AttentionSite:
    """One attention of a graph.

    Attributes:
        name: Name of its output value (of the Softmax, where the parts are not understood).
        kind: `canonical`, `standard`, `decomposed`, or the name of a fused operator.
        detail: What is known about it, or why it is not understood.
        fuses: Whether the `flash` pass rewrites it; None when that was not tried.
        subgraph: The nodes of a site that is not rewritten, a line each.
    """

    name: str
    kind: str
    detail: str = ""
    fuses: bool | None = None
    subgraph: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ModelReport:
    """What `inspect` says about a model file.

    Attributes:
        path: The file.
        ir_version: Version of the ONNX format.
        opsets: Version by domain; the default domain is `ai.onnx`.
        producer: Tool that wrote it.
        operators: Number of nodes by operator, in the main graph, most frequent first.
        functions: Model-local functions.
        inputs: What it takes.
        outputs: What it gives.
        parameters: Elements of all initializers.
        parameter_bytes: Their bytes by element type.
        attention: Attention sites, in graph order.
        cache: Whether it has the cache interface, and its capacity.
    """

    path: Path
    ir_version: int
    opsets: dict[str, int]
    producer: str
    operators: dict[str, int]
    functions: tuple[str, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    parameters: int
    parameter_bytes: dict[str, int]
    attention: tuple[AttentionSite, ...]
    cache: str | None

    def as_json(self) -> dict[str, Any]:
        """The document `optc.inspect/1` for a model; see `docs/json.md`."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {
            "schema": "optc.inspect/1",
            "kind": "model",
            **fields,
            "path": str(self.path),
            "functions": list(self.functions),
            "inputs": [_port(port) for port in self.inputs],
            "outputs": [_port(port) for port in self.outputs],
            "attention": [dataclasses.asdict(site) for site in self.attention],
        }


def _port(port: Port) -> dict[str, Any]:
    return {"name": port.name, "dtype": port.dtype, "shape": list(port.shape)}


def inspect_model(
    path: str | Path,
    *,
    explain: bool = False,
    progress: Progress = no_progress,
) -> ModelReport:
    """Read a model file.

    Args:
        path: An `.onnx` file.
        explain: Whether to try the `flash` pass on the graph in memory, so that each attention
            site says whether it fuses and why not.
        progress: Told how far the pass is.

    Raises:
        ModelFileError: It cannot be read.
    """
    model = load_model(path)
    tensors = [v.const_value for g in model.graphs() for v in g.initializers.values()]
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor is not None:
            sizes[tensor.dtype.numpy().name] += tensor.nbytes
    return ModelReport(
        path=Path(path),
        ir_version=model.ir_version or 0,
        opsets={domain or "ai.onnx": version for domain, version in model.opset_imports.items()},
        producer=f"{model.producer_name or '?'} {model.producer_version or ''}".strip(),
        operators=dict(Counter(_operator(node) for node in model.graph.all_nodes()).most_common()),
        functions=tuple("::".join(part for part in key if part) for key in model.functions),
        inputs=ports(model.graph.inputs),
        outputs=ports(model.graph.outputs),
        parameters=sum(tensor.size for tensor in tensors if tensor is not None),
        parameter_bytes=dict(sizes.most_common()),
        attention=tuple(_explained(model, progress) if explain else _sites(model)),
        cache=_cache(model),
    )


def _operator(node: ir.Node) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _cache(model: ir.Model) -> str | None:
    given = ports(model.graph.inputs)
    caches = [cache for cache in cache_ports(given) if not cache.is_cross]
    if not caches or not any(port.name == LENGTHS for port in given):
        return None
    capacity = caches[0].capacity
    layers = len(caches) // 2
    kind = "" if caches[0].dtype.startswith("float") else f", {caches[0].dtype}"
    return f"{layers} layers, {'growing' if capacity is None else f'{capacity} tokens'}{kind}"


def _sites(model: ir.Model) -> Iterator[AttentionSite]:
    for node in model.graph.all_nodes():
        name = str(node.outputs[0].name)
        if (node.domain, node.op_type) == (DOMAIN, "FlashAttention"):
            spec = read_spec(node)
            set_fields = {k: v for k, v in dataclasses.asdict(spec).items() if v}
            detail = ", ".join(_field(name, value) for name, value in set_fields.items())
            yield AttentionSite(name, "canonical", detail)
        elif (choice := attention_choice(node)) is not None:
            yield AttentionSite(choice.site, choice.kernel, choice.why)
        elif (match := match_attention(node)) is not None:
            kind = "decomposed" if node.op_type == "Softmax" else "standard"
            kind = node.op_type if node.domain else kind
            if isinstance(match, Refusal):
                yield AttentionSite(match.site, kind, f"not understood: {match.reason}")
            else:
                masks = len(match.masks)
                detail = f"{masks} mask{'' if masks == 1 else 's'}"
                yield AttentionSite(str(match.output.name), kind, detail)


def _field(name: str, value: object) -> str:
    if value is True:
        return name
    return f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}"


def _explained(model: ir.Model, progress: Progress) -> Iterator[AttentionSite]:
    """Sites with what the pass makes of them; the model is used up."""
    canonicalize(model)
    spell_plainly(model)
    lines: dict[str, tuple[str, ...]] = {}
    for node in model.graph:
        match = match_attention(node)
        if match is not None:
            name = match.site if isinstance(match, Refusal) else str(match.output.name)
            lines[name] = attention_subgraph(node)
    before = list(_sites(model))
    try:
        flash = parse_pass("flash:partial=true", passes())
        result = flash.run(model, Context(progress=progress))
    except OptcError as error:
        for site in before:
            yield dataclasses.replace(site, detail=str(error), fuses=False)
        return
    refused = {refusal.site: refusal.reason for refusal in result.refusals}
    after = {site.name: site.detail for site in _sites(model)}
    for site in before:
        fuses = site.name in result.sites
        detail = refused.get(site.name) or after.get(site.name, site.detail)
        subgraph = () if fuses else lines.get(site.name, ())
        yield dataclasses.replace(site, detail=detail, fuses=fuses, subgraph=subgraph)
