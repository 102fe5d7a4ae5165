"""Parts go to other processes: searches try plans there."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from secateurs.evidence import observe
from secateurs.patterns import find_sites
from secateurs.solve import TopK
from secateurs.testing import COUPLED, LAYERS, Specimen
from secateurs.testing.specimens import energy
from secateurs.types import Criterion, Pattern, PatternError, Scores, SecateursError, Sites, Stats, Task

from .test_conformance import COUPLINGS, CRITERIA, PATTERNS

Row = tuple[Sites, Stats, TopK]
"""What scores are made of."""

CHILD = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    rows = pickle.load(file)
with open(sys.argv[2], "wb") as file:
    pickle.dump([list(solver.scores(sites, stats)) for sites, stats, solver in rows], file)
"""


def scores(rows: list[Row]) -> list[list[Scores]]:
    return [list(solver.scores(sites, stats)) for sites, stats, solver in rows]


def sites_of(pattern: Pattern, specimens: tuple[Specimen, ...], only: str | None) -> tuple[Specimen, Sites]:
    """The sites in the first model that the pattern fits."""
    for specimen in specimens:
        try:
            return specimen, find_sites(specimen.model(), pattern, specimen.example, only=only)
        except PatternError:
            continue
    raise AssertionError(f"{pattern} fits nothing")


def every_row() -> list[Row]:
    """Each pattern on a model that it fits, with each criterion and what that needs."""
    rows: list[Row] = []
    kinds = [(pattern, LAYERS, "*") for pattern, _ in PATTERNS] + [(pattern, COUPLED, None) for pattern, _ in COUPLINGS]
    for pattern, specimens, only in kinds:
        specimen, sites = sites_of(pattern, specimens, only)
        task = Task(specimen.example, calibration=[(specimen.example, None)], loss=energy)
        found = [(criterion, observed(criterion, sites, task)) for criterion, _ in CRITERIA]
        rows += [(sites, stats, TopK(criterion)) for criterion, stats in found if stats is not None]
    return rows


def observed(criterion: Criterion, sites: Sites, task: Task) -> Stats | None:
    """What a criterion needs, where such units have a score."""
    try:
        stats = observe(sites.model, sites, criterion.needs, task)
        list(TopK(criterion).scores(sites, stats))
    except SecateursError:
        return None
    return stats


def test_each_pattern_with_each_criterion_scores_the_same_in_another_process(tmp_path: Path) -> None:
    rows = every_row()
    given, found = tmp_path / "rows.pickle", tmp_path / "scores.pickle"
    given.write_bytes(pickle.dumps(rows))
    subprocess.run([sys.executable, "-c", CHILD, str(given), str(found)], check=True)
    there = pickle.loads(found.read_bytes())
    here = scores(rows)
    assert len(here) == len(there) > 12 * (len(PATTERNS) + len(COUPLINGS))
    missing = {criterion for criterion, _ in CRITERIA} - {solver.criterion for _, _, solver in rows}
    assert all(criterion.members == "norms" for criterion in missing)  # the first network of each kind has none
    for one, other in zip(here, there, strict=True):
        assert one and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_pickled_site_still_writes_through_to_the_weights_of_its_model() -> None:
    for pattern, _ in (*PATTERNS[:1], *PATTERNS[16:25], *COUPLINGS[:1]):
        only = "*" if hasattr(pattern, "tile") else None
        sites = pickle.loads(pickle.dumps(sites_of(pattern, LAYERS if only else COUPLED, only)[1]))
        parameters = dict(sites.model.named_parameters())
        for site in sites:
            for member in site.members:
                assert member.weight is parameters[member.parameter]
                with torch.no_grad():
                    member.cut(member.canonical(member.weight)).zero_()
                assert int(member.weight.count_nonzero()) < member.weight.numel()


def test_what_is_found_twice_in_a_model_is_equal_data() -> None:
    for pattern, _ in (*PATTERNS, *COUPLINGS):
        only = "*" if hasattr(pattern, "tile") else None
        _, sites = sites_of(pattern, LAYERS if only else COUPLED, only)
        one, other = (list(find_sites(sites.model, pattern, sites.example, only=only)) for _ in range(2))
        assert one == other
        assert replace(one[0], name="another") != one[0]


def test_criteria_are_equal_where_they_say_the_same() -> None:
    for criterion, _ in CRITERIA:
        assert pickle.loads(pickle.dumps(criterion)) == criterion
    assert len({criterion for criterion, _ in CRITERIA}) == len(CRITERIA)
