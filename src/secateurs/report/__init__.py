"""What a pruning run bought, shown: a table on the terminal, a JSON file, and one HTML page that stands alone.

>>> dense = Entry("dense", 0.987, 24_000, 24_000, 1.1e6, 1.1e6, 98_000, None)
>>> pruned = Entry("pruned", 0.983, 24_000, 1_176, 1.1e6, 6.0e4, 10_000, None)
>>> verdict(Record("Digits", entries=(dense, pruned)))
'95.1 % of the parameters removed; test accuracy fell from 98.7 % to 98.3 %; the file is 9.8x smaller.'
"""

from __future__ import annotations

from secateurs.report.firmware_page import firmware_html, write_firmware_html
from secateurs.report.measure import curve, latencies, layers, measure, over_seeds, reasons
from secateurs.report.page import html, write_html
from secateurs.report.plots import layer_bars, metric_curve, training_curve
from secateurs.report.record import Curve, Entry, History, Layer, Point, Record, environment, read_record, write_record
from secateurs.report.scan import site_curves
from secateurs.report.search_page import search_html, write_search_html
from secateurs.report.search_plots import cost_bars, pareto, predictions, sensitivity_curves
from secateurs.report.search_record import (
    Attempt,
    Check,
    LayerCost,
    SearchRecord,
    costs_of,
    front,
    layer_costs,
    read_search,
    search_record,
    write_search,
)
from secateurs.report.summary import remarks, verdict
from secateurs.report.terminal import table
from secateurs.report.work_plots import work_curves, work_histogram

__all__ = [
    "Attempt",
    "Check",
    "Curve",
    "Entry",
    "History",
    "Layer",
    "LayerCost",
    "Point",
    "Record",
    "SearchRecord",
    "cost_bars",
    "costs_of",
    "curve",
    "environment",
    "firmware_html",
    "front",
    "html",
    "latencies",
    "layer_bars",
    "layer_costs",
    "layers",
    "measure",
    "metric_curve",
    "over_seeds",
    "pareto",
    "predictions",
    "read_record",
    "read_search",
    "reasons",
    "remarks",
    "search_html",
    "search_record",
    "sensitivity_curves",
    "site_curves",
    "table",
    "training_curve",
    "verdict",
    "work_curves",
    "work_histogram",
    "write_firmware_html",
    "write_html",
    "write_record",
    "write_search",
    "write_search_html",
]
