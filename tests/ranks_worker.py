"""One of two processes that prune and train one model together: ``python ranks_worker.py RANK FOLDER`` (see test_ranks.py).

Each check runs in both, in the same order; what came of it is written to ``RANK.json``.
"""

from __future__ import annotations

import copy
import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import secateurs as sc
from secateurs.evidence import curvature, curvature_of_units, synaptic_flow
from secateurs.methods import obs_
from secateurs.ranks import whole

RANK, FOLDER = (int(sys.argv[1]), Path(sys.argv[2])) if __name__ == "__main__" else (0, Path())  # pytest looks for doctests here
CHECKS: dict[str, Callable[[], Any]] = {}


def check(function: Callable[[], Any]) -> Callable[[], Any]:
    CHECKS[function.__name__] = function
    return function


def batches(rank: int) -> list[tuple[Tensor, Tensor]]:
    """What each process has of the data."""
    generator = torch.Generator().manual_seed(rank)
    return [(torch.randn(8, 12, generator=generator), torch.randint(4, (8,), generator=generator)) for _ in range(2)]


def task(*ranks: int) -> sc.Task:
    data = [batch for rank in ranks or (RANK,) for batch in batches(rank)]
    accuracy = lambda output, target: (output.argmax(1) == target).float().mean()  # noqa: E731
    loss = nn.functional.cross_entropy
    return sc.Task(data[0][0][:1], train=data, validation=data, calibration=data, loss=loss, metric=accuracy)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 33), nn.ReLU(), nn.Linear(33, 4))  # 33: the shards are not of one size


def sharded(model: nn.Sequential) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def prune(model: nn.Module, task: sc.Task, pattern: Any = None, **options: Any) -> sc.Masks:
    wanda = sc.TopK(sc.magnitude(p=1) * sc.input_norm())
    allocate = options.pop("allocate", sc.uniform(sparsity=0.5))
    return sc.prune_(model, pattern or sc.Element(), wanda, allocate, task, **options)


def same(first: Any, second: Any) -> bool:
    return first.keys() == second.keys() and all(torch.equal(whole(first[name]), whole(second[name])) for name in first)


def zeros(model: nn.Module) -> list[float]:
    return [float((whole(p.detach()) == 0).float().mean()) for p in model.parameters() if p.ndim > 1]


def refused(function: Callable[[], Any]) -> str:
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was refused"


def everywhere(value: Any) -> list[Any]:
    values: list[Any] = [None, None]
    dist.all_gather_object(values, value)
    return values


# ---------------------------------------------------------------- each process has its own data


@check
def masks_are_those_of_all_data() -> Any:
    model = network()
    masks = prune(model, task())
    with sc.alone():
        of_all, of_own = prune(network(), task(0, 1)), prune(network(), task())
    return same(masks, of_all), same(masks, of_own)


@check
def a_unit_that_one_process_never_sees() -> Any:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(12, 4), nn.Linear(12, 4)])

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[RANK](x)

    torch.manual_seed(0)
    model = Choosing()
    norm = sc.input_norm()
    stats = sc.observe(model, sc.find_sites(model, sc.Element(), skip=()), [norm], task())
    expected = [torch.cat([x for x, _ in batches(rank)]).norm(dim=0) for rank in (0, 1)]
    return all(torch.allclose(stats[f"layers.{rank}.weight"][norm].flatten(), expected[rank]) for rank in (0, 1))


@check
def second_derivatives_are_those_of_all_data() -> Any:
    model, needs = network(), [curvature("exact"), curvature_of_units("exact"), synaptic_flow()]
    sites = sc.find_sites(model, sc.Filter(), only="2")
    together = sc.observe(model, sites, needs, task())
    with sc.alone():
        of_all, of_own = sc.observe(model, sites, needs, task(0, 1)), sc.observe(model, sites, needs, task())
    close = [torch.allclose(together[name][need], of_all[name][need], rtol=1e-4) for name in of_all for need in of_all[name]]
    own = [torch.allclose(together[name][need], of_own[name][need], rtol=1e-4) for name in of_own for need in of_own[name]]
    return close, own, refused(lambda: obs_(network(), task(), keep=0.5))


