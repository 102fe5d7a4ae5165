"""Every model of the benchmarks' zoo: half of each site goes, the small model computes what the masked one does, files bring it back.

A cross-section runs always; `SECATEURS_ALL=1` runs them all.
"""

from __future__ import annotations

import warnings

import pytest

pytest.importorskip("transformers")

from zoo import CLASSIC, HAND_WRITTEN, TRANSFORMERS
from zoo.halving import Outcome, try_halving

SUBJECTS = {subject.name: subject for subject in [*TRANSFORMERS, *HAND_WRITTEN, *CLASSIC]}

SITES: dict[str, int] = {
    "bert": 5,
    "roberta": 5,
    "distilbert": 5,
    "deberta": 5,
    "gpt2": 4,
    "opt": 4,
    "gpt_neox": 4,
    "bloom": 4,
    "mpt": 6,
    "falcon": 4,
    "longformer": 5,
    "llama": 5,
    "mistral": 5,
    "qwen2": 5,
    "qwen3": 5,
    "gemma": 5,
    "phi": 4,
    "mixtral": 5,
    "mamba": 7,
    "t5": 7,
    "bart": 10,
    "whisper": 11,
    "vit": 4,
    "deit": 4,
    "beit": 4,
    "swin": 6,
    "segformer": 7,
    "convnext": 4,
    "clip": 8,
    "wav2vec2": 6,
    "lenet_view": 4,
    "alexnet_like": 5,
    "option_a": 5,
    "bottlenecks": 5,
    "linear_squeeze_excite": 2,
    "grouped_shuffle": 1,
    "inception": 7,
    "unet": 7,
    "pyramid": 6,
    "norms": 2,
    "conv3d": 4,
    "res2net": 6,
    "selective_kernel": 3,
    "nano_gpt": 2,
    "timm_vit": 4,
    "einsum_attention": 1,
    "llama_enable_gqa": 2,
    "complex_rotary": 1,
    "torch_attention": 2,
    "torch_encoder": 4,
    "window_attention": 2,
    "head_slices": 6,
    "lstm_stacked_bidirectional": 2,
    "gru_tagger": 2,
    "hand_written_lstm": 1,
    "tied_language_model": 1,
    "wave_net": 6,
    "mlp_mixer": 2,
    "graph_attention": 1,
    "capsules": 3,
    "shared_layers": 2,
    "bare_parameters": 2,
    "hard_coded": 1,
    "early_exit": 1,
    "softmax_channels": 0,
    "permuted": 0,
    "no_parameters": 0,
    "lenet_5": 3,
    "googlenet": 57,
    "resnet_20": 14,
    "mobilenet_v3_small": 26,
    "shufflenet_v2": 14,
    "densenet_shallow": 17,
    "efficientnet_b0": 28,
    "unet_classic": 12,
    "lstm_language_model": 2,
}
"""The cross-section, with the number of sites that are found in each model: a rule that forgets how to do something shows here."""

ALIGNED = "torch multiplies the experts' matrices only where their rows are multiples of 16 bytes, and half of 28 floats are not"
PUT_BACK: dict[str, tuple[set[str], str]] = {
    "qwen2_moe": ({f"model.layers.{layer}.mlp.experts.gate_up_proj[0:28]" for layer in (0, 1)}, ALIGNED),
    "qwen3_moe": ({f"model.layers.{layer}.mlp.experts.gate_up_proj[0:28]" for layer in (0, 1)}, ALIGNED),
    "deepseek_v3": ({"model.layers.1.mlp.experts.gate_up_proj[0:28]"}, ALIGNED),
    "siamese": ({"embed"}, "torch adds 1e-6 to each difference before it adds up their squares"),
    "state_space": ({"embed"}, "nn.RMSNorm(20) without eps= takes that of the dtype, which a smaller width cannot rescale"),
}
"""Subject → the sites that are masked but cannot be removed, and why."""


LONG = {"googlenet", "whisper"}  # seconds each; branches beside each other are in densenet_shallow too, two stacks in t5 and bart


def case(name: str) -> object:
    return pytest.param(name, id=name, marks=() if name in SITES and name not in LONG else pytest.mark.slow)


@pytest.mark.parametrize("name", [case(name) for name in SUBJECTS])
def test_half_of_each_site_goes_and_nothing_else_changes(name: str) -> None:
    outcome = Outcome(name, "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what other packages' models have to say
        try_halving(SUBJECTS[name], outcome)
    assert outcome.exact == SITES.get(name, outcome.exact)
    if outcome.nothing:
        assert outcome.approximate or outcome.pinned or not outcome.parameters[0], "nothing is found, and nothing says why"
        return
    assert {item.name for item in outcome.put_back} == PUT_BACK.get(name, (set(), ""))[0], [
        item.reason for item in outcome.put_back
    ]
    assert outcome.same, f"the small model's answers differ from the masked one's by {outcome.difference}"
    assert outcome.reloaded, "the file gives another model"
    before, after = outcome.parameters
    assert after < before


def test_the_cross_section_is_wide() -> None:
    assert len([subject for subject in TRANSFORMERS if subject.name in SITES]) >= 25
    assert SITES.keys() | PUT_BACK.keys() <= SUBJECTS.keys()
