"""Which magnitude of channels loses least without training: what the command line takes by default.

    SECATEURS_DATA=... python benchmarks/defaults.py build/models    # a quarter of an hour of one core; see solvers.py for the models

Every channel that can go takes part, by one ranking over the whole network or the same fraction of each site, to one budget a network. The
networks, their data and their measures are those of solvers.py; nothing was chosen on them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from solvers import NETWORKS, Network
from tables import RESULTS, markdown, write

import secateurs as sc
from secateurs.types import Cost, Criterion, Within

FILE = RESULTS / "defaults.json"
BUDGETS: dict[str, tuple[Cost, float]] = {"resnet56": (sc.macs, 0.5), "efficientnet": (sc.macs, 0.85), "minilm": (sc.params, 0.8)}
ALL = sc.magnitude(members="all")
CRITERIA: dict[str, Criterion] = {
    "magnitude()": sc.magnitude(),
    "magnitude(mean=True)": sc.magnitude(mean=True),
    'magnitude(members="all")': ALL,
    'normalised(magnitude(members="all"))': sc.normalised(ALL),
}
SPREADS: dict[str, Within] = {"uniform": "layer", "global": "model"}


def measured(network: Network, cost: Cost, keep: float, criterion: Criterion, spread: str) -> float:
    """What the network still knows when channels are gone; it is afterwards as it was."""
    dense = {name: value.clone() for name, value in network.model.state_dict().items()}
    allocator = sc.uniform if spread == "uniform" else sc.global_threshold
    allocate = sc.within_budget(sc.Budget(cost, keep=keep), allocator)
    sc.prune_(network.model, sc.Channel(within=SPREADS[spread]), sc.TopK(criterion), allocate, network.task)
    found = network.measure(network.model)
    network.model.load_state_dict(dense)
    return found


def page(cells: dict[str, Any]) -> None:
    """A table with a column for each network and allocation."""
    columns = [(name, spread) for name in cells for spread in SPREADS]
    headings = ["criterion", *(f"{cells[name]['title']}, {spread}" for name, spread in columns)]
    dense = ["dense", *(f"{cells[name]['dense']:.1f}" for name, _ in columns)]
    rows = [[f"`{each}`", *(f"{cells[name][f'{each}, {spread}']:.1f}" for name, spread in columns)] for each in CRITERIA]
    budgets = "; ".join(f"{cell['title']} to {cell['keep']:.0%} of {cell['cost']} ({cell['measured']})" for cell in cells.values())
    about = (
        f"`python benchmarks/defaults.py build/models`: one cut of channels, no training: {budgets}. Every channel that can go takes part, "
        "the same fraction of each site (uniform), or by one ranking over the network (global)."
    )
    write("defaults", "# Which magnitude of channels loses least", about, markdown(headings, [dense, *rows]))


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the packages with models are unpacked")
    folder = parser.parse_args().folder
    cells: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name, (cost, keep) in BUDGETS.items():
        try:
            network = NETWORKS[name](folder)
        except (ImportError, OSError, ValueError) as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        torch.manual_seed(0)
        cell = cells.setdefault(name, {})
        cell |= {"title": network.title, "measured": network.measured, "cost": cost.name, "keep": keep}
        cell.setdefault("dense", network.measure(network.model))
        for said, criterion in CRITERIA.items():
            for spread in SPREADS:
                key = f"{said}, {spread}"
                if key not in cell:
                    cell[key] = measured(network, cost, keep, criterion, spread)
                    print(name, key, cell[key], flush=True)
                    FILE.write_text(json.dumps(cells, indent=1) + "\n")
    page({name: cells[name] for name in BUDGETS if name in cells})


if __name__ == "__main__":
    main()
