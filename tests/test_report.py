from __future__ import annotations

import dataclasses
import functools
import io
import json
import math
import os
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from secateurs.report import (
    Curve,
    Entry,
    History,
    Layer,
    Point,
    Record,
    environment,
    html,
    latencies,
    layer_bars,
    metric_curve,
    over_seeds,
    read_record,
    remarks,
    table,
    training_curve,
    verdict,
    write_html,
    write_record,
)
from secateurs.report import files as files_module
from secateurs.report.summary import COUNTED, result_table
from secateurs.report.words import percent, printable, rounded, scaled, shortened
from secateurs.types import FileError, SecateursError

DENSE = Entry("dense", 0.9870, 24_000, 24_000, 1.1e6, 1.1e6, 98_000, 14.2)
PRUNED = Entry("pruned, reloaded", 0.9830, 24_000, 1_176, 1.1e6, 6.0e4, 10_000, 31.8, metric_spread=0.002)
FULL = Record(
    title="Digits",
    entries=(DENSE, PRUNED, Entry("random, same sparsity", 0.71, 24_000, 1_176, 1.1e6, 5.0e4, 10_100, None)),
    curves=(
        Curve("magnitude", (Point(0.0, 0.988), Point(0.5, 0.989), Point(0.9, 0.985, 7), Point(0.98, math.nan))),
        Curve("random", (Point(0.0, 0.988), Point(0.9, 0.8), Point(1.0, 0.1))),
    ),
    layers=(Layer("conv1", "Conv2d", (16, 1, 3, 3), 144, 88, 5632.0), Layer("fc1", "Linear", (128, 512), 65_536, 2_350, 2e3)),
    history=History(({"loss": 0.9, "validation": 0.9, "lr": 0.1}, {"loss": 0.2, "validation": 0.98, "sparsity": 0.5})),
    skipped=(("conv1.bias", "a bias"),),
    seed=0,
    command="secateurs demo digits --seed 0",
    versions={"torch": "2.9.0"},
    machine="a laptop",
    date="2025-01-02T03:04:05+00:00",
    notes=("One run.",),
)
HOSTILE = '</td><script>alert(1)</script>"\' $\\frac{ & \x00\x1b[31m [red] \ud800 \u6811 ]]> id="x" url(#a)'


def with_metrics(before: float | None, after: float | None, **changes: object) -> Record:
    entries = (dataclasses.replace(DENSE, metric=before), dataclasses.replace(PRUNED, metric=after, metric_spread=None))
    return dataclasses.replace(Record("x", entries=entries), **changes)  # type: ignore[arg-type]


@functools.cache
def full_page() -> str:
    return html(FULL)


# ---------------------------------------------------------------- JSON

texts = st.text(st.characters(), max_size=12)  # surrogates included
counts = st.integers(0, 2**40)
floats = st.floats(allow_nan=True, allow_infinity=True)
costs = st.tuples(st.floats(0, 1e15), st.floats(0, 1)).map(lambda pair: (pair[0], pair[0] * pair[1]))


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    nonzero, more, (macs, nonzero_macs) = draw(counts), draw(counts), draw(costs)
    optional = st.none() | st.floats(0, 1e9)
    return Entry(
        draw(texts | st.sampled_from(["dense", "pruned", "pruned, reloaded"])),
        draw(st.none() | floats),
        nonzero + more,
        nonzero,
        macs,
        nonzero_macs,
        draw(st.none() | counts),
        draw(optional),
        draw(optional),
        draw(optional),
        draw(st.booleans()),
    )


