"""What the numbers of a record say: the verdict in one sentence, what tempers it, and the cells of the result table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from secateurs.report.record import Entry, Record
from secateurs.report.words import UNKNOWN, duration, number, percent, scaled, size, times, whole

COUNTED = "MACs of nonzero weights are counted, not measured time."
"""Printed under every result table: a zero is only fast where the software and the machine skip it."""


def footnotes(record: Record) -> tuple[str, ...]:
    """What stands under the result table: what is counted, and what was timed.

    >>> footnotes(Record("Digits", runtime="torch on 1 thread"))[1]
    'Ms a pass: measured milliseconds of a forward pass of the example in torch on 1 thread, the models in turn, medians.'
    """
    how = f"Ms a pass: measured milliseconds of a forward pass of the example in {record.runtime}, the models in turn, medians."
    return (COUNTED, how) if record.runtime else (COUNTED,)


def verdict(record: Record) -> str:
    """One sentence in plain words on what was removed, what it did to the metric on test data, and to the file.

    >>> dense = Entry("dense", 0.987, 1000, 1000, 8e3, 8e3, 9800, None)
    >>> pruned = Entry("pruned", 0.983, 1000, 49, 8e3, 400.0, 1000, None)
    >>> verdict(Record("Digits", entries=(dense, pruned)))
    '95.1 % of the parameters removed; test accuracy fell from 98.7 % to 98.3 %; the file is 9.8x smaller.'
    """
    record = replace(record, entries=merged(record.entries))
    dense, pruned = record.dense, record.pruned
    if dense is None or pruned is None:
        missing = " and ".join(name for name, entry in (("dense", dense), ("pruned", pruned)) if entry is None)
        return f"Nothing is concluded: the record has no {missing} model to compare."
    file = times(dense.bytes, pruned.bytes, "smaller", "larger", "the same size").replace("none left", "empty")
    clauses = [_removed(dense, pruned), _change(record, dense, pruned), f"the file is {file}" if file else "", _faster(record)]
    sentence = "; ".join(clause for clause in clauses if clause)
    return f"{sentence[0].upper()}{sentence[1:]}."


def remarks(record: Record) -> tuple[str, ...]:
    """Sentences that temper the verdict: each baseline that does at least as well as the pruned model on test data."""
    if record.pruned is None or not _known(record.pruned.metric):
        return ()
    others = [
        entry for entry in record.entries if entry.name != "dense" and not entry.name.startswith("pruned") and not entry.is_step
    ]
    reached = record.pruned.metric
    return tuple(
        f"The baseline \N{LEFT DOUBLE QUOTATION MARK}{entry.name}\N{RIGHT DOUBLE QUOTATION MARK} does at least as well: "
        f"{metric_on_test(record)} {shown_metric(record, entry.metric)}, against {shown_metric(record, reached)}."
        for entry in others
        if _known(entry.metric) and not _better(record, reached, entry.metric)
    )


def metric_on_test(record: Record) -> str:
    """The metric's name, saying once that it is measured on test data.

    >>> metric_on_test(Record("Digits", metric_name="accuracy"))
    'test accuracy'
    """
    name = record.metric_name.strip() or "metric"
    return name if name.lower().startswith("test ") else f"test {name}"


def shown_metric(record: Record, value: float | None, extra: int = 1) -> str:
    """A value of the record's metric: in % where the metric is a fraction, with ``1 + extra`` decimals; else a plain number."""
    return percent(value, 1 + extra) if record.in_percent else number(value, 3 + extra)


def _removed(dense: Entry, pruned: Entry) -> str:
    if dense.nonzero is None or pruned.nonzero is None:
        return ""
    # Against the nonzero ones of the dense model: what was zero before was not removed.
    gone = dense.nonzero - pruned.nonzero
    return f"{percent(gone / dense.nonzero)} of the parameters removed" if gone > 0 else "no parameters removed"


def _faster(record: Record) -> str:
    """The measured time of a forward pass, before and after; empty where it was not measured."""
    before, after = ((entry.latency_ms if entry else None) for entry in (record.dense, record.pruned))
    if not before or not after:
        return ""
    how = "as fast as before" if f"{before / after:.2f}" == "1.00" else times(before, after, "as fast", "slower")
    where = f" in {record.runtime}" if record.runtime else ""
    return f"a forward pass{where} is {how} ({number(before, 3)} ms before, {number(after, 3)} ms after)"


def _change(record: Record, dense: Entry, pruned: Entry) -> str:
    name, before, after = metric_on_test(record), dense.metric, pruned.metric
    if before is None or after is None:
        which = "of the pruned model " if before is not None else "of the dense model " if after is not None else ""
        return f"{name} {which}was not measured"
    if not (_known(before) and _known(after)):
        return f"{name} was {shown_metric(record, before, 0)} before and {shown_metric(record, after, 0)} after"
    for extra in range(3):  # more digits, until a difference can be seen
        first, second = (shown_metric(record, value, extra) for value in (before, after))
        if first != second:
            break
    if first == second:
        return f"{name} stayed at {shown_metric(record, before, 0)}"
    judged = "" if record.higher_is_better else " (better)" if after < before else " (worse)"
    spread = max(dense.metric_spread or 0, pruned.metric_spread or 0)
    within = ", less than the spread between runs" if abs(after - before) < spread else ""
    return f"{name} {'rose' if after > before else 'fell'} from {first} to {second}{judged}{within}"


def _known(metric: float | None) -> bool:
    return metric is not None and math.isfinite(metric)


