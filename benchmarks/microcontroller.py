"""Networks as C on an emulated Cortex-M4: MLPerf Tiny's, pruned and dense, beside CMSIS-NN, and Scalpel's patterns.

    SECATEURS_DATA=... python benchmarks/microcontroller.py                       # all; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/microcontroller.py ds_cnn                # DS-CNN in int8, pruned to the smallest that keeps 90 %
    SECATEURS_DATA=... python benchmarks/microcontroller.py tiny                  # the four networks of MLPerf Tiny, dense
    SECATEURS_DATA=... python benchmarks/microcontroller.py cmsis --cmsis FOLDER  # the same layers by CMSIS-NN (a git clone)
    SECATEURS_DATA=... python benchmarks/microcontroller.py tflite --tflite FILE  # MLPerf's kws_ref_model.tflite; takes ai-edge-litert
    python benchmarks/microcontroller.py scalpel                                  # layers at 50 to 95 % sparsity, by pattern; this CPU too
    SECATEURS_DATA=... python benchmarks/microcontroller.py energy                # two models of energy and memory, before and after
    python benchmarks/microcontroller.py report                                   # only the page and the pictures, from what is there

What is there already is not measured again, except with ``--again``. It takes ``gcc-arm-none-eabi`` and ``qemu-system-arm``. Instructions
are counted by the emulator, in ticks of 40; they are no cycles.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import firmware_cmsis as cmsis
import firmware_networks as networks
import firmware_page as page
import firmware_pruned as pruning
import firmware_scalpel as scalpel
import numpy as np
from firmware_hardware import energies, hardware
from firmware_networks import NETWORKS, Published, integers_of
from tables import RESULTS
from torch import nn

import secateurs as sc
from secateurs.integers.layers import Conv, Network, Numbers
from secateurs.integers.module import IntegerModel
from secateurs.tasks.images import data_file

CELLS = RESULTS / "microcontroller"


def kept(name: str, make: Callable[[], Any], again: bool = False) -> Any:
    """A cell that is there, or is measured now."""
    path = CELLS / f"{name}.json"
    if again or not path.exists():
        told = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told, indent=1) + "\n")
        print(name, "done", flush=True)
    return json.loads(path.read_text())


def firmware(about: Published, model: nn.Module, tests: int = 8) -> dict[str, Any]:
    """A network as C: what it takes, and accuracies; `export.c` raises where C and reference differ in a bit."""
    chip = sc.targets.microcontroller(flash=1_000_000, sram=256_000)
    with TemporaryDirectory() as folder:
        found = sc.export.c(model, about.task.example, folder, calibration=about.calibration, target=chip, name="net", tests=tests)
    return accuracies(about, {"float": model, "int8": IntegerModel(found.program.network)}) | {
        "title": about.title,
        "data": about.data,
        "flash": found.flash,
        "weights": sum(step.flash for step in found.steps),
        "sram": found.sram,
        "arena": found.arena.bytes,
        "instructions": found.instructions,
        "counted": found.counted,
        "difference": found.difference,
        "agreement": found.agreement,
        "checked": list(found.checked),
        "tests": tests,
        "macs": sc.macs(model, about.task.example),
        "zeros": zeros_in(found.program.network),
        "steps": [[step.name, step.format, step.sparsity, step.instructions] for step in found.steps],
    }


def zeros_in(network: Network) -> float:
    """The fraction of the integer weights of convolutions and linear layers that is 0."""
    weights = [layer.weight for layer in network.layers if isinstance(layer, Conv)]
    return float(sum((each == 0).sum() for each in weights) / sum(each.size for each in weights))


def accuracies(about: Published, models: Mapping[str, nn.Module]) -> dict[str, float]:
    """In per cent, on what chooses, on what is kept back, and on both together: all that does not calibrate."""
    some, rest = about.task.validation or (), about.task.test or ()
    parts = {"choosing": [*some], "kept back": [*rest], "reported": [*some, *rest]}
    return {
        f"{what}, {part}": 100 * sc.evaluate(model, about.task, batches, show=False)
        for what, model in models.items()
        for part, batches in parts.items()
        if batches
    }


def ds_cnn(given: argparse.Namespace) -> None:
    """The keyword spotter, dense and pruned in many ways."""
    about = networks.keywords()
    for way in pruning.WAYS:
        model = pruning.made(about, way)
        kept(f"ds_cnn/{way.name}", partial(firmware, about, model), given.again)


def tiny(given: argparse.Namespace) -> None:
    """The networks of MLPerf Tiny."""
    for name, make in NETWORKS.items():
        if given.again or not (CELLS / f"tiny/{name}.json").exists():
            about = make()
            kept(f"tiny/{name}", partial(firmware, about, about.model), True)


def beside_cmsis(given: argparse.Namespace) -> None:
    """The same layers by CMSIS-NN, at three levels of the compiler's optimisation."""
    if given.cmsis is None:
        print("CMSIS-NN is not measured: give its folder, --cmsis FOLDER (git clone https://github.com/ARM-software/CMSIS-NN)")
        return
    for name, make in NETWORKS.items():
        builds = {build: CELLS / f"cmsis/{name}{build}.json" for build in cmsis.BUILDS}
        if not given.again and all(path.exists() for path in builds.values()):
            continue
        network, inputs = integers_of(make())
        for build in builds:
            kept(f"cmsis/{name}{build}", partial(of_cmsis, given.cmsis, network, inputs[0], build), given.again)


