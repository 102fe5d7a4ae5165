"""The course as an environment of gymnasium's, for agents of anybody's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from secateurs.search.course import FEATURES, Course
from secateurs.types import Plan

Observation = NDArray[np.float32]


class Pruning(gymnasium.Env[Observation, Observation]):
    """An episode decides site by site which fraction stays (an action in [0, 1]), and is rewarded at its end with what ``judge`` makes of
    the plan. What an action became within the budgets is in the info, as ``keep``, and at the end the ``plan``."""

    metadata = {"render_modes": []}  # noqa: RUF012 (gymnasium's own attribute)

    def __init__(self, course: Course, judge: Callable[[Plan], float]) -> None:
        self._course, self._judge = course, judge
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (len(FEATURES),), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Begin with the first site."""
        super().reset(seed=seed)
        self._course.begin()
        return self._course.state, {}

    def step(self, action: Observation) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Decide for one site."""
        keep = self._course.step(float(np.clip(np.asarray(action).reshape(-1)[0], 0.0, 1.0)))
        if not self._course.done:
            return self._course.state, 0.0, False, False, {"keep": keep}
        plan = self._course.plan
        return self._course.state, float(self._judge(plan)), True, False, {"keep": keep, "plan": plan}