points = st.builds(Point, st.floats(0, 1), floats, st.none() | st.integers(0, 999), st.none() | st.floats(0, 1))
layers = st.builds(
    lambda name, kind, shape, nonzero, more, macs: Layer(name, kind, tuple(shape), nonzero + more, nonzero, macs),
    *(texts, texts, st.lists(counts, max_size=4), counts, counts, st.floats(0, 1e15)),
)
epochs = st.dictionaries(texts | st.sampled_from(["loss", "validation", "sparsity"]), floats, max_size=3)
records = st.builds(
    Record,
    title=texts,
    metric_name=texts,
    higher_is_better=st.booleans(),
    entries=st.lists(entries(), max_size=3).map(tuple),
    curves=st.lists(st.builds(Curve, texts, st.lists(points, max_size=4).map(tuple)), max_size=2).map(tuple),
    runtime=texts,
    layers=st.lists(layers, max_size=3).map(tuple),
    history=st.builds(History, st.lists(epochs, max_size=3).map(tuple)),
    skipped=st.lists(st.tuples(texts, texts), max_size=2).map(tuple),
    seed=st.none() | st.integers(-(2**60), 2**60),
    command=texts,
    versions=st.dictionaries(texts, texts, max_size=2),
    machine=texts,
    date=texts,
    notes=st.lists(texts, max_size=2).map(tuple),
)


@given(records)
@settings(max_examples=60, deadline=None)
def test_json_round_trip(record: Record) -> None:
    text = record.to_json()
    again = Record.from_json(text)
    assert again.to_json() == text
    assert "nan" in repr(record) or again == record  # NaN is not equal to itself


def test_json_is_strict_and_keeps_what_is_not_finite() -> None:
    record = Record("x", history=History(({"loss": math.nan, "validation": math.inf, "lr": -math.inf},)))
    text = record.to_json()
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["history"]["epochs"] == [{"loss": "NaN", "validation": "Infinity", "lr": "-Infinity"}]
    loss, *rest = Record.from_json(text).history.epochs[0].values()
    assert math.isnan(loss) and rest == [math.inf, -math.inf]


def test_numbers_of_numpy_and_torch_are_written_as_numbers() -> None:
    numpy, torch = pytest.importorskip("numpy"), pytest.importorskip("torch")
    record = Record("x", entries=(Entry("dense", torch.tensor(0.5), numpy.int64(3), 3, numpy.float32(2.0), 2.0, None, None),))
    assert Record.from_json(record.to_json()).entries == (Entry("dense", 0.5, 3, 3, 2.0, 2.0, None, None),)


def test_what_is_no_number_cannot_be_written() -> None:
    with pytest.raises(SecateursError, match=r"record\.seed is a object; expected text, a number or None"):
        Record("x", seed=object()).to_json()  # type: ignore[arg-type]


