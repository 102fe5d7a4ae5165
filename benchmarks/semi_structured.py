"""2:4 weights on sparse tensor cores beside dense ones: the linear layers of Llama-7B, at 1, 16, 128 and 2048 tokens.

    python benchmarks/semi_structured.py          # needs an NVIDIA GPU of Ampere or later, a few minutes

Each layer is measured in turn with its dense twin: as PyTorch calls it (eager), and as part of a CUDA graph, without Python's share.
Copies of the weights that together exceed the GPU's cache are used one after the other, as the layers of a model are. Times are
medians over rounds; a speed-up below 1 is a loss. The answers of both are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
from tables import markdown, write
from torch import Tensor, nn

import secateurs as sc
from secateurs.export import ExportError, semi_structured_

LAYERS = {"attention (q, k, v, o)": (4096, 4096), "gate, up": (4096, 11008), "down": (11008, 4096)}
"""Name → inputs and outputs."""
TOKENS = (1, 16, 128, 2048)
TYPES = (torch.float16, torch.bfloat16)
ROUNDS, CACHES = 30, 3
HEADINGS = (
    "layer",
    "inputs → outputs",
    "type",
    "tokens",
    "dense µs",
    "2:4 µs",
    "speed-up",
    "in a graph: dense µs",
    "2:4 µs",
    "speed-up",
)


@dataclass(frozen=True)
class Row:
    """One layer at one number of tokens: microseconds of a call, dense and 2:4, eager and in a CUDA graph."""

    layer: str
    inputs: int
    outputs: int
    dtype: torch.dtype
    tokens: int
    eager: tuple[float, float]
    graph: tuple[float, float] | None
    difference: float

    def cells(self) -> list[str]:
        """The row of the table."""
        kind, sizes = str(self.dtype).removeprefix("torch."), f"{self.inputs} → {self.outputs}"
        return [self.layer, sizes, kind, f"{self.tokens}", *timed(self.eager), *timed(self.graph)]

    @property
    def gains(self) -> dict[str, float]:
        """How many times as fast 2:4 is, by the way of calling."""
        ways = {"eager": self.eager, "in a CUDA graph": self.graph}
        return {way: times[0] / times[1] for way, times in ways.items() if times is not None}


def timed(times: tuple[float, float] | None) -> list[str]:
    """Both times and what the second gains."""
    return ["–"] * 3 if times is None else [f"{times[0]:.1f}", f"{times[1]:.1f}", f"{times[0] / times[1]:.2f}"]


def verdict(rows: Sequence[Row]) -> str:
    """Where 2:4 wins and where it loses, in words."""
    lines = []
    for way in ("eager", "in a CUDA graph"):
        for tokens in sorted({row.tokens for row in rows}):
            gains = sorted(row.gains[way] for row in rows if row.tokens == tokens and way in row.gains)
            if gains:
                lost = sum(gain < 1 for gain in gains)
                lines.append(
                    f"- {tokens} token{'s' * (tokens > 1)}, {way}: {gains[0]:.2f} to {gains[-1]:.2f} times as fast, "
                    f"{'slower' if lost else 'never slower'}{f' in {lost} of {len(gains)}' if lost else ''}"
                )
    losses = [row for row in rows if any(gain < 1 for gain in row.gains.values())]
    named = ", ".join(
        f"{row.layer} {str(row.dtype).removeprefix('torch.')} at {row.tokens} ({way}: {gain:.2f})"
        for row in losses
        for way, gain in row.gains.items()
        if gain < 1
    )
    return "\n".join(lines) + f"\n\n**Where it loses:** {named or 'nowhere'}."


def copies_for(bytes_each: int, cache: int) -> int:
    """How many copies of a weight exceed the cache a few times over."""
    return max(2, -(-CACHES * cache // bytes_each))


def layer(inputs: int, outputs: int, dtype: torch.dtype, device: str = "cuda") -> nn.Linear:
    """A linear layer without bias whose weight is 2:4."""
    made = nn.Linear(inputs, outputs, bias=False, device=device, dtype=dtype)
    task = sc.Task(example=torch.zeros(1, inputs, device=device, dtype=dtype))
    sc.prune_(made, sc.NofM(2, 4), sc.TopK(sc.magnitude()), sc.as_pattern(), task, only="*")
    return made.requires_grad_(False)


def microseconds(call: Callable[[], object], calls: int) -> float:
    """GPU time of one of the calls that a function makes."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return 1e3 * start.elapsed_time(end) / calls


