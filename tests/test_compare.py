"""Many jobs to one table: the numbers are those of prune_ and train_, nothing is done twice, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import stdev

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.cli.compared import recipes_of
from secateurs.comparing import Comparison, Outcome, comparison_html, plot, read_comparison, together
from secateurs.comparing.folder import JOBS
from secateurs.comparing.recipe import named
from secateurs.described import digest
from secateurs.models import digits_cnn
from secateurs.tasks import digits
from secateurs.types import FileError, SecateursError, TaskError


def cut(keep_of: sc.Cost | None = None) -> sc.Pruning:
    return sc.Pruning(sc.Channel() if keep_of else sc.Element(), sc.TopK(sc.magnitude()), cost=keep_of)


class Counting:
    """A recipe that counts how often it prunes, and stops the run when it is told to."""

    def __init__(self, stop_at: int = 10**6, error: Exception | None = None) -> None:
        self.calls: list[tuple[float, int]] = []
        self.stop_at, self.error = stop_at, error

    def recipe(self, name: str = "counting") -> sc.Recipe:
        def prune(model: nn.Module, task: sc.Task, keep: float, seed: int, masks: sc.Masks | None) -> sc.Masks:
            self.calls.append((keep, seed))
            if len(self.calls) == self.stop_at:
                raise self.error or KeyboardInterrupt
            return cut()(model, task, keep, seed, masks)

        return sc.Recipe(name, prune)


def compared(recipes, model, task, out: Path | None = None, **told) -> Comparison:
    return sc.compare(recipes, model, task, out=out, processes=1, show=False, **told)


# ---------------------------------------------------------------- what the numbers are


def test_the_numbers_are_those_of_prune_and_train(small_cnn, cnn_task) -> None:
    optimizer = partial(torch.optim.SGD, lr=0.05)
    (row,) = compared([sc.Recipe("m", cut(), epochs=2)], small_cnn, cnn_task, keep=0.3, seeds=[7], optimizer=optimizer).rows
    (outcome,) = row.outcomes
    assert outcome.dense == sc.evaluate(small_cnn, cnn_task, cnn_task.test)
    model = small_cnn
    torch.manual_seed(7)
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(keep=0.3), cnn_task)
    assert outcome.cut == sc.evaluate(model, cnn_task, cnn_task.test)
    assert (outcome.parameters, outcome.macs) == (sc.nonzero_params(model), sc.nonzero_macs(model, cnn_task.example))
    assert outcome.sparsity == 1 - outcome.parameters / outcome.dense_parameters
    made = optimizer(model.parameters())
    cosine = sc.per_step(torch.optim.lr_scheduler.CosineAnnealingLR(made, 2 * len(cnn_task.train)))
    sc.train_(model, cnn_task, made, 2, masks=masks, hooks=[cosine], show=False)
    assert outcome.tuned == sc.evaluate(model, cnn_task, cnn_task.test)
    assert outcome.metric == outcome.tuned
    assert outcome.cut_seconds > 0 and outcome.tune_seconds > 0


def test_a_fraction_of_a_cost_is_what_is_left_of_the_small_model(small_cnn, cnn_task) -> None:
    (row,) = compared([sc.Recipe("m", cut(sc.macs))], small_cnn, cnn_task, keep=0.5).rows
    masks = cut(sc.macs)(small_cnn, cnn_task, 0.5, 0)
    dense = sc.macs(small_cnn, cnn_task.example)
    sc.shrink_(small_cnn, masks)
    assert row.mean("macs") == sc.macs(small_cnn, cnn_task.example) <= 0.5 * dense
    assert row.mean("parameters") == sc.params(small_cnn)


def test_the_model_the_task_and_the_random_numbers_stay_as_they_were(small_cnn, cnn_task) -> None:
    before, state = [value.clone() for value in small_cnn.state_dict().values()], torch.get_rng_state()
    compared(sc.recipes([sc.magnitude(), sc.random], sc.Element(), epochs=1), small_cnn, cnn_task, keep=[0.5, 0.2])
    assert all(map(torch.equal, before, small_cnn.state_dict().values()))
    assert torch.equal(state, torch.get_rng_state())


def test_rows_are_means_over_seeds_with_their_spread(small_cnn, cnn_task) -> None:
    task = replace(cnn_task, metric=cnn_task.loss, metric_name="loss", higher_is_better=False)
    made = compared(sc.recipes(sc.random, sc.Element()), small_cnn, task, keep=[0.3, 0.6], seeds=3)
    assert [(row.keep, [outcome.seed for outcome in row.outcomes]) for row in made.rows] == [(0.6, [0, 1, 2]), (0.3, [0, 1, 2])]
    values = made.rows[1].values("cut")
    assert len(set(values)) > 1
    assert made.best(0.3) == made.rows[1] and not made.in_percent
    assert made.rows[1].spread("cut") == stdev(values) and made.rows[1].mean("cut") == pytest.approx(sum(values) / 3)


def test_tasks_and_models_may_be_made_anew_for_each_seed(cnn_task) -> None:
    seeds: list[int] = []

    def task(seed: int) -> sc.Task:
        seeds.append(seed)
        return cnn_task

    def model() -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(288, 4))

    made = compared(sc.recipes([sc.magnitude(), sc.taylor()], sc.Element()), model, task, keep=0.5, seeds=[3, 4])
    assert set(seeds) == {3, 4}
    one, two = ({outcome.dense for outcome in made.outcomes if outcome.seed == seed} for seed in (3, 4))
    assert len(one) == len(two) == 1 and one != two


def test_rounds_follow_the_schedule_and_a_pattern_that_decides_has_one_row(small_cnn, cnn_task) -> None:
    kept: list[float] = []

    def prune(model, task, keep, seed, masks):
        kept.append(keep)
        return cut()(model, task, keep, seed, masks)

    compared([sc.Recipe("linear", prune, rounds=4, schedule=sc.linear)], small_cnn, cnn_task, keep=0.2)
    assert kept == pytest.approx([0.8, 0.6, 0.4, 0.2]) and kept[-1] == 0.2
    two_of_four = compared(sc.recipes(sc.magnitude(), sc.NofM(2, 4)), small_cnn, cnn_task, keep=[0.7, 0.1])
    assert [row.keep for row in two_of_four.rows] == [0.5]


def test_recipes_are_a_product_named_by_what_differs() -> None:
    made = sc.recipes({"Taylor": sc.taylor(), "lasso": sc.Lasso()}, sc.Channel(), epochs=[0, 2], cost=sc.macs)
    assert [recipe.name for recipe in made] == ["Taylor, 0 epochs", "Taylor, 2 epochs", "lasso, 0 epochs", "lasso, 2 epochs"]
    assert made[3].prune.solver == sc.Lasso() and made[3].epochs == 2 and made[3].prune.cost is sc.macs
    assert named(sc.uniform) == "uniform"
    with pytest.raises(SecateursError, match="have one name: give a dict"):
        sc.recipes([sc.magnitude(), sc.magnitude()], sc.Element())


# ---------------------------------------------------------------- stopped, changed, failed


def test_a_stopped_run_goes_on_with_what_is_missing(small_cnn, cnn_task, tmp_path) -> None:
    stopped = Counting(stop_at=3)
    with pytest.raises(KeyboardInterrupt):
        compared([stopped.recipe()], small_cnn, cnn_task, tmp_path, keep=[0.5, 0.3], seeds=2)
    assert len(list((tmp_path / JOBS).iterdir())) == 2
    (tmp_path / JOBS / next((tmp_path / JOBS).iterdir()).name).write_text('{"half')
    stopped.stop_at = 10**6
    before = len(stopped.calls)
    made = compared([stopped.recipe()], small_cnn, cnn_task, tmp_path, keep=[0.5, 0.3], seeds=2, rerun=True)
    assert len(stopped.calls) > before
    whole = compared([cut_recipe := sc.Recipe("other", cut())], small_cnn, cnn_task, keep=[0.5, 0.3], seeds=2)
    assert [each.cut for each in made.outcomes] == [each.cut for each in whole.outcomes] and cut_recipe.epochs == 0
    assert read_comparison(tmp_path) == made


def test_nothing_is_done_twice_and_more_is_added(small_cnn, cnn_task, tmp_path) -> None:
    first = sc.recipes([sc.magnitude(), sc.random], sc.Element())
    compared(first, small_cnn, cnn_task, tmp_path, keep=0.5)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / JOBS).iterdir()}
    made = compared([*first, sc.Recipe("third", cut())], small_cnn, cnn_task, tmp_path, keep=[0.5, 0.2])
    assert len(made.outcomes) == 6 and len(list((tmp_path / JOBS).iterdir())) == 6
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_changed_recipe_of_the_same_name_is_refused_or_done_anew(small_cnn, cnn_task, tmp_path, capsys) -> None:
    old = compared([sc.Recipe("mine", cut())], small_cnn, cnn_task, tmp_path, keep=0.2)
    changed = [sc.Recipe("mine", sc.Pruning(sc.Element(), sc.TopK(sc.random(3))))]
    with pytest.raises(SecateursError, match=r"'mine' was Recipe.*magnitude.* and is Recipe.*random\(seed=3\).*rerun=True"):
        compared(changed, small_cnn, cnn_task, tmp_path, keep=0.2)
    assert read_comparison(tmp_path) == old
    sc.compare(changed, small_cnn, cnn_task, keep=0.2, out=tmp_path, processes=1, rerun=True)
    assert "changed since it was measured, and measured anew: 'mine'" in capsys.readouterr().err
    assert "random" in read_comparison(tmp_path).outcomes[0].recipe_text


def test_code_that_changed_is_noticed(small_cnn, cnn_task, tmp_path) -> None:
    def recipe(power: int) -> sc.Recipe:
        element = lambda evidence: evidence.weight.abs() ** power  # noqa: E731
        return sc.Recipe(
            "own", sc.Pruning(sc.Element(), sc.TopK(sc.Criterion("own", element, lambda values, dims: values.sum(dims))))
        )

    compared([recipe(1)], small_cnn, cnn_task, tmp_path, keep=0.2)
    compared([recipe(1)], small_cnn, cnn_task, tmp_path, keep=0.2)
    with pytest.raises(SecateursError, match="looks as before, but its code or what it encloses is another"):
        compared([recipe(2)], small_cnn, cnn_task, tmp_path, keep=0.2)


def test_another_model_or_training_in_the_same_folder_is_refused(small_cnn, cnn_task, tmp_path) -> None:
    compared([sc.Recipe("m", cut())], small_cnn, cnn_task, tmp_path, keep=0.2)
    with pytest.raises(SecateursError, match=r"optimizer was .*lr=0.001.* and is .*lr=0.1"):
        compared([sc.Recipe("m", cut())], small_cnn, cnn_task, tmp_path, keep=0.2, optimizer=partial(torch.optim.SGD, lr=0.1))
    nn.init.zeros_(small_cnn[0].weight)
    with pytest.raises(SecateursError, match="holds a comparison of something else: model was"):
        compared([sc.Recipe("m", cut())], small_cnn, cnn_task, tmp_path, keep=0.2)
    (tmp_path / "compare.json").write_text("[]")
    with pytest.raises(FileError, match="does not tell what was compared"):
        compared([sc.Recipe("m", cut())], small_cnn, cnn_task, tmp_path, keep=0.2)
    with pytest.raises(FileError, match="is a file: name a folder"):
        compared([sc.Recipe("m", cut())], small_cnn, cnn_task, tmp_path / "compare.json", keep=0.2)


def test_a_failed_job_is_named_the_others_go_on_and_it_is_tried_again(small_cnn, cnn_task, tmp_path) -> None:
    broken = Counting(stop_at=1, error=RuntimeError("no luck\ntoday"))
    with pytest.raises(sc.FailedJobsError, match=r"1 of 4 jobs failed: bad, keep 0.5, seed 0: RuntimeError: no luck$") as caught:
        compared([broken.recipe("bad"), sc.Recipe("good", cut())], small_cnn, cnn_task, tmp_path, keep=[0.5, 0.2])
    made = caught.value.comparison
    assert [outcome.cut is None for outcome in made.outcomes] == [True, False, False, False]
    assert "1 of 1" in made.markdown() and "no luck" in comparison_html(made)
    assert read_comparison(tmp_path) == made
    again = compared([broken.recipe("bad"), sc.Recipe("good", cut())], small_cnn, cnn_task, tmp_path, keep=[0.5, 0.2], rerun=True)
    assert not again.failed


# ---------------------------------------------------------------- other processes

OWN = """
import os
import secateurs as sc