def spoiled(**changes: object) -> str:
    return json.dumps({**json.loads(FULL.to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"this is not a record: expected JSON \("),
        (FULL.to_json()[:-20], r"expected JSON \("),
        ("[" * 100_000, r"expected JSON \("),
        ("[]", r'expected the JSON object that Record\.to_json\(\) wrote, with "format": "secateurs record"'),
        ('{"title": "x"}', r"expected the JSON object"),
        (spoiled(version=3), r"version is 3, this version of secateurs reads up to 2"),
        (spoiled(title=3), r"record\.title is 3, expected text"),
        (spoiled(title=None), r"record\.title is None, expected text"),
        (spoiled(tilte="x"), r"record has an unknown part 'tilte', expected only title, "),
        ('{"format": "secateurs record", "version": 1}', r"record has no part 'title'"),
        (spoiled(entries={}), r"record\.entries is \{\}, expected a list"),
        (spoiled(entries=[{"metric": 1.0}]), r"record\.entries\[0\] has no part 'name'"),
        (spoiled(layers=[7]), r"record\.layers\[0\] is 7, expected an object"),
        (spoiled(skipped=[["a"]]), r"record\.skipped\[0\] has 1 parts, expected 2"),
        (spoiled(seed=1.5), r"record\.seed is 1\.5, expected a whole number"),
        (spoiled(seed=True), r"record\.seed is True, expected a whole number"),
        (spoiled(seed=2**63), r"record\.seed is 9223372036854775808, expected a whole number below 2\*\*63"),
        (spoiled(higher_is_better="no"), r"record\.higher_is_better is 'no', expected true or false"),
        (spoiled(versions={"torch": 2}), r"record\.versions\['torch'\] is 2, expected text"),
        (spoiled(history={"epochs": [{"loss": "high"}]}), r"epochs\[0\]\['loss'\] is 'high', expected a number \(or \"NaN\""),
        (spoiled(history={"epochs": [{"loss": math.nan}]}), r'NaN is not JSON, expected "NaN" in quotes'),
        (spoiled(curves=[{"name": "a", "points": [{"sparsity": 95, "metric": 0}]}]), r"points\[0\]: Point: sparsity=95\.0; "),
        (spoiled(title="\x00" * 999, seed="x" * 999), r"record\.seed is 'x{56}\.\.\., expected a whole number"),
    ],
)
def test_malformed_json_is_refused_with_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(FileError, match=message):
        Record.from_json(text)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_spoiled_json_is_a_file_error_or_a_record(data: st.DataObject) -> None:
    text = FULL.to_json()
    at, length = data.draw(st.integers(0, len(text) - 1)), data.draw(st.integers(0, 30))
    spoilt = text[:at] + data.draw(st.text('{}[],:"0eE-9ntf\\', max_size=4)) + text[at + length :]
    try:
        record = Record.from_json(spoilt)
    except FileError:
        return
    assert isinstance(record, Record)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dataclasses.replace(DENSE, nonzero=24_001), r"Entry\('dense'\): nonzero=24001, parameters=24000; expected 0"),
        (lambda: dataclasses.replace(DENSE, macs=1.0), r"Entry\('dense'\): nonzero_macs=1100000\.0, macs=1\.0; expected 0 <="),
        (lambda: dataclasses.replace(DENSE, bytes=-1), r"Entry\('dense'\): bytes=-1; expected zero or more, or None"),
        (lambda: Layer("a", "Linear", (1,), 1, -1, 0.0), r"Layer\('a'\): nonzero=-1, parameters=1; expected"),
        (lambda: Layer("a", "Linear", (-1,), 1, 1, 0.0), r"Layer\('a'\): macs=0\.0, shape=\(-1,\); expected zero or more"),
        (
            lambda: dataclasses.replace(DENSE, latency_ms=-1.0),
            r"Entry\('dense'\): latency_ms=-1\.0; expected zero or more, or None",
        ),
        (lambda: Point(0.5, 0.0, spread=-1.0), r"Point: spread=-1\.0; expected zero or more"),
        (lambda: Point(math.nan, 0.0), r"Point: sparsity=nan; expected the fraction removed, from 0 to 1"),
    ],
)
def test_contradictions_are_refused(make: object, message: str) -> None:
    with pytest.raises(SecateursError, match=message):
        make()  # type: ignore[operator]


# ---------------------------------------------------------------- files


def test_files_are_written_and_read_back(tmp_path: Path) -> None:
    path = write_record(FULL, tmp_path / "new" / "folder" / "record.json")
    assert read_record(path).to_json() == FULL.to_json()
    assert write_html(FULL, str(tmp_path / "report.html")).read_text(encoding="utf-8") == full_page()
    assert sorted(child.name for child in tmp_path.rglob("*")) == ["folder", "new", "record.json", "report.html"]


@pytest.mark.usefixtures("no_drawings")
@pytest.mark.parametrize("write", [write_record, write_html])
@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_the_old_file_survives_a_failed_write(write: object, failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError("no space left")

    path = tmp_path / "report"
    path.write_text("old")
    monkeypatch.setattr(files_module.os, failing, fail)
    with pytest.raises(OSError, match="no space left"):
        write(FULL, path)  # type: ignore[operator]
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report"]


def test_reading_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match=r"record\.json: this is not a record: expected UTF-8"):
        read_record(path)
    path.write_text("{}")
    with pytest.raises(FileError, match=r"record\.json: this is not a record: expected the JSON object"):
        read_record(path)
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "nowhere.json")


def test_a_command_that_was_not_utf8_comes_back(tmp_path: Path) -> None:
    record = Record("x", command=os.fsdecode(b"run caf\xe9.py"))
    assert read_record(write_record(record, tmp_path / "record.json")) == record


