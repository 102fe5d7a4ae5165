"""Training a network as it will be in integers: weights and arrays are rounded in each pass, and learn to live with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.forward import modules_in
from secateurs.given import COUNT, NUMBER, require
from secateurs.patterns import Element, Selection
from secateurs.recover.inner import inside
from secateurs.recover.reparametrised import Beside, Chance, Reparametrised, Values, Where
from secateurs.recover.strength import Strength
from secateurs.types import FileError, Hook, Run, SecateursError, Sites

_MOVES = 0.1
"""The part of the way that a range goes to what a batch shows."""


def quantisation_aware(
    *, bits: int = 8, activations: int | None = 8, freeze: float = 1.0, only: Selection | None = None, skip: Selection | None = None
) -> Hook:
    """A hook for `train_`: the network trains with the weights and inputs of convolutions and linear layers rounded, masks held.

    In each pass weights are the nearest of 2 ^ bits - 1 whole numbers of steps, a step for each output, symmetric around zero, so that
    folding batch normalisation into them later changes nothing; what these layers read is rounded to 2 ^ activations levels between
    running averages of its extremes, zero among them (``None``: left exact). The gradient passes a rounding as if it were not there, and is
    zero where a number is clipped (Jacob et al. 2017, arXiv:1712.05877, section 3). Masked weights are zero throughout. From the part
    ``freeze`` of the epochs on, statistics of batch normalisations stay as they are and normalise in training too: for long trainings that
    end with small steps; in short ones it loses more than it brings.

    Afterwards the model is an ordinary one in float32, with the rounded weights: 8 bits are to the bit those that `quantised` makes.
    ``only`` and ``skip`` choose layers as in `prune_`. With a checkpoint a run that was stopped goes on to the bit.

    Raises `SecateursError` for bits that are not from 2 to 8 (16 for activations), and where no layer takes part.

    >>> import secateurs as sc
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> task = sc.Task(torch.zeros(1, 4), train=[(torch.randn(16, 4), torch.randn(16, 1))], loss=nn.functional.mse_loss)
    >>> _ = sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.01), 2, hooks=[quantisation_aware(bits=2)], show=False)
    >>> [len(row.unique()) for row in model[2].weight]
    [3]
    """
    who = "quantisation_aware"
    require(who, "bits", bits, COUNT)
    require(who, "freeze", freeze, NUMBER)
    if not 2 <= bits <= 8:
        raise SecateursError(f"{who}: bits={bits} must be from 2 to 8: weights of small machines are int8")
    if activations is not None:
        require(who, "activations", activations, COUNT)
        if not 2 <= activations <= 16:
            raise SecateursError(f"{who}: activations={activations} must be from 2 to 16 bits, or None")
    if not 0 <= freeze <= 1:
        raise SecateursError(f"{who}: freeze={freeze} is the part of the epochs after which statistics stay, from 0 to 1")
    return _Aware(who, bits, activations, freeze, Where(Element(), only, skip)).hook()


def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """Each output's weights as the nearest whole numbers of its step, the largest of them 2 ^ (bits - 1) - 1 steps.

    >>> rounded_weight(torch.tensor([[4.0, 1.9, -0.9], [0.0, 0.0, 0.0]]), 2)
    tensor([[4., 0., 0.],
            [0., 0., 0.]])
    """
    steps = 2 ** (bits - 1) - 1
    with torch.no_grad():
        most = weight.abs().flatten(1).amax(1).reshape(-1, *[1] * (weight.ndim - 1)) if weight.numel() else weight.abs()
        step = torch.where(most > 0, most / steps, 1)
        whole = (weight / step).round().clamp(-steps, steps) * step
    return whole + (weight - weight.detach())  # what is added is 0, and passes the gradient on


def rounded_array(x: Tensor, low: float, high: float, bits: int) -> Tensor:
    """Numbers as the nearest of 2 ^ bits levels from ``low`` to ``high``, between which 0 is one; beyond these they are clipped.

    >>> rounded_array(torch.tensor([-1.0, 0.1, 0.9, 9.0]), -1.0, 2.0, 2)
    tensor([-1.,  0.,  1.,  2.])
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    if scale < 1e-30:
        return x
    return torch.fake_quantize_per_tensor_affine(x.float(), scale, round(-low / scale), 0, 2**bits - 1).to(x.dtype)


