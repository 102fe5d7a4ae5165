"""Searches: every plan meets the budgets, what was planted is found, and a seed decides everything."""

from __future__ import annotations

import random
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.search.owners import Owners
from secateurs.search.wishes import Wished
from secateurs.types import FileError, PlanError, SecateursError

TOPK = sc.TopK(sc.magnitude())


def planted(width: int = 16, seed: int = 0) -> tuple[nn.Sequential, sc.Task]:
    """Three hidden layers, of which the first two do with 4 units; the third needs all of its own."""
    torch.manual_seed(seed)
    sizes = (6, width, width, width, 3)
    model = nn.Sequential(*(part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.Tanh())))[:-1]
    with torch.no_grad():
        for idle in (0, 2):
            model[idle].weight[4:] *= 1e-3
            model[idle].bias[4:] *= 1e-3
    data = torch.randn(64, 6)
    batches = [(data, model(data).detach())]
    return model, sc.Task(data[:1], calibration=batches, validation=batches, loss=nn.functional.mse_loss)


def kept(study):
    return [dict(trial.plan) for trial in study.trials]


@pytest.mark.parametrize("budgets", [sc.Budget(sc.macs, keep=0.5), [sc.Budget(sc.macs, keep=0.6), sc.Budget(sc.params, limit=450)]])
def test_plans_at_random_use_up_their_budgets(budgets):
    model, task = planted()
    study = sc.random_search(model, sc.Channel(), TOPK, budgets, task, trials=8, by="loss", floor=2, ceiling=0.75, show=False)
    assert len({tuple(each.values()) for each in kept(study)}) == 8
    limits = {
        budget.cost.name: budget.limit_for(model, task.example) for budget in (budgets if isinstance(budgets, list) else [budgets])
    }
    for trial in study.trials:
        assert all(4 <= count <= 16 for count in trial.plan.values())
        assert all(trial.costs[name] <= limit for name, limit in limits.items())
        for site, count in trial.plan.items():
            more = trial.plan.with_counts({site: count + 1})
            fits = all(cost(model, task.example, more) <= limits[cost.name] for cost in (sc.macs, sc.params) if cost.name in limits)
            assert count == 16 or not fits
    again = sc.random_search(model, sc.Channel(), TOPK, budgets, task, trials=8, by="loss", floor=2, ceiling=0.75, show=False)
    other = sc.random_search(
        model, sc.Channel(), TOPK, budgets, task, trials=8, by="loss", floor=2, ceiling=0.75, seed=1, show=False
    )
    assert kept(study) == kept(again) != kept(other) and study.best.value == again.best.value


def test_wishes_come_true_in_proportion():
    model, task = planted(width=64)
    sites = sc.find_sites(model, sc.Channel(), task.example)
    wished = Wished("mine", sites, sc.Budget(sc.params, keep=0.2), 1, 1.0)
    plan = wished.plan({"0": 0.2, "2": 0.4, "4": 0.8})
    assert plan["2"] == pytest.approx(2 * plan["0"], abs=1) and plan["4"] == pytest.approx(4 * plan["0"], abs=1)
    assert wished.plan(wished.of(plan)) == plan
    free = Wished("mine", sites, None, 1, 0.75)
    assert dict(free.plan({"0": 0.5, "2": 0.0, "4": 1.0})) == {"0": 32, "2": 16, "4": 64}
    drawn = free.drawn(random.Random(0))
    assert all(0.25 <= value <= 1 for value in drawn.values())


HALF = sc.Budget(sc.macs, keep=0.5)
SEARCHES = {
    "tpe": lambda *given, **how: sc.tpe(*given, **{"trials": 8, "warm_up": 4, "by": "loss", "show": False, **how}),
    "nsga2": lambda *given, **how: sc.nsga2(*given, **{"trials": 8, "population": 4, "by": "loss", "show": False, **how}),
}


