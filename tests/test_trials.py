"""Plans that are tried: what comes of them is what prune_ makes, each counts once, and a trial that fails costs itself alone."""

from __future__ import annotations

import copy
import json
import sys
import threading
import types
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.search import Trial, read_trials, try_plans, workers
from secateurs.search.bench import Measured
from secateurs.types import FileError, KindError, NonFiniteError, Plan, PlanError, SecateursError, TaskError

SOLVER = sc.LeastSquares(sc.TopK(sc.magnitude()))


def accuracy(output, target):
    return (output.argmax(1) == target).float().mean()


def small(width: int = 16) -> tuple[nn.Module, sc.Task]:
    torch.manual_seed(0)
    model, data = (
        nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)),
        torch.randn(64, 8),
    )
    batches = list(zip(data.split(32), model(data).argmax(1).split(32), strict=True))
    return model, sc.Task(data[:1], calibration=batches, validation=batches, loss=nn.functional.cross_entropy, metric=accuracy)


def plans_for(model, task, keeps=(0.25, 0.5, 0.75), pattern=sc.Channel()):  # noqa: B008
    sites = sc.find_sites(model, pattern, task.example)
    return [sc.uniform(keep=keep)(sites, lambda: iter([])) for keep in keeps]


def tried(model, task, plans, **how):
    return try_plans(model, sc.Channel(), SOLVER, plans, task, costs=[sc.macs, sc.params], **{"show": False, **how})


@pytest.mark.parametrize("walk", [None, sc.in_order()], ids=["at once", "in order"])
def test_what_comes_of_a_plan_is_what_prune_makes_of_it(walk):
    model, task = small()
    before, chance = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    chosen = {} if walk is None else {"walk": walk}
    study = tried(model, task, plans_for(model, task), by="loss", **chosen)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(chance, torch.get_rng_state())
    for trial in study.trials:
        pruned = copy.deepcopy(model)
        sc.prune_(pruned, sc.Channel(), SOLVER, trial.plan, task, **chosen)
        loss = sc.evaluate(pruned, replace(task, metric=task.loss), task.validation)
        assert trial.value == loss and trial.costs["macs"] == sc.macs(model, task.example, trial.plan)
        assert trial.costs["params"] == sc.params(model, task.example, trial.plan) and trial.seconds > 0
    assert not study.higher_is_better and study.value_name == "loss" and study.best.value == min(t.value for t in study.trials)


def test_the_model_is_observed_once_and_a_plan_is_tried_once(monkeypatch):
    model, task = small()
    calls, judged = [], []
    real = sc.observe
    monkeypatch.setattr("secateurs.search.bench.observe", lambda *given: (calls.append(1), real(*given))[1])
    plans = plans_for(model, task)
    study = tried(model, task, [*plans, *plans], by=lambda model, task: judged.append(1) or 0.5)
    assert len(calls) == 1 and len(judged) == 3 == len(study.trials)


def test_the_next_search_on_a_model_as_it_is_need_not_observe_it_again(monkeypatch):
    model, task = small()
    calls, real = [], sc.observe
    monkeypatch.setattr("secateurs.search.bench.observe", lambda *given: (calls.append(1), real(*given))[1])
    plans = plans_for(model, task)
    first, again = tried(model, task, plans), tried(model, task, plans, by="loss")
    assert len(calls) == 1 and first.value_name != again.value_name
    tried(model, replace(task, calibration=task.calibration[:1]), plans)
    assert len(calls) == 2
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    tried(model, task, plans)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*task.calibration[0]), batch_size=8)
    for _ in range(2):
        tried(model, replace(task, calibration=loader), plans)
    assert len(calls) == 5
    try_plans(model, sc.Channel(), sc.TopK(sc.taylor()), plans, task, show=False)
    assert len(calls) == 6


def test_a_short_training_belongs_to_the_trial_under_its_own_random_numbers():
    model, task = small()
    drawn = []

    def then(model, masks, task):
        drawn.append(float(torch.rand(())))
        with torch.no_grad():
            model[4].weight.zero_()
            model[4].bias.copy_(torch.tensor([1.0, 0, 0, 0]))
        masks.apply_()

    study = tried(model, task, plans_for(model, task), then=then, seed=3)
    torch.rand(5)  # whatever was drawn before
    tried(model, task, plans_for(model, task), then=then, seed=3)
    expected = float(sum((target == 0).float().sum() for _, target in task.validation) / 64)
    assert [trial.value for trial in study.trials] == [pytest.approx(expected)] * 3 and len(set(drawn)) == 1


