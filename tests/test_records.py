"""The tables handed to kernels: records lie in memory as the structs of the header, and numbers mean what its enums say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import secateurs.run
from secateurs.run.kernels import records
from secateurs.run.kernels.spmm import FIRST, LAST
from secateurs.run.planning import layout, steps

HEADER = re.sub(r"//.*", "", (Path(secateurs.run.__file__).parent / "csrc" / "table.h").read_text("utf-8"))
TYPES = {"int32_t": np.int32, "int64_t": np.int64}


def struct(name: str) -> np.dtype:
    """A struct of whole numbers as a C compiler lays it out: each member where its own size divides its place."""
    (body,) = re.findall(rf"struct {name} \{{(.*?)\}};", HEADER, re.DOTALL)
    members = [(member.strip(), TYPES[kind]) for kind, names in re.findall(r"(\w+) ([^;]+);", body) for member in names.split(",")]
    return np.dtype(members, align=True)


def enum(values: str) -> list[str]:
    """The names of an enum in which one of these is, in order from 0 on."""
    (body,) = re.findall(rf"enum[^;]*\{{([^}}]*\b{values}\b[^}}]*)\}}", HEADER)
    return [name.strip().lower() for name in body.split(",")]


@pytest.mark.parametrize("name", ["Row", "Block", "Panel", "Move"])
def test_records_lie_as_the_structs_of_the_header(name):
    ours, theirs = getattr(records, name.upper()), struct(name)
    assert ours.names == theirs.names and ours.itemsize == theirs.itemsize
    assert {each: ours.fields[each] for each in ours.names} == {each: theirs.fields[each] for each in theirs.names}


def test_numbers_mean_what_the_header_says():
    codes = [name.removesuffix("_activation").replace("no", "none") for name in enum("HARD_SWISH")]
    assert {name: code for code, name in enumerate(codes)} == steps._CODES
    kinds = enum("PERMUTE")
    assert [getattr(layout, kind.upper()) for kind in kinds] == list(range(len(kinds)))
    assert re.search(rf"FIRST = {FIRST}, LAST = {LAST}\b", HEADER)


def test_columns_that_are_not_given_are_zero_and_names_are_known():
    made = records.records(records.PANEL, x=np.arange(3)[:, None], y=[1, 2])
    assert made.shape == (3, 2) and made["y"].tolist() == [[1, 2]] * 3 and not made["lanes"].any()
    with pytest.raises(ValueError, match="no field of name z"):
        records.records(records.PANEL, z=1)