class Judge:
    """The loss, which is interrupted at one call."""

    def __init__(self, stops_at: int) -> None:
        self.stops_at, self.calls = stops_at, 0

    def __call__(self, model, task):
        self.calls += 1
        if self.calls == self.stops_at:
            raise KeyboardInterrupt
        [(inputs, target)] = task.validation
        return -task.loss(model(inputs), target).item()

    def __repr__(self):
        return "Judge"


def test_searches_that_learn_find_what_was_planted_sooner_than_chance():
    model, task = planted()
    budget = sc.Budget(sc.macs, keep=0.45)
    chance = sc.random_search(model, sc.Channel(), TOPK, budget, task, trials=30, by="loss", show=False)
    for search in SEARCHES.values():
        found = search(model, sc.Channel(), TOPK, budget, task, trials=30)
        assert found.plan["4"] >= 14 and found.value <= chance.value
        later = sorted(trial.value for trial in found.trials[15:])
        assert later[7] < sorted(trial.value for trial in chance.trials)[15]  # what it has learned shows in what it draws


@pytest.mark.parametrize("search", SEARCHES.values(), ids=list(SEARCHES))
def test_a_seed_decides_what_is_searched_and_the_start_comes_first(search):
    model, task = planted()
    one, same, other = (search(model, sc.Channel(), TOPK, HALF, task, seed=seed, start=sc.uniform(keep=0.5)) for seed in (0, 0, 1))
    assert kept(one) == kept(same) != kept(other) and len(one.trials) == 8
    assert [trial.number for trial in one.trials] == list(range(8))
    start = sc.within_budget(HALF, sc.uniform)(sc.find_sites(model, sc.Channel(), task.example), lambda: iter([]))
    assert kept(one)[0] == dict(start) and all(trial.costs["macs"] <= HALF.limit_for(model, task.example) for trial in one.trials)


@pytest.mark.parametrize(("name", "at_once"), [("tpe", 3), pytest.param("nsga2", 1, marks=pytest.mark.slow)])
def test_a_study_that_was_stopped_goes_on_to_the_same_result(name, at_once, tmp_path):
    model, task = planted()
    search, told = SEARCHES[name], {"at_once": at_once, "by": Judge(0), "trials": 7}
    whole = search(model, sc.Channel(), TOPK, HALF, task, **told)
    for calls in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            search(model, sc.Channel(), TOPK, HALF, task, **{**told, "by": Judge(calls)}, storage=tmp_path / "study.db")
    judge = Judge(0)
    done = search(model, sc.Channel(), TOPK, HALF, task, **{**told, "by": judge}, storage=tmp_path / "study.db")
    assert kept(done) == kept(whole) and [t.value for t in done.trials] == [t.value for t in whole.trials]
    assert [trial.number for trial in done.trials] == list(range(7))
    more = Judge(0)
    assert (
        search(model, sc.Channel(), TOPK, HALF, task, **{**told, "by": more}, storage=tmp_path / "study.db") == done
        and not more.calls
    )
    assert not list((tmp_path / "study.db.owners").iterdir())


def test_a_trial_is_not_taken_from_a_process_that_lives(tmp_path):
    model, task = planted()
    given = (model, sc.Channel(), TOPK, HALF, task)
    with pytest.raises(KeyboardInterrupt):
        SEARCHES["tpe"](*given, by=Judge(3), storage=tmp_path / "study.db")
    import optuna

    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    [left] = [trial for trial in optuna.load_study(study_name=None, storage=storage).trials if not trial.state.is_finished()]
    with Owners(tmp_path / "study.db.owners") as living:
        storage.set_trial_user_attr(left._trial_id, "owner", living.name)
        done = SEARCHES["tpe"](*given, by=Judge(0), storage=tmp_path / "study.db")
        assert [trial.number for trial in done.trials] == [0, 1, 3, 4, 5, 6, 7]
    done = SEARCHES["tpe"](*given, by=Judge(0), storage=tmp_path / "study.db")
    assert [trial.number for trial in done.trials] == list(range(8))
    storage.engine.dispose()


