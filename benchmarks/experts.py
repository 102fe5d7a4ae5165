"""Half of the experts of a mixture: a small Mixtral trained on the shared text, pruned by REAP, by how many tokens experts get, at random.

    SECATEURS_DATA=... python benchmarks/experts.py     # about ten minutes of one core; the trained model stays in build/

The text is read byte by byte: nine tenths for training, half of the rest for calibration, the last twentieth to be judged by. No training
after pruning.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tables import markdown, write

import secateurs as sc
from secateurs.tasks.images import data_file

BUILD = Path(__file__).parents[1] / "build" / "experts.pt"
WINDOW, BATCH, STEPS, RATE = 128, 12, 500, 2e-3
SIZES = {"vocab_size": 256, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES |= {"num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": WINDOW}
EXAMPLE = {"input_ids": torch.arange(32)[None], "use_cache": False}
SEEDS, SPARSITIES = range(3), (0.25, 0.5)


def texts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The bytes to train with, to calibrate with, and to be judged by."""
    data = torch.tensor(list(Path(data_file("tinyshakespeare.txt")).read_bytes()))
    first, second = int(0.9 * len(data)), int(0.95 * len(data))
    return data[:first], data[first:second], data[second:]


def batches(text: torch.Tensor, count: int) -> list[dict[str, Any]]:
    """The first windows of a text, in batches."""
    rows = text[: count * WINDOW].view(-1, WINDOW).split(16)
    return [{"input_ids": each, "labels": each, "use_cache": False} for each in rows]


def trained() -> Any:
    """The model, trained with the loss that spreads tokens over experts."""
    transformers = import_module("transformers")
    torch.manual_seed(0)
    model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, router_aux_loss_coef=0.01))
    if BUILD.exists():
        model.load_state_dict(torch.load(BUILD, weights_only=True))
        return model.eval()
    text, optimizer = texts()[0], torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
    for step in range(STEPS):
        starts = torch.randint(len(text) - WINDOW, (BATCH,))
        ids = torch.stack([text[start : start + WINDOW] for start in starts.tolist()])
        loss = model(input_ids=ids, labels=ids, use_cache=False, output_router_logits=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(step, round(loss.item(), 3), round(time.process_time()), flush=True)
    BUILD.parent.mkdir(exist_ok=True)
    torch.save(model.state_dict(), BUILD)
    return model.eval()


@torch.no_grad()
def perplexity(model: Any, judged: list[dict[str, Any]]) -> float:
    """Of a byte."""
    losses = [(float(model(**batch).loss), len(batch["input_ids"])) for batch in judged]
    return math.exp(sum(loss * rows for loss, rows in losses) / sum(rows for _, rows in losses))


def least(found: dict[str, dict[float, float]]) -> str:
    """Which score loses least, by what fraction is gone."""
    said = [
        f"with {share:.0%} gone by *{min(found, key=lambda name: found[name][share])}*".replace("%", " %") for share in SPARSITIES
    ]
    return "Least is lost, on this small and briefly trained model, " + "; ".join(said) + "."


def main() -> None:
    """Train, prune copies in each way, and write the page."""
    dense = trained()
    _, calibration, test = texts()
    judged, task = batches(test, 256), sc.Task(EXAMPLE, calibration=batches(calibration, 128))
    criteria = {"REAP": sc.reap(), "tokens routed": sc.routed(), "magnitude of all their weights": sc.magnitude()}
    criteria |= {f"random {seed}": sc.random(seed=seed) for seed in SEEDS}
    found: dict[str, dict[float, float]] = {}
    for name, criterion in criteria.items():
        for sparsity in SPARSITIES:
            model = copy.deepcopy(dense)
            sc.methods.reap_(model, task, sparsity=sparsity, criterion=criterion)
            found.setdefault(name, {})[sparsity] = perplexity(model, judged)
            print(name, sparsity, round(found[name][sparsity], 3), flush=True)
    rows = [[name, *(f"{found[name][share]:.3f}" for share in SPARSITIES)] for name in criteria if not name.startswith("random")]
    draws = [[found[f"random {seed}"][share] for seed in SEEDS] for share in SPARSITIES]
    rows.append(
        ["random, mean of three draws", *(f"{statistics.mean(each):.3f} ({min(each):.3f} to {max(each):.3f})" for each in draws)]
    )
    write(
        "experts",
        "# Experts of a mixture",
        f"A Mixtral of {sc.params(dense) / 1e6:.1f} million parameters (4 blocks, 8 experts each, 2 a token), trained {STEPS} steps of "
        f"{BATCH} × {WINDOW} bytes of tinyshakespeare. Perplexity of a byte on the last twentieth of the text "
        f"({perplexity(dense, judged):.3f} with all experts), by what fraction of each mixture's experts is gone, without training after "
        "it; scores are taken on 128 windows of the twentieth before. `python benchmarks/experts.py`.",
        markdown(["score", *(f"{share:.0%} gone".replace("%", " %") for share in SPARSITIES)], rows),
        least({name: each for name, each in found.items() if not name.startswith("random")}),
    )


if __name__ == "__main__":
    main()
