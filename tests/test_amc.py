"""AMC: what the agent sees and may do, what it learns from, and that a search that was stopped goes on to the same result."""

from __future__ import annotations

import random
import sys
from math import log

import numpy as np
import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.search.amc import _Learning
from secateurs.search.bench import seed_
from secateurs.search.course import FEATURES, Course
from secateurs.search.ddpg import Agent, Step
from secateurs.search.environment import Pruning
from secateurs.search.trials import Trials
from secateurs.search.wishes import Wished
from secateurs.types import FileError, PlanError, SecateursError

from .test_search import HALF, TOPK, Judge, kept, planted


def course_of(model, example, budget=HALF, floor=1, ceiling=1.0):
    sites = sc.find_sites(model, sc.Channel(), example)
    return Course(sites, Wished("test", sites, budget, floor, ceiling))


def search(model, task, budget=HALF, **how):
    return sc.amc(model, sc.Channel(), TOPK, budget, task, **{"episodes": 7, "warm_up": 3, "by": "loss", "show": False, **how})


def test_what_is_told_of_each_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    course = course_of(model, torch.zeros(1, 3, 8, 8))
    first, second = 8 * 3 * 9 * 9, 4 * 8 * 9
    dense = first + second + 72
    expected = [0, 1, 3 / 8, 1, 1, 1, 1, 1, 0, second / (first + second), 1]
    assert dict(zip(FEATURES, course.state.tolist(), strict=True)) == pytest.approx(dict(zip(FEATURES, expected, strict=True)))
    keep = course.step(0.5)
    gone = (first + second) / 2
    expected = [1, 4 / 8, 1, 3 / 8, 3 / 8, 1 / 2, 1 / 3, second / first, gone / dense, 0, keep]
    assert keep == 0.5 and course.state.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("budget", [HALF, [sc.Budget(sc.macs, keep=0.6), sc.Budget(sc.params, limit=450)]], ids=["one", "two"])
def test_whatever_is_asked_for_the_budgets_are_met_and_never_bounded_without_need(budget):
    model, task = planted()
    course, chance = course_of(model, task.example, budget, floor=2), random.Random(0)
    budgets = budget if isinstance(budget, list) else [budget]
    limits = {each.cost: each.limit_for(model, task.example) for each in budgets}
    for _ in range(20):
        course.begin()
        wishes = [chance.random() ** 0.3 for _ in course.stops]
        got = [course.step(wish) for wish in wishes]
        plan = course.plan
        assert all(cost(model, task.example, plan) <= limit for cost, limit in limits.items())
        for place, (stop, wish, keep) in enumerate(zip(course.stops, wishes, got, strict=True)):
            if round(keep * 16) >= max(2, round(wish * 16)):
                continue
            later = {
                other.site.name: 2 for other in course.stops[place + 1 :]
            }  # with one more, not even the least of these would do
            more = plan.with_counts({**later, stop.site.name: plan[stop.site.name] + 1})
            assert any(cost(model, task.example, more) > limit for cost, limit in limits.items())


def test_it_is_an_environment_for_anybodys_agent():
    from gymnasium.utils.env_checker import check_env

    model, task = planted()
    asked = []
    environment = Pruning(course_of(model, task.example), lambda plan: asked.append(plan) or -0.25)
    check_env(environment, skip_render_check=True)
    environment.reset(seed=0)
    rewards = [environment.step(np.array([0.9], dtype=np.float32)) for _ in range(3)]
    assert [step[1] for step in rewards] == [0.0, 0.0, -0.25] and [step[2] for step in rewards] == [False, False, True]
    assert rewards[-1][4]["plan"] == asked[-1] and rewards[0][4]["keep"] == 14 / 16


def test_the_agent_learns_what_is_rewarded():
    model, task = planted()
    course, rewards = course_of(model, task.example, sc.Budget(sc.macs, keep=0.45)), []
    seed_(0)
    agent = Agent(Pruning(course, lambda plan: 0.0), warm_up=25, seed=0)
    for number in range(60):
        seed_(number)
        course.begin()
        steps = []
        while not course.done:
            state = course.state
            steps.append(Step(state, course.step(agent.act(state)), course.state))
        rewards.append(-abs(steps[0].action - 0.3) - abs(steps[1].action - 0.9))
        agent.learn(steps, rewards[-1])
    assert np.mean(rewards[:25]) < -0.5 and np.mean(rewards[-10:]) > -0.3