def test_a_front_of_several_objectives_and_a_study_that_optuna_opens(tmp_path):
    import optuna

    model, task = planted()
    storage = tmp_path / "study.db"
    study = sc.nsga2(
        model,
        sc.Channel(),
        TOPK,
        None,
        task,
        against=[sc.macs, sc.params],
        trials=12,
        population=4,
        by="loss",
        storage=storage,
        show=False,
    )
    front = study.front("macs", "params")
    opened = optuna.load_study(study_name="secateurs", storage=f"sqlite:///{storage}")
    points = {(trial.value, *trial.costs.values()) for trial in front}
    assert points == {tuple(trial.values) for trial in opened.best_trials} and len(points) > 1
    assert (
        opened.metric_names == ["loss", "macs", "params"] and opened.trials[3].user_attrs["macs"] == study.trials[3].costs["macs"]
    )
    assert len({trial.costs["macs"] for trial in study.trials}) > 6


def test_what_a_study_cannot_be_is_said(tmp_path, monkeypatch):
    (model, task), search = planted(), SEARCHES["tpe"]
    storage = tmp_path / "study.db"
    search(model, sc.Channel(), TOPK, HALF, task, trials=2, storage=storage)
    for changed, said in (
        ({"seed": 1}, "holds another study 'secateurs': its seed was 0 and is 1"),
        ({"budget": sc.Budget(sc.macs, keep=0.6)}, "its budget was macs"),
        ({"at_once": 2}, "its search was"),
    ):
        with pytest.raises(FileError, match=said):
            search(model, sc.Channel(), TOPK, changed.pop("budget", HALF), task, storage=storage, **changed)
    assert len(search(model, sc.Channel(), TOPK, HALF, task, trials=2, seed=1, name="other", storage=storage).trials) == 2
    storage.write_text("no database, but long enough to be taken for the header of one" * 20)
    with pytest.raises(FileError, match="is no study of optuna's"):
        search(model, sc.Channel(), TOPK, HALF, task, storage=storage)
    with pytest.raises(SecateursError, match="without a budget, and with no costs against=, the best plan removes nothing"):
        search(model, sc.Channel(), TOPK, None, task)
    with pytest.raises(SecateursError, match="each of 2 trials failed: trial 0: NonFiniteError"):
        search(model, sc.Channel(), TOPK, HALF, task, trials=2, by=lambda model, task: float("nan"))
    with pytest.raises(SecateursError, match="at_once=0 must be"):
        search(model, sc.Channel(), TOPK, HALF, task, at_once=0)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SecateursError, match=r"searches with optuna, which is not installed: pip install 'secateurs\[search\]'"):
        search(model, sc.Channel(), TOPK, HALF, task)


def test_what_no_search_can_do_is_refused():
    model, task = planted()
    for arguments, error, said in (
        ({"budget": sc.Budget(sc.macs, limit=5)}, PlanError, "macs can fall to 11 MACs at the least, but the budget is 5"),
        ({"trials": 0}, SecateursError, "random_search: trials=0 must be at least 1"),
        ({"pattern": sc.NofM(2, 4)}, PlanError, "decides by itself how much stays, so there is nothing to search"),
        ({"floor": 9, "budget": sc.Budget(sc.macs, keep=0.2)}, PlanError, r"macs can fall to .* at the least"),
        ({"budget": [sc.Budget(sc.macs, keep=0.5), sc.Budget(sc.macs, keep=0.4)]}, SecateursError, "limit costs of one name"),
    ):
        given = {"pattern": sc.Channel(), "budget": sc.Budget(sc.macs, keep=0.5), "trials": 3, **arguments}
        with pytest.raises(error, match=said):
            sc.random_search(model, given.pop("pattern"), TOPK, given.pop("budget"), task, by="loss", show=False, **given)


def test_a_study_lies_in_the_file_that_is_named_whatever_is_in_its_name(tmp_path):
    model, task = planted()
    path = tmp_path / "a?b #c%41.db"
    sc.tpe(model, sc.Channel(), TOPK, HALF, task, trials=1, by="loss", storage=path, show=False)
    assert {each.name for each in tmp_path.iterdir()} >= {path.name} and not (tmp_path / "a").exists()
