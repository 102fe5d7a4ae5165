"""What came of a comparison: outcomes, rows over seeds, tables."""

from __future__ import annotations

import csv
import io
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev

from secateurs.report.record import environment
from secateurs.report.schema import document, parsed
from secateurs.report.words import UNKNOWN, duration, number, percent, printable, scaled, size
from secateurs.types import FileError

if typing.TYPE_CHECKING:
    from rich.table import Table

FORMAT, OUTCOME, VERSION = "secateurs comparison", "secateurs outcome", 1


@dataclass(frozen=True)
class Outcome:
    """What one recipe made of the model, at one fraction kept and with one seed.

    - ``dense``, ``cut``, ``tuned``: the metric of the model as it was, after the last cut, and after the training that follows it
    - ``sparsity``: fraction of all parameters that are gone or zero, in [0, 1]; ``parameters`` and ``macs`` are what the cut leaves
    - ``cut_seconds``, ``tune_seconds``: processor seconds, summed over the rounds; calibration belongs to the cut
    - ``memory``: bytes that the process held at most while it cut, beyond what it held before; ``None`` where it cannot be told
    - ``error``: why there is nothing else
    - ``recipe_text``, ``recipe_digest``: what the recipe was, for the next run
    """

    recipe: str
    keep: float
    seed: int
    dense: float | None = None
    cut: float | None = None
    tuned: float | None = None
    sparsity: float | None = None
    parameters: int | None = None
    macs: float | None = None
    dense_parameters: int | None = None
    dense_macs: float | None = None
    cut_seconds: float | None = None
    tune_seconds: float | None = None
    memory: int | None = None
    error: str = ""
    recipe_text: str = ""
    recipe_digest: str = ""

    @property
    def metric(self) -> float | None:
        """The last one measured: after training, where there was any."""
        return self.cut if self.tuned is None else self.tuned

    @property
    def name(self) -> str:
        """The job in words."""
        return f"{self.recipe}, keep {self.keep:g}, seed {self.seed}"

    def to_json(self) -> str:
        """As JSON text."""
        return document(self, "outcome", OUTCOME, VERSION)

    @staticmethod
    def from_json(text: str) -> Outcome:
        """What `to_json` wrote; raises `FileError` for any other text."""
        return typing.cast(Outcome, parsed(text, Outcome, "outcome", OUTCOME, (VERSION,)))


@dataclass(frozen=True)
class Row:
    """The outcomes of one recipe at one fraction kept: a mean over seeds, with its standard deviation.

    >>> Row("taylor", 0.5, (Outcome("taylor", 0.5, 0, cut=0.5), Outcome("taylor", 0.5, 1, cut=0.7))).mean("cut")
    0.6
    """

    recipe: str
    keep: float
    outcomes: tuple[Outcome, ...]

    def values(self, part: str) -> list[float]:
        """A number of each outcome that has it."""
        found = [getattr(outcome, part) for outcome in self.outcomes]
        return [float(value) for value in found if value is not None]

    def mean(self, part: str) -> float | None:
        """Over the seeds; ``None`` where none has it."""
        values = self.values(part)
        return mean(values) if values else None

    def spread(self, part: str) -> float | None:
        """Standard deviation over the seeds; ``None`` with fewer than two."""
        values = self.values(part)
        return stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else None

    @property
    def failed(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.error)


