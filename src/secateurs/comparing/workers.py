"""Jobs in processes of their own: each gets one job at a time, and one that dies costs that job alone."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from secateurs import progress
from secateurs.comparing.comparison import Outcome
from secateurs.comparing.job import Dense, Job, Setting, done
from secateurs.types import SecateursError

_ALONE = "or compare with processes=1, which runs everything in this process"


def done_here(jobs: Sequence[Job], setting: Setting) -> Generator[Outcome, None, None]:
    """The outcomes of jobs, one after the other in this process."""
    import torch

    dense, before = Dense(setting), torch.get_num_threads()
    torch.set_num_threads(setting.threads)
    try:
        for job in jobs:
            yield done(job, dense)
    finally:
        torch.set_num_threads(before)


def packed(jobs: Sequence[Job], setting: Setting) -> bytes:
    """What goes to each process; raises `SecateursError` that names what cannot go."""
    for name, part in (
        ("model", setting.model),
        ("task", setting.task),
        ("optimizer", setting.optimizer),
        *{f"the recipe {job.recipe.name!r}": job.recipe for job in jobs}.items(),
    ):
        try:
            pickle.dumps(part)
        except Exception as error:  # pickle raises what the object's own class raises
            raise SecateursError(
                f"compare: {name} cannot go to another process ({type(error).__name__}: {error}): give functions that stand in a module "
                f"instead of lambdas and of what they made, {_ALONE}"
            ) from error
    return pickle.dumps((setting, list(jobs)))


def done_in_processes(jobs: Sequence[Job], setting: Setting, processes: int) -> Generator[Outcome, None, None]:
    """The outcomes of jobs as they come, from so many processes; they end when this generator is closed.

    A process that dies, out of memory say, makes a failed outcome of its job. Raises `SecateursError` where none can begin.
    """
    waiting, missing = list(reversed(range(len(jobs)))), len(jobs)
    with closing(_Crew(packed(jobs, setting))) as crew:
        for _ in range(min(processes, len(jobs))):
            crew.hire()
        while missing:
            for worker in crew.heard():
                outcome = _outcome(worker, worker.told(), jobs)
                if outcome is not None:
                    yield outcome
                    missing -= 1
                if worker.is_dead:
                    crew.dismiss(worker)
                    if waiting:
                        crew.hire()
                elif waiting:
                    worker.give(waiting.pop())
                else:
                    worker.give(None)
                    crew.dismiss(worker)


def _outcome(worker: _Worker, told: Any, jobs: Sequence[Job]) -> Outcome | None:
    """The outcome that a process tells, by dying too; nothing where it only says that it is ready. Raises where it cannot begin."""
    if isinstance(told, str):
        raise SecateursError(f"compare: another process cannot make what it was given ({told}): {_ALONE}")
    if not worker.is_dead:
        return told if isinstance(told, Outcome) else None
    if worker.job is None:
        raise SecateursError(
            f"compare: a process ended before its first job (exit {worker.process.exitcode}): a script calls compare "
            f'under if __name__ == "__main__":, {_ALONE}'
        )
    return replace(jobs[worker.job].blank(), error=f"its process ended (exit {worker.process.exitcode}); out of memory?")


class _Worker:
    """A process, the pipe to it, and the job that it has."""

    def __init__(self, payload: bytes) -> None:
        context = get_context("spawn")  # threads of OpenMP do not survive a fork
        self.pipe, other = context.Pipe()
        self.process: BaseProcess = context.Process(target=_serve, args=(other, payload), daemon=True)
        self.process.start()
        other.close()
        self.job: int | None = None
        self.is_dead = False

    def told(self) -> Any:
        """What it says: it is ready, an outcome, a complaint; nothing where it is dead."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            self.is_dead = True
            return None

    def give(self, job: int | None) -> None:
        self.job = job
        try:
            self.pipe.send(job)
        except OSError:  # it is dead, which is heard next
            pass


class _Crew:
    """The processes at work."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.workers: list[_Worker] = []

    def hire(self) -> None:
        self.workers.append(_Worker(self.payload))

    def dismiss(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        worker.process.join()
        worker.pipe.close()

    def heard(self) -> list[_Worker]:
        """Those that say something, or have died; waits for one."""
        ready = wait([worker.pipe for worker in self.workers])
        return [worker for worker in self.workers if worker.pipe in ready]

    def close(self) -> None:
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join()
            worker.pipe.close()


def _serve(pipe: Connection, payload: bytes) -> None:
    """The life of a process: it says that it is ready, then what came of each job, until there is none, or nobody who asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who is asked to stop is the one that the user sees; it ends the others
    progress.be_silent()
    try:
        setting, jobs = pickle.loads(payload)
    except Exception as error:  # whatever importing somebody's module raises
        pipe.send(f"{type(error).__name__}: {error}")
        return
    import torch

    torch.set_num_threads(setting.threads)
    dense = Dense(setting)
    try:
        pipe.send(True)
        while (place := pipe.recv()) is not None:
            pipe.send(done(jobs[place], dense))
    except (EOFError, OSError):  # nobody is there any more
        return
