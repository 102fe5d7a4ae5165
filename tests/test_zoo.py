"""Every model of the benchmarks' zoo: half of each site goes, the small model computes what the masked one does, files bring it back.

A cross-section runs always; `SECATEURS_ALL=1` runs them all.
"""

from __future__ import annotations

import warnings

import pytest

pytest.importorskip("transformers")

from zoo import CLASSIC, HAND_WRITTEN, TRANSFORMERS
from zoo.halving import Outcome, try_halving

SUBJECTS = {subject.name: subject for subject in [*TRANSFORMERS, *HAND_WRITTEN, *CLASSIC]}

SITES: dict[str, int] = {}
"""The cross-section, with the number of sites that are found in each model: a rule that forgets how to do something shows here."""

PUT_BACK: dict[str, tuple[set[str], str]] = {}
"""Subject → the sites that are masked but cannot be removed, and why."""


def case(name: str) -> object:
    return pytest.param(name, id=name, marks=() if name in SITES else pytest.mark.slow)


@pytest.mark.parametrize("name", map(case, SUBJECTS))
def test_half_of_each_site_goes_and_nothing_else_changes(name: str) -> None:
    outcome = Outcome(name, "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other packages' models have to say
        try_halving(SUBJECTS[name], outcome)
    assert outcome.exact == SITES.get(name, outcome.exact)
    if outcome.nothing:
        assert outcome.approximate or outcome.pinned or not outcome.parameters[0], "nothing is found, and nothing says why"
        return
    assert {item.name for item in outcome.put_back} == PUT_BACK.get(name, (set(), ""))[0], [
        item.reason for item in outcome.put_back
    ]
    assert outcome.same, f"the small model's answers differ from the masked one's by {outcome.difference}"
    assert outcome.reloaded, "the file gives another model"
    before, after = outcome.parameters
    assert after < before


def test_the_cross_section_is_wide() -> None:
    assert len([subject for subject in TRANSFORMERS if subject.name in SITES]) >= 25
    assert SITES.keys() | PUT_BACK.keys() <= SUBJECTS.keys()
