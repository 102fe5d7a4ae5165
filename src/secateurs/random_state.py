"""The state of all random number generators that training draws from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def random_state() -> dict[str, Any]:
    """The state of every random number generator that training may use: Python, NumPy, torch, and each CUDA device."""
    import random

    import numpy

    numpy_state = numpy.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {**numpy_state["state"], "key": numpy_state["state"]["key"].tolist()}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Go on with the random numbers where `random_state` looked."""
    import random

    import numpy

    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def require_random_state(state: Mapping[str, Any]) -> None:
    """Raise, whatever it is, where `restore_random_state` could not use a state; nothing is changed."""
    import random

    import numpy

    random.Random().setstate(state["python"])
    if not isinstance(state["python"][2], (float, type(None))):
        raise TypeError("the state of Python's random numbers is none")
    place = state["numpy"]["state"]["pos"]
    if type(place) is not int or not 0 <= place <= 624:  # NumPy reads there without a look
        raise ValueError(f"the state of NumPy's random numbers stands at {place}")
    numpy.random.RandomState().set_state(state["numpy"])
    torch.Generator().set_state(state["torch"])
    if not isinstance(state["cuda"], list):
        raise TypeError("the state of CUDA's random numbers is none")
    if torch.cuda.is_available():
        for device, each in enumerate(state["cuda"]):
            torch.Generator(f"cuda:{device}").set_state(each)
