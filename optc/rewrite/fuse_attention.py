"""Replace one attention site after the other by the canonical op."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir

from optc.core.base import Refusal
from optc.ir.flash_attention import AttentionSpec, add_flash_attention
from optc.ir.insert import Insert, take_over
from optc.ir.masks import MaskMeaning, read_mask
from optc.ir.probe import Probe
from optc.ir.probe_sizes import probe_sizes
from optc.rewrite.attention import AttentionMatch
from optc.rewrite.mask_graph import MaskSite, join_masks, padding_mask
from optc.rewrite.mask_terms import split_mask
from optc.rewrite.movement import Split, is_same
from optc.rewrite.operands import Operands, find_operands, given_operands
from optc.rewrite.scores import MaskTerm, NotFused

__all__ = ["AttentionFusion"]

_DEEPEST = 8  # levels that a mask is taken apart
_Counts = tuple[int | str | None, int | str | None]


@dataclasses.dataclass
class _Band:
    """What the masks of one site mean together; `left` cannot be said by attributes."""

    causal: bool
    window: int = 0
    left: list[MaskTerm] = dataclasses.field(default_factory=list)


class AttentionFusion:
    """The rewriting of one model: masks are read once, however many layers share them.

    Args:
        model: Changed in place by `rewrite`.

    Attributes:
        sites: Names of the rewritten sites.
        kinds: How many sites became which overload.
        notes: Sentences about what was made of masks.
    """

    def __init__(self, model: ir.Model):
        self.model = model
        self.probe = Probe(model, probe_sizes(model))
        self.sites: list[str] = []
        self.kinds: dict[str, int] = {}
        self.notes: list[str] = []
        self._joined: dict[tuple[object, ...], tuple[ir.Value | None, str]] = {}
        self._meanings: dict[tuple[MaskTerm, int | str | None, int | str | None], MaskMeaning] = {}
        self._padding: dict[tuple[ir.Value, str], ir.Value] = {}

    def rewrite(self, match: AttentionMatch) -> Refusal | None:
        """Replace one site, or say why not."""
        try:
            self._rewrite(match)
        except NotFused as reason:
            return Refusal(str(match.output.name), str(reason))
        return None

    def _rewrite(self, match: AttentionMatch) -> None:
        at = match.output.producer()
        assert at is not None
        insert = Insert(self.model, at)
        found = find_operands(self.probe, match, insert)
        if isinstance(found, str) or match.past is not None:
            found = given_operands(self.probe, match) or found
        if isinstance(found, str):
            raise NotFused(found)
        scale = match.scale * found.factor
        if not scale > 0:
            raise NotFused(f"its scores are multiplied by {scale:g}, which kernels do not do")
        counts = _count(found.query), _count(found.key)
        aligned = counts[0] is not None and counts[0] == counts[1]
        if match.causal and not aligned:
            raise NotFused("it is causal, and queries and keys may differ in number")
        if match.past is not None:
            counts = counts[0], _sum(_count(match.past[0]), counts[1])
        by_heads = self._is_by_heads(match.output, found.split)
        lead = [] if by_heads else _lead_sizes(match.output)
        band = self._band(match, counts)
        mask, kind = self._mask(insert, band.left, found, counts)
        spec = AttentionSpec(
            scale=scale,
            causal=band.causal,
            window=band.window,
            softcap=match.softcap,
            mask=kind,
            cache="concat" if match.past is not None else "",
            lengths=match.lengths is not None,
        )
        inputs = {"query": found.query, "key": found.key, "value": found.value}
        for factor in match.head_factors:
            made = insert.node("Mul", [inputs["query"], factor], found.query.dtype)
            made.shape, inputs["query"] = found.query.shape, made
        inputs |= {"mask": mask} if mask is not None else {}
        inputs |= {"lengths": match.lengths} if match.lengths is not None else {}
        if match.past is not None:
            inputs |= {"past_key": match.past[0], "past_value": match.past[1]}
        self._replace(at, match, spec, inputs, lead)

    def _band(self, match: AttentionMatch, counts: _Counts) -> _Band:
        band = _Band(match.causal)
        if match.lengths is not None:  # they move the place that causality counts from
            band.left.extend(match.masks)
            return band
        for term, meaning in [t for mask in match.masks for t in self._parts(mask, counts)]:
            if meaning.residual:
                band.left.append(term)
                continue
            if meaning.padding is not None:
                band.left.append(self._padded(meaning.padding, meaning.keeps))
                if term.finite:
                    self._note(
                        "a row whose every key is padding gives zeros, where the model as given "
                        "averages values that mean nothing"
                    )
                if meaning.why:
                    self._note(meaning.why)
            band.causal = band.causal or meaning.causal
            if meaning.window and band.window and meaning.window != band.window:
                raise NotFused("it has two different windows")
            band.window = meaning.window or band.window
        if _hides_rows_by_numbers(band.left) and not match.causal and not match.gates:
            # where all keys that are seen have a finite number, later keys count as well
            return _Band(causal=False, left=list(match.masks))
        self._check_gates(match, band, counts)
        return band

    def _check_gates(self, match: AttentionMatch, band: _Band, counts: _Counts) -> None:
        for gate in match.gates:
            meaning = read_mask(self.model, gate, *counts, gate=True)
            same = (meaning.causal, meaning.window) == (band.causal, band.window)
            if meaning.residual or meaning.padding is not None or not same:
                raise NotFused(f"its scores are multiplied by '{gate.name}', which no mask hides")

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def _parts(
        self, term: MaskTerm, counts: _Counts, depth: int = _DEEPEST
    ) -> list[tuple[MaskTerm, MaskMeaning]]:
        """A mask with its meaning; its parts with theirs, where that says more."""
        meaning = self._meaning(term, counts)
        parts = split_mask(term) if meaning.residual and depth else []
        found = [read for part in parts for read in self._parts(part, counts, depth - 1)]
        if not found or (len(parts) > 1 and all(m.residual for _, m in found)):
            return [(term, meaning)]
        return found

    def _padded(self, padding: ir.Value, keeps: str) -> MaskTerm:
        key = padding, keeps
        if key not in self._padding:
            first = Insert(self.model, self.model.graph[0])
            self._padding[key] = padding_mask(first, padding, keeps)
        return MaskTerm(self._padding[key], view=(None,) * 4)

    def _meaning(self, term: MaskTerm, counts: _Counts) -> MaskMeaning:
        key = (dataclasses.replace(term, view=None), *counts)
        if key not in self._meanings:
            found = read_mask(
                self.model, term.value, *counts, negated=term.negated, factor=term.factor
            )
            self._meanings[key] = found
        return self._meanings[key]

    def _mask(
        self, insert: Insert, terms: list[MaskTerm], found: Operands, counts: _Counts
    ) -> tuple[ir.Value | None, str]:
        """Join what is left; layers share what their masks become."""
        terms = list(dict.fromkeys(terms))
        same = (*map(str, terms), *(t.value for t in terms), *counts, found.query.dtype)
        key = (same, found.split)
        if None in counts or key not in self._joined:
            site = MaskSite(found.query, found.key, found.split, counts[1] == _count(found.key))
            self._joined[key] = join_masks(insert, terms, site)
        return self._joined[key]

    def _is_by_heads(self, output: ir.Value, split: Split) -> bool:
        """Whether the output already is [B,H,S,D]."""
        shape = self.probe.shape_of(output)
        if shape is None:
            return len(split.lead) == 2 and split.lead == (split.batch, split.heads)
        return len(shape) == 4 and shape[:2] == (split.batch, split.heads)

    def _replace(
        self,
        at: ir.Node,
        match: AttentionMatch,
        spec: AttentionSpec,
        inputs: dict[str, ir.Value],
        lead: list[int],
    ) -> None:
        output, name = match.output, str(match.output.name)
        node = add_flash_attention(self.model, spec, inputs, name=name)
        self.model.graph.insert_before(at, node)
        if lead:
            self._back(Insert(self.model, at), node.outputs[0], output, lead)
        else:
            take_over(output, node.outputs[0])
        keys = node.outputs[1:] or (inputs["key"], inputs["value"])
        for given, new in zip(match.presents, keys, strict=False):
            self._hand_over(at, given, new)
        self.sites.append(name)
        kind = spec.overload or "plain"
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def _hand_over(self, at: ir.Node, given: ir.Value, new: ir.Value) -> None:
        """Users of all keys, or values, that the standard op gave get them from here."""
        if not given.uses() and not given.is_graph_output():
            return
        if given.is_graph_output() and (new.is_graph_output() or not new.producer()):
            new = Insert(self.model, at).node("Identity", [new], new.dtype, given.shape)
        if given.is_graph_output():
            take_over(given, new)
        else:
            ir.convenience.replace_all_uses_with(given, new)

    def _back(self, insert: Insert, made: ir.Value, output: ir.Value, lead: list[int]) -> None:
        """Give the users of [.., S, D] what they had, or [B,H,S,D] where they go back to it."""
        shape = insert.concat([insert.ints(lead), insert.size(made, 2)])
        flat = insert.node("Reshape", [made, shape], output.dtype, output.shape)
        if output.is_graph_output():
            made.name = _free_name(self.model, f"{output.name}_heads")
            take_over(output, flat)
            return
        output.name = f"{output.name}_unfused"
        ir.convenience.replace_all_uses_with(output, flat)
        for user in [use.node for use in flat.uses()]:
            back = user.outputs[0]
            if user.op_type != "Reshape" or back.is_graph_output():
                continue
            if is_same(self.probe, made, back):
                ir.convenience.replace_all_uses_with(back, made)


def _hides_rows_by_numbers(terms: list[MaskTerm]) -> bool:
    """Whether masks that are left may put a finite number in the place of a whole row's scores."""
    return any(term.finite and term.value.dtype == ir.DataType.BOOL for term in terms)


def _free_name(model: ir.Model, name: str) -> str:
    used = {v.name for node in model.graph for v in node.outputs}
    used |= {v.name for v in (*model.graph.inputs, *model.graph.initializers.values())}
    while name in used:
        name = f"{name}_"
    return name


def _lead_sizes(output: ir.Value) -> list[int]:
    """The leading axes of [.., S, D] for a Reshape: -1 for the one that is not known.

    Raises:
        NotFused: There are several.
    """
    lead = [dim if isinstance(dim, int) else -1 for dim in (output.shape or ())][:-2]
    if lead.count(-1) > 1:
        raise NotFused(f"its output {output.shape} has more than one leading axis of unknown size")
    return lead


def _sum(first: int | str | None, second: int | str | None) -> int | str | None:
    """Two numbers of tokens, one behind the other."""
    if isinstance(first, int) and isinstance(second, int):
        return first + second
    return None if first is None or second is None else f"{first} + {second}"


def _count(value: ir.Value) -> int | str | None:
    """The number of tokens of [B,H,S,D], or the expression that it is."""
    dim = value.shape[2] if value.shape is not None and len(value.shape) == 4 else None
    return dim.value if isinstance(dim, ir.SymbolicDim) else dim
