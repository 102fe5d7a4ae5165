"""From sparse weights to the fewest bytes: Deep Compression's table, the pruned SqueezeNet, bits against accuracy, other programs.

    SECATEURS_DATA=... python benchmarks/compress.py lenets                  # uses and makes the networks of recover.py (hours of one core)
    SECATEURS_DATA=... python benchmarks/compress.py squeezenet              # some minutes
    SECATEURS_DATA=... python benchmarks/compress.py figures build/models    # ResNet-56, EfficientNet-Lite0, SmolLM2 (see solvers.py)
    SECATEURS_DATA=... python benchmarks/compress.py beside                  # gzip, zstd, xz, nncodec where they are installed
    python benchmarks/compress.py report                                     # only the page and the pictures, from what is there

What is there already is not measured again. LeNets: pruned in rounds with a teacher (recover.py), values shared by k-means, then trained
for some epochs. How far to prune and how many bits is chosen by validation images, errors are those of the 10,000 test images; every
byte of the file counts. Figures: no training after pruning or quantising; BatchNorm's statistics as they were.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import importlib
import json
import lzma
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import language
import recover
import solvers
import torch
from lenets import error
from recover import NETWORKS, Job
from safetensors.torch import load_file, save
from tables import RESULTS, markdown, write
from torch import Tensor, nn

import secateurs as sc
from secateurs import coding
from secateurs.coding import file
from secateurs.compressing import Quantiser, coded_bytes, importance, k_means, price_within, rate_distortion_, uniform
from secateurs.tasks.images import data_file

CELLS = RESULTS / "compress"


def kept(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A cell that is there, or is measured now."""
    path = CELLS / f"{name}.json"
    if not path.exists():
        told = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(told, indent=1))
        print(name, told, flush=True)
    return json.loads(path.read_text())


def size_of(model: nn.Module, codecs: coding.Codecs | None = None) -> sc.Compressed:
    """What a model takes in a file, masks left out: they are its zeros."""
    with TemporaryDirectory() as folder:
        return sc.compress(model, Path(folder) / "model.scz", codecs=codecs)


# ---------------------------------------------------------------- LeNets

PAPER = {"lenet_300_100": (0.0164, 0.0158, 40), "lenet_5": (0.0080, 0.0074, 39)}
GRID: dict[str, dict[int, tuple[int, ...]]] = {
    "lenet_300_100": {12: (2, 3, 4, 5), 24: (2, 3, 4, 5), 50: (3, 4, 5)},
    "lenet_5": {12: (5,), 24: (3, 5)},
}
CLOSE = 0.1
"""Points of validation error that count as none: five of the 5,000 images."""
EPOCHS = {"lenet_300_100": 5, "lenet_5": 2}
TIMES: dict[str, dict[int, tuple[int, ...]]] = {"lenet_300_100": {12: (50, 80), 24: (100,)}, "lenet_5": {12: (60,), 24: (100,)}}
"""Times fewer bytes, for each number of parameters, that levels by error and bits together are to take."""


def lenets(networks: list[str], seeds: list[int]) -> None:
    """Each network, seed, number of parameters and of bits that is not there yet."""
    for seed in seeds:
        for network in networks:
            grid = GRID[network]
            names = [f"lenets/{network}-{seed}-{factor}-{bits}" for factor, all_ in grid.items() for bits in all_]
            names += [f"priced/{network}-{seed}-{factor}-{times}" for factor, all_ in TIMES[network].items() for times in all_]
            if all((CELLS / f"{name}.json").exists() for name in names):
                continue
            about, job = NETWORKS[network], Job(network, "best", seed, 20)
            task = about.task(seed)
            dense = recover.dense_of(job, task)
            kept(f"lenets-dense/{network}-{seed}", partial(errors, dense, task))
            for factor, model, masks, _ in recover.rounds(job, about.best, task):
                for bits in grid.get(factor, ()):
                    make = partial(shared, network, model, masks, task, seed, bits)
                    kept(f"lenets/{network}-{seed}-{factor}-{bits}", make)
                for times in TIMES[network].get(factor, ()):
                    kept(f"priced/{network}-{seed}-{factor}-{times}", partial(priced, network, model, masks, task, seed, times))
                if factor >= max(grid):
                    break


