"""Where plans are tried: in this process, in others here, or on a cluster. Model and data go there once, and each time only a plan."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

import torch

from secateurs import progress
from secateurs.search.bench import Bench, Measured, Setting
from secateurs.search.extra import extra
from secateurs.types import SecateursError, Stats

Backend = Literal["here", "processes", "ray"]

Job = tuple[int, Mapping[str, int]]
"""The number of a trial, and how many units each site keeps in it."""

_REPEATS = 2  # so often is a trial repeated that ends its process; what ends three is not the machine's fault


class Crew(Protocol):
    """Those who try plans."""

    def __call__(self, jobs: Sequence[Job]) -> Generator[tuple[int, Measured], None, None]:
        """What comes of each, as it comes, by the number of its trial."""

    def close(self) -> None:
        """End what was begun for them."""


def crew_of(backend: Backend, bench: Bench, workers: int | None) -> Crew:
    """Who tries plans where; raises `SecateursError` where what is needed there is not installed."""
    require_backend(backend)
    if backend == "here":
        return Here(bench)
    return Processes(bench, workers) if backend == "processes" else Cluster(bench, workers)


def require_backend(backend: str) -> None:
    """Raise `SecateursError` where there is no such place."""
    if backend not in ("here", "processes", "ray"):
        raise SecateursError(f'backend={backend!r} is none of "here", "processes" and "ray"')


class Here:
    """Plans are tried one after the other in this process."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def __call__(self, jobs: Sequence[Job]) -> Generator[tuple[int, Measured], None, None]:
        for number, counts in jobs:
            yield number, self._bench(counts)

    def close(self) -> None:
        pass


# ---------------------------------------------------------------- what travels


def packed(bench: Bench, file: Any) -> None:
    """Write what all trials share into a file: the setting, and what was observed, each tensor once.

    Functions go by their code where they stand in the script or are made on the way, else by their names: a cluster needs the same modules.
    Raises `SecateursError` where something cannot go.
    """
    import cloudpickle

    try:
        torch.save((bench.setting, bench.stats), file, pickle_module=cloudpickle)
    except Exception as error:  # pickle raises what the object's own class raises
        raise SecateursError(
            f"model, task and solver cannot go to another process ({type(error).__name__}: {error}): give functions that stand in a "
            'module, or try the plans in this process with backend="here"'
        ) from error


def _unpacked(file: Any, mmap: bool) -> Bench:
    setting: Setting
    stats: Stats
    setting, stats = torch.load(file, mmap=mmap, weights_only=False)
    progress.be_silent()
    return Bench(setting, stats)


_benches: dict[str, Bench] = {}
"""In a process that tries plans: its model, by the search for which it was made."""


def _bench_for(search: str, make: Callable[[], Bench]) -> Bench:
    if search not in _benches:
        _benches.clear()
        _benches[search] = make()
    return _benches[search]


# ---------------------------------------------------------------- processes on this machine


class Processes:
    """Plans are tried in processes of joblib's; what they share lies in one file, which all of them map into memory.

    A process that dies takes the others with it. What they were at is tried again, one after the other, so that it shows whose fault it is.
    """

    def __init__(self, bench: Bench, workers: int | None) -> None:
        import joblib

        self._workers = workers or joblib.cpu_count()
        self._folder = TemporaryDirectory(prefix="secateurs-search-")
        try:
            with open(self._file, "wb") as file:
                packed(bench, file)
        except BaseException:
            self._folder.cleanup()
            raise

    @property
    def _file(self) -> Path:
        return Path(self._folder.name) / "shared.pt"

    def __call__(self, jobs: Sequence[Job]) -> Generator[tuple[int, Measured], None, None]:
        left = dict(jobs)
        while left:
            try:
                for number, measured in self._at_once(dict(left), self._workers):
                    del left[number]
                    yield number, measured
            except BrokenProcessPool:
                begun = [number for number in left if self._mark(number).exists()] or list(left)[:1]
                for number in begun:
                    yield number, self._alone(number, left.pop(number))

    def _at_once(self, jobs: Mapping[int, Mapping[str, int]], workers: int) -> Generator[tuple[int, Measured], None, None]:
        from joblib import Parallel, delayed

        pool = Parallel(workers, backend="loky", return_as="generator_unordered", pre_dispatch="all", batch_size=1)
        yield from pool(
            delayed(_in_process)(str(self._file), str(self._mark(number)), number, dict(counts)) for number, counts in jobs.items()
        )

    def _alone(self, number: int, counts: Mapping[str, int]) -> Measured:
        for _ in range(_REPEATS):
            self._mark(number).unlink(missing_ok=True)
            try:
                [(_, measured)] = self._at_once({number: counts}, 1)
                return measured
            except BrokenProcessPool:
                continue
        return _ended(_REPEATS + 1)

    def _mark(self, number: int) -> Path:
        """A file that is there while a process is at a trial."""
        return Path(self._folder.name) / f"begun-{number}"

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True, kill_workers=True)
        self._folder.cleanup()