def test_environment() -> None:
    versions, machine, date = environment()
    assert {"python", "torch", "numpy", "secateurs"} == set(versions)
    assert versions["torch"][0].isdigit() and re.search(r"\d+ cores?\b", machine)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", date)


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (FULL, "95.1 % of the parameters removed; test accuracy fell from 98.7 % to 98.3 %; the file is 9.8x smaller."),
        (with_metrics(0.98, 0.99), "test accuracy rose from 98.0 % to 99.0 %;"),
        (with_metrics(0.98, 0.98), "test accuracy stayed at 98.0 %;"),
        (with_metrics(0.98, 0.98 + 1e-9), "test accuracy stayed at 98.0 %;"),
        (with_metrics(0.98712, 0.98694), "test accuracy fell from 98.71 % to 98.69 %;"),
        (with_metrics(None, None), "test accuracy was not measured;"),
        (with_metrics(0.98, None), "test accuracy of the pruned model was not measured;"),
        (with_metrics(None, 0.98), "test accuracy of the dense model was not measured;"),
        (with_metrics(0.98, math.nan), "test accuracy was 98.0 % before and not a number after;"),
        (with_metrics(12.13, 13.42, metric_name="perplexity", higher_is_better=False), " rose from 12.1 to 13.4 (worse);"),
        (with_metrics(0.30, 0.25, metric_name="error", higher_is_better=False), "error fell from 0.3 to 0.25 (better);"),
        (with_metrics(31.2, 30.8, metric_name="test BLEU"), "; test BLEU fell from 31.2 to 30.8;"),
        (Record("x", entries=(PRUNED,)), "Nothing is concluded: the record has no dense model to compare."),
        (Record("x"), "Nothing is concluded: the record has no dense and pruned model to compare."),
        (Record("x", entries=(DENSE, dataclasses.replace(DENSE, name="pruned"))), "No parameters removed; "),
        (Record("x", entries=(DENSE, dataclasses.replace(DENSE, name="pruned"))), "; the file is the same size."),
        (Record("x", entries=(DENSE, dataclasses.replace(PRUNED, bytes=147_000))), "; the file is 1.5x larger."),
        (Record("x", entries=(DENSE, dataclasses.replace(PRUNED, bytes=None))), " to 98.3 %."),
        (Record("x", entries=(DENSE, dataclasses.replace(PRUNED, nonzero=1))), "99.996 % of the parameters removed;"),
        (Record("x", entries=(DENSE, dataclasses.replace(PRUNED, nonzero=0))), "100.0 % of the parameters removed;"),
        (
            Record("x", entries=(DENSE, dataclasses.replace(PRUNED, metric_spread=0.01))),
            "fell from 98.7 % to 98.3 %, less than the spread between runs;",
        ),
    ],
)
def test_verdict(record: Record, sentence: str) -> None:
    assert sentence in verdict(record)


@given(records)
@settings(max_examples=60, deadline=None)
def test_verdict_is_one_honest_sentence(record: Record) -> None:
    sentence = verdict(dataclasses.replace(record, metric_name="accuracy"))
    assert sentence.endswith(".") and "\n" not in sentence
    timed = all(entry and entry.latency_ms for entry in (record.dense, record.pruned))
    assert timed or not re.search(r"fast|speed|quick|slow", sentence)
    dense, pruned = record.dense, record.pruned
    if dense and pruned and dense.metric is not None and pruned.metric is not None and pruned.metric > dense.metric:
        assert " fell " not in sentence
    if dense and pruned and dense.metric is not None and pruned.metric is not None and pruned.metric < dense.metric:
        assert " rose " not in sentence


def test_the_reloaded_model_is_the_result() -> None:
    in_memory = dataclasses.replace(PRUNED, name="pruned", metric=0.99)
    assert dataclasses.replace(FULL, entries=(DENSE, in_memory, PRUNED)).pruned is PRUNED