class Judge:
    """A function that says the same of itself whatever it has counted."""

    def __init__(self, judge) -> None:
        self.judge, self.calls, self.broken = judge, 0, True

    def __call__(self, model, task):
        self.calls += 1
        return self.judge(self, model, task)

    def __repr__(self):
        return "Judge"


def test_a_trial_that_raises_fails_alone_and_is_named(tmp_path, capsys):
    model, task = small()

    @Judge
    def judge(self, model, task):
        if self.broken and int(model[0].weight.any(1).sum()) == 8:
            raise RuntimeError("no such file\nand more")
        return 0.5

    study = tried(model, task, plans_for(model, task), by=judge, checkpoint=tmp_path, show=True)
    assert [trial.failed for trial in study.trials] == [False, True, False]
    assert study.failed[0].name == "trial 1" and study.failed[0].error == "RuntimeError: no such file"
    assert "2 of 3, trial 1: failed: RuntimeError: no such file" in capsys.readouterr().err
    assert read_trials(tmp_path).failed[0].error == "RuntimeError: no such file"
    judge.broken = False
    assert not tried(model, task, plans_for(model, task), by=judge, checkpoint=tmp_path).failed  # what failed is tried again


def test_where_all_fail_it_is_an_error_that_says_why():
    model, task = small()
    nan = replace(task, metric=lambda output, target: torch.tensor(float("nan")))
    with pytest.raises(SecateursError, match="each of 3 trials failed: trial 0: NonFiniteError: the accuracy is nan, which cannot"):
        tried(model, nan, plans_for(model, nan))
    with pytest.raises(SecateursError, match="and 2 more"):
        tried(model, nan, plans_for(model, nan, (0.2, 0.4, 0.5, 0.6, 0.8)))


def test_a_nan_in_one_trial_fails_that_trial():
    model, task = small()
    values = iter([0.5, float("nan"), float("inf")])
    study = tried(model, task, plans_for(model, task), by=lambda model, task: next(values))
    assert [trial.value for trial in study.trials] == [0.5, None, None] and "is nan" in study.trials[1].error


def test_a_stopped_search_goes_on_and_nothing_counts_twice(tmp_path):
    model, task = small()
    plans = plans_for(model, task)

    @Judge
    def judge(self, model, task):
        if self.calls == 3:
            raise KeyboardInterrupt
        return sc.evaluate(model, task, task.validation, show=False)

    with pytest.raises(KeyboardInterrupt):
        tried(model, task, plans, by=judge, checkpoint=tmp_path)
    assert len(list(tmp_path.glob("trial-*.json"))) == 2
    study = tried(model, task, plans, by=judge, checkpoint=tmp_path)
    whole = tried(model, task, plans)
    assert [trial.value for trial in study.trials] == [trial.value for trial in whole.trials] and judge.calls == 4
    again = read_trials(tmp_path)
    assert again == study
    damaged = next(tmp_path.glob("trial-*.json"))
    damaged.write_text(damaged.read_text()[:50])
    assert len(tried(model, task, plans, by=judge, checkpoint=tmp_path).trials) == 3 and judge.calls == 5


def test_a_folder_of_other_trials_is_refused(tmp_path):
    model, task = small()
    plans = plans_for(model, task)
    tried(model, task, plans, checkpoint=tmp_path)
    for changed, said in (
        ({"by": "loss"}, "its value was accuracy and is loss"),
        ({"seed": 1}, "its seed was 0 and is 1"),
        ({"then": lambda model, masks, task: None}, "its judge was"),
    ):
        with pytest.raises(FileError, match=said):
            tried(model, task, plans, checkpoint=tmp_path, **changed)
    with torch.no_grad():
        model[0].weight[0, 0] += 1
    with pytest.raises(FileError, match="holds trials of something else: its model was"):
        tried(model, task, plans, checkpoint=tmp_path)
    (tmp_path / "trials.json").write_text("{}")
    with pytest.raises(FileError, match="does not tell what was tried there"):
        read_trials(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SecateursError, match="could not write"):
        tried(model, task, plans, checkpoint=tmp_path / "file" / "more")


