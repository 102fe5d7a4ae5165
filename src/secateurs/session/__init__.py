"""A whole job, from a model and a task to a folder with the pruned model, its record and its report."""

from __future__ import annotations

from secateurs.session.demo import demo_job
from secateurs.session.folder import begin, require_free
from secateurs.session.job import Result, Stopwatch, prune_to_folder, shrink_to_folder
from secateurs.session.trial import quickest_threads, try_out

__all__ = [
    "Result",
    "Stopwatch",
    "begin",
    "demo_job",
    "prune_to_folder",
    "quickest_threads",
    "require_free",
    "shrink_to_folder",
    "try_out",
]