def shared(network: str, model: nn.Module, masks: sc.Masks, task: sc.Task, seed: int, bits: int) -> dict[str, Any]:
    """Errors and bytes of a pruned network once its weights share values."""
    model = copy.deepcopy(model)
    masks = masks.bind(model)
    pruned = errors(model, task)
    dense = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    only_pruned = size_of(model)
    hook = sc.share_(model, bits, masks=masks)
    untrained = errors(model, task)
    train_values(network, model, masks, task, seed, hook)
    theirs = min(size_of(model, coding.deep_compression(index)).bytes for index in (4, 5, 8))
    ours = size_of(model)
    return {
        "dense": dense,
        "P": only_pruned.pruned,
        "PQ": ours.shared,
        "PQH": theirs,
        "ours": ours.bytes,
        "pruned": pruned,
        "untrained": untrained,
        "shared": errors(model, task),
    }


def priced(network: str, model: nn.Module, masks: sc.Masks, task: sc.Task, seed: int, times: int) -> dict[str, Any]:
    """Errors and bytes with levels by error and bits together, for so many times fewer bytes; more weights become zero."""
    model = copy.deepcopy(model)
    masks = masks.bind(model)
    dense = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    rest = size_of(model)
    others = rest.bytes - sum(each.coded for each in rest.tensors if each.name.endswith("weight"))
    batches = islice(task.train or (), 4)
    some = [(inputs[at : at + 8], target[at : at + 8]) for inputs, target in batches for at in range(0, len(inputs), 8)]
    matters = importance(model, sc.Task(task.example, train=some, calibration=some, loss=task.loss))
    told: dict[str, Any] = {"masks": masks, "importance": matters}
    price = price_within(model, k_means(bits=3), limit=dense / times - others, show=False, **told)
    hook = rate_distortion_(model, k_means(bits=3), price=price, **told)
    untrained = errors(model, task)
    train_values(network, model, sc.Masks.of_zeros(model), task, seed, hook)
    return {"dense": dense, "ours": size_of(model).bytes, "untrained": untrained, "shared": errors(model, task), "price": price}


def train_values(network: str, model: nn.Module, masks: sc.Masks, task: sc.Task, seed: int, hook: sc.Hook) -> None:
    """Some epochs in which the values of levels learn, and the biases."""
    epochs, lr = EPOCHS[network], NETWORKS[network].lr / 10
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True)
    cosine = sc.per_step(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(task.train)))  # type: ignore[arg-type]
    plain = sc.Task(task.example, train=task.train, loss=task.loss)
    sc.train_(model, plain, optimizer, epochs, masks=masks, hooks=[sc.clip_gradients(1.0), cosine, hook], seed=seed, show=False)


def errors(model: nn.Module, task: sc.Task) -> dict[str, float]:
    """In per cent, of validation and test images."""
    return {"validation": 100 * (1 - sc.evaluate(model, task, task.validation)), "test": error(model, task)}


# ---------------------------------------------------------------- SqueezeNet


def squeezenet() -> None:
    """The pruned SqueezeNet of Deep Compression's authors, without loss, and with no loss of accuracy."""
    state = load_file(data_file("squeezenet_v1_0_pruned.safetensors"))
    for name, codecs in (("smallest", coding.SMALLEST), ("fast", coding.FAST), ("relative 4, Huffman", coding.deep_compression(4))):
        kept(f"squeezenet/{name}", partial(lossless, state, codecs))


