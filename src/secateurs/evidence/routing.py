"""Which tokens a router sends to which expert, with what weight, and what the expert answers: seen while the model runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateurs.evidence.adding import Accumulators
from secateurs.nested import tensors_in
from secateurs.types import SecateursError, Seen, Site, Statistic
from secateurs.watch import Operations


@dataclass
class PerExpert:
    """How many tokens were sent to each expert, and the sum of weight × norm of what it answered to them."""

    site: Site
    mean: bool
    counts: Tensor | None = None
    norms: Tensor | None = None

    sums: ClassVar = ("counts", "norms")

    def add(self, seen: Seen) -> None:
        """Add one call: ``values`` are counts and sums, ``(2, experts)``."""
        assert seen.values is not None
        counts, norms = seen.values.double().cpu()
        self.counts = counts if self.counts is None else self.counts + counts
        self.norms = norms if self.norms is None else self.norms + norms

    def result(self) -> Tensor:
        """The mean over the tokens of each, or how many there were; 0 where there was none, with a warning."""
        counts = torch.zeros(self.site.units, dtype=torch.float64) if self.counts is None else self.counts
        norms = torch.zeros_like(counts) if self.norms is None else self.norms
        alive = torch.ones_like(counts, dtype=torch.bool) if self.site.alive is None else self.site.alive.flatten().cpu()
        missed = int(((counts == 0) & alive).sum())
        if missed:
            warnings.warn(
                f"{self.site.name}: no calibration token was sent to {missed} of its {self.site.units} experts, which are not missed "
                "therefore: observe more or other batches, if they should be",
                stacklevel=5,
            )
        found = norms / counts.clamp_min(1) if self.mean else counts
        return found.float().view(self.site.contest_count, -1)


@dataclass(frozen=True)
class _Start:
    mean: bool

    def __call__(self, site: Site) -> PerExpert:
        return PerExpert(site, self.mean)


def expert_saliency() -> Statistic:
    """The mean over the tokens that are sent to an expert of the weight of its answer times the norm of that (2510.13999).

    >>> expert_saliency().watches
    'routing'
    """
    return Statistic("expert_saliency", _Start(mean=True), "routing", "units")


def tokens_routed() -> Statistic:
    """How many tokens are sent to each expert.

    >>> tokens_routed().watches
    'routing'
    """
    return Statistic("tokens_routed", _Start(mean=False), "routing", "units")


@contextmanager
def watched_routing(
    model: nn.Module, sites: Sequence[Site], begun: Mapping[str, Accumulators], needs: Sequence[Statistic]
) -> Iterator[None]:
    """While it is entered, what each mixture does with its tokens feeds the accumulators of its experts.

    Raises `SecateursError` for units that are no experts, and where a mixture shows no weights of its experts' answers.
    """
    norms = any(need.name == "expert_saliency" for need in needs)
    with ExitStack() as around:
        listed: dict[nn.Module, _Listed] = {}
        for site in sites if needs else ():
            if site.mixture is None:
                raise SecateursError(
                    f"{site.name}: {needs[0].name} looks at tokens that are sent to experts, and these units are none: take Expert(), or "
                    "another criterion"
                )
            accumulators = [begun[site.name][need] for need in needs]
            if site.mixture.index is None:
                hook = _Stacked(site, accumulators, norms)
                module = model.get_submodule(site.mixture.experts)
                around.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            else:
                module = model.get_submodule(f"{site.mixture.experts}.{site.mixture.index}")
                listed[module] = _Listed(site, accumulators, norms)
        if listed:
            answers = _Answers(listed)
            for module in listed:
                around.callback(module.register_forward_hook(answers.note).remove)
            around.callback(model.register_forward_hook(answers.end).remove)
            around.enter_context(Operations(answers.see))
        yield


def _feed(accumulators: Sequence[Any], counts: Tensor, norms: Tensor) -> None:
    for accumulator in accumulators:
        accumulator.add(Seen(values=torch.stack([counts.double(), norms.double()])))


class _Stacked:
    """Experts whose matrices lie in one parameter: the module is called with tokens, the experts chosen for each, and their weights.

    What each expert answers is asked of the module itself, with that expert alone and a weight of 1: whatever its kernels are.
    """

    def __init__(self, site: Site, accumulators: Sequence[Any], norms: bool) -> None:
        self.site, self.accumulators, self.norms, self.asking = site, accumulators, norms, False

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.asking:
            return
        given = list(tensors_in((args, kwargs)))
        chosen = next((each for each in given if each.ndim == 2 and not each.is_floating_point()), None)
        weight = next(
            (each for each in given if each.is_floating_point() and chosen is not None and each.shape == chosen.shape), None
        )
        tokens = next(
            (each for each in given if each.ndim == 2 and each is not weight and chosen is not None and len(each) == len(chosen)),
            None,
        )
        if chosen is None or weight is None or tokens is None or tokens is chosen:
            raise SecateursError(
                f"{self.site.name}: its experts are not called with tokens, the experts chosen for each and their weights, a row a token "
                "each, so that nobody sees which weight an answer has: take routed() or magnitude(), which do not look at answers"
                if self.norms
                else f"{self.site.name}: its experts are not called with the experts chosen for each token: take magnitude()"
            )
        counts = torch.bincount(chosen.flatten().clamp(0, self.site.units), minlength=self.site.units + 1)[: self.site.units]
        sums = torch.zeros(self.site.units, dtype=torch.float64, device=tokens.device)
        for expert in counts.nonzero().flatten().tolist() if self.norms else ():
            rows, places = torch.where(chosen == expert)
            norms = self._ask(module, args, kwargs, {id(tokens): tokens[rows], id(chosen): chosen[rows, places][:, None]}, weight)
            sums[expert] = (weight[rows, places].double() * norms).sum()
        _feed(self.accumulators, counts, sums)

    @torch.no_grad()
    def _ask(self, module: nn.Module, args: Any, kwargs: Any, instead: dict[int, Tensor], weight: Tensor) -> Tensor:
        """The norms of what one expert answers to some tokens."""
        rows = len(next(iter(instead.values())))
        instead = {**instead, id(weight): weight.new_ones(rows, 1)}
        self.asking = True
        try:
            output = module(
                *[instead.get(id(each), each) for each in args], **{k: instead.get(id(v), v) for k, v in kwargs.items()}
            )
        finally:
            self.asking = False
        return next(tensors_in(output)).reshape(rows, -1).double().norm(dim=1)


@dataclass
class _Listed:
    """One expert of a list of modules."""

    site: Site
    accumulators: Sequence[Any]
    norms: bool


class _Answers:
    """What experts of a list answer, until it is multiplied with its weights."""

    def __init__(self, experts: Mapping[nn.Module, _Listed]) -> None:
        self.experts = experts
        self.waiting: dict[int, tuple[Tensor, _Listed]] = {}

    def note(self, module: nn.Module, args: Any, output: Any) -> None:
        """An expert has answered."""
        answer, expert = next(tensors_in(output)), self.experts[module]
        if expert.norms and answer.numel():
            self.waiting[id(answer)] = (answer, expert)
        elif not expert.norms:
            rows = answer.flatten(0, -2).shape[0]
            _feed(expert.accumulators, torch.tensor([float(rows)]), torch.zeros(1))

    def see(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation; where an answer is multiplied with one number a row, these are its weights."""
        if func.overloadpacket in (torch.ops.aten.mul, torch.ops.aten.mul_) and len(args) > 1 and self.waiting:
            pairs: list[tuple[Any, Any]] = [(args[0], args[1]), (args[1], args[0])]
            for one, other in pairs:
                known = self.waiting.get(id(one))
                if known is not None and isinstance(other, Tensor) and other.numel() == one.flatten(0, -2).shape[0]:
                    answer, expert = self.waiting.pop(id(one))
                    norms = other.detach().flatten().double() * answer.detach().flatten(0, -2).double().norm(dim=1)
                    _feed(expert.accumulators, torch.tensor([float(other.numel())]), norms.sum()[None])
                    break
        return func(*args, **kwargs)

    def end(self, *_: Any) -> None:
        """Every answer must have got its weights."""
        if self.waiting:
            expert = next(iter(self.waiting.values()))[1]
            self.waiting.clear()
            raise SecateursError(
                f"{expert.site.name}: what it answers is not multiplied with one weight a token at once, so that nobody sees which "
                "weight an answer has: take routed() or magnitude(), which do not look at answers"
            )
