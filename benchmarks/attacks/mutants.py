"""Mutants of every kind of file that the package reads, and what it does with them.

Half of them are damaged by chance, half are changed by somebody who knows the format and has no checksums to be caught by. Whatever it
is, a reader gives back something of use, or an error of ours, and what it was to fill is then as it was.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import torch
from torch import Tensor, nn

import secateurs as sc
from attacks.mutate import changed, damaged, recoded, rewritten
from attacks.verdict import Verdict
from secateurs.files import nested_state
from secateurs.random_state import random_state
from secateurs.report import Curve, Entry, History, Layer, Point, Record, read_record
from secateurs.run.clock.memory import FOLDER_VARIABLE, Memory
from secateurs.types import SecateursError

_SLOW = 5.0
"""Seconds that no small file may take."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: a sound one, how somebody changes it, and a reader, which returns whether it could be used.

    A reader raises `SecateursError` where it refuses, and `AssertionError` where something is not as it must be then.
    """

    content: bytes
    change: Callable[[bytes, Random], bytes]
    read: Callable[[Path, bool], bool]


def mutants(name: str, count: int, seed: str) -> Verdict:
    """Try so many mutants of a kind of file; the same seed gives the same ones."""
    kind, chance, verdict = sound(name), Random(seed), Verdict()
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder) / "mutant"
        for number in range(count):
            by_chance = chance.random() < 0.5
            path.write_bytes((damaged if by_chance else kind.change)(kind.content, chance))
            start = time.perf_counter()
            outcome, fault = _tried(kind, path, by_chance)
            if time.perf_counter() - start > _SLOW and name != "measurements":
                fault = fault or f"took {time.perf_counter() - start:.1f} s"
            verdict.add(outcome, fault and f"{name}, {seed}, number {number}: {fault}")
    return verdict


def _tried(kind: Kind, path: Path, by_chance: bool) -> tuple[str, str | None]:
    how = "damaged" if by_chance else "changed"
    try:
        works = kind.read(path, by_chance)
    except SecateursError:
        return f"{how}, refused", None
    except AssertionError as error:
        return "faults", f"{how}: {error}"
    except Exception as error:
        return "faults", f"{how}: {type(error).__name__}: {error}"
    return f"{how}, {'read' if works else 'read, but the model cannot run'}", None


# ---------------------------------------------------------------- models


class Little(nn.Module):
    """A network with all that a record of shrinking can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 4
        self.enter, self.norm = nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4)
        self.hidden, self.leave = nn.Linear(16, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.enter(x)).relu().view(-1, 16)
        return self.leave(self.hidden(x).relu().view(-1, self.width))


EXAMPLE = torch.linspace(-1, 1, 16).view(2, 2, 2, 2)


class _Fresh:
    """What a reader is to fill: made anew once it was filled, and looked at whenever that was refused."""

    def __init__(self, make: Callable[[], Any], state: Callable[[Any], Any]) -> None:
        self._make, self._state = make, state
        self._there: Any = None

    @contextmanager
    def filled(self) -> Iterator[Any]:
        """Asserts that it is as it was where the reader refuses."""
        if self._there is None:
            made = self._make()
            self._there = made, self._state(made)
        (made, before), self._there = self._there, None
        try:
            yield made
        except SecateursError:
            assert self._state(made) == before, "refused, and yet changed"
            self._there = made, before
            raise


def _bits(model: nn.Module) -> Any:
    sizes = [{key: value for key, value in vars(module).items() if type(value) in (int, tuple)} for module in model.modules()]
    return {name: tensor.clone().numpy().tobytes() for name, tensor in model.state_dict().items()}, sizes, str(model)


def _reads_model(sound: dict[str, Tensor]) -> Callable[[Path, bool], bool]:
    fresh = _Fresh(Little, _bits)

    def read(path: Path, by_chance: bool) -> bool:
        with fresh.filled() as model:
            sc.load(path, model)
        if by_chance:
            same = all(torch.equal(tensor, sound[name]) for name, tensor in model.state_dict().items())
            assert same, "other numbers were read, and nothing was said"
        try:
            model.eval()(EXAMPLE)
        except Exception:
            assert not by_chance, "was read, and cannot run"
            return False
        for use in (lambda: sc.read_saved(path), lambda: sc.load_masks(path, model)):
            try:
                use()
            except SecateursError:
                pass
        return True

    return read


def _model_kind(folder: Path, how: str) -> Kind:
    torch.manual_seed(0)
    model = Little()
    sparse = how == "sparse"
    pattern: Any = sc.Channel() if how == "shrunk" else sc.Element()
    masks = sc.prune_(model, pattern, sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), sc.Task(EXAMPLE))
    if how == "masks":  # kept weights that are zero by themselves need bits
        with torch.no_grad():
            model.hidden.weight.zero_()
    if how == "shrunk":
        sc.shrink_(model, masks, EXAMPLE)
    sc.save(model, folder / how, None if how == "shrunk" else masks, sparse=sparse, metric={"accuracy": 0.5}, seed=1)
    return Kind((folder / how).read_bytes(), rewritten, _reads_model(model.state_dict()))


def _compressed_kind(folder: Path) -> Kind:
    """All the ways to code a tensor: by scales, tables, floats, as it is; zeros in patterns; masks that zeros do not tell."""
    torch.manual_seed(0)
    model = Little()
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), sc.Task(EXAMPLE))
    with torch.no_grad():
        model.enter.weight.mul_(8).round_().div_(8)
        model.hidden.weight.mul_(8).round_().sin_()
        model.norm.bias.copy_(torch.randn(4))
    sc.compress(model, folder / "compressed", masks, metric={"accuracy": 0.5}, seed=1)
    return Kind((folder / "compressed").read_bytes(), recoded, _reads_model(model.state_dict()))