def _better(record: Record, first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return False
    return first > second if record.higher_is_better else first < second


# ---------------------------------------------------------------- the result table


@dataclass(frozen=True)
class Cell:
    """A number in words, and below it in small how that compares with the dense model; ``is_result``: of the pruned model's row."""

    text: str
    note: str = ""
    is_result: bool = False


def result_table(record: Record) -> tuple[tuple[str, ...], tuple[tuple[Cell, ...], ...]]:
    """Headings, and a row of cells for each entry; a column that nobody measured is left out, and the nonzero ones where nothing is zero.

    >>> headings, rows = result_table(Record("Digits", entries=(Entry("dense", 0.987, 1000, 1000, 8e3, 8e3, 4096, None),)))
    >>> headings
    ('model', 'test accuracy', 'parameters', 'nonzero', 'MACs', 'nonzero MACs', 'file')
    >>> [cell.text for cell in rows[0]]
    ['dense', '98.70 %', '1,000', '1,000', '8.00 k', '8.00 k', '4.10 kB']
    """

    record = replace(record, entries=merged(record.entries))
    columns = {heading: [make(entry) for entry in record.entries] for heading, make in _columns(record).items()}
    if _nothing_is_zero(record.entries):
        del columns["nonzero"], columns["nonzero MACs"]
    measured = {heading: cells for heading, cells in columns.items() if any(cell.text != UNKNOWN for cell in cells)}
    return tuple(measured), tuple(zip(*measured.values(), strict=True))


def _nothing_is_zero(entries: Sequence[Entry]) -> bool:
    """Whether, steps aside, several models hold no zeros: what was pruned is gone."""
    models = [entry for entry in entries if not entry.is_step]
    return len(models) > 1 and all(entry.nonzero == entry.parameters for entry in models)


def merged(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Entries whose numbers are the same, as far as they were measured, as one under both names, in the place of the later one.

    >>> one, other = Entry("pruned", 0.98, nonzero=49, seconds=3.0), Entry("pruned, reloaded", 0.98, nonzero=49)
    >>> [(entry.name, entry.seconds) for entry in merged((one, other))]
    [('pruned and reloaded', 3.0)]
    """
    found: list[Entry] = []
    for entry in entries:
        same = next((each for each in found if _is_same(each, entry)), None)
        if same is None:
            found.append(entry)
            continue
        found.remove(same)
        measured = {part: value for part, value in vars(same).items() if getattr(entry, part) is None}
        suffix = entry.name.removeprefix(f"{same.name}, ")
        found.append(replace(entry, **measured, name=f"{same.name} and {suffix}", is_step=same.is_step and entry.is_step))
    return tuple(found)


def _is_same(one: Entry, other: Entry) -> bool:
    """Whether two entries agree in all that was measured of both, the metric among it, and none is the dense one."""
    if "dense" in (one.name, other.name) or one.metric is None or one.metric != other.metric:
        return False
    parts = [part.name for part in fields(Entry) if part.name not in ("name", "metric", "is_step")]
    pairs = [(getattr(one, part), getattr(other, part)) for part in parts]
    known = [(mine, theirs) for mine, theirs in pairs if mine is not None and theirs is not None]
    return bool(known) and all(mine == theirs for mine, theirs in known)


def _columns(record: Record) -> dict[str, Callable[[Entry], Cell]]:
    dense, result = record.dense, record.pruned

    def compared(show: Callable[[Entry], str], value: Callable[[Entry], float | None], less: str) -> Callable[[Entry], Cell]:
        def cell(entry: Entry) -> Cell:
            if dense is None or entry is dense:
                return Cell(show(entry))
            more = {"smaller": "larger", "as fast": "slower"}.get(less, "more")
            return Cell(show(entry), times(value(dense), value(entry), less, more, same=""))

        return cell

    return {
        "model": lambda entry: Cell(entry.name, is_result=entry is result),
        metric_on_test(record): lambda entry: _metric_cell(record, entry),
        "parameters": compared(lambda entry: whole(entry.parameters), lambda entry: entry.parameters, "fewer"),
        "nonzero": compared(lambda entry: whole(entry.nonzero), lambda entry: entry.nonzero, "fewer"),
        "MACs": compared(lambda entry: scaled(entry.macs), lambda entry: entry.macs, "fewer"),
        "nonzero MACs": compared(lambda entry: scaled(entry.nonzero_macs), lambda entry: entry.nonzero_macs, "fewer"),
        "ms a pass": compared(lambda entry: number(entry.latency_ms, 3), lambda entry: entry.latency_ms, "as fast"),
        "file": compared(lambda entry: size(entry.bytes), lambda entry: entry.bytes, "smaller"),
        "made in": lambda entry: Cell(duration(entry.seconds)),
    }


def _metric_cell(record: Record, entry: Entry) -> Cell:
    text = shown_metric(record, entry.metric)
    scale = 100 if record.in_percent else 1
    if entry.metric_spread is not None and _known(entry.metric):
        text += f" \N{PLUS-MINUS SIGN} {number(scale * entry.metric_spread, 2)}"
    dense = record.dense
    if dense is None or dense is entry or dense.metric is None or entry.metric is None:
        return Cell(text)
    difference = scale * (entry.metric - dense.metric)
    if not math.isfinite(difference):
        return Cell(text)
    signed = f"{difference:+.2f} points" if record.in_percent else f"{difference:+.3g}"
    return Cell(text, signed.replace("-", "\N{MINUS SIGN}") if difference else "")