@check
def what_fails_in_one_fails_in_all() -> Any:
    model = network()
    empty = replace(task(), calibration=[] if RANK else task().calibration)
    told = refused(lambda: prune(model, empty))
    return told, same(model.state_dict(), network().state_dict())


@check
def other_weights() -> Any:
    model = network(seed=RANK)
    told = refused(lambda: prune(model, task()))
    return told, same(model.state_dict(), network(seed=RANK).state_dict())


@check
def a_plan_that_was_measured() -> Any:
    """Every process would plan something else; that of the first is followed."""
    masks = prune(network(), task(), allocate=sc.uniform(sparsity=0.25 + 0.5 * RANK))
    return masks.sparsity


@check
def a_statistic_that_is_no_sum() -> Any:
    class Last:
        def add(self, seen: Any) -> None:
            self.seen = seen.inputs[0].abs().sum(0)

        def result(self) -> Tensor:
            return self.seen.view(1, 1, -1)

    statistic = sc.Statistic("last", lambda member: Last())
    solver = sc.TopK(sc.magnitude(p=1) * statistic)
    return refused(lambda: sc.prune_(network(), sc.Element(), solver, sc.uniform(sparsity=0.5), task()))


@check
def data_parallel_training() -> Any:
    """Its own masks in each are refused; the same ones hold, and both end with the same weights and the same history."""
    wrapped = DistributedDataParallel(network(seed=RANK))
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.5, momentum=0.9, weight_decay=1e-2)
    with sc.alone():
        own = prune(copy.deepcopy(wrapped), task())
    told = refused(lambda: sc.train_(wrapped, task(), optimizer, 1, masks=own.bind(wrapped), show=False))
    masks = prune(wrapped, task())
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0)
    checkpoint = FOLDER / "data_parallel.safetensors"
    run = sc.train_(wrapped, task(), optimizer, 3, masks=masks, scheduler=plateau, checkpoint=checkpoint, show=False)
    state = {name: tensor.tolist() for name, tensor in wrapped.state_dict().items()}
    alike = len({json.dumps(each) for each in everywhere((run.history, state))}) == 1
    return told, alike, zeros(wrapped), [entry["loss"] for entry in run.history]


@check
def stopped_and_gone_on() -> Any:
    """Random numbers of its own in each process (dropout): after a stop they go on as if there had been none."""

    def train(epochs: int, checkpoint: Path | None) -> nn.Module:
        model = DistributedDataParallel(nn.Sequential(*network(), nn.Dropout(0.5)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        torch.manual_seed(RANK)
        sc.train_(model, task(), optimizer, epochs, checkpoint=checkpoint, show=False)
        return model

    whole_run = train(2, None)
    train(1, FOLDER / "stopped.safetensors")
    gone_on = train(2, FOLDER / "stopped.safetensors")
    return same(whole_run.state_dict(), gone_on.state_dict()), len({*everywhere(float(torch.rand(())))})


@check
def masks_that_grow_again() -> Any:
    """Data-parallel and in shards, by gradient and by chance: the same masks."""

    def grown(model: nn.Module, hook: sc.Hook) -> sc.Masks:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        return sc.train_(model, task(), optimizer, 3, hooks=[hook], show=False).masks

    def whole_of(masks: sc.Masks) -> dict[str, Any]:
        return {name: whole(mask).tolist() for name, mask in masks.items()}

    found: list[Any] = []
    half = sc.uniform(sparsity=0.5)
    for hook in (
        lambda: sc.rigl(half, every=2),
        lambda: sc.sparse_evolutionary(half),
        lambda: sc.gradual_regrowth(sc.linear(0.5), every=2),
    ):
        parallel, model = DistributedDataParallel(network()), sharded(network())
        one, other = grown(parallel, hook()), grown(model, hook())  # type: ignore[no-untyped-call]
        found.append((whole_of(one) == whole_of(other), other.kept, one.kept))
        found.append(len({json.dumps(each) for each in everywhere(whole_of(one))}))
    started = prune(network(), task(), allocate=sc.uniform(sparsity=0.5))
    return found, refused(lambda: started.regrow_({"0.weight": (~started["0.weight"]) & (RANK == 0)})), started.sparsity


@check
def gates_of_channels() -> Any:
    """With their penalty, in parallel and in shards: one history, one model; thresholds are those of all data."""

    def gated() -> nn.Module:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 4))
        return sc.boost_(model, task().example, keep=0.5).model

    def train(model: nn.Module) -> Any:
        hooks = [sc.saliency_penalty(1e-3)]
        run = sc.train_(model, task(), torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9), 2, hooks=hooks, show=False)
        state = [whole(tensor).tolist() for tensor in model.state_dict().values()]
        return [entry["loss"] for entry in run.history], len({json.dumps(each) for each in everywhere(state)})

    parallel = train(DistributedDataParallel(gated()))
    mesh, model = init_device_mesh("cpu", (2,)), gated()
    fully_shard(model, mesh=mesh)
    in_shards = train(model)
    found = sc.small_inputs(network(), task(), sparsity=0.5)
    with sc.alone():
        of_all = sc.small_inputs(network(), task(0, 1), sparsity=0.5)
    return parallel, in_shards, found == of_all