# ---------------------------------------------------------------- checkpoints

DATA = [(torch.linspace(-1, 1, 12).view(4, 3), torch.tensor([0, 1, 0, 1]))]


def trainer() -> tuple[dict[str, Any], Callable[[str | Path, int], sc.types.Run]]:
    """All that takes part in a small training run, and what starts it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    hook = sc.gradual(sc.Element(), sc.TopK(sc.magnitude()), sc.uniform, sc.linear(0.5), end=2)
    task = sc.Task(DATA[0][0], train=DATA, loss=nn.functional.cross_entropy)

    def go(checkpoint: str | Path, epochs: int) -> sc.types.Run:
        return sc.train_(model, task, optimizer, epochs, scheduler=scheduler, hooks=[hook], checkpoint=checkpoint, show=False)

    return {"model": model, "optimizer": optimizer, "scheduler": scheduler, "hook": hook}, go


def _standing(taking_part: dict[str, Any]) -> Any:
    states = [taking_part[name].state_dict() for name in ("model", "optimizer", "scheduler")]
    tensors, document = nested_state.pack([*states, taking_part["hook"].state(), random_state()["torch"]])
    numbers = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    return numbers, json.dumps(document), random.getstate(), numpy.random.get_state(legacy=True)[1].tobytes()  # type: ignore[index]


_TRAINER = _Fresh(trainer, lambda made: _standing(made[0]))


def _reads_checkpoint(path: Path, by_chance: bool) -> bool:
    with _TRAINER.filled() as (_, go):
        run = go(path, 4)
    assert len(run.history) == 4 or not by_chance, "trained another number of epochs"
    return True


def _checkpoint_kind(folder: Path) -> Kind:
    trainer()[1](folder / "checkpoint", 3)
    return Kind((folder / "checkpoint").read_bytes(), rewritten, _reads_checkpoint)


# ---------------------------------------------------------------- text


def _reads_plan(path: Path, by_chance: bool) -> bool:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        return True  # nothing that from_json could be given
    plan = sc.Plan.from_json(text)
    assert 0 <= plan.sparsity <= 1, f"sparsity {plan.sparsity}"
    for name in {*plan.extents, *(name for share in plan.shares.values() for name in share.elements)}:
        plan.removed(name)
    assert sc.Plan.from_json(plan.to_json()).to_json() == plan.to_json(), "another plan when it is read again"
    return True


def _reads_record(path: Path, by_chance: bool) -> bool:
    record = read_record(path)
    assert Record.from_json(record.to_json()).to_json() == record.to_json(), "another record when it is read again"
    return True


def _change_text(content: bytes, chance: Random) -> bytes:
    return json.dumps(changed(json.loads(content), chance)).encode()


def _plan_kind() -> Kind:
    model = Little()
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), sc.Task(EXAMPLE))
    assert masks.plan is not None
    return Kind(masks.plan.to_json().encode(), _change_text, _reads_plan)


def _record_kind() -> Kind:
    record = Record(
        "Digits",
        entries=(Entry("dense", 0.98, 100, 100, 8e3, 8e3, 4096, None), Entry("pruned", 0.97, 100, 5, 8e3, 400.0, 612, 3.5, 0.01)),
        curves=(Curve("pruned", (Point(0.0, 0.98, 1), Point(0.5, 0.97))),),
        layers=(Layer("conv1", "Conv2d", (8, 1, 3, 3), 72, 18, 1920.0),),
        history=History(({"loss": 0.31, "sparsity": 0.0}, {"loss": float("nan")})),
        skipped=(("fc", "too small"),),
        versions={"torch": "2"},
        notes=("A note.",),
    )
    return Kind(record.to_json().encode(), _change_text, _reads_record)


# ---------------------------------------------------------------- measurements


def _plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()


def _compiled(folder: Path) -> Tensor:
    """The answers of a model that is compiled with the measurements in a folder."""
    before, os.environ[FOLDER_VARIABLE] = os.environ.get(FOLDER_VARIABLE, ""), str(folder)
    try:
        return sc.run.compile(_plain(), EXAMPLE)(EXAMPLE)
    finally:
        os.environ[FOLDER_VARIABLE] = before


def _reads_measurements(path: Path, by_chance: bool) -> bool:
    """Nothing is refused: what is damaged is measured again."""
    with TemporaryDirectory() as folder:
        (Path(folder) / Memory().path.name).write_bytes(path.read_bytes())
        assert torch.allclose(_compiled(Path(folder)), _plain()(EXAMPLE), atol=1e-5), "other answers"
    return True


def _measurements_kind(folder: Path) -> Kind:
    _compiled(folder)
    return Kind(next(folder.glob("measured-*.json")).read_bytes(), _change_text, _reads_measurements)


KINDS = ("model", "sparse", "masks", "shrunk", "compressed", "checkpoint", "plan", "record", "measurements")


@cache
def sound(name: str) -> Kind:
    """A kind of file, with a sound one."""
    with TemporaryDirectory() as folder:
        match name:
            case "plan":
                return _plan_kind()
            case "record":
                return _record_kind()
            case "compressed":
                return _compressed_kind(Path(folder))
            case "checkpoint":
                return _checkpoint_kind(Path(folder))
            case "measurements":
                return _measurements_kind(Path(folder))
            case _:
                return _model_kind(Path(folder), name)
