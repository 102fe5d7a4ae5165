"""The heads of attentions: how large their outputs are for an input, and the layers that can do without some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateurs.evidence import readers_of
from secateurs.forward import run_example
from secateurs.nested import tensors_in
from secateurs.patterns import Head, as_units, find_sites
from secateurs.per_input.attached import PerInput, kept_of
from secateurs.per_input.stream import Stream
from secateurs.types import SecateursError, Site


@dataclass
class HeadGate:
    """The heads of one attention: ``features[u]`` are the inputs of its last layer that come from head u, ``rows`` the outputs of the
    layers that make it. ``skips``: an input by itself runs without those that it does not need.
    """

    features: Tensor
    last: nn.Linear
    makers: list[tuple[nn.Linear, Tensor]]
    skips: bool = True
    stream: Stream | None = None
    chosen: Tensor | None = None
    narrow: Tensor | None = None
    is_narrow: bool = False
    inner: list[Any] = field(default_factory=list)

    def begin(self, stream: Stream, keep: float) -> None:
        """Before a block: which heads work ``(n, heads)``; all of them where none may go."""
        self.stream, self.chosen, self.narrow, self.is_narrow = stream, None, None, False
        units = len(self.features)
        if stream.heads is None:
            stream.heads = torch.zeros(stream.n, units, device=stream.received.device)
        if keep < 1 and kept_of(keep, units) < units:
            rank = stream.heads.sort(dim=1, descending=True, stable=True).indices.argsort(1)
            self.chosen = rank < kept_of(keep, units)
            if self.skips and stream.n == 1:
                self.narrow, self.is_narrow = self.chosen[0].nonzero()[:, 0], True

    def make(self, place: int, x: Tensor) -> Tensor:
        """In place of a layer that makes queries, keys or values."""
        layer, rows = self.makers[place]
        if self.narrow is None:
            return self.inner[place](x)
        chosen = rows.to(x.device)[self.narrow].flatten()
        return functional.linear(x, layer.weight[chosen], None if layer.bias is None else layer.bias[chosen])

    def finish(self, x: Tensor) -> Tensor:
        """In place of the layer that reads the heads."""
        stream, self.stream = self.stream, None
        if stream is None or stream.heads is None:
            return self.inner[-1](x)
        features = self.features.to(x.device)
        if self.narrow is not None:
            size = (x.detach().abs() * stream.counts[..., None]).float().sum((0, 1)).view(len(self.narrow), -1).sum(1)
            stream.heads = stream.heads.index_add(1, self.narrow, size[None])
            narrow, self.narrow = features[self.narrow].flatten(), None
            return functional.linear(x, self.last.weight[:, narrow], self.last.bias)
        if self.chosen is not None:
            open_ = x.new_zeros(stream.n, x.shape[-1]).scatter(
                1, features.flatten().expand(stream.n, -1), self.chosen.to(x.dtype).repeat_interleave(features.shape[1], 1)
            )
            x = x * open_[:, None]
        size = (x.detach().abs() * stream.counts[..., None]).float().sum(1)
        stream.heads = stream.heads + size[:, features.flatten()].view(stream.n, *features.shape).sum(2)
        return self.inner[-1](x)


@dataclass
class Maker:
    """One of the layers that make heads, so that each has a method of its own."""

    gate: HeadGate
    place: int

    def make(self, x: Tensor) -> Tensor:
        """In place of the layer."""
        return self.gate.make(self.place, x)


def head_gates(model: nn.Module, example: Any, blocks: Sequence[str], attached: PerInput) -> tuple[list[HeadGate], dict[str, str]]:
    """A gate for the heads of each block, and those whose heads are multiplied by zero only, with the reason.

    Raises `SecateursError` where a block has no attention whose heads are known, or blocks have other numbers of them.
    """
    with attached.off():
        sites = find_sites(model, Head(), example)
    gates: list[HeadGate] = []
    reasons: dict[str, str] = {}
    for block in blocks:
        site = next((each for each in sites if each.name.startswith(f"{block}.")), None)
        read = [] if site is None else [pair for pair in readers_of(site) if isinstance(pair[0], nn.Linear)]
        if site is None or len(read) != 1:
            raise SecateursError(
                f"drop_tokens_: heads of {block} cannot go input by input: no linear layer alone reads them; give heads=1"
            )
        gate = HeadGate(read[0][1], read[0][0], _makers(site))  # type: ignore[arg-type]
        if gates and len(gates[0].features) != len(gate.features):
            raise SecateursError(
                f"drop_tokens_: {block} has {len(gate.features)} heads and {blocks[0]} {len(gates[0].features)}: a head that goes is to go "
                "in all later blocks; give heads=1"
            )
        reason = _why_whole(model, example, gate, attached)
        if reason:
            gate.skips, reasons[block] = False, f"its heads are multiplied by zero, not skipped: {reason}"
        gates.append(gate)
    for gate in gates:
        for place, (layer, _) in enumerate(gate.makers):
            gate.inner.append(attached.take_over(layer, Maker(gate, place).make))
        gate.inner.append(attached.take_over(gate.last, gate.finish))
    return gates, reasons


def _makers(site: Site) -> list[tuple[nn.Linear, Tensor]]:
    """The linear layers that make heads, with the rows of each head."""
    found: list[tuple[nn.Linear, Tensor]] = []
    for index, member in enumerate(site.members):
        if member.role == "producer" and member.attribute == "weight" and isinstance(member.module, nn.Linear):
            rows = torch.arange(len(member.weight))[:, None].expand(member.weight.shape)
            numbers = torch.zeros(member.weight.shape, dtype=torch.int64).copy_(rows)
            found.append(
                (member.module, torch.stack([each.unique() for each in as_units(site, numbers, index).reshape(site.units, -1)]))
            )
    return found


def _why_whole(model: nn.Module, example: Any, gate: HeadGate, attached: PerInput) -> str | None:
    """Why an input by itself cannot run without some of its heads; tried, with the second half of them set to zero or left out."""
    sizes = [rows.shape for _, rows in gate.makers]
    if len({id(layer) for layer, _ in gate.makers}) != 3 or len(set(sizes)) != 1:
        return f"{len(gate.makers)} linear layers make heads of one size each, and not three for queries, keys and values"
    keep = torch.arange(max(1, len(gate.features) // 2))
    trial = [torch.zeros(len(gate.features), dtype=torch.bool).index_fill(0, keep, True)]
    answers: list[list[Tensor]] = []
    for narrow in (False, True):
        hooks = []

        def without(layer: nn.Linear, narrow: bool = narrow) -> Any:
            def call(x: Tensor) -> Tensor:
                if layer is gate.last:
                    columns = gate.features[trial[0]].flatten()
                    if narrow:
                        return functional.linear(x, layer.weight[:, columns], layer.bias)
                    return functional.linear(x * torch.zeros_like(x[0, 0]).index_fill(0, columns, 1), layer.weight, layer.bias)
                rows = next(rows for each, rows in gate.makers if each is layer)[trial[0]].flatten()
                if not narrow:
                    return functional.linear(x, layer.weight, layer.bias)
                return functional.linear(x, layer.weight[rows], None if layer.bias is None else layer.bias[rows])

            return call

        for layer in [*(each for each, _ in gate.makers), gate.last]:
            hooks.append((layer, layer.__dict__.get("forward")))
            layer.__dict__["forward"] = without(layer)
        try:
            with attached.off():
                answers.append(list(tensors_in(run_example(model, example))))
        except SecateursError as error:
            return str(error).splitlines()[0][:200]
        finally:
            for layer, before in hooks:
                layer.__dict__.pop("forward") if before is None else layer.__dict__.__setitem__("forward", before)
    alike = all(torch.allclose(one, other, rtol=1e-3, atol=1e-4) for one, other in zip(*answers, strict=True))
    return None if alike else "left out and set to zero do not give the same answers"
