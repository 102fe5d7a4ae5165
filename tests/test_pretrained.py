"""Models of Hugging Face in folders: written as save_pretrained does, read by transformers alone where they have a way to say the sizes."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.files import container, model_file
from secateurs.types import FileError, SecateursError, WriteError

transformers = pytest.importorskip("transformers")
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 50}
EXAMPLE = {"input_ids": torch.tensor([[3, 1, 4, 1, 5, 9]]), "use_cache": False}


@pytest.fixture(autouse=True)
def _quiet():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def llama(**sizes):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, "num_key_value_heads": 2, **sizes})).eval()


def shrunk(model, only=None):
    task = sc.Task(example=EXAMPLE)
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task, only=only)
    assert not sc.shrink_(model, masks).skipped
    return model


def same_answers(model, other):
    with torch.no_grad():
        return torch.allclose(model(**EXAMPLE).logits, other.eval()(**EXAMPLE).logits, atol=1e-5)


def config_in(folder):
    return json.loads((folder / "config.json").read_text())


# ------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("name", ["out", "deep/er", "llama-3.2-1B"])
def test_a_path_without_a_files_suffix_is_a_folder_made_if_it_is_not_there(tmp_path, name):
    model, folder = llama(), tmp_path / name
    assert sc.save(model, folder) == sc.file_bytes(folder / "model.safetensors")
    assert config_in(folder)["intermediate_size"] == 64
    assert same_answers(model, sc.load(folder, transformers.LlamaForCausalLM))
    assert same_answers(model, transformers.LlamaForCausalLM.from_pretrained(folder))


def test_a_path_with_a_suffix_is_a_file_and_of_other_models_any_path(tmp_path):
    sc.save(llama(), tmp_path / "model.safetensors")
    sc.save(nn.Linear(2, 1), tmp_path / "plain")
    assert (tmp_path / "model.safetensors").is_file() and (tmp_path / "plain").is_file()


def test_a_class_that_needs_arguments_is_an_error_that_says_what_to_give(tmp_path):
    sc.save(llama(), tmp_path / "model.safetensors")
    with pytest.raises(
        SecateursError, match=r"^LlamaForCausalLM\(\) makes no model .*: give a function .* lambda: .* its config.json"
    ):
        sc.load(tmp_path / "model.safetensors", transformers.LlamaForCausalLM)


def test_a_folder_that_could_not_be_filled_is_not_left_behind(tmp_path, monkeypatch):
    def full(*arguments):
        raise WriteError("could not write: the disk is full")

    monkeypatch.setattr(container, "write", full)
    with pytest.raises(WriteError, match=r"the disk is full"):
        sc.save(llama(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_transformers_wrote_is_read_with_its_tied_weights_once(tmp_path):
    model = llama(tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "theirs")
    again = sc.load(tmp_path / "theirs", transformers.LlamaForCausalLM)
    assert same_answers(model, again)
    assert again.lm_head.weight is again.model.embed_tokens.weight


# ------------------------------------------------------------------------------------------------ the configuration follows


@pytest.mark.parametrize(
    ("only", "sizes"),
    [
        (
            None,
            {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 2e-6},
        ),
        (["*:heads"], {"num_attention_heads": 2, "num_key_value_heads": 1}),
    ],
    ids=["everything", "heads"],
)
def test_where_all_layers_are_alike_transformers_load_the_small_model_by_themselves(tmp_path, only, sizes):
    model, folder = shrunk(llama(), only), tmp_path / "small"
    sc.save(model, folder)
    written = config_in(folder)
    assert {key: written[key] for key in sizes} == sizes
    assert written["head_dim"] == 8
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert same_answers(model, plain)
    for made in (transformers.LlamaForCausalLM, plain, llama()):  # the class, a small model, one as large as it was
        assert same_answers(model, sc.load(folder, made))


def test_a_width_that_the_configuration_left_open_follows(tmp_path):
    config = transformers.GPT2Config(n_embd=32, n_head=4, n_layer=2, vocab_size=50, n_positions=16)
    model = shrunk(transformers.GPT2LMHeadModel(config).eval(), ["*.mlp.c_fc"])
    sc.save(model, tmp_path / "small")
    assert config_in(tmp_path / "small")["n_inner"] == 64
    assert same_answers(model, transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "small"))


@pytest.mark.parametrize(
    "only",
    [["model.layers.1.mlp.gate_proj"], ["model.layers.0.self_attn:heads"], ["model.layers.0.*"]],
    ids=["widths", "heads", "heads and widths"],
)
def test_where_layers_differ_plain_loading_fails_and_load_reads_the_plan(tmp_path, only):
    model, folder = shrunk(llama(), only), tmp_path / "small"
    with pytest.warns(
        UserWarning, match=r"^LlamaForCausalLM.from_pretrained will not load .*: sc.load\(folder, LlamaForCausalLM\) does$"
    ):
        sc.save(model, folder)
    written = config_in(folder)
    assert [written[key] for key in ("intermediate_size", "num_attention_heads", "head_dim")] == [64, 4, 8]
    assert "per_layer_config" not in written
    assert same_answers(model, sc.load(folder, transformers.LlamaForCausalLM))
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        transformers.LlamaForCausalLM.from_pretrained(folder)


class Layered(transformers.PreTrainedModel):
    """A class of the kind that reads the sizes of each layer."""

    config_class = transformers.LlamaConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        layers = config.per_layer_config if config.is_heterogeneous else [config] * config.num_hidden_layers
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(config.hidden_size, each.intermediate_size),
                nn.ReLU(),
                nn.Linear(each.intermediate_size, config.hidden_size),
            )
            for each in layers
        )
        self.post_init()

    def forward(self, input_ids, use_cache=False):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = x + layer(x)
        return x


def test_a_class_that_reads_the_sizes_of_each_layer_gets_them(tmp_path):
    model = shrunk(Layered(transformers.LlamaConfig(**SIZES)).eval(), ["layers.1.0"])
    sc.save(model, tmp_path / "small")
    assert config_in(tmp_path / "small")["per_layer_config"] == {"1": {"intermediate_size": 32}}
    with torch.no_grad():
        for again in (Layered.from_pretrained(tmp_path / "small"), sc.load(tmp_path / "small", Layered)):
            torch.testing.assert_close(again.eval()(**EXAMPLE), model(**EXAMPLE))


def test_a_configuration_of_the_right_shapes_that_means_another_model_is_not_written(tmp_path):
    """Gemma multiplies by the root of its width, in a buffer that no file holds."""
    kind = transformers.GemmaForCausalLM
    torch.manual_seed(0)
    model = shrunk(kind(transformers.GemmaConfig(**{**SIZES, "num_key_value_heads": 2, "pad_token_id": 0, "head_dim": 8})).eval())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match=r"sc.load\(folder, GemmaForCausalLM\) does"):
        sc.save(model, tmp_path / "small")
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        kind.from_pretrained(tmp_path / "small")
    assert same_answers(model, sc.load(tmp_path / "small", kind))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # the trial shares memory with them


def test_a_class_is_loaded_in_the_dtype_of_the_file(tmp_path):
    model = shrunk(llama().double(), ["model.layers.1.mlp.gate_proj"])
    with pytest.warns(UserWarning, match=r"sc.load\(folder, LlamaForCausalLM\) does"):
        sc.save(model, tmp_path / "small")
    again = sc.load(tmp_path / "small", transformers.LlamaForCausalLM)
    assert again.dtype == torch.float64 and same_answers(model, again)


def test_a_folder_that_would_be_read_as_another_model_without_an_error_is_refused(tmp_path):
    model = shrunk(llama(), ["*.mlp.gate_proj"])
    model.config.intermediate_size = 32
    sc.save(model, tmp_path / "same")  # the user's own configuration makes the small model
    assert same_answers(model, transformers.LlamaForCausalLM.from_pretrained(tmp_path / "same"))
    model.config.hidden_act = "relu"
    with pytest.raises(
        SecateursError, match=r"would load this folder without an error and may not answer .*: name a file, sc.save"
    ):
        sc.save(model, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_damaged_configuration_in_the_file_is_an_error_of_ours(tmp_path):
    model, folder = shrunk(llama(), ["*:heads"]), tmp_path / "small"
    sc.save(model, folder)
    tensors, document = container.read(folder / model_file.WEIGHTS)
    for config in ([], {"hidden_size": "wide"}, {"hidden_size": 7}):
        container.write(folder / model_file.WEIGHTS, tensors, {**document, "config": config})
        with pytest.raises(FileError, match=r"cannot be made of the configuration in the file|belongs to another model"):
            sc.load(folder, transformers.LlamaForCausalLM)