def lossless(state: dict[str, Tensor], codecs: coding.Codecs) -> dict[str, Any]:
    """Bytes, and seconds to write and to read."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.scz"
        start = time.perf_counter()
        file.write(path, state, {"format": 1}, codecs)
        encoded, reads = time.perf_counter() - start, []
        for _ in range(5):
            start = time.perf_counter()
            found = file.read(path)[0]
            reads.append(time.perf_counter() - start)
        assert all(torch.equal(found[name], state[name]) for name in state)
        told = sc.read_compressed(path)
    return {
        "bytes": told.bytes,
        "weights": sum(each.coded for each in told.tensors if each.name.endswith("weight")),
        "others": sum(each.coded for each in told.tensors if not each.name.endswith("weight")),
        "encode": encoded,
        "decode": statistics.median(reads),
        "MB": told.dense / 1e6,
    }


# ---------------------------------------------------------------- accuracy against bytes

BITS = (2, 3, 4, 5, 6, 8)
QUANTISERS: dict[str, Callable[[int], Quantiser]] = {
    "k-means": lambda bits: k_means(bits=bits),
    "uniform": lambda bits: uniform(bits=bits, per="channel", clip="mse"),
}
PRICED = "k-means, by error and bits"
WAYS = (*QUANTISERS, PRICED)


def smollm2(folder: Path) -> solvers.Network:
    """SmolLM2-135M on WikiText-2."""
    model, tokenizer = language.network(folder.parent)
    windows = sc.tasks.text(data_file("wikitext2_valid.txt"), tokenizer, window=512, count=16, seed=None)
    judged = sc.tasks.text(data_file("wikitext2_test.txt"), tokenizer, window=512, count=10, seed=None)
    return solvers.Network(
        "SmolLM2-135M, WikiText-2",
        model,
        windows,
        [],
        lambda network: sc.perplexity(network, judged),
        "perplexity",
        [language.LINEAR],
        "",
        "Half of each layer's weights by Wanda; perplexity of ten windows of 512 tokens, the first of the test text.",
    )


PLAIN: dict[str, Callable[[Path], solvers.Network]] = {
    "resnet_56": lambda folder: solvers.resnet(),
    "efficientnet": solvers.efficientnet,
    "smollm2": smollm2,
}
PRUNE: dict[str, Callable[[nn.Module, sc.Task, Any], object]] = {
    "smollm2": lambda model, task, only: sc.methods.wanda_(model, task, sparsity=0.5),
}


def solved(model: nn.Module, task: sc.Task, only: Any) -> object:
    """Half of each layer's weights by SparseGPT, BatchNorm's statistics taken anew."""
    return sc.prune_(model, sc.Element(), sc.SparseGPT(), sc.uniform(sparsity=0.5), task, only=only, recalibrate=True)


def figures(folder: Path, networks: list[str]) -> None:
    """Each network dense and with half of its weights, at each number of bits."""
    for name in networks:
        about = PLAIN[name](folder)
        for half in (False, True):
            if half:
                pruned_(name, about)
            cell = f"figures/{name}-{'half' if half else 'dense'}"
            kept(f"{cell}-float-32", partial(point, about.model, name, about))
            for how, make in QUANTISERS.items():
                for bits in BITS:
                    kept(f"{cell}-{how}-{bits}", partial(quantised, name, about, make(bits)))
            for bits in BITS:
                kept(f"{cell}-{PRICED}-{bits}", partial(as_small, name, about, bits))


def pruned_(name: str, about: solvers.Network) -> None:
    """Prune a network, or take what an earlier call made of it."""
    path = Path("build/compress") / f"{name}-half.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        PRUNE.get(name, solved)(about.model, about.task, about.only)
        sc.save(about.model, path)
    sc.load(path, about.model)


def quantised(name: str, about: solvers.Network, quantiser: Quantiser) -> dict[str, Any]:
    """A network whose weights have few values; nothing is trained."""
    model = copy.deepcopy(about.model)
    sc.quantise_(model, quantiser, only=about.only)
    return point(model, name, about)


def as_small(name: str, about: solvers.Network, bits: int) -> dict[str, Any]:
    """A network with levels by error and bits together, for as many bytes as k-means takes with so many bits."""
    plain = copy.deepcopy(about.model)
    limit = sum(map(coded_bytes, sc.quantise_(plain, k_means(bits=bits), only=about.only).levels.values()))
    model, finer = copy.deepcopy(about.model), k_means(bits=bits + 1)
    price = price_within(model, finer, limit=limit, tries=5, only=about.only, show=False)
    rate_distortion_(model, finer, price=price, only=about.only)
    return point(model, name, about)


def point(model: nn.Module, name: str, about: solvers.Network) -> dict[str, Any]:
    """What a network scores, and the bytes of its file; of a language model, those of the layers that take part."""
    told = size_of(model, coding.FAST if name == "smollm2" else None)
    part = [each for each in told.tensors if name != "smollm2" or ("layers." in each.name and len(each.shape) > 1)]
    return {"score": about.measure(model), "bytes": sum(each.coded for each in part), "dense": sum(each.dense for each in part)}


# ---------------------------------------------------------------- beside other programs


def beside() -> None:
    """The pruned SqueezeNet's weights, and those of a LeNet, by what everybody has."""
    state = {name: each for name, each in load_file(data_file("squeezenet_v1_0_pruned.safetensors")).items() if each.ndim > 1}
    for name in state:
        levels = coding.levels_in(state[name])
        assert levels is not None and levels.numbers.abs().max() < 256
    programs: dict[str, Callable[[bytes], int]] = {
        "gzip -9": lambda content: len(gzip.compress(content, 9)),
        "xz -9e": lambda content: len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)),
    }
    if importlib.util.find_spec("zstandard"):
        zstandard = importlib.import_module("zstandard")
        programs["zstd -22"] = lambda content: len(zstandard.ZstdCompressor(level=22).compress(content))
    kept("beside/safetensors", lambda: {"float32": len(save(state)), "levels": 0})
    for name, program in programs.items():
        kept(
            f"beside/{name}",
            partial(packed, state, program),
        )
    for name, codecs in (("smallest", coding.SMALLEST), ("fast", coding.FAST), ("deep", coding.deep_compression(4))):
        kept(f"beside/ours, {name}", partial(coded, state, codecs))
    if importlib.util.find_spec("nncodec"):
        kept("beside/nncodec", lambda: nncodec(state))


