"""What every test shares: one thread a worker, a fixed seed, and small models and tasks to prune."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start too: threads that wait for each other waste time

import pytest
import torch
from hypothesis import settings
from torch import nn

from secateurs.types import Task

settings.register_profile("secateurs", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("secateurs")


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.set_num_threads(1)
    torch.default_generator.manual_seed(0)  # torch.manual_seed writes the stack down for devices that are not there


@pytest.fixture
def small_cnn() -> nn.Module:
    """Convolutions, one of them grouped, a normalisation and two linear layers, for inputs (n, 4, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    )


@pytest.fixture
def cnn_task() -> Task:
    """A learnable task for `small_cnn`: which quarter of the image is brightest."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(96, 4, 8, 8, generator=generator)
    quarters = nn.functional.adaptive_avg_pool2d(inputs, 2).mean(1).flatten(1)
    target = quarters.argmax(1)
    batches = list(zip(inputs.split(16), target.split(16), strict=True))
    return Task(
        example=inputs[:1],
        train=batches[:4],
        validation=batches[4:5],
        test=batches[5:],
        loss=nn.functional.cross_entropy,
        metric=lambda output, target: (output.argmax(1) == target).float().mean(),
    )


@pytest.fixture
def no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what writes a report and is not about it: drawing takes most of the time. `test_report` looks at the drawings."""
    for draw in ("metric_curve", "layer_bars", "training_curve"):
        monkeypatch.setattr(f"secateurs.report.page.{draw}", lambda record, width: "")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave slow tests out where they are not asked for."""
    if item.get_closest_marker("slow") and os.environ.get("SECATEURS_ALL") != "1":
        pytest.skip("slow: runs with SECATEURS_ALL=1")


def pytest_report_header() -> str:
    """Say whether the tests on real data run."""
    return f"SECATEURS_DATA: {os.environ.get('SECATEURS_DATA', 'not set, so the tests on real data skip')}"
