"""The ways a family is written down: exporter, opset, implementation, type, and other tools.

`ALL` is what the benchmark goes through, for every family. Exporting costs seconds where fusing
costs tenths, so the tests take fewer (`in_tests`):

* every family by the exporter that traces, which takes half a second;
* those of everyday use, and those that add a spelling of their own, by the one that captures;
* one family per kind of attention in half precision, older opsets, and behind each tool.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from family import Family

__all__ = ["ALL", "EVERYDAY", "TOOLS", "Spelling", "applies", "in_tests"]

TOOLS = ("onnxslim", "onnxsim", "onnxruntime")
EVERYDAY = """
    gpt2 llama qwen2 qwen3 mistral phi3 gemma2 opt gpt_neox bloom falcon bert distilbert vit t5
    whisper_encoder whisper
""".split()
_CAPTURED_TOO = """
    falcon_new gptj gpt_bigcode gpt_neo mpt phi cohere2 olmo2 gemma3 mixtral gpt_oss deepseek_v3
    glm roberta deberta_v2 mpnet modernbert xlnet esm clip_text beit dinov3 swin swinv2
    segformer wav2vec2 wavlm bart t5gemma llama_padded bert_padded gpt2_padded t5_padded
    mistral_padded
""".split()
_REWRITTEN = "gpt2 llama mistral gemma2 bloom bert t5 llama_padded".split()
_HALVED = "gpt2 llama gemma2 bloom bert whisper".split()
_OLDER = "llama gpt2 bert".split()


@dataclasses.dataclass(frozen=True)
class Spelling:
    """One way of writing a model down.

    Attributes:
        attention: Implementation in transformers, `sdpa` or `eager`.
        opset: Opset of the export.
        traced: By the exporter that traces (TorchScript), else by the one that captures.
        half: Whether weights are float16.
        tool: Tool that rewrote the file afterwards.
        fixed: Whether all sizes are fixed in the file.
    """

    attention: str = "sdpa"
    opset: int = 18
    traced: bool = False
    half: bool = False
    tool: str = ""
    fixed: bool = False

    def __str__(self) -> str:
        parts = [self.attention, str(self.opset)]
        parts += ["traced"] if self.traced else []
        parts += ["half"] if self.half else []
        parts += ["fixed"] if self.fixed else []
        parts += [self.tool] if self.tool else []
        return "-".join(parts)


_CAPTURED = [
    Spelling(attention, opset) for opset in (18, 20, 23, 24) for attention in ("sdpa", "eager")
]
_TRACED = [Spelling(attention, 17, traced=True) for attention in ("sdpa", "eager")]
_HALF = [Spelling("sdpa", 18, half=True), Spelling("eager", 18, half=True)]
_BY_TOOLS = [
    *[Spelling("sdpa", 18, tool=tool) for tool in TOOLS],
    Spelling("eager", 17, traced=True, tool="onnxruntime"),
    Spelling("sdpa", 18, fixed=True, tool="onnxsim"),
    Spelling("eager", 18, fixed=True, tool="onnxruntime"),
]
_BY_TOOLS_EAGER = [dataclasses.replace(s, attention="eager") for s in _BY_TOOLS]
ALL = list(dict.fromkeys([*_CAPTURED, *_TRACED, *_HALF, *_BY_TOOLS, *_BY_TOOLS_EAGER]))


def applies(name: str, family: Family, spelling: Spelling) -> bool:
    """Whether PyTorch can write it."""
    if spelling.attention == "sdpa" and not family.sdpa:
        return False
    if spelling.traced:
        return family.traced
    if (name, spelling.attention) == ("falcon", "sdpa") and spelling.opset >= 23:
        return False  # one key head, and its own operator for attention: not translated
    return spelling.attention in family.captured


def in_tests(families: dict[str, Family]) -> Iterator[tuple[str, Spelling]]:
    """Families and spellings that the tests take."""
    for name, family in families.items():
        for spelling in dict.fromkeys(_wanted(name, family)):
            if applies(name, family, spelling):
                yield name, spelling


def _wanted(name: str, family: Family) -> Iterator[Spelling]:
    first = "sdpa" if applies(name, family, Spelling("sdpa")) else "eager"
    yield Spelling("eager", 17, traced=True)
    if name in EVERYDAY:
        yield from (Spelling("sdpa"), Spelling("eager"), Spelling(first, 23))
        yield Spelling("sdpa", 17, traced=True)
    if name in _CAPTURED_TOO or not family.traced:
        yield Spelling(first)
    if name in _HALVED:
        yield Spelling(first, half=True)
    if name in _OLDER:
        yield Spelling(first, 20)
    if name in _REWRITTEN:
        yield from (dataclasses.replace(s, attention=first) for s in _BY_TOOLS)