def test_trials_are_read_back_as_they_were_and_other_text_is_refused():
    model, task = small()
    [plan] = plans_for(model, task, (0.5,))
    trial = Trial(4, replace(plan, promised={"macs": 3.0}), 0.25, {"macs": 5.0}, 1.5)
    whole = plans_for(model, task, (1.0,))[0]
    assert Trial.from_json(trial.to_json(), whole) == trial
    document = json.loads(trial.to_json())
    for part, value in (
        ("format", "x"),
        ("kept", {"0": 3}),
        ("kept", dict.fromkeys(plan, 10**6)),
        ("kept", dict.fromkeys(plan, -1)),
        ("value", "high"),
        ("value", float("nan")),
        ("costs", {"macs": None}),
        ("number", True),
    ):
        with pytest.raises(FileError, match="this is not a trial"):
            Trial.from_json(json.dumps({**document, part: value}), whole)
    with pytest.raises(FileError, match="this is not a trial"):
        Trial.from_json("[" * 10**5, whole)


def test_a_front_holds_what_nothing_beats():
    points = [(0.5, 1.0), (0.6, 1.0), (0.6, 1.0), (0.9, 3.0), (0.4, 0.5), (0.8, 4.0), (None, 0.1)]
    made = tuple(Trial(n, Plan({}), value, {"macs": cost}, error="" if value else "no") for n, (value, cost) in enumerate(points))
    study = sc.Study(made, higher_is_better=True)
    assert [trial.number for trial in study.front()] == [4, 1, 3] and study.best.number == 3
    worse = sc.Study(made, higher_is_better=False)
    assert [trial.number for trial in worse.front("macs")] == [4] and worse.best.number == 4


# ---------------------------------------------------------------- other processes and machines


@pytest.mark.slow  # one process, that of docs/search.md, is tried always
def test_processes_find_what_this_process_finds():
    model, task = small()
    plans = plans_for(model, task)
    shift = 0.25  # what is enclosed goes with it
    own = replace(task, metric=lambda output, target: accuracy(output, target) + shift)
    assert without_clock(tried(model, own, plans, backend="processes", workers=2)) == without_clock(tried(model, own, plans))


def without_clock(study):
    return [replace(trial, seconds=0.0) for trial in study.trials]


def test_who_ends_its_process_is_told_and_the_others_go_on(monkeypatch):
    """A crash fails all that are at work: each is tried again, alone, and only who ends that process too has failed."""
    model, task = small()
    attempts = dict.fromkeys(range(5), 0)

    def at_once(crew, jobs, number_of):
        alone = len(jobs) == 1
        for place in list(jobs):
            attempts[place] += 1
            crew._mark(place).touch()
            if place == 1 and (not alone or attempts[1] < 3):
                crew._mark(2).touch()
                raise BrokenProcessPool
            if place == 3:
                raise BrokenProcessPool
            crew._mark(place).unlink()
            yield place, Measured(0.5 + place, 1.0)

    monkeypatch.setattr(workers.Processes, "_at_once", at_once)
    study = tried(model, task, plans_for(model, task, (0.2, 0.4, 0.5, 0.6, 0.8)), backend="processes", workers=2)
    assert [trial.value for trial in study.trials] == [0.5, 1.5, 2.5, None, 4.5]
    assert "its process ended each of 3 times" in study.trials[3].error
    assert attempts == {0: 1, 1: 3, 2: 1, 3: 3, 4: 1}


class FakeRay(types.ModuleType):
    """What is asked of Ray, done at once; ``dying``: how often tasks end their workers."""

    def __init__(self, dying: int = 0) -> None:
        super().__init__("ray")
        names = ("RayTaskError", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "LocalRayletDiedError")
        self.exceptions = types.SimpleNamespace(**{name: type(name, (Exception,), {}) for name in names})
        self.began, self.puts, self.gets, self.dying, self.made = 0, 0, 0, dying, None

    def is_initialized(self):
        return False

    def init(self, **named):
        self.began += 1

    def shutdown(self):
        self.began -= 1

    def put(self, value):
        self.puts += 1
        return ("shared", value)

    def remote(self, **named):
        self.made = named
        return lambda function: types.SimpleNamespace(remote=lambda *given: ("task", lambda: function(*given)))

    def get(self, reference):
        kind, value = reference
        if kind == "shared":
            self.gets += 1
            return value
        if self.dying:
            self.dying -= 1
            raise self.exceptions.WorkerCrashedError
        return value()

    def wait(self, references, num_returns):
        return references[:1], references[1:]

    def cancel(self, reference, force):
        pass