@dataclass(frozen=True)
class Comparison:
    """Recipes side by side: all outcomes, and where they came from; rows, a terminal's table, Markdown, CSV and JSON.

    ``measured_on`` says whether the metric is of the test or of the validation data. ``recipes`` holds (name, what it is).

    >>> made = Comparison("Digits", outcomes=(Outcome("taylor", 0.5, 0, dense=0.98, cut=0.91),))
    >>> print(made.markdown())
    | recipe | keep | accuracy, cut, % |
    | --- | --- | --- |
    | dense |  | 98.00 |
    | taylor | 50 % | 91.00 |
    >>> Comparison.from_json(made.to_json()) == made
    True
    """

    title: str
    metric_name: str = "accuracy"
    higher_is_better: bool = True
    measured_on: str = "test"
    outcomes: tuple[Outcome, ...] = ()
    recipes: tuple[tuple[str, str], ...] = ()
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""
    date: str = ""

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """A row for each recipe and fraction kept, recipes in the order in which they came."""
        found: dict[tuple[str, float], list[Outcome]] = {}
        for outcome in self.outcomes:
            found.setdefault((outcome.recipe, outcome.keep), []).append(outcome)
        order = list(dict.fromkeys(outcome.recipe for outcome in self.outcomes))
        return tuple(
            Row(name, keep, tuple(outcomes))
            for (name, keep), outcomes in sorted(found.items(), key=lambda item: (order.index(item[0][0]), -item[0][1]))
        )

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The jobs that came to nothing."""
        return tuple(outcome for outcome in self.outcomes if outcome.error)

    @property
    def dense(self) -> Row:
        """The model as it was, a mean over what the seeds mean for it."""
        return Row("dense", 1.0, tuple({outcome.seed: outcome for outcome in self.outcomes if outcome.dense is not None}.values()))

    @property
    def in_percent(self) -> bool:
        """Whether the metric reads as a fraction: higher is better, and every value lies within [0, 1]."""
        values = [value for row in self.rows for part in ("dense", "cut", "tuned") for value in row.values(part)]
        return self.higher_is_better and bool(values) and all(0 <= value <= 1 for value in values)

    def best(self, keep: float) -> Row | None:
        """The recipe whose mean is best at a fraction kept."""
        rows = [row for row in self.rows if row.keep == keep and row.mean("metric") is not None]
        return max(rows, key=lambda row: (1 if self.higher_is_better else -1) * (row.mean("metric") or 0.0), default=None)

    def cells(self, *without: str) -> tuple[list[str], list[list[str]]]:
        """Headings and rows of text, the dense model's first; columns that nobody measured are left out."""
        columns = [column for column in self._columns() if column[0] not in without]
        rows = [[make(row) for _, make, _ in columns] for row in self.rows]
        dense = [make(self.dense) for _, _, make in columns]
        used = [place for place in range(len(columns)) if place < 2 or any(row[place] not in ("", UNKNOWN) for row in rows)]
        return [columns[place][0] for place in used], [[row[place] for place in used] for row in (dense, *rows)]

    def _columns(self) -> list[tuple[str, Callable[[Row], str], Callable[[Row], str]]]:
        """Heading, the cell of a row, and that of the dense model."""

        def metric(part: str) -> Callable[[Row], str]:
            return lambda row: self.shown(row, part)

        def nothing(row: Row) -> str:
            return ""

        def counted(row: Row, part: str) -> int | None:
            value = row.mean(part)
            return None if value is None else round(value)

        unit = ", %" if self.in_percent else ""
        return [
            ("recipe", lambda row: row.recipe, lambda row: row.recipe),
            ("keep", lambda row: f"{100 * row.keep:.3g} %", nothing),
            (f"{self.metric_name}, cut{unit}", metric("cut"), metric("dense")),
            (f"{self.metric_name}, tuned{unit}", metric("tuned"), nothing),
            ("sparsity", lambda row: percent(row.mean("sparsity")), nothing),
            ("params", lambda row: scaled(row.mean("parameters")), lambda row: scaled(row.mean("dense_parameters"))),
            ("MACs", lambda row: scaled(row.mean("macs")), lambda row: scaled(row.mean("dense_macs"))),
            ("cut in", lambda row: duration(row.mean("cut_seconds")), nothing),
            ("tuned in", lambda row: duration(row.mean("tune_seconds")), nothing),
            ("memory", lambda row: size(counted(row, "memory")), nothing),
            ("failed", lambda row: f"{len(row.failed)} of {len(row.outcomes)}" if row.failed else "", nothing),
        ]

    def shown(self, row: Row, part: str) -> str:
        """A metric, in hundredths where it is a fraction, with its spread over seeds."""
        value, spread = row.mean(part), row.spread(part)
        if not self.in_percent or value is None:
            return number(value, 4) + (f" ± {number(spread, 2)}" if spread else "")
        return f"{100 * value:.2f}" + (f" ± {100 * spread:.2f}" if spread else "")

    def markdown(self) -> str:
        """The table in Markdown."""
        headings, rows = self.cells()
        lines = [headings, ["---"] * len(headings), *rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)

    def table(self) -> Table:
        """The table for a terminal, with what failed below."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        below = [self.footnote(), *(f"failed: {outcome.name}: {outcome.error}" for outcome in self.failed)]
        caption = Text(printable("\n".join(below)))
        title = Text(printable(self.title), style="bold")
        made = Table(title=title, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
        headings, rows = self.cells("sparsity", "tuned in")  # which would not fit beside the others
        for index, heading in enumerate(headings):
            justify: typing.Literal["left", "right"] = "right" if index else "left"
            words = printable(heading) if index == 0 else "\n".join(printable(heading).split())
            least = None if index else min(18, max(len(row[0]) for row in rows))
            made.add_column(Text(words), justify=justify, vertical="top", no_wrap=index > 0, overflow="fold", min_width=least)
        for above, row in zip([None, *rows], rows, strict=False):
            name = "" if above is not None and above[0] == row[0] else row[0]  # once for all its rows
            made.add_row(*(Text(printable(cell)) for cell in (name, *row[1:])))
        return made

    def footnote(self) -> str:
        """What the numbers are."""
        seeds = sorted({outcome.seed for outcome in self.outcomes})
        said = f"{self.metric_name} on {self.measured_on} data"
        if len(seeds) > 1:
            said += f", mean ± standard deviation of seeds {', '.join(map(str, seeds))}"
        return (
            f"{said[:1].upper()}{said[1:]}. “Cut” is without training after it. Sparsity is of all parameters; times are processor times; "
            "memory is what the cut took at most beyond what the process held."
        )

    def csv(self) -> str:
        """Every outcome as a line, numbers as they are."""
        text = io.StringIO()
        parts = [part for part in Outcome.__dataclass_fields__ if part not in ("recipe_text", "recipe_digest")]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(parts)
        writer.writerows([getattr(outcome, part) for part in parts] for outcome in self.outcomes)
        return text.getvalue()

    def to_json(self) -> str:
        """All of it as JSON text."""
        return document(self, "comparison", FORMAT, VERSION)

    @staticmethod
    def from_json(text: str) -> Comparison:
        """What `to_json` wrote; raises `FileError`, saying what was expected where, for any other text."""
        return typing.cast(Comparison, parsed(text, Comparison, "comparison", FORMAT, (VERSION,)))


def read_comparison(path: str | Path) -> Comparison:
    """The comparison that `compare` left in a folder, or in its ``comparison.json``; raises `FileError` for any other file.

    >>> read_comparison("nowhere")
    Traceback (most recent call last):
    secateurs.types.FileError: nowhere: there is no comparison; name the folder that compare wrote, or the comparison.json in it
    """
    file = Path(path) / "comparison.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileError(f"{path}: there is no comparison; name the folder that compare wrote, or the comparison.json in it")
    try:
        return Comparison.from_json(file.read_bytes().decode("utf-8"))
    except (FileError, UnicodeDecodeError) as error:
        raise FileError(f"{file}: {error}") from error


def made_here(title: str, outcomes: Sequence[Outcome], **told: typing.Any) -> Comparison:
    """A comparison that says where and when it was made."""
    versions, machine, date = environment()
    return Comparison(title, outcomes=tuple(outcomes), versions=versions, machine=machine, date=date, **told)