def in_turn(dense: Callable[[], object], sparse: Callable[[], object], calls: int) -> tuple[float, float]:
    """Median times of both, measured in turn after a warm-up."""
    for _ in range(3):
        dense(), sparse()
    rounds = [(microseconds(dense, calls), microseconds(sparse, calls)) for _ in range(ROUNDS)]
    return median(first for first, _ in rounds), median(second for _, second in rounds)


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """The same calls as a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def passes(layers: Sequence[nn.Linear], inputs: Tensor) -> Callable[[], None]:
    """One call of each copy."""

    def call() -> None:
        for each in layers:
            each(inputs)

    return call


def measure(name: str, dtype: torch.dtype) -> list[Row]:
    """A layer at each number of tokens."""
    inputs, outputs = LAYERS[name]
    cache = int(torch.cuda.get_device_properties(0).L2_cache_size)
    calls = copies_for(inputs * outputs * dtype.itemsize // 2, cache)
    dense = [layer(inputs, outputs, dtype) for _ in range(calls)]
    sparse = [nn.Linear(inputs, outputs, bias=False, device="meta") for _ in range(calls)]
    for twin, each in zip(sparse, dense, strict=True):
        twin.weight = nn.Parameter(each.weight.clone(), requires_grad=False)
        semi_structured_(twin)
    rows = []
    for tokens in TOKENS:
        x = torch.randn(tokens, inputs, device="cuda", dtype=dtype)
        expected, found = dense[0](x).float(), sparse[0](x).float()
        difference = float((expected - found).abs().max() / expected.abs().max())
        calls_of_dense, calls_of_sparse = passes(dense, x), passes(sparse, x)
        eager = in_turn(calls_of_dense, calls_of_sparse, calls)
        try:
            graph = in_turn(captured(calls_of_dense), captured(calls_of_sparse), calls)
        except RuntimeError as error:
            print(f"no CUDA graph of {name}, {tokens} tokens: {error}")
            graph = None
        rows.append(Row(name, inputs, outputs, dtype, tokens, eager, graph, difference))
        print(" | ".join(rows[-1].cells()), flush=True)
    return rows


def bytes_kept(dtype: torch.dtype) -> float:
    """The fraction of a weight's bytes that its compressed form takes, on this GPU."""
    inputs, outputs = 4096, 4096
    made = layer(inputs, outputs, dtype)
    before, whole = torch.cuda.memory_allocated(), made.weight.nbytes
    semi_structured_(made)
    torch.cuda.synchronize()
    return (torch.cuda.memory_allocated() - before + whole) / whole


def main() -> None:
    """Measure, and write the page."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "this needs a CUDA GPU of Ampere (compute capability 8.0) or later, and a torch built for CUDA; there is none"
        )
    torch.manual_seed(0)
    try:
        with torch.no_grad():
            rows = [row for dtype in TYPES for name in LAYERS for row in measure(name, dtype)]
            kept = bytes_kept(torch.float16)
    except ExportError as error:
        raise SystemExit(str(error)) from error
    worst = max(row.difference for row in rows)
    write(
        "semi_structured",
        "# 2:4 weights on sparse tensor cores, beside dense ones",
        (__doc__ or "").rpartition("\n\n")[2].strip(),
        f"GPU: {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}, cuSPARSELt {torch.backends.cusparselt.version()}. Compressed "
        f"weights take {100 * kept:.0f} % of the dense ones' bytes. Answers differ by at most {worst:.1e} of the largest number.",
        verdict(rows),
        markdown(HEADINGS, [row.cells() for row in rows]),
    )


if __name__ == "__main__":
    main()
