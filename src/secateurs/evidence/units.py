"""What is observed of whole units: the numbers that those who read them are given, or all their weights with the gradients by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from secateurs.evidence.adding import Accumulators
from secateurs.evidence.backward import Backward, needing_gradient, require_gradients
from secateurs.patterns import as_units, layout_of, weight_of
from secateurs.types import Accumulator, Counted, Member, SecateursError, Seen, Site, Statistic


class Units:
    """The accumulators of the units of each site: of what their readers are given, and of their weights."""

    def __init__(self, sites: Sequence[Site], needs: Sequence[Statistic]) -> None:
        self._sites = {site.name: site for site in sites}
        self.begun: dict[str, dict[Statistic, Accumulator]] = {
            name: {need: need.start(site) for need in needs} for name, site in (self._sites.items() if needs else ())
        }
        self._of_values = [need for need in needs if need.watches in ("values", "value_gradients")]
        self._of_weights = [need for need in needs if need.watches in ("weight_gradients", "weight_curvatures")]

    def hooks(self, backward: Backward | None) -> Iterator[RemovableHandle]:
        """Hooks on every reader of the units."""
        for name, site in self._sites.items() if self._of_values else ():
            readers = readers_of(site)
            if not readers:
                raise SecateursError(
                    f"{name}: {self._of_values[0].name} watches the layers that read its units, and none can be watched: take a pattern "
                    f"of coupled units such as Channel(), or skip it with skip=[{name!r}]"
                )
            for module, features in readers:
                yield module.register_forward_pre_hook(self._feed(self.begun[name], features, backward))

    def _feed(self, accumulators: Accumulators, features: Tensor, backward: Backward | None) -> Callable[..., Any]:
        now = [value for need, value in accumulators.items() if need.watches == "values"]
        later = [value for need, value in accumulators.items() if need.watches == "value_gradients"]

        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
            if not inputs or not isinstance(inputs[0], Tensor):
                return None
            values = by_unit(inputs[0].detach(), module, features)
            for accumulator in now:
                accumulator.add(Seen(values=values, samples=values.shape[1]))
            if not later or backward is None:
                return None
            caught = needing_gradient(inputs[0])

            def deliver(gradient: Tensor, samples: int) -> None:
                seen = Seen(values=values, gradient=by_unit(gradient, module, features), samples=samples)
                for accumulator in later:
                    accumulator.add(seen)

            backward.caught.append((caught, deliver))
            return (caught, *inputs[1:]) if caught is not inputs[0] else None

        return hook

    def watch_weights(self, backward: Backward) -> None:
        """Ask for the gradients by all weights that count in a unit."""
        for name, site in self._sites.items():
            for need in self._of_weights:
                accumulator = self.begun[name][need]
                if need.curvature is None:
                    backward.joint.append(_weights_of(site, need.members, accumulator))
                else:
                    shape = (site.contest_count, site.units // site.contest_count)
                    backward.of_units(_numbered(site, need.members), need.curvature, shape, accumulator)


def _members_of(site: Site, counted: Counted) -> list[tuple[int, Member]]:
    roles = {"producers": ("producer",), "consumers": ("consumer",), "all": ("producer", "consumer", "scale")}.get(counted)
    if roles is None:
        raise SecateursError(f'members={counted!r}: the weights of whole units are "producers", "consumers" or "all"')
    members = [(index, member) for index, member in enumerate(site.members) if member.role in roles]
    for _, member in members:
        require_gradients(member)
    return members


def _numbered(site: Site, counted: Counted) -> list[tuple[Tensor, Tensor]]:
    """The weights that count in a unit, each with the unit in which each of its numbers lies; −1 for none."""
    found: list[tuple[Tensor, Tensor]] = []
    for _, member in _members_of(site, counted):
        numbers = torch.full(member.weight.shape, -1, device=member.weight.device)
        view = member.cut(member.canonical(numbers))
        units = torch.arange(site.units, device=numbers.device).view(*site.contests, *site.competitors)
        view.copy_(units.view(*units.shape, *(1,) * (view.ndim - units.ndim)).expand(view.shape))
        found.append((member.weight, numbers))
    return found


def _weights_of(site: Site, counted: Counted, accumulator: Accumulator) -> tuple[list[Tensor], Callable[[list[Tensor], int], None]]:
    members = _members_of(site, counted)

    def in_rows(tensors: Sequence[Tensor]) -> Tensor:
        parts = [as_units(site, tensor, index).float() for (index, _), tensor in zip(members, tensors, strict=True)]
        return torch.cat([part.reshape(*part.shape[:2], -1) for part in parts], dim=2)

    def deliver(gradients: list[Tensor], samples: int) -> None:
        accumulator.add(
            Seen(values=in_rows([weight_of(member) for _, member in members]), gradient=in_rows(gradients), samples=samples)
        )

    return [member.weight for _, member in members], deliver


def readers_of(site: Site) -> list[tuple[nn.Module, Tensor]]:
    """The layers that read a site's units and whose inputs can be seen, each with its input features that belong to each unit.

    >>> from secateurs.patterns import Channel, find_sites
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 3))
    >>> [(_, features)] = readers_of(find_sites(model, Channel(), torch.zeros(1, 1, 2, 2))[0])
    >>> features
    tensor([[0, 1, 2, 3],
            [4, 5, 6, 7]])
    """
    found: dict[int, tuple[nn.Module, Tensor]] = {}
    for index, member in enumerate(site.members):
        if member.role == "consumer" and _shows_inputs(member):
            found.setdefault(id(member.module), (member.module, _features(site, index)))
    return list(found.values())


def _shows_inputs(member: Member) -> bool:
    """Whether the module's one input is what this weight reads."""
    module, attribute = member.module, member.attribute
    if (
        layout_of(module, attribute) is None
        or member.stacked
        or isinstance(module, (nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention))
    ):
        return False
    return attribute.startswith("weight_ih_l0") if isinstance(module, nn.RNNBase) else attribute.removesuffix("_orig") == "weight"


def _features(site: Site, index: int) -> Tensor:
    """Unit → the input features of a reader that carry it."""
    member = site.members[index]
    numbers = torch.zeros(member.weight.shape, dtype=torch.int64)
    view = member.canonical(numbers)
    groups, _, inputs, *kernel = view.shape
    view.copy_(torch.arange(groups * inputs).view(groups, 1, inputs, *(1,) * len(kernel)).expand(view.shape))
    if isinstance(member.module, nn.RNNBase):  # its groups are gates, which all read the same
        numbers %= inputs
    return torch.stack([row.unique() for row in as_units(site, numbers, index).reshape(site.units, -1)])


def by_unit(values: Tensor, module: nn.Module, features: Tensor) -> Tensor:
    """Inputs of a layer as ``(units, samples, numbers)``, float32.

    >>> by_unit(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), nn.Linear(4, 1), torch.tensor([[0, 1], [2, 3]]))
    tensor([[[1., 2.]],
            [[3., 4.]]])
    """
    values = values.float()
    if isinstance(module, _ConvNd):
        single = values.ndim < module.weight.ndim
        by_feature = (values.unsqueeze(0) if single else values).movedim(1, 0)
    else:
        first = isinstance(module, nn.RNNBase) and not module.batch_first and values.ndim == 3
        by_feature = (values if values.ndim > 1 else values.unsqueeze(0)).movedim(-1, 0)
        by_feature = by_feature.transpose(1, 2) if first else by_feature
    samples = by_feature.shape[1]
    chosen = by_feature.reshape(*by_feature.shape[:2], -1)[features.to(values.device)]
    return chosen.transpose(1, 2).reshape(features.shape[0], samples, -1)