@pytest.mark.usefixtures("no_drawings")
def test_a_baseline_that_does_as_well_is_named() -> None:
    assert remarks(FULL) == ()
    better = dataclasses.replace(PRUNED, name="dense, same size", metric=0.985)
    (sentence,) = remarks(dataclasses.replace(FULL, entries=(DENSE, PRUNED, better)))
    assert "“dense, same size” does at least as well: test accuracy 98.50 %, against 98.30 %." in sentence
    assert sentence in html(dataclasses.replace(FULL, entries=(DENSE, PRUNED, better))).replace("\N{NO-BREAK SPACE}", " ")
    lower = dataclasses.replace(FULL, higher_is_better=False, entries=(DENSE, PRUNED, better))
    assert remarks(lower) == ()
    assert remarks(Record("x", entries=(DENSE, better))) == ()


def test_result_table_compares_with_dense_and_leaves_out_what_nobody_measured() -> None:
    headings, rows = result_table(FULL)
    assert headings == ("model", "test accuracy", "parameters", "nonzero", "MACs", "nonzero MACs", "file", "made in")
    cells = dict(zip(headings, rows[1], strict=True))
    assert (cells["nonzero"].text, cells["nonzero"].note) == ("1,176", "20.4x fewer")
    assert (cells["file"].text, cells["file"].note) == ("10.0 kB", "9.8x smaller")
    assert (cells["test accuracy"].text, cells["test accuracy"].note) == ("98.30 % ± 0.2", "−0.40 points")
    assert (cells["parameters"].note, rows[2][-1].text) == ("", "—")
    bare = dataclasses.replace(DENSE, bytes=None, seconds=None)
    assert "file" not in result_table(Record("x", entries=(bare,)))[0]


TIMED = dataclasses.replace(
    FULL,
    entries=(
        dataclasses.replace(DENSE, latency_ms=2.0),
        Entry("as planned", nonzero=1_000, parameters=1_000, is_step=True),
        Entry("masked", 0.99, 24_000, 1_000, is_step=True),
        Entry("pruned", 0.983, 1_000, 1_000, seconds=7.0, latency_ms=0.8),
        Entry("pruned, reloaded", 0.983, 1_000, 1_000, bytes=5_000, latency_ms=0.8),
    ),
    runtime="torch 2.13 on 1 thread",
)


@pytest.mark.usefixtures("no_drawings")
def test_measured_latency_is_in_the_headline_and_the_table_with_its_runtime() -> None:
    assert verdict(TIMED).endswith("; a forward pass in torch 2.13 on 1 thread is 2.5x as fast (2 ms before, 0.8 ms after).")
    headings, rows = result_table(TIMED)
    assert [(row[headings.index("ms a pass")].text, row[headings.index("ms a pass")].note) for row in (rows[0], rows[-1])] == [
        ("2", ""),
        ("0.8", "2.5x as fast"),
    ]
    slower = dataclasses.replace(TIMED, entries=(TIMED.entries[0], dataclasses.replace(TIMED.entries[3], latency_ms=3.0)))
    assert "is 1.5x slower (2 ms before, 3 ms after)" in verdict(slower)
    assert "of a forward pass of the example in torch 2.13 on 1 thread" in html(TIMED)


def test_steps_are_no_baselines_and_rows_of_the_same_numbers_are_one() -> None:
    assert remarks(TIMED) == ()  # the masked model scores higher
    headings, rows = result_table(TIMED)
    assert [row[0].text for row in rows] == ["dense", "as planned", "masked", "pruned and reloaded"]
    assert [row[0].is_result for row in rows] == [False, False, False, True]
    assert (rows[-1][headings.index("file")].text, rows[-1][headings.index("made in")].text) == ("5.00 kB", "7.00 s")
    assert "nonzero" not in headings  # what was pruned is gone: nothing is left that is zero
    other = dataclasses.replace(TIMED.entries[-1], metric=0.98)
    assert len(result_table(dataclasses.replace(TIMED, entries=(*TIMED.entries[:-1], other)))[1]) == 5