def of_cmsis(folder: Path, network: Network, inputs: Numbers, build: str) -> dict[str, Any]:
    """Its version; of each layer how many numbers differ from ours, and instructions."""
    layers = cmsis.counted(folder, network, inputs, build)
    return {"version": cmsis.version_of(folder), "layers": [[each.name, each.wrong, each.instructions] for each in layers]}


def tflite(given: argparse.Namespace) -> None:
    """MLPerf's own int8 file, in TensorFlow Lite's reference kernels."""
    if given.tflite is None or importlib.util.find_spec("ai_edge_litert") is None:
        print("the publisher's int8 file is not measured: give --tflite FILE, with ai-edge-litert on PYTHONPATH")
        return
    kept("tflite", partial(published_int8, given.tflite), given.again)


def published_int8(path: Path) -> dict[str, float]:
    """Its size and accuracy."""
    lite = importlib.import_module("ai_edge_litert.interpreter")
    interpreter = lite.Interpreter(str(path), experimental_op_resolver_type=lite.OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    (given,), (answer,) = interpreter.get_input_details(), interpreter.get_output_details()
    right = []
    with np.load(data_file("kws_mfcc.npz")) as archive:
        for inputs, label in zip(archive["inputs"], archive["labels"], strict=True):
            interpreter.set_tensor(given["index"], inputs[None, :, :, None])
            interpreter.invoke()
            right.append(interpreter.get_tensor(answer["index"]).argmax() == label)
    return {
        "bytes": path.stat().st_size,
        "all": 100 * float(np.mean(right)),
        "reported": 100 * float(np.mean(right[networks.CALIBRATION :])),
    }


def at_levels(measure: Callable[[float], Any], levels: Iterable[float]) -> dict[str, Any]:
    """A measurement at each sparsity."""
    return {f"{level:.2f}": measure(level) for level in levels}


def patterns(given: argparse.Namespace) -> None:
    """Scalpel's figures, and the same patterns on this machine's CPU."""
    for place in scalpel.places():
        kept(f"scalpel/{place.name}", partial(at_levels, partial(scalpel.measured, place), (0.0, *scalpel.LEVELS)), given.again)
    for name in scalpel.NETWORKS:
        kept(f"hardware/{name}", partial(at_levels, partial(hardware, name), scalpel.LEVELS), given.again)


def energy(given: argparse.Namespace) -> None:
    """DS-CNN before and after, and the other networks."""
    about = networks.keywords()
    for name in dict.fromkeys(["dense", *page.chosen(CELLS).values(), *page.lucky(page.ways(CELLS)).values()]):
        way = next(way for way in pruning.WAYS if way.name == name)
        kept(f"energy/{name}", partial(energies, pruning.made(about, way), about.task.example), given.again)
    for name, make in NETWORKS.items():
        if name != "ds_cnn" and (given.again or not (CELLS / f"energy/{name}.json").exists()):
            other = make()
            kept(f"energy/{name}", partial(energies, other.model, other.task.example), True)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "ds_cnn": ds_cnn,
    "tiny": tiny,
    "cmsis": beside_cmsis,
    "tflite": tflite,
    "scalpel": patterns,
    "energy": energy,
}


def main() -> None:
    """Measure what is missing of the parts that are named, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join((*PARTS, 'report'))}; all if none is named")
    parser.add_argument("--cmsis", type=Path, help="the folder of CMSIS-NN")
    parser.add_argument("--tflite", type=Path, help="MLPerf Tiny's kws_ref_model.tflite")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    given = parser.parse_args()
    if unknown := set(given.parts) - {*PARTS, "report"}:
        parser.error(f"there is no part {sorted(unknown)[0]}; there are {', '.join((*PARTS, 'report'))}")
    for part in given.parts or PARTS:
        if part in PARTS:
            PARTS[part](given)
    page.report(CELLS)


if __name__ == "__main__":
    main()
