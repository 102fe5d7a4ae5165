"""The agent of AMC: DDPG, its networks, buffer and updates those of stable-baselines3, its way to explore that of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import DDPG
from stable_baselines3.common.logger import Logger

from secateurs.types import FileError

State = NDArray[np.float32]

_SIGMA, _DECAY = 0.5, 0.95  # of the noise: constant while it warms up, then less with each episode
_WIDTHS, _ACTOR_RATE, _CRITIC_RATE, _TAU, _BATCH, _BUFFER = (300, 300), 1e-4, 1e-3, 0.01, 64, 2000
_BASELINE = 0.05  # how much of the last reward goes into the moving average that is subtracted; the paper does not say


class Step(NamedTuple):
    """What an agent saw, what was done in the end, and what it saw then."""

    state: State
    action: float
    after: State


class Agent:
    """Learns from whole episodes: each step gets the reward of the episode less a moving average of rewards, and nothing is discounted.

    Random numbers come from the global generators, which whoever calls seeds.
    """

    def __init__(self, environment: gymnasium.Env[Any, Any], warm_up: int, seed: int) -> None:
        self._warm_up, self.episodes = warm_up, 0
        self._baseline: float | None = None
        self._ddpg = DDPG(
            "MlpPolicy",
            environment,
            learning_rate=_CRITIC_RATE,
            buffer_size=_BUFFER,
            batch_size=_BATCH,
            tau=_TAU,
            gamma=1.0,
            policy_kwargs={"net_arch": list(_WIDTHS)},
            seed=seed,
            device="cpu",
        )
        self._ddpg.set_logger(Logger(None, []))
        self._ddpg._update_learning_rate = self._keep_rates  # type: ignore[method-assign]  # SB3 has one rate for both networks
        self._keep_rates([])

    def _keep_rates(self, optimizers: object) -> None:
        for part, rate in ((self._ddpg.actor, _ACTOR_RATE), (self._ddpg.critic, _CRITIC_RATE)):
            for group in part.optimizer.param_groups:
                group["lr"] = rate

    @property
    def sigma(self) -> float:
        """The noise of the next episode."""
        return _SIGMA * _DECAY ** max(0, self.episodes - self._warm_up)

    def act(self, state: State) -> float:
        """An action in (0, 1): what the actor says, with noise of a truncated normal distribution."""
        wanted, _ = self._ddpg.predict(state, deterministic=True)
        return _truncated_normal(float(np.clip(wanted[0], 0.0, 1.0)), self.sigma)

    def learn(self, steps: Sequence[Step], reward: float) -> None:
        """Remember an episode; once warm, update the networks as often as it had steps."""
        self._subtract(reward)
        buffer = self._buffer
        for number, step in enumerate(steps):
            done = np.array([number == len(steps) - 1])
            action = np.array([[2 * step.action - 1]], dtype=np.float32)  # as SB3 keeps it
            buffer.add(step.state[None], step.after[None], action, np.array([reward - self._baseline_now]), done, [{}])
        self.episodes += 1
        if self.episodes > self._warm_up:
            self._ddpg.train(gradient_steps=len(steps), batch_size=_BATCH)

    def skip(self) -> None:
        """Count an episode of which nothing can be learnt."""
        self.episodes += 1

    @property
    def _buffer(self) -> Any:
        assert self._ddpg.replay_buffer is not None
        return self._ddpg.replay_buffer

    @property
    def _baseline_now(self) -> float:
        return 0.0 if self._baseline is None else self._baseline

    def _subtract(self, reward: float) -> None:
        """Move the average of rewards; those in the buffer are less by it, so they move too."""
        before = self._baseline_now
        self._baseline = reward if self._baseline is None else (1 - _BASELINE) * self._baseline + _BASELINE * reward
        self._buffer.rewards -= np.float32(self._baseline - before)

    # ---------------------------------------------------------------- on disk

    def saved(self) -> dict[str, Any]:
        """All that it knows, as tensors and numbers."""
        ddpg, buffer = self._ddpg, self._buffer
        return {
            "policy": dict(ddpg.policy.state_dict()),
            "actor": ddpg.actor.optimizer.state_dict(),
            "critic": ddpg.critic.optimizer.state_dict(),
            "buffer": {name: torch.from_numpy(getattr(buffer, name).copy()) for name in _ARRAYS},
            "place": buffer.pos,
            "full": buffer.full,
            "updates": ddpg._n_updates,
            "episodes": self.episodes,
            "baseline": self._baseline,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `saved` gave; raises `FileError` where that is of another agent."""
        try:
            self._ddpg.policy.load_state_dict(state["policy"])
            self._ddpg.actor.optimizer.load_state_dict(state["actor"])
            self._ddpg.critic.optimizer.load_state_dict(state["critic"])
            for name in _ARRAYS:
                getattr(self._buffer, name)[...] = state["buffer"][name].numpy()
            self._buffer.pos, self._buffer.full = int(state["place"]), bool(state["full"])
            self._ddpg._n_updates, self.episodes = int(state["updates"]), int(state["episodes"])
            self._baseline = None if state["baseline"] is None else float(state["baseline"])
        except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
            raise FileError(f"it holds another agent ({type(error).__name__}: {str(error).splitlines()[0]})") from error


_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones")


def _truncated_normal(mean: float, sigma: float) -> float:
    """A number in (0, 1) of a normal distribution around a mean in [0, 1]; drawn again until it lies there, as often as needed.

    >>> np.random.seed(0)
    >>> all(0 < _truncated_normal(mean, 0.5) < 1 for mean in (0.0, 0.5, 1.0))
    True
    """
    while True:
        drawn = float(np.random.normal(mean, sigma))
        if 0 < drawn < 1:
            return drawn