@dataclass(eq=False)
class _Aware:
    """The state of a hook: weights that are computed of whole ones, and the range of what each layer reads."""

    who: str
    bits: int
    activations: int | None
    freeze: float
    where: Where
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)
    restored: bool = False

    def hook(self) -> Hook:
        learning = Reparametrised(self.who, self.where, self._begin, _no_learner, Strength.of(self.who, 0.0, None, first=0.0))
        inner = learning.hook()

        def start(run: Run) -> None:
            layers = self._layers(run)
            learning.where = replace(self.where, only=[f"{name}.weight" if name else "weight" for name in layers], skip=None)
            inner.start(run)
            self._watch(run, layers)

        def close(run: Run) -> None:
            self._let_go(run)
            inner.close(run)

        def state() -> dict[str, Any]:
            told = {name: torch.tensor(each, dtype=torch.float64) for name, each in self.ranges.items()}
            return {"learning": inner.state(), "ranges": told}

        def restore(state: Mapping[str, Any]) -> None:
            if not isinstance(state.get("ranges"), Mapping) or not isinstance(state.get("learning"), Mapping):
                raise FileError(f"{self.who}: the checkpoint holds no state of this hook")
            self.ranges = {name: (float(each[0]), float(each[1])) for name, each in state["ranges"].items()}
            self.restored = True
            inner.restore(state["learning"])

        return replace(inner, start=start, close=close, state=state, restore=restore)

    def _layers(self, run: Run) -> dict[str, nn.Module]:
        """The convolutions and linear layers that take part, by name."""
        modules = modules_in(inside(run.model))
        chosen = {member.parameter for site in self.where.sites(run) for member in site.members}
        kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
        found: dict[str, nn.Module] = {
            name: module
            for name, module in modules.items()
            if isinstance(module, kinds) and (f"{name}.weight" if name else "weight") in chosen
        }
        if not found:
            raise SecateursError(
                f"{self.who}: {type(inside(run.model)).__name__} has no convolution or linear layer among those chosen; give other "
                "only= or skip="
            )
        return found

    def _begin(self, sites: Sites, chance: Chance) -> Beside:
        names = [site.members[0].parameter for site in sites]

        def weight(name: str, v: Tensor, values: Values, noise: Values) -> Tensor:
            return rounded_weight(v, self.bits)

        nothing: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
        return Beside({}, nothing, weight, final=lambda values: None, tell=lambda values: {})  # final: zeros are no masks

    # ------------------------------------------------------------ what layers read

    def _watch(self, run: Run, layers: Mapping[str, nn.Module]) -> None:
        self._let_go(run)
        if not self.restored:
            self.ranges = {}
        self.restored = False
        if self.activations is not None:
            self.handles = [module.register_forward_pre_hook(partial(self._read, name)) for name, module in layers.items()]
        self.handles.append(run.model.register_forward_pre_hook(lambda module, _: self._still(run, module)))

    def _let_go(self, run: Run) -> None:
        for handle in self.handles:
            handle.remove()
        if self.handles:
            for module in _normalisations(run.model):
                module.train(run.model.training)
        self.handles = []

    def _read(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not args or not isinstance(args[0], Tensor) or self.activations is None:
            return None
        x = args[0]
        if module.training and x.numel():
            low, high = (float(each) for each in x.detach().aminmax())
            before = self.ranges.get(name, (low, high))
            if isfinite(low) and isfinite(high):  # what is not makes a loss that is told
                self.ranges[name] = (before[0] + _MOVES * (low - before[0]), before[1] + _MOVES * (high - before[1]))
        if name not in self.ranges:
            return None
        return rounded_array(x, *self.ranges[name], self.activations), *args[1:]

    def _still(self, run: Run, model: nn.Module) -> None:
        if model.training and run.epoch >= self.freeze * run.epochs:
            for module in _normalisations(model):
                module.eval()


def _normalisations(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]


def _no_learner(values: list[Tensor]) -> torch.optim.Optimizer:
    raise AssertionError("nothing is learned beside the weights")