def test_on_a_cluster_model_and_data_travel_once(monkeypatch):
    model, task = small()
    plans = plans_for(model, task)
    monkeypatch.setattr("secateurs.progress.be_silent", lambda: None)
    monkeypatch.setitem(sys.modules, "ray", ray := FakeRay())
    study = tried(model, task, plans, backend="ray", workers=2)
    assert without_clock(study) == without_clock(tried(model, task, plans))
    assert (ray.puts, ray.gets, ray.began) == (1, 1, 0) and ray.made["max_retries"] == 2
    monkeypatch.setitem(sys.modules, "ray", FakeRay(dying=1))
    study = tried(model, task, plans, backend="ray", workers=1)
    assert [trial.failed for trial in study.trials] == [True, False, False] and "process ended" in study.trials[0].error
    monkeypatch.setattr(
        workers, "_unpacked", lambda *given, **named: (_ for _ in ()).throw(ray.exceptions.RayTaskError("no module mine"))
    )
    workers._benches.clear()
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(SecateursError, match=r"a machine of the cluster cannot make the model and the task \(no module mine\)"):
        tried(model, task, plans, backend="ray")


DIES = """
import os, signal
from pathlib import Path


def dies_once(folder, width):
    def judge(model, task):
        left = int(model[0].weight.any(1).sum())
        mark = Path(folder) / f"{left}-{len(list(Path(folder).glob(f'{left}-*')))}"
        mark.touch()
        if left == width and mark.name.endswith("-0"):
            os.kill(os.getpid(), signal.SIGKILL)
        return left / 100
    return judge
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["processes", "ray"])
def test_a_worker_that_is_killed_costs_nothing(backend, tmp_path, monkeypatch):
    """Its trial is repeated, none is counted twice, and the folder holds all."""
    if backend == "ray":
        ray = pytest.importorskip("ray")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    made: dict = {}
    exec(DIES, made)  # as a script's own functions, which go by their code
    model, task = small()
    marks, folder = tmp_path / "marks", tmp_path / "trials"
    marks.mkdir()
    judge = made["dies_once"](str(marks), 8)
    try:
        study = tried(model, task, plans_for(model, task), by=judge, backend=backend, workers=2, checkpoint=folder)
    finally:
        if backend == "ray":
            ray.shutdown()
    assert [trial.value for trial in study.trials] == [0.04, 0.08, 0.12]
    assert len(list(marks.glob("8-*"))) == 2 and len(list(folder.glob("trial-*.json"))) == 3
    assert read_trials(folder) == study


# ---------------------------------------------------------------- what cannot be


def test_what_is_no_such_thing_is_refused_before_anything_is_tried():
    model, task = small()
    plans = plans_for(model, task)
    for changed, error, said in (
        ({"by": "speed"}, SecateursError, 'by=\'speed\' is none of "metric" and "loss"'),
        ({"then": 3}, KindError, "then is 3, but must be a function"),
        ({"backend": "slurm"}, SecateursError, "backend='slurm' is none of"),
        ({"workers": 0}, SecateursError, "workers=0 must be at least 1"),
        ({"threads": 1.5}, KindError, "threads is 1.5"),
        ({"seed": "x"}, KindError, "seed is 'x'"),
    ):
        with pytest.raises(error, match=said):
            tried(model, task, plans, **changed)
    with pytest.raises(SecateursError, match="not one plan to try"):
        tried(model, task, [])
    with pytest.raises(PlanError, match="a plan names 0, but the sites are"):
        tried(model, task, [Plan({"0": plans[0].shares["0"]})])
    with pytest.raises(KindError, match="must be a Plan"):
        tried(model, task, [0.5])
    with pytest.raises(SecateursError, match="each of 3 trials failed: trial 0: TaskError: there is nothing to choose plans by"):
        tried(model, replace(task, validation=None), plans)
    with pytest.raises(TaskError, match="no batch"):
        tried(model, replace(task, calibration=[]), plans)
    with pytest.raises(KindError, match="a cost is 3"):
        try_plans(model, sc.Channel(), SOLVER, plans, task, costs=[3])
    with pytest.raises(SecateursError, match=r"each of 1 trials failed.*NonFiniteError"):
        tried(model, task, plans[:1], by=lambda model, task: float("inf"))


def test_what_cannot_go_to_another_process_is_said():
    model, task = small()
    lock = threading.Lock()
    own = replace(task, metric=lambda output, target: lock)
    with pytest.raises(SecateursError, match=r'cannot go to another process.*backend="here"'):
        tried(model, own, plans_for(model, task), backend="processes")


def test_a_package_that_is_missing_is_named_with_its_extra(monkeypatch):
    model, task = small()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SecateursError, match=r"with ray, which is not installed: pip install 'secateurs\[cluster\]'"):
        tried(model, task, plans_for(model, task), backend="ray")


def test_a_folder_of_a_model_that_differs_in_what_it_does_is_refused_and_what_was_observed_of_it_is_forgotten(tmp_path):
    model, task = small()
    plans = plans_for(model, task, (0.5,))
    tried(model, task, plans, by="loss", checkpoint=tmp_path)
    model[1], model[3] = nn.Tanh(), nn.Tanh()
    other = copy.deepcopy(model)
    with pytest.raises(FileError, match="its model was"):
        tried(model, task, plans, by="loss", checkpoint=tmp_path)
    assert tried(model, task, plans, by="loss").value == tried(other, task, plans, by="loss").value


def test_a_plan_is_tried_once_in_whatever_order_it_names_its_sites():
    model, task = small()
    [plan] = plans_for(model, task, (0.5,))
    turned = Plan(dict(reversed(plan.shares.items())), plan.promised, plan.extents)
    assert len(tried(model, task, [plan, turned]).trials) == 1


def test_two_costs_of_one_name_are_refused():
    model, task = small()
    dense, half = sc.effective_macs({}), sc.effective_macs({"0": 0.5})
    with pytest.raises(SecateursError, match="try_plans: two costs are called effective_macs: give one of them another name"):
        try_plans(model, sc.Channel(), SOLVER, plans_for(model, task), task, costs=[dense, half], show=False)
    named = replace(half, name="effective_macs, the other")
    study = try_plans(model, sc.Channel(), SOLVER, plans_for(model, task, (0.5,)), task, costs=[dense, named, dense], show=False)
    assert study.best.costs["effective_macs"] > study.best.costs["effective_macs, the other"]


def test_a_plan_of_a_wider_model_is_refused():
    model, task = small()
    [plan] = plans_for(*small(32), (0.25,))
    said = "0: the plan is for 32 units, but here are 16: it belongs to another model"
    with pytest.raises(PlanError, match=said):
        try_plans(model, sc.Channel(), SOLVER, [plan], task, show=False)
    with pytest.raises(PlanError, match=said):
        sc.prune_(model, sc.Channel(), SOLVER, plan, task)


def test_a_cost_that_is_no_number_is_an_error_that_names_it():
    model, task = small()
    lost = sc.Cost("mine", "x", lambda model, example: lambda plan: float("nan"))
    with pytest.raises(NonFiniteError, match="try_plans: mine of a plan that keeps 16 units is nan, which cannot be compared"):
        try_plans(model, sc.Channel(), SOLVER, plans_for(model, task, (0.5,)), task, costs=[lost], show=False)
    with pytest.raises(NonFiniteError, match="random_search: mine of a plan"):
        sc.random_search(model, sc.Channel(), SOLVER, sc.Budget(sc.macs, keep=0.5), task, costs=[lost], trials=2, show=False)


def test_one_thing_in_the_place_of_several_is_refused():
    model, task = small()
    [plan] = plans_for(model, task, (0.5,))
    for given, error, said in (
        ({"plans": plan}, KindError, r"try_plans: plans is a Plan, but must be plans, for example \[plan\]"),
        ({"plans": None}, KindError, "try_plans: plans is None, but must be plans"),
        ({"costs": sc.macs}, KindError, r"try_plans: costs is a Cost, but must be costs, for example \[macs, params\]"),
        ({"seed": None}, KindError, "try_plans: seed is None, but must be a whole number"),
    ):
        how = {"plans": [plan], **given}
        with pytest.raises(error, match=said):
            try_plans(model, sc.Channel(), SOLVER, how.pop("plans"), task, show=False, **how)
    for search in (sc.tpe, sc.nsga2):
        with pytest.raises(KindError, match=f"{search.__name__}: against is a Cost, but must be costs"):
            search(model, sc.Channel(), SOLVER, None, task, against=sc.macs, show=False)