def floats(state: dict[str, Tensor]) -> Iterator[bytes]:
    """The weights as they lie in memory."""
    return (tensor.numpy().tobytes() for tensor in state.values())


def numbers(state: dict[str, Tensor]) -> bytes:
    """The places in the tables as bytes, and the tables."""
    found = []
    for tensor in state.values():
        levels = coding.levels_in(tensor)
        assert levels is not None and levels.table is not None
        found += [(levels.numbers - levels.lowest).to(torch.uint8).numpy().tobytes(), levels.table.numpy().tobytes()]
    return b"".join(found)


def packed(state: dict[str, Tensor], program: Callable[[bytes], int]) -> dict[str, int]:
    """Bytes that a program makes of the numbers, and of levels and tables."""
    return {"float32": program(b"".join(floats(state))), "levels": program(numbers(state))}


def coded(state: dict[str, Tensor], codecs: coding.Codecs) -> dict[str, int]:
    """Bytes of a whole file of ours."""
    with TemporaryDirectory() as folder:
        file.write(Path(folder) / "model.scz", state, {"format": 1}, codecs)
        return {"float32": 0, "levels": (Path(folder) / "model.scz").stat().st_size}


def nncodec(state: dict[str, Tensor]) -> dict[str, Any]:
    """DeepCABAC by its authors, of the places as whole numbers: the tables come on top."""
    encode = importlib.import_module("nncodec").nn.encode
    whole, tables = {}, 0
    for name, tensor in state.items():
        levels = coding.levels_in(tensor)
        assert levels is not None and levels.table is not None
        whole[name], tables = levels.numbers.numpy(), tables + 4 * levels.table.numel()
    return {"float32": 0, "levels": len(encode(whole)) + tables}


# ---------------------------------------------------------------- the page


def cells(folder: str) -> dict[str, dict[str, Any]]:
    """What is there of a part: name → cell."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((CELLS / folder).glob("*.json"))}


def chosen(network: str, limit: float) -> tuple[int, int] | None:
    """The smallest file of those whose mean validation error is at most so much, of the seeds that most were measured with."""
    by: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for name, cell in cells("lenets").items():
        of, _, factor, bits = name.rsplit("-", 3)
        if of == network:
            by.setdefault((int(factor), int(bits)), []).append(cell)
    most = max((len(each) for each in by.values()), default=0)
    good = {
        key: statistics.mean(one["ours"] for one in each)
        for key, each in by.items()
        if len(each) == most and statistics.mean(one["shared"]["validation"] for one in each) <= limit
    }
    return min(good, key=lambda key: good[key]) if good else None


def dense_errors(network: str) -> dict[str, list[float]]:
    """Of the dense networks of all seeds that are there."""
    return {
        kind: [cell[kind] for name, cell in cells("lenets-dense").items() if name.startswith(network + "-")]
        for kind in ("validation", "test")
    }


def of_lenets() -> str:
    """Deep Compression's table, and ours beside it: at our dense network's error, and at the paper's."""
    rows = []
    for network, (_, their_error, their_times) in PAPER.items():
        found = dense_errors(network)
        limits = {"ours, dense": statistics.mean(found["validation"] or [0.0]) + CLOSE, "the paper's": 100 * their_error}
        for what, limit in limits.items():
            key = chosen(network, limit)
            if key is None:
                continue
            factor, bits = key
            some = [
                cell
                for name, cell in cells("lenets").items()
                if name.startswith(f"{network}-") and name.endswith(f"-{factor}-{bits}")
            ]
            times = {stage: statistics.mean(cell["dense"] / cell[stage] for cell in some) for stage in ("P", "PQ", "PQH", "ours")}
            rows.append(
                [
                    f"{NETWORKS[network].title}, {factor}x pruned, {bits} bits",
                    what,
                    spread(found["test"]),
                    spread([cell["shared"]["test"] for cell in some]),
                    *(f"{each:.1f}x" for each in times.values()),
                    f"{statistics.mean(cell['ours'] for cell in some):,.0f}",
                    f"{their_times}x at {100 * their_error:.2f} %",
                ]
            )
    if not rows:
        return "Not measured."
    return markdown(("network", "error as", "dense", "error", "P", "P+Q", "P+Q+H", "ours", "bytes", "the paper"), rows)