def test_what_was_not_measured_may_be_left_out() -> None:
    record = Record("x", entries=(Entry("dense", 0.9), Entry("pruned", 0.8)))
    assert verdict(record) == "Test accuracy fell from 90.0 % to 80.0 %."
    assert result_table(record)[0] == ("model", "test accuracy")
    assert Record.from_json(record.to_json()) == record
    first = FULL.to_json().replace('"version": 2', '"version": 1')
    assert Record.from_json(first) == Record.from_json(FULL.to_json())


def test_a_layer_that_got_smaller_is_shown_with_both_shapes() -> None:
    small = dataclasses.replace(FULL.layers[1], new_shape=(64, 256))
    page = Page(html(Record("x", layers=(FULL.layers[0], small, dataclasses.replace(small, new_shape=())))))
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "128 × 512 → 64 × 256" in text
    assert "128 × 512 → gone" in text
    assert "16 × 1 × 3 × 3 →" not in text


def test_curves_over_seeds_have_bands_and_no_two_of_many_look_alike() -> None:
    runs = [Curve(str(seed), (Point(0.5, 0.9 + seed / 100), Point(0.9, 0.8))) for seed in range(3)]
    joined = over_seeds("mean", [*runs, Curve("short", (Point(0.50001, 0.9),))])
    assert [point.sparsity for point in joined.points] == [0.5]
    assert joined.points[0].metric == pytest.approx(0.9075)
    assert over_seeds("none", []).points == ()
    curve = over_seeds("mean", runs)
    assert "fill-opacity: 0.18" in metric_curve(Record("x", curves=(curve,)))
    assert "fill-opacity: 0.18" not in metric_curve(Record("x", curves=(runs[0],)))
    many = tuple(dataclasses.replace(runs[0], name=str(number)) for number in range(12))
    lines = re.findall(r'style="(fill: none;[^"]*stroke-width: 1.8[^"]*)"', metric_curve(Record("x", curves=many)))
    assert len(set(lines)) == 12


def test_the_axis_of_a_short_run_has_a_tick_an_epoch_and_no_others() -> None:
    for epochs in (1, 2, 3):
        svg = training_curve(Record("x", history=History(tuple({"loss": 0.5 / epoch} for epoch in range(1, epochs + 1)))))
        ticks = [
            element for element in ElementTree.fromstring(svg).iter() if (element.get("id") or "").startswith("training-8-xtick")
        ]
        assert len(ticks) == epochs


@given(st.floats(0, 1))
def test_percent_never_rounds_to_all_or_nothing(fraction: float) -> None:
    value = float(percent(fraction).removesuffix(" %"))
    assert abs(value - 100 * fraction) <= 0.0500001
    if 1e-10 < fraction < 1 - 1e-10:
        assert 0 < value < 100


@given(st.floats(0, 1e14))
def test_scaled_has_three_digits(value: float) -> None:
    digits, _, letter = scaled(value).partition(" ")
    assert float(digits) * 1000 ** " kMGT".index(letter or " ") == pytest.approx(value, rel=0.00501, abs=0.5)
    assert len(digits.replace(".", "")) <= 3
    assert rounded(value).endswith(letter)


@given(st.text(), st.integers(3, 20))
def test_shortened_keeps_both_ends(text: str, width: int) -> None:
    short = shortened(text, width)
    assert len(short) == min(len(text), width)
    assert short[:1] == text[:1] and short[-1:] == text[-1:]


def test_terminal_table_fits_80_columns_and_cannot_be_attacked() -> None:
    attack = dataclasses.replace(PRUNED, name="[red]x\x1b[31m")
    record = dataclasses.replace(FULL, title=HOSTILE, entries=(*FULL.entries, attack))
    file = io.StringIO()
    Console(file=file, width=80, force_terminal=False).print(table(record))
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    for expected in ("98.30 %", "20.4x", "fewer", "10.0 kB", "31.8 s", "[red]x", COUNTED):
        assert expected in text
    assert "\x1b" not in text and "\x00" not in text
    assert table(Record("x")).row_count == 0


# ---------------------------------------------------------------- drawings

DRAWINGS = (metric_curve, layer_bars, training_curve)