@check
def statistics_taken_anew() -> Any:
    """Those of all data, also of wrapped and of sharded models; what fails in one process leaves all as they were."""

    def made() -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm1d(12), *network(), nn.BatchNorm1d(4))

    def statistics(model: nn.Module, of: sc.Task) -> list[Any]:
        sc.recalibrate_(model, of)
        buffers = [buffer.double() for name, buffer in model.named_buffers() if "running" in name]
        return [[number.round(decimals=4).tolist() for number in buffers]]

    models = [made(), DistributedDataParallel(made()), sharded(made())]
    found = [*statistics(models[0], task()), *statistics(models[1], task()), *statistics(models[2], task())]
    with sc.alone():
        of_all, of_own = statistics(made(), task(0, 1))[0], statistics(made(), task())[0]
    model = made()
    told = refused(lambda: sc.recalibrate_(model, replace(task(), calibration=[] if RANK else task().calibration)))
    unchanged = same(model.state_dict(), made().state_dict())
    return [each == found[0] for each in found], found[0] == of_all, found[0] == of_own, told, unchanged, found[0]


@check
def tickets() -> Any:
    """Shuffled masks of a sharded model are those of the whole one; both draw one early bird, and see one line between two networks."""
    model, beside = network(), sharded(network())
    masks = prune(model, task())
    one, other = sc.shuffled(masks, model), sc.shuffled(masks.bind(beside), beside)
    normed = DistributedDataParallel(nn.Sequential(network()[0], nn.BatchNorm1d(33), nn.ReLU(), nn.Linear(33, 4)))
    optimizer = torch.optim.SGD(normed.parameters(), lr=0.1)
    draw = sc.early_bird(sc.uniform(sparsity=0.5), window=2, threshold=0.5)
    run = sc.train_(normed, task(), optimizer, 3, hooks=[draw], show=False)
    drawn = [{name: mask.tolist() for name, mask in run.masks.items()}, run.history[1]["mask_distance"]]
    line = sc.line_between(network(), network(seed=1), task(), points=3)
    with sc.alone():
        of_all = sc.line_between(network(), network(seed=1), task(0, 1), points=3)
    return same(one, other), run.masks.kept > 0 and len({json.dumps(each) for each in everywhere(drawn)}), line == of_all


# ---------------------------------------------------------------- each process has a shard of the model