def test_every_step_gets_the_reward_of_its_episode_less_the_average():
    model, task = planted()
    with Trials("amc", model, sc.Channel(), TOPK, task, by="loss") as tried:
        wished = Wished("amc", tried.bench.sites, HALF, 1, 1.0)
        tried.count_(sc.macs)
        learning = _Learning(tried, wished, 4, 9, None, True, 0, None)
        values = [learning._episode(number).value for number in range(4)]
        buffer, average = learning._agent._buffer, -values[0]
        for value in values[1:]:
            average = 0.95 * average - 0.05 * value
        expected = np.repeat([-value - average for value in values], 3)
        assert buffer.pos == 12 and np.allclose(buffer.rewards[:12, 0], expected, atol=1e-6)
        assert buffer.dones[:12, 0].tolist() == [0, 0, 1] * 4 and learning._agent.sigma == 0.5
        assert np.array_equal(buffer.observations[1:3, 0], buffer.next_observations[0:2, 0])
        learning._agent.episodes = 11
        assert learning._agent.sigma == pytest.approx(0.5 * 0.95**2)


@pytest.mark.parametrize("stops_at", [5])
def test_a_search_that_was_stopped_goes_on_to_the_same_result(stops_at, tmp_path):
    model, task = planted()
    whole = search(model, task, by=Judge(0))
    with pytest.raises(KeyboardInterrupt):
        search(model, task, by=Judge(stops_at), checkpoint=tmp_path)
    judge, chance = Judge(0), torch.get_rng_state()
    done = search(model, task, by=judge, checkpoint=tmp_path)
    assert kept(done) == kept(whole) and [t.value for t in done.trials] == [t.value for t in whole.trials]
    assert judge.calls == len(whole.trials) - stops_at + 1 and torch.equal(chance, torch.get_rng_state())
    assert kept(search(model, task, by=Judge(0), seed=1)) != kept(whole)
    for changed, said in (({"warm_up": 2}, "its search was amc, warm_up=3"), ({"use_up": False}, "its search was")):
        with pytest.raises(FileError, match=said):
            search(model, task, by=Judge(0), checkpoint=tmp_path, **changed)
    file = tmp_path / "amc.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(FileError):
        search(model, task, by=Judge(0), checkpoint=tmp_path)


def test_accuracy_can_be_traded_for_cost_without_a_budget():
    model, task = planted()
    study = search(model, task, None, per=sc.macs)
    assert len({trial.costs["macs"] for trial in study.trials}) > 3
    with Trials("amc", model, sc.Channel(), TOPK, task, by="loss") as tried:
        tried.count_(sc.macs)
        learning = _Learning(tried, Wished("amc", tried.bench.sites, None, 1, 1.0), 1, 1, sc.macs, True, 0, None)
        trial = study.trials[0]
        assert learning._reward(trial) == -trial.value * log(trial.costs["macs"])
    with pytest.raises(SecateursError, match=r"needs an error of at least 0 and a cost above 1"):
        search(model, task, None, per=sc.macs, by=lambda model, task: 2.0)


def test_what_fails_teaches_nothing_and_the_search_goes_on(monkeypatch):
    model, task = planted()
    calls = []

    def judge(model, task):
        calls.append(1)
        if len(calls) in (2, 5):
            raise RuntimeError("out of tea")
        return 0.5

    learnt = []
    real = Agent.learn
    monkeypatch.setattr(Agent, "learn", lambda agent, steps, reward: (learnt.append(reward), real(agent, steps, reward)))
    study = search(model, task, by=judge)
    assert [trial.number for trial in study.failed] == [1, 4] and len(study.trials) == 7
    assert learnt == [-0.5] * 5


def test_what_amc_cannot_do_is_said(monkeypatch):
    model, task = planted()
    for changed, error, said in (
        ({"budget": None}, SecateursError, "without a budget the best plan removes nothing"),
        ({"budget": sc.Budget(sc.macs, limit=5)}, PlanError, "macs can fall to 11 MACs at the least"),
        ({"episodes": 0}, SecateursError, "episodes=0 must be at least 1"),
        ({"warm_up": 0}, SecateursError, "warm_up=0 must be at least 1"),
    ):
        with pytest.raises(error, match=said):
            search(model, task, **changed)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(
        SecateursError, match=r"amc learns with gymnasium, which is not installed: pip install 'secateurs\[search\]'"
    ):
        search(model, task)