@pytest.mark.parametrize("draw", DRAWINGS)
def test_drawings_are_xml_with_live_text_and_no_links_outside(draw: object) -> None:
    svg = draw(FULL)  # type: ignore[operator]
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert any(element.tag.endswith("}text") for element in root.iter())
    assert svg.count("http") == 1  # the name of the SVG vocabulary
    own = {element.get("id") for element in root.iter()}
    for link in re.findall(r"url\(#([^)]*)\)|href=\"#([^\"]*)\"", svg):
        assert "".join(link) in own
    assert not re.search(r"href=\"[^#]|url\([^#]", svg)
    assert svg == draw(FULL)  # type: ignore[operator]


def test_every_colour_of_a_drawing_can_be_repainted() -> None:
    page = full_page()
    dark = page[page.index("prefers-color-scheme: dark") : page.index("* { box-sizing")]
    for draw in DRAWINGS:
        colours = re.findall(r"(?:fill|stroke): ([^;\"]+)", draw(FULL))
        used = {re.fullmatch(r"none|var\((--plot-\w+), #\w{6}\)", colour) for colour in colours}
        assert None not in used
        assert all(f"{match[1]}:" in dark for match in used if match and match[1])


def test_ids_do_not_collide_on_the_page() -> None:
    ids = re.findall(r"\sid=\"([^\"]*)\"", full_page())
    assert len(ids) > 100 and len(ids) == len(set(ids))


