"""Small attention gates on the channels of a frozen network: what they have learned to let pass is what matters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from secateurs.batch import run_batch, split
from secateurs.evidence import by_unit, readers_of
from secateurs.forward import device_of, evaluating, parameters_in
from secateurs.recover.loop import train_
from secateurs.types import SecateursError, Site, Task, TaskError


def channel_attention(
    model: nn.Module, task: Task, sites: Sequence[Site], *, epochs: int, lr: float = 1e-2, reduction: int = 4, show: bool = True
) -> dict[str, Tensor]:
    """Site → the mean over the calibration data of a learned gate on each of its units, in (0, 1), for the criterion `pcas` (1806.05382).

    What the readers of a unit are given is multiplied with the gate: the mean of each channel over its places, a layer that reduces their
    number by ``reduction``, ReLU, a layer back, sigmoid. Only the gates are trained, with Adam; the network stays as it is to the
    bit, in evaluation mode, and so do its gradients.

    Raises `SecateursError` where no reader of a site can be watched, `TaskError` without batches or a loss.

    >>> from secateurs import Channel, find_sites
    >>> model, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(8, 4)
    >>> task = Task(x[:1], train=[(x, torch.zeros(8, 2))], loss=nn.functional.mse_loss)
    >>> channel_attention(model, task, find_sites(model, Channel(), x[:1]), epochs=1)["0"].shape
    torch.Size([3])
    """
    if reduction < 1 or epochs < 0:
        raise SecateursError(f"channel_attention: reduction={reduction} must be at least 1, and epochs={epochs} at least 0")
    gates = [_Gate(site, _attention(site.units, reduction).to(device_of(model))) for site in sites]
    gated = _Gated(model, [gate.net for gate in gates])
    with _frozen(model), ExitStack() as hooks:
        for gate in gates:
            for handle in gate.hooks():
                hooks.callback(handle.remove)
        train_(gated, task, torch.optim.Adam(gated.gates.parameters(), lr=lr), epochs, show=show)
        gated.eval()
        _pass_batches(model, task, gates)
    return {gate.site.name: gate.mean() for gate in gates}


def _attention(units: int, reduction: int) -> nn.Module:
    hidden = max(1, units // reduction)
    return nn.Sequential(nn.Linear(units, hidden), nn.ReLU(), nn.Linear(hidden, units), nn.Sigmoid())


class _Gated(nn.Module):
    """A frozen network with gates, whose training mode is that of the gates alone."""

    def __init__(self, module: nn.Module, gates: Sequence[nn.Module]) -> None:
        super().__init__()
        self.module, self.gates = module, nn.ModuleList(gates)

    def train(self, mode: bool = True) -> _Gated:
        """The network stays in evaluation mode."""
        self.gates.train(mode)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the network answers, its gates being hooks."""
        return self.module(*args, **kwargs)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    trained = [parameter for parameter in parameters_in(model).values() if parameter.requires_grad]
    with evaluating(model), torch.enable_grad():
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


def _pass_batches(model: nn.Module, task: Task, gates: Sequence[_Gate]) -> None:
    for gate in gates:
        gate.seen = []
    batches = task.calibration if task.calibration is not None else task.train
    with torch.no_grad():
        for batch in () if batches is None else batches:
            inputs, _ = split(model, task, batch)
            run_batch(model, inputs, "a calibration batch", task.example)


@dataclass
class _Gate:
    """The gate of one site, on all who read it."""

    site: Site
    net: nn.Module
    seen: list[tuple[Tensor, int]] = field(default_factory=list)

    def hooks(self) -> Iterator[Any]:
        readers = readers_of(self.site)
        if not readers:
            raise SecateursError(
                f"{self.site.name}: a gate is put before the layers that read its units, and none can be watched: take a pattern of "
                f"coupled units such as Channel(), or skip it with skip=[{self.site.name!r}]"
            )
        for module, features in readers:
            yield module.register_forward_pre_hook(self._scaling(features))

    def _scaling(self, features: Tensor) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> Any:
            given = inputs[0]
            features_here = features.to(given.device)
            gate = self.net(by_unit(given, module, features_here).mean(2).T)
            if not self.net.training:
                self.seen.append((gate.detach().sum(0), len(gate)))
            return (given * _as_inputs(gate, given, module, features_here).to(given.dtype), *inputs[1:])

        return hook

    def mean(self) -> Tensor:
        count = sum(number for _, number in self.seen)
        if not count:
            raise TaskError(f"{self.site.name}: no calibration batch passed its readers, so nothing is known of its gate")
        return torch.stack([total for total, _ in self.seen]).sum(0) / count


def _as_inputs(gate: Tensor, given: Tensor, module: nn.Module, features: Tensor) -> Tensor:
    """Gates ``(samples, units)`` so that they multiply a layer's inputs; features of no unit pass as they are."""
    channels = 1 if isinstance(module, _ConvNd) and given.ndim == module.weight.ndim else 0 if isinstance(module, _ConvNd) else -1
    unit_of = torch.full((given.shape[channels],), gate.shape[1], device=given.device)
    unit_of[features] = torch.arange(gate.shape[1], device=given.device)[:, None].expand_as(features)
    by_feature = torch.cat([gate, gate.new_ones(len(gate), 1)], dim=1)[:, unit_of]
    if isinstance(module, _ConvNd):
        places = (1,) * (module.weight.ndim - 2)
        return by_feature.view(*by_feature.shape, *places) if channels == 1 else by_feature[0].view(-1, *places)
    if given.ndim == 1:
        return by_feature[0]
    if isinstance(module, nn.RNNBase) and not module.batch_first and given.ndim == 3:
        return by_feature
    return by_feature.view(len(gate), *(1,) * (given.ndim - 2), -1)
