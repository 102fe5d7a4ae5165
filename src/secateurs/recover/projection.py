"""Linear maps from a narrower model's channels to its teacher's, trained beside the model by an optimizer of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from secateurs.ranks import count, summed
from secateurs.types import FileError, Run


@dataclass
class Projections:
    """One map ``(teacher's channels, model's channels)`` for each module, without a bias (1412.6550, §3.2), trained by Adam.

    The model learns through a map as it is, and the map from the model as it is: the gradients of each, by itself, are those of both
    together, whatever scales, clips or skips the model's. The maps are drawn from `seed`, alike in all processes, and learn from what
    all of them see. One whose model becomes narrower begins anew.
    """

    lr: float
    seed: int
    maps: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, list[Tensor]] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    _sums: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    def __call__(self, name: str, found: Tensor, width: int) -> Tensor:
        """Channels, which are last, as many as the teacher has."""
        shape = (width, found.shape[-1])
        if name not in self.maps or self.maps[name].shape != shape:
            chance = torch.Generator().manual_seed(crc32(f"{self.seed} {name}".encode()))  # whatever the order in which they come
            drawn = torch.randn(shape, generator=chance) / shape[1] ** 0.5
            self.maps[name] = drawn
            self.moments[name], self.steps[name] = [torch.zeros_like(drawn), torch.zeros_like(drawn)], 0
        self.maps[name] = self.maps[name].to(found.device)
        return found @ self.maps[name].T

    def learn(self, name: str, found: Tensor, wanted: Tensor, error: Any) -> None:
        """Add the gradient of ``error(map(found), wanted)`` to what the next step takes; channels are last in both."""
        weight = self.maps[name].detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(error(found.detach() @ weight.T, wanted), weight)
        known, samples = self._sums.get(name, (torch.zeros_like(gradient), 0))
        self._sums[name] = (known + gradient * len(found), samples + len(found))

    def step(self, run: Run) -> None:
        """One step of Adam for each map; one of a gradient that is not finite is left out."""
        sums = {name: total for name, (total, _) in self._sums.items()}
        samples = torch.tensor([samples for _, samples in self._sums.values()], dtype=torch.float64)
        if count() > 1:
            together = summed({**sums, "samples of all": samples})
            sums, samples = {name: together[name] for name in sums}, together["samples of all"]
        for (name, total), number in zip(sums.items(), samples.tolist(), strict=True):
            gradient = total / max(number, 1.0)
            if bool(gradient.isfinite().all()):
                self._adam(name, gradient)
        self._sums = {}

    def _adam(self, name: str, gradient: Tensor) -> None:
        mean, square = (moment.to(gradient.device) for moment in self.moments[name])
        self.steps[name] += 1
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient.square()
        self.moments[name] = [mean, square]
        size = (square / (1 - 0.999 ** self.steps[name])).sqrt() + 1e-8
        self.maps[name] = self.maps[name] - self.lr * (mean / (1 - 0.9 ** self.steps[name])) / size

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"maps": dict(self.maps), "moments": dict(self.moments), "steps": dict(self.steps)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what `state` gave; raises `FileError` for anything else."""
        maps, moments, steps = (state.get(key, {}) for key in ("maps", "moments", "steps"))
        sound = all(isinstance(each, Mapping) for each in (maps, moments, steps)) and maps.keys() == moments.keys() == steps.keys()
        sound = sound and all(
            isinstance(each, Tensor) for each in (*maps.values(), *(m for pair in moments.values() for m in pair))
        )
        if not sound or not all(
            type(steps[name]) is int and [moment.shape for moment in moments[name]] == [maps[name].shape] * 2 for name in maps
        ):
            raise FileError("the checkpoint holds no projections of this hook")
        self.maps, self.moments, self.steps = dict(maps), {name: list(pair) for name, pair in moments.items()}, dict(steps)