def all_lenets() -> str:
    """Every number of parameters and of bits."""
    rows = []
    for network in PAPER:
        keys = sorted({tuple(map(int, name.rsplit("-", 2)[1:])) for name in cells("lenets") if name.startswith(f"{network}-")})
        for factor, bits in keys:
            some = [
                cell
                for name, cell in cells("lenets").items()
                if name.startswith(f"{network}-") and name.endswith(f"-{factor}-{bits}")
            ]
            kinds = (("pruned", "test"), ("untrained", "test"), ("shared", "test"), ("shared", "validation"))
            numbers = [statistics.mean(cell[stage][kind] for cell in some) for stage, kind in kinds]
            times = (statistics.mean(cell["dense"] / cell[key] for cell in some) for key in ("PQH", "ours"))
            rows.append(
                [
                    NETWORKS[network].title,
                    f"{factor}x",
                    bits,
                    len(some),
                    *(f"{each:.2f}" for each in numbers),
                    *(f"{each:.1f}x" for each in times),
                ]
            )
    return markdown(
        ("network", "pruned", "bits", "seeds", "pruned", "shared", "values trained", "validation", "P+Q+H", "ours"), rows
    )


def of_prices() -> str:
    """Levels by error and bits together."""
    rows, found = [], cells("priced")
    for network in PAPER:
        dense = spread(dense_errors(network)["test"] or [0.0])
        for factor, times in ((factor, times) for factor, all_ in TIMES[network].items() for times in all_):
            some = [cell for name, cell in found.items() if name.startswith(f"{network}-") and name.endswith(f"-{factor}-{times}")]
            if some:
                tests = [spread([cell[stage]["test"] for cell in some]) for stage in ("untrained", "shared")]
                size = statistics.mean(cell["ours"] for cell in some)
                less = f"{some[0]['dense'] / size:.1f}x"
                rows.append([NETWORKS[network].title, f"{factor}x", dense, *tests, f"{size:,.0f}", less])
    return markdown(("network", "pruned", "dense error", "error", "values trained", "bytes", "times fewer"), rows)


def spread(errors_: list[float]) -> str:
    """Mean and deviation, and of how many."""
    about = f" ± {statistics.stdev(errors_):.2f}" if len(errors_) > 1 else ""
    return f"{statistics.mean(errors_):.2f}{about} % ({len(errors_)})"


def of_squeezenet() -> str:
    """The pruned SqueezeNet without loss."""
    rows = [["the authors' own", "675,763", "", "", "", ""]]
    for name, cell in cells("squeezenet").items():
        speeds = (f"{cell['MB'] / cell[key]:.0f} MB/s" for key in ("encode", "decode"))
        rows.append([name, f"{cell['bytes']:,}", f"{cell['weights']:,}", f"{cell['others']:,}", *speeds])
    return markdown(("file", "bytes, all", "weights", "biases", "written, of float32", "read"), rows)


def of_others() -> str:
    """What other programs make of the same weights."""
    rows = [
        [name, *(f"{cell[key]:,}" if cell[key] else "" for key in ("float32", "levels"))] for name, cell in cells("beside").items()
    ]
    return markdown(("program", "of the float32 numbers", "of the levels and tables"), rows)


