"""A language model of 1.5 billion numbers in bfloat16, pruned to 2:4 from folder to folder in a process of 6 GiB of address space.

    python benchmarks/streaming.py                     # makes the model in a temporary folder: 7 GB of disk
    python benchmarks/streaming.py /somewhere/with/room

The weights are random and in the shape of a Llama, written as shards; so are the calibration tokens. What is shown is memory and time,
not quality. The process that prunes may not have more than 6 GiB of address space (``RLIMIT_AS``): any allocation beyond it fails. It
tells the peak of what it had of it, and of what was resident.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tables import markdown, write

LIMIT = 6 << 30
SHAPE: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
WINDOW, COUNT, PER_SHARD = 128, 4, 4


def make(folder: Path) -> int:
    """Write the folder, a shard at a time; gives how many numbers there are."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    of_config: Any = LlamaForCausalLM
    config = LlamaConfig(**SHAPE, architectures=["LlamaForCausalLM"], dtype="bfloat16")
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in of_config(config).state_dict().items()}
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    groups: dict[int, list[str]] = {}
    for name in shapes:
        layer = ".".join(name.split(".")[2:3])
        groups.setdefault(int(layer) // PER_SHARD if layer.isdigit() else 0, []).append(name)
    where: dict[str, str] = {}
    random = torch.Generator().manual_seed(0)
    for number, names in groups.items():
        file = f"model-{number + 1:05}-of-{len(groups):05}.safetensors"
        tensors = {
            name: torch.ones(shapes[name], dtype=torch.bfloat16)
            if len(shapes[name]) == 1
            else torch.empty(shapes[name], dtype=torch.bfloat16).normal_(0, 0.02, generator=random)
            for name in names
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    numbers = sum(shape.numel() for shape in shapes.values())
    index = {"metadata": {"total_size": 2 * numbers}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return numbers


def prune(source: Path, out: Path) -> None:
    """What the limited process does; prints what it took."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    import torch

    import secateurs as sc

    begun, worked = time.perf_counter(), time.process_time()
    tokens = torch.randint(0, SHAPE["vocab_size"], (COUNT, WINDOW), generator=torch.Generator().manual_seed(1))
    task = sc.Task(tokens[:1], calibration=[(window[None], None) for window in tokens])
    found = sc.prune_folder(source, out, sc.NofM(2, 4), sc.SparseGPT(), None, task)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(
        json.dumps(
            {
                "sparsity": found.sparsity,
                "layers": len(found.plan),
                "weights": found.weights,
                "seconds": time.perf_counter() - begun,
                "processor": time.process_time() - worked,
                "address_space": int(status["VmPeak"].split()[0]) / 2**20,
                "resident": int(status["VmHWM"].split()[0]) / 2**20,
                "threads": torch.get_num_threads(),
                "load": os.getloadavg()[1],
            }
        )
    )


def page(numbers: int, cell: dict[str, Any]) -> None:
    """What was measured."""
    rows = [
        ["numbers in the model", f"{numbers / 1e9:.2f} · 10⁹, bfloat16, {2 * numbers / 1e9:.2f} GB on disk"],
        ["pruned to 2:4", f"{cell['layers']} layers, {cell['weights'] / 1e9:.2f} · 10⁹ weights, sparsity {cell['sparsity']:.4f}"],
        ["limit of address space", f"{LIMIT / 2**30:.0f} GiB"],
        ["peak of address space", f"{cell['address_space']:.2f} GiB"],
        ["peak of resident memory", f"{cell['resident']:.2f} GiB"],
        ["time", f"{cell['seconds'] / 60:.1f} min, {cell['processor'] / 60:.1f} min of processor time"],
        ["threads; load of the machine meanwhile", f"{cell['threads']}; {cell['load']:.1f}"],
    ]
    note = (
        f"`python benchmarks/streaming.py`: SparseGPT on {COUNT} windows of {WINDOW} random tokens, from "
        f"{SHAPE['num_hidden_layers']} blocks in shards to a folder of the same shards. "
        "Time depends on what else the machine does: look at its load."
    )
    write("streaming", "# 1.5 billion numbers pruned in 6 GiB", markdown(["", ""], rows), note)


def main() -> None:
    """Make the folder, prune it in another process, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--prune", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prune:
        prune(arguments.folder / "dense", arguments.folder / "pruned")
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        numbers = make(folder / "dense")
        command = [sys.executable, __file__, str(folder), "--prune"]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        page(numbers, json.loads(found.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
