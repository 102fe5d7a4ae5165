"""Plans that are searched for: by trying them."""

from secateurs.search.amc import amc
from secateurs.search.at_random import random_search
from secateurs.search.bench import Bench, Setting
from secateurs.search.evolve import Evolution, evolve
from secateurs.search.folder import read_trials
from secateurs.search.library import Alternative, Entry, Gone, Library, LowerRank, Narrower, library
from secateurs.search.reaching import Reached, fastest, smallest
from secateurs.search.sampled import nsga2, tpe
from secateurs.search.sensitivity import Sensitivity, SiteCurve, sensitivity
from secateurs.search.trial import Study, Trial
from secateurs.search.trials import How, Trials, try_plans

__all__ = [
    "Alternative",
    "Bench",
    "Entry",
    "Evolution",
    "Gone",
    "How",
    "Library",
    "LowerRank",
    "Narrower",
    "Reached",
    "Sensitivity",
    "Setting",
    "SiteCurve",
    "Study",
    "Trial",
    "Trials",
    "amc",
    "evolve",
    "fastest",
    "library",
    "nsga2",
    "random_search",
    "read_trials",
    "sensitivity",
    "smallest",
    "tpe",
    "try_plans",
]