def dies(model, task, keep, seed, masks):
    if keep == 0.5:
        os._exit(9)
    return sc.Pruning(sc.Element(), sc.TopK(sc.magnitude()))(model, task, keep, seed, masks)
"""


def test_processes_give_the_same_outcomes_and_one_that_dies_costs_one_job(tmp_path, monkeypatch) -> None:
    (tmp_path / "dying_recipe.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    from dying_recipe import dies

    recipes = [sc.Recipe("dies", dies), *sc.recipes([sc.random, sc.taylor()], sc.Element())]
    torch.manual_seed(0)
    model = digits_cnn()
    with pytest.raises(
        sc.FailedJobsError, match=r"1 of 6 jobs failed: dies, keep 0.5, seed 0: its process ended \(exit 9\)"
    ) as caught:
        sc.compare(recipes, model, digits, keep=[0.5, 0.2], processes=2, show=False)
    here = compared(recipes[1:], model, digits, keep=[0.5, 0.2])
    same = [(each.name, each.cut, each.parameters) for each in here.outcomes]
    assert [(each.name, each.cut, each.parameters) for each in caught.value.comparison.outcomes][2:] == same


def test_when_it_is_stopped_the_processes_are_ended_at_once(small_cnn, cnn_task, tmp_path, monkeypatch) -> None:
    ended: list[bool] = []

    def outcomes(jobs, setting, processes):
        try:
            yield from (job.blank() for job in jobs)
        finally:
            ended.append(True)

    monkeypatch.setattr(together, "_outcomes", outcomes)
    monkeypatch.setattr(together.files, "keep", lambda *told: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt) as held:
        compared([sc.Recipe("m", cut())], small_cnn, cnn_task, tmp_path)
    assert ended == [True] and held.tb is not None  # which holds the frames of all that was at work


def test_what_cannot_go_to_another_process_is_named(small_cnn, cnn_task) -> None:
    recipe = sc.Recipe("closed", Counting().recipe().prune)
    with pytest.raises(SecateursError, match=r"task cannot go to another process .*processes=1"):
        sc.compare([sc.Recipe("m", cut())], small_cnn, cnn_task, processes=2, show=False)
    with pytest.raises(SecateursError, match=r"the recipe 'closed' cannot go to another process"):
        sc.compare([recipe], small_cnn, digits, processes=2, show=False)


@pytest.mark.slow
def test_a_script_without_a_guard_is_told(tmp_path) -> None:
    script = """
        import secateurs as sc
        from secateurs.models import digits_cnn
        from secateurs.tasks import digits
        sc.compare(sc.recipes(sc.magnitude(), sc.Element()), digits_cnn, digits, keep=0.5, processes=2, show=False)
    """
    (tmp_path / "unguarded.py").write_text(textwrap.dedent(script))
    done = subprocess.run([sys.executable, "unguarded.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert 'under if __name__ == "__main__":' in done.stderr.splitlines()[-1]


def test_a_digest_is_the_same_in_every_process() -> None:
    code = """if True:
        import secateurs as sc
        from secateurs.described import digest
        recipe = sc.Recipe("r", sc.Pruning(sc.Channel(), sc.TopK(sc.taylor()), sc.global_threshold, sc.macs))
        told = f"{digest(recipe)} {digest(lambda x: x in {'a', 'b', 'c'})}"
    """
    here: dict[str, str] = {"__name__": "__main__"}
    exec(code, here)
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", f"{code}\nprint(told)"]
    there = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    assert there.strip() == here["told"] and digest(sc.taylor()) != digest(sc.snip())


# ---------------------------------------------------------------- what cannot be


def test_what_cannot_be_compared_is_refused_before_anything_runs(small_cnn, cnn_task) -> None:
    one = sc.Recipe("one", cut())
    for arguments, told, words in (
        (([one, one], small_cnn, cnn_task), {}, "two recipes are called 'one'"),
        (([], small_cnn, cnn_task), {}, "0 recipes, .*: give at least one of each"),
        (([sc.magnitude()], small_cnn, cnn_task), {}, "recipes is not a list of recipes"),
        (([one], small_cnn, cnn_task), {"keep": [0.5, 0]}, r"keep=0 is not in \(0, 1\]"),
        (([one], small_cnn, cnn_task), {"seeds": [-1]}, "seed -1 is not from 0"),
        (([one], small_cnn, cnn_task), {"seeds": 0}, "0 seeds"),
        (([one], 3, cnn_task), {}, "model is 3, but must be"),
        (([one], small_cnn, 3), {}, "task is 3, but must be"),
        (([one], small_cnn, cnn_task), {"optimizer": 0.1}, "optimizer is 0.1, but must make one"),
        (([one], small_cnn, cnn_task), {"threads": 0}, "threads=0 must be at least 1"),
    ):
        with pytest.raises(SecateursError, match=words):
            compared(*arguments, **told)
    with pytest.raises(TaskError, match="nothing to compare by"):
        compared([one], small_cnn, sc.Task(cnn_task.example))
    for make, words in (
        (lambda: sc.Recipe("", cut()), "name is ''"),
        (lambda: sc.Recipe("r", 3), "prune is 3, but must be a Pruning"),
        (lambda: sc.Recipe("r", cut(), schedule=0.5), "schedule is 0.5"),
        (lambda: sc.Recipe("r", cut(), rounds=0), "rounds=0 at least 1"),
        (lambda: sc.Pruning(0.5, sc.TopK(sc.magnitude())), "pattern is 0.5"),
        (lambda: sc.Pruning(sc.Element(), 0.5), "solver is 0.5"),
    ):
        with pytest.raises(SecateursError, match=words):
            make()


# ---------------------------------------------------------------- table, plot, page


def example() -> Comparison:
    outcomes = tuple(
        Outcome(
            name,
            keep,
            seed,
            0.98,
            keep + 0.1 * seed,
            macs=100 * keep,
            dense_macs=100.0,
            parameters=int(10 * keep),
            dense_parameters=10,
        )
        for name in ("<b>one|", "two")
        for keep in (0.2, 0.5)
        for seed in (0, 1)
    )
    return Comparison("A <title>", outcomes=outcomes, recipes=(("<b>one|", "x"),))


def test_tables_hold_means_and_escape_names() -> None:
    made = example()
    lines = made.markdown().splitlines()
    assert lines[0] == "| recipe | keep | accuracy, cut, % | params | MACs |"
    assert lines[2] == "| dense |  | 98.00 | 10 | 100 |"
    assert lines[3] == "| <b>one\\| | 50 % | 55.00 ± 7.07 | 5 | 50 |"
    assert made.csv().splitlines()[1].startswith("<b>one|,0.2,0,0.98,0.2,,")
    assert Comparison.from_json(made.to_json()) == made
    assert made.best(0.5) == made.rows[0]
    page = comparison_html(made)
    assert "<b>one" not in page and "<title>A &lt;title&gt;</title>" in page and "Best test accuracy" in page
    with pytest.raises(FileError, match=r"this is not a comparison: comparison\.title is 3"):
        Comparison.from_json(json.dumps({"format": "secateurs comparison", "version": 1, "title": 3}))


@pytest.mark.parametrize(("against", "places"), [("keep", [100, 50, 20]), ("macs", [100, 50, 20])])
def test_the_plot_has_a_line_a_recipe_and_a_band_over_seeds(against, places, tmp_path) -> None:
    figure = plot(example(), tmp_path / "plot.png", against=against)
    axes = figure.axes[0]
    assert [list(line.get_xdata()) for line in axes.lines[:2]] == [pytest.approx(places)] * 2
    assert list(axes.lines[0].get_ydata()) == pytest.approx([0.98, 0.55, 0.25])
    assert len(axes.collections) == 2 and (tmp_path / "plot.png").stat().st_size > 10_000
    with pytest.raises(SecateursError, match="against='time' is none of keep, macs, parameters"):
        plot(example(), against="time")


def test_solvers_on_the_command_line_are_tried_beside_criteria():
    told = {"epochs": 0, "rounds": 1, "only": None, "skip": None}
    magnitude, zip_lm = recipes_of(["magnitude"], ["channel"], [], ["geometric"], "macs", solver=["ZipLM(damping=1e-3)"], **told)
    assert magnitude.prune.solver == sc.TopK(sc.magnitude(members="all"))
    assert zip_lm.name == "ZipLM(damping=1e-3)"
    assert zip_lm.prune.solver == sc.ZipLM(damping=1e-3)
    with pytest.raises(sc.SecateursError, match="'Zip' is no solver"):
        recipes_of([], ["channel"], [], ["geometric"], "macs", solver=["Zip"], **told)


def by_low_rank(model, task, keep, seed, masks):
    sc.low_rank_(model, task, keep=keep, weighted=False)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (lambda *_: None, "returned no masks, and nothing of the model is gone: was a return forgotten"),
        (lambda *_: 3, "what its function returns is 3, but must be the Masks"),
    ],
)
def test_a_recipe_that_returns_no_masks_must_have_made_the_model_smaller(recipe, says):
    told = {"keep": 0.5, "processes": 1, "show": False}
    with pytest.raises(sc.FailedJobsError, match=says):
        sc.compare([sc.Recipe("forgotten", recipe)], digits_cnn(), digits(), **told)
    (row,) = sc.compare([sc.Recipe("in two", by_low_rank, epochs=1)], digits_cnn(), digits(), **told).rows
    assert row.outcomes[0].parameters < 0.6 * row.outcomes[0].dense_parameters
