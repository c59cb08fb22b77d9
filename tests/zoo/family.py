"""What a family of the zoo is: a small seeded model, its inputs, and the attention it has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

__all__ = [
    "COMMON",
    "DECODER",
    "GROUPED",
    "INPUTS",
    "VOCABULARY",
    "Family",
    "Input",
    "Site",
    "bidirectional",
    "causal",
    "decoder",
    "layered",
    "with_padding",
]

VOCABULARY = 96
COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
}
DECODER = COMMON | {"max_position_embeddings": 64, "intermediate_size": 48}
GROUPED = DECODER | {"num_key_value_heads": 2}


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of a model.

    Attributes:
        kind: `tokens` and `padding` are int64, `real` is of the type of the weights.
        shape: Sizes; a text is a dynamic axis of that name.
    """

    kind: str
    shape: tuple[int | str, ...]


INPUTS = {
    "input_ids": Input("tokens", ("batch", "length")),
    "attention_mask": Input("padding", ("batch", "length")),
    "decoder_input_ids": Input("tokens", ("batch", "target")),
    "pixel_values": Input("real", ("batch", 3, 32, 32)),
    "input_features": Input("real", ("batch", 8, 32)),
    "input_values": Input("real", ("batch", 800)),
    "hidden": Input("real", ("batch", "length", 32)),
    "target_hidden": Input("real", ("batch", "target", 32)),
}


@dataclasses.dataclass(frozen=True, order=True)
class Site:
    """What is to be recovered of one attention layer.

    Attributes:
        causal: Later keys are hidden.
        window: Keys that a query sees, itself included; 0 for all.
        softcap: Bound of the scores; 0.0 for none.
        mask: Kind of mask that stays an operand: `""`, `"bool"` or `"bias"`.
        key_heads: Heads of keys and values, before they are repeated.
    """

    causal: bool = False
    window: int = 0
    softcap: float = 0.0
    mask: str = ""
    key_heads: int = 4


@dataclasses.dataclass(frozen=True)
class Family:
    """A family: its configuration class in transformers and the arguments of a small one.

    Attributes:
        config: Name of the configuration class.
        options: Its arguments.
        sites: The attention layers, in the order of the graph.
        model: Class in transformers that makes the model of the configuration.
        inputs: Names in `INPUTS`, in order.
        output: Field of the model's answer.
        rotary: Number of rotary embeddings, of queries and keys each; None where the model's form
            of them has no standard op.
        rms_norms: Number of RMS norms; None likewise.
        refused: Number of attention layers that mean what no op says; they are not in `sites`.
        sdpa: Whether the family has an implementation by PyTorch's fused function.
        captured: Implementations that the exporter that captures does not give up on.
        traced: Whether the exporter that traces writes a graph that runs.
        module: What makes the module, where it is none of Transformers.
    """

    config: str
    options: dict[str, Any]
    sites: tuple[Site, ...]
    model: str = "AutoModelForCausalLM"
    inputs: tuple[str, ...] = ("input_ids",)
    output: str = "logits"
    rotary: int | None = 0
    rms_norms: int | None = 0
    refused: int = 0
    sdpa: bool = True
    captured: tuple[str, ...] = ("sdpa", "eager")
    traced: bool = True
    module: Callable[[], torch.nn.Module] | None = None

    @property
    def is_language_model(self) -> bool:
        """Whether greedy tokens can be compared."""
        return self.output == "logits"


def causal(
    config: str, options: dict[str, Any], key_heads: int = 4, layers: int = 2, **more: Any
) -> Family:
    """A decoder whose layers are all alike: plain causal attention, or the `site` given."""
    site = more.pop("site", Site(causal=True, key_heads=key_heads))
    return Family(config, options, (site,) * layers, **more)


def decoder(config: str, options: dict[str, Any], sites: tuple[Site, ...], **more: Any) -> Family:
    """A decoder whose layers differ."""
    return Family(config, options, sites, **more)


def bidirectional(config: str, options: dict[str, Any], **more: Any) -> Family:
    """An encoder whose layers are all alike: everything sees everything, or the `site` given."""
    site, layers = more.pop("site", Site()), more.pop("layers", 2)
    model, output = more.pop("model", "AutoModel"), more.pop("output", "last_hidden_state")
    return Family(config, options, (site,) * layers, model=model, output=output, **more)


def layered(config: str, options: dict[str, Any], sites: tuple[Site, ...], **more: Any) -> Family:
    """An encoder whose layers differ."""
    return Family(
        config, options, sites, **{"model": "AutoModel", "output": "last_hidden_state"} | more
    )


def with_padding(family: Family) -> Family:
    """The same, exported with an `attention_mask`, which stays a boolean operand.

    It is about the words of the encoder where there is one: the decoder's own attention has none.
    """
    has_encoder = "decoder_input_ids" in family.inputs
    sites = tuple(
        s if has_encoder and s.causal else dataclasses.replace(s, mask=s.mask or "bool")
        for s in family.sites
    )
    return dataclasses.replace(family, sites=sites, inputs=(*family.inputs, "attention_mask"))