@check
def masks_made_before_sharding() -> Any:
    model = network()
    masks = prune(model, task())
    sharded(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    told = refused(lambda: masks.attach(optimizer))
    bound = masks.bind(model)
    history = sc.train_(model, task(), optimizer, 2, masks=bound, show=False).history
    here = sum(mask.to_local().numel() for mask in bound.values())  # type: ignore[attr-defined]
    shown = repr(bound) if RANK == 0 else ""  # nobody waits for anybody
    return told, zeros(model), here, shown, history[-1]["sparsity"]


@check
def pruned_in_shards() -> Any:
    """To the same masks as the whole model, further, to N of M, and not by channels."""
    model, beside = sharded(network()), network()
    masks, expected = prune(model, task()), prune(beside, task())
    alike = same(masks, expected) and same(model.state_dict(), beside.state_dict())
    further = prune(model, task(), masks=masks, allocate=sc.global_threshold(sparsity=0.8))
    stay = all(bool((whole(masks[name]) | ~whole(mask)).all()) for name, mask in further.items())
    two_of_four = prune(sharded(network()), task(), sc.NofM(2, 4), only=["0"], allocate=None)
    channels = refused(lambda: prune(sharded(network()), task(), sc.Channel()))
    return alike, stay, further.sparsity, two_of_four.sparsity, channels, refused(lambda: sc.shrink_(model, further))


@check
def gradually_in_shards() -> Any:
    """With a penalty, clipped gradients and dead neurons: the history is that of data-parallel training."""

    def history(model: nn.Module) -> Any:
        hook = sc.gradual(sc.Element(), sc.TopK(sc.magnitude()), sc.global_threshold, sc.linear(0.6))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        hooks = [hook, sc.penalty(1e-4), sc.clip_gradients(1.0)]
        return sc.train_(model, task(), optimizer, 2, hooks=hooks, show=False).history

    in_shards, parallel = history(sharded(network())), history(DistributedDataParallel(network()))
    return [[entry[key] for key in ("loss", "sparsity", "validation")] for entry in (*in_shards, *parallel)]


@check
def penalties_in_shards() -> Any:
    """Filters, single weights and what grows, with steps of their own: weights, strengths and masks are those of data-parallel training."""

    def end(model: nn.Module) -> Any:
        hooks = [
            sc.group_lasso(sc.Filter(), target=0.3, only="*"),
            sc.penalty(1e-3, p=1, step="proximal"),
            sc.growing_penalty(
                sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), delta=0.5, every=1, step="proximal"
            ),
        ]
        run = sc.train_(model, task(), torch.optim.SGD(model.parameters(), lr=0.3), 3, hooks=hooks, show=False)
        told = [number for entry in run.history for key, number in entry.items() if key.startswith(("g", "l"))]
        return [told, {name.removeprefix("module."): whole(mask).tolist() for name, mask in run.masks.items()}]

    (shards, masks), (parallel, expected) = end(sharded(network())), end(DistributedDataParallel(network()))
    return shards, parallel, len(everywhere(masks)) == 2 and everywhere(masks)[0] == everywhere(masks)[1] == expected


@check
def files_of_shards() -> Any:
    model = sharded(network())
    masks = prune(model, task())
    sizes = [sc.save(model, FOLDER / f"{sparse}.safetensors", masks, sparse=sparse) for sparse in (False, True)]
    again = sc.load(FOLDER / "True.safetensors", sharded(network(seed=5)))
    loaded = sc.load(FOLDER / "False.safetensors", network)
    alike = same(model.state_dict(), again.state_dict()) and same(model.state_dict(), loaded.state_dict())
    alike &= same(sc.load_masks(FOLDER / "False.safetensors", again), masks)
    alike &= same(sc.load_masks(FOLDER / "True.safetensors", loaded), masks)
    nowhere = refused(lambda: sc.save(model, FOLDER / "nowhere" / "x.safetensors", masks))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = refused(lambda: sc.train_(model, task(), optimizer, 1, checkpoint=FOLDER / "c.safetensors", show=False))
    return alike, sizes, nowhere, kept