def _in_process(file: str, mark: str, number: int, counts: Mapping[str, int]) -> tuple[int, Measured]:
    Path(mark).touch()
    bench = _bench_for(file, lambda: _unpacked(file, mmap=True))
    measured = bench(counts)
    Path(mark).unlink(missing_ok=True)
    return number, measured


def _ended(times: int) -> Measured:
    return Measured(None, 0.0, f"its process ended each of {times} times that it was tried; out of memory?")


# ---------------------------------------------------------------- a cluster


class Cluster:
    """Plans are tried by Ray; what they share lies in its object store.

    Ray that runs already is used, else one is begun (of the cluster that RAY_ADDRESS names, or of this machine) and ended at the end. A
    trial whose worker dies, or its machine, is repeated by Ray.
    """

    def __init__(self, bench: Bench, workers: int | None) -> None:
        import numpy

        self._ray = ray = extra("ray", "cluster", "plans are tried on a cluster")
        buffer = io.BytesIO()
        packed(bench, buffer)
        self._own = not ray.is_initialized()
        if self._own:
            ray.init(include_dashboard=False, log_to_driver=False)
        self._search = f"ray-{os.getpid()}-{id(self)}"
        self._shared = ray.put(numpy.frombuffer(buffer.getvalue(), dtype=numpy.uint8))
        self._workers = workers
        self._task = ray.remote(num_cpus=bench.setting.threads or 1, max_retries=_REPEATS)(_on_cluster)

    def __call__(self, jobs: Sequence[Job]) -> Generator[tuple[int, Measured], None, None]:
        ray, waiting, at_work = self._ray, list(reversed(jobs)), dict[Any, int]()
        most = self._workers or len(jobs)
        try:
            while waiting or at_work:
                while waiting and len(at_work) < most:
                    number, counts = waiting.pop()
                    # In a list the reference goes as it is: a worker that has the model already fetches nothing.
                    at_work[self._task.remote(self._search, [self._shared], dict(counts))] = number
                [ready], _ = ray.wait(list(at_work), num_returns=1)
                yield at_work.pop(ready), self._told(ready)
        finally:
            for reference in at_work:
                ray.cancel(reference, force=True)

    def _told(self, reference: Any) -> Measured:
        errors = self._ray.exceptions
        try:
            return Measured(*self._ray.get(reference))
        except errors.RayTaskError as error:
            raise SecateursError(
                f"a machine of the cluster cannot make the model and the task ({str(error).strip().splitlines()[-1]}): install there what "
                "they need, in the versions of here"
            ) from error
        except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError, errors.LocalRayletDiedError):
            return _ended(_REPEATS + 1)

    def close(self) -> None:
        del self._shared
        if self._own:
            self._ray.shutdown()


def _on_cluster(search: str, shared: Sequence[Any], counts: Mapping[str, int]) -> tuple[float | None, float, str]:
    import ray

    def fetched() -> Bench:
        return _unpacked(io.BytesIO(ray.get(shared[0]).tobytes()), mmap=False)

    value, seconds, error = _bench_for(search, fetched)(counts)
    return value, seconds, error  # plain, so that who asks needs nothing of ours to read it