def test_curve_resolves_high_sparsity_and_says_which_data_the_dense_level_is_of() -> None:
    svg = metric_curve(FULL)
    labels = [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")]
    for tick in ("0", "50", "80", "90", "95", "98", "100"):
        assert tick in labels
    assert "dense (validation data)" in labels
    late = dataclasses.replace(FULL, curves=(Curve("late", (Point(0.9, 0.98), Point(0.99, 0.9))),))
    assert "dense (test data)" in metric_curve(late)
    assert "dense (" not in metric_curve(dataclasses.replace(late, entries=()))


@pytest.mark.parametrize("sparsities", [(0.0,), (1.0,), (0.0, 1.0), (0.1, 0.3), (0.5, 0.9999999)])
def test_curve_at_the_ends_of_sparsity(sparsities: tuple[float, ...]) -> None:
    curve = Curve("c", tuple(Point(sparsity, 0.5) for sparsity in sparsities))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for width in (8.0, 3.6):
            drawing = ElementTree.fromstring(metric_curve(Record("x", curves=(curve,)), width))
            assert drawing.tag.endswith("svg")


def test_nothing_to_draw_is_empty_text() -> None:
    empty = Record("x", curves=(Curve("c", (Point(0.5, math.nan),)),), history=History(({"loss": math.nan}, {"lr": 0.1})))
    assert [draw(empty) for draw in DRAWINGS] == ["", "", ""]


def test_layer_bars_grow_with_the_number_of_layers() -> None:
    def height(count: int) -> float:
        many = tuple(Layer(f"blocks.{i}.attention.projection", "Linear", (8, 8), 64, i % 65, 1.0) for i in range(count))
        svg = ElementTree.fromstring(layer_bars(Record("x", layers=many)))
        assert sum(element.text == "blocks.0.attention.projection" for element in svg.iter()) == 1
        return float(svg.get("height", "0").removesuffix("pt"))

    assert height(40) - height(20) > 20 * 14  # points a row: the labels do not touch


def test_names_that_matplotlib_would_hide_or_read_as_mathematics_are_drawn() -> None:
    curves = tuple(Curve(name, FULL.curves[0].points) for name in ("_hidden", "$\\frac{$", ""))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = metric_curve(dataclasses.replace(FULL, curves=curves))
    assert "_hidden" in svg and "$\\frac{$" in svg and "unnamed" in svg


def test_narrow_bars_leave_out_what_all_names_begin_with() -> None:
    names = ("model.layers.0.mlp", "model.layers.1.mlp")
    record = Record("x", layers=tuple(Layer(name, "Linear", (2, 2), 4, 1, 4.0) for name in names))
    assert ">0.mlp<" in layer_bars(record, 3.6) and ">model.layers.0.mlp<" in layer_bars(record, 8.0)


def test_drawing_leaves_the_settings_of_matplotlib_alone() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context({"font.size": 31.0, "svg.hashsalt": "mine"}):
        before = dict(matplotlib.rcParams)
        inside = metric_curve(FULL)
        assert dict(matplotlib.rcParams) == before
    assert inside == metric_curve(FULL)


# ---------------------------------------------------------------- the page


class Page(HTMLParser):
    """Collects tags, attributes, visible text, and checks that tags are balanced."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def sections(self) -> list[str | None]:
        return [attributes.get("id") for tag, attributes in self.tags if tag == "section"]


def test_page_has_every_section_and_number() -> None:
    page = Page(full_page())
    assert page.sections == ["results", "curve", "bars", "training", "layers", "skipped", "notes", "made"]
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for expected in (verdict(FULL), COUNTED, "16 × 1 × 3 × 3", "2,350", "96.4 %", "a bias", FULL.command, "a laptop"):
        assert expected in text
    assert "Not drawn: 1 point where accuracy is not a finite number." in re.sub(r"\s+", " ", text)


@pytest.mark.parametrize(
    ("parts", "sections"),
    [
        ([], []),
        (["entries"], ["results"]),
        (["curves"], ["curve"]),
        (["layers"], ["bars", "layers"]),
        (["history"], ["training"]),
        (["skipped"], ["skipped"]),
        (["notes"], ["notes"]),
        (["seed"], ["made"]),  # the seed of FULL is 0
        (["command"], ["made"]),
        (["versions", "machine", "date"], ["made"]),
    ],
)
def test_empty_sections_are_left_out(parts: list[str], sections: list[str]) -> None:
    record = Record("x", **{part: getattr(FULL, part) for part in parts})
    assert Page(html(record)).sections == sections


def test_page_stands_alone() -> None:
    page = Page(full_page())
    names = {tag for tag, _ in page.tags}
    assert names.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "foreignobject"})
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            assert (attributes.get(name) or "#").startswith("#")
    policy = next(attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'")
    outside = full_page().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"https?:|@import|url\((?!#)", outside)


def hostile_record() -> Record:
    nasty = HOSTILE
    return Record(
        title=nasty,
        metric_name=nasty,
        entries=(dataclasses.replace(DENSE, name=nasty), *FULL.entries),
        curves=(Curve(nasty, FULL.curves[0].points),),
        layers=(Layer(nasty, nasty, (3, 3), 9, 4, 9.0),),
        history=FULL.history,
        skipped=((nasty, nasty),),
        command=nasty,
        versions={nasty: nasty},
        machine=nasty,
        date=nasty,
        notes=(nasty,),
    )


def test_hostile_text_stays_text() -> None:
    record = Record.from_json(hostile_record().to_json())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = html(record)
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("<script>alert(1)</script>") >= 12
    assert not set("\x00\x1b\ud800") & set(text)
    for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL):
        ElementTree.fromstring(svg)


@given(records)
@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_record_gives_a_page(record: Record) -> None:
    page = Page(html(record))
    assert printable(page.text) == page.text


def test_page_is_deterministic() -> None:
    assert full_page() == html(Record.from_json(FULL.to_json()))


def test_latencies_are_measured_in_turn_without_gradients_and_leave_the_mode_alone() -> None:
    calls: list[tuple[str, bool, bool]] = []

    class Noted(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append((self.name, self.training, torch.is_grad_enabled()))
            return x

    models = Noted("dense"), Noted("small")
    found = latencies(models, torch.zeros(1), passes=4)
    assert [name for name, *_ in calls] == ["dense", "small"] * 7
    assert {(training, gradients) for _, training, gradients in calls} == {(False, False)}
    assert all(model.training for model in models)
    assert len(found) == 2 and min(found) > 0
    calls.clear()
    latencies(models, torch.zeros(1), passes=1000, most=0.0)
    assert len(calls) == 2 * 4