@check
def taught_by_what_it_was() -> Any:
    """Data-parallel, with a trained map; in shards only by a teacher that is given, and then to the same losses."""

    def history(model: nn.Module, teacher: Any, **options: Any) -> Any:
        hook = sc.gradual(sc.Element(), sc.TopK(sc.magnitude()), sc.global_threshold, sc.linear(0.6))
        hooks = [hook, sc.distill(teacher), sc.distill_features(teacher, "0", weight=0.1, **options)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = sc.train_(model, task(), optimizer, 2, hooks=hooks, show=False)
        return [entry["loss"] for entry in run.history], hooks[2].state().get("maps", {})

    own, _ = history(DistributedDataParallel(network()), sc.Teacher())
    in_shards, _ = history(sharded(network()), sc.Teacher(network()))
    torch.manual_seed(3)
    wide = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))
    _, maps = history(DistributedDataParallel(network()), wide, project=True)
    told = refused(lambda: history(sharded(network()), None))
    return own, in_shards, maps["0#0"].tolist(), told


@check
def thresholded_and_begun_anew() -> Any:
    """Data-parallel and in shards: exactly as many weights, and the same ones."""

    def zeros_of(model: nn.Module) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        run = sc.train_(model, task(), optimizer, 2, hooks=[sc.hard_threshold(0.6, every=1)], show=False)
        return [int((~whole(mask)).sum()) for mask in run.masks.values()], run.masks.sparsity

    begun = network(seed=RANK)
    sc.restart_(begun, seed=5)
    weights = [round(float(p.sum()), 6) for p in begun.parameters()]
    return zeros_of(DistributedDataParallel(network())), zeros_of(sharded(network())), weights


@check
def sparsity_that_is_learned() -> Any:
    """Under data parallelism and in shards: the same masks, and weights within rounding; noise is drawn alike."""
    hooks = [
        lambda: sc.soft_threshold(strength=0.01, start=-2.5),
        lambda: sc.indicators(strength=1.0, start=0.02),
        lambda: sc.l0_gates(strength=1.0, start=0.33),
        lambda: sc.l0_gates(strength=0.1, start=0.33, pattern=sc.Filter(), only=["0"], learner=steep),
        lambda: sc.sparse_refined(only=["0"]),
    ]
    found = []
    for hook in hooks:
        runs = []
        for model in (DistributedDataParallel(network()), sharded(network())):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            runs.append(sc.train_(model, task(), optimizer, 4, hooks=[hook()], show=False))
        parallel, in_shards = ({name.removeprefix("module."): whole(mask) for name, mask in run.masks.items()} for run in runs)
        weights = ([whole(p.detach()) for p in run.model.parameters()] for run in runs)
        close = all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*weights, strict=True))
        digest = [float(parallel[name].float().mean()) for name in sorted(parallel)]
        found.append([same(parallel, in_shards), close, runs[0].masks.sparsity, digest])
    return found, refused(lambda: learned_in_shards())


@check
def bits_that_are_learned() -> Any:
    """As above, for layers that lie in several shards and channels that lie in one; a rounding may take a weight to the next level."""
    found = []
    for per in ("layer", "channel"):
        learned, weights = [], []
        for model in (DistributedDataParallel(network()), sharded(network())):
            hook = sc.learned_bits(strength=0.02, start=2.5, per=per, learner=steep)
            run = sc.train_(model, task(), torch.optim.SGD(model.parameters(), lr=0.1), 1, hooks=[hook], show=False)
            learned.append(run.history[-1]["bits"])
            weights.append(torch.cat([whole(p.detach()).flatten() for p in model.parameters()]))
        found.append([*learned, float(torch.isclose(*weights, atol=1e-5).float().mean())])
    return found


def steep(values: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(values, lr=3.0)


def learned_in_shards() -> Any:
    model = sharded(network())
    return sc.train_(
        model, task(), torch.optim.SGD(model.parameters(), lr=0.1), 1, hooks=[sc.learned_n_of_m(only=["0"])], show=False
    )


def main() -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{FOLDER}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=RANK, world_size=2)
    found: dict[str, Any] = {}
    for name, function in CHECKS.items():
        try:
            found[name] = function()
        except Exception:
            found[name] = traceback.format_exc()
        (FOLDER / f"{RANK}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