def of_figures() -> str:
    """Scores and bytes of all points."""
    rows = []
    for network in PLAIN:
        found = {name: cell for name, cell in cells("figures").items() if name.startswith(f"{network}-")}
        for half in ("dense", "half"):
            for how in WAYS:
                points = [found.get(f"{network}-{half}-{how}-{bits}") for bits in BITS]
                if any(points):
                    rest = found.get(f"{network}-{half}-float-32")
                    told = [f"{cell['score']:.1f} ({cell['bytes'] / 1e3:,.0f} kB)" if cell else "" for cell in (*points, rest)]
                    rows.append([network, half, how, *told])
    return markdown(("network", "weights", "values", *(f"{bits} bits" for bits in BITS), "float32"), rows)


def draw() -> None:
    """Score against bytes, and against bits: a panel a network."""
    from matplotlib.figure import Figure

    from secateurs.report.drawing import COLOURS, MARKERS

    there = [network for network in PLAIN if any(name.startswith(f"{network}-") for name in cells("figures"))]
    if not there:
        return
    figure = Figure(figsize=(5.2 * len(there), 8), layout="constrained")
    panels = figure.subplots(2, len(there), squeeze=False)
    for column, network in enumerate(there):
        found = {name: cell for name, cell in cells("figures").items() if name.startswith(f"{network}-")}
        for number, (half, how) in enumerate((half, how) for half in ("dense", "half") for how in WAYS):
            points = [(bits, found[name]) for bits in BITS if (name := f"{network}-{half}-{how}-{bits}") in found]
            style: dict[str, Any] = {
                "marker": MARKERS[number],
                "color": COLOURS[number],
                "linestyle": "-" if half == "half" else "--",
            }
            label = f"{'half of the weights' if half == 'half' else 'all weights'}, {how}"
            for row, across in enumerate(([bits for bits, _ in points], [cell["bytes"] / 1e3 for _, cell in points])):
                panels[row][column].plot(across, [cell["score"] for _, cell in points], label=label, **style)
        for row, what in enumerate(("bits a weight", "kB in the file")):
            axes = panels[row][column]
            worse = network == "smollm2"
            axes.set(xlabel=what, ylabel="perplexity" if worse else "accuracy, %", title=network)
            axes.set_yscale("log" if worse else "linear")
            axes.set_xscale("log" if row else "linear")
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(RESULTS / "compress.png", dpi=120)


def report() -> None:
    """The page, from what is there."""
    write(
        "compress",
        "# Fewer bytes",
        "`python benchmarks/compress.py` (its docstring has the commands). Sizes are those of whole files, every byte counted.",
        "## LeNets: the smallest files at an error\n\n" + of_lenets(),
        "P, P+Q, P+Q+H: pruned, values shared, both coded by relative indices and Huffman's code as in Deep Compression "
        "(1510.00149), from the same network; ours: context coding. Of all that was tried the smallest is taken whose validation error is "
        f"at most {CLOSE} points (five images) above the dense network's, or at most the paper's. Errors are of the test images; in "
        "brackets, how many seeds.",
        "### All that was tried\n\nMean errors in %, of test images but for the last.\n\n" + all_lenets(),
        "### Levels by error and bits together\n\nk-means of 3 bits, then each weight to the level that costs least in error, by the "
        "squared gradient, and bits, at the price that gives the wanted size.\n\n" + of_prices(),
        "## The pruned SqueezeNet, to the bit\n\n" + of_squeezenet(),
        "### Beside other programs: its weights alone\n\n" + of_others(),
        *(("## Pruning and bits\n\n" + of_figures(), "![score against bits and bytes](compress.png)") if cells("figures") else ()),
    )
    draw()


def main() -> None:
    """Measure a part, then write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("lenets", "squeezenet", "figures", "beside", "report"))
    parser.add_argument("models", nargs="?", type=Path, default=Path("build/models"))
    parser.add_argument("--networks", nargs="*", choices=[*PAPER, *PLAIN])
    parser.add_argument("--seeds", nargs="*", type=int, default=[3, 4, 5])
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part == "lenets":
        lenets(given.networks or list(PAPER), given.seeds)
    elif given.part == "squeezenet":
        squeezenet()
    elif given.part == "figures":
        figures(given.models, given.networks or list(PLAIN))
    elif given.part == "beside":
        beside()
    report()


if __name__ == "__main__":
    main()
