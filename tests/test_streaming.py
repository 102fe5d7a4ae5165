"""A Hugging Face folder pruned into another one: the same as in memory, whole or not at all, and the first one never touched."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from language_models import family, small_tokenizer

import secateurs as sc
from secateurs.cli import commands as cli
from secateurs.streaming import Shards, output
from secateurs.types import FileError, PlanError, SecateursError, Site, Solution, Stats, TaskError, WriteError

WORDS = " ".join(f"w{number * number % 30}" for number in range(400))


def dense(folder: Path, name: str = "llama", dtype: torch.dtype = torch.float32, shards: bool = True) -> Path:
    """A folder with a small model, in shards, and its tokenizer."""
    model, _, _ = family(name)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.to(dtype).save_pretrained(folder, max_shard_size=9_000 if shards else "1GB")
    transformers.PreTrainedTokenizerFast(tokenizer_object=small_tokenizer(), model_max_length=1000).save_pretrained(folder)
    (folder / "README.md").write_text("A small model.")
    return folder


def task(count: int = 6) -> sc.Task:
    tokens = torch.randint(0, 32, (count, 12), generator=torch.Generator().manual_seed(1))
    return sc.Task(tokens[:1], calibration=[(window[None], None) for window in tokens])


def pruned(source: Path, out: Path, solver: Any = None, **more: Any) -> sc.PrunedFolder:
    arguments = {"pattern": sc.Element(), "allocate": sc.uniform(sparsity=0.5), "task": task(), **more}
    return sc.prune_folder(source, out, solver=solver or sc.SparseGPT(), **arguments)


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def told(folder: Path) -> dict[str, str]:
    """Every file of a folder, to the bit."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def in_memory(source: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    blocks = list(sc.blocks_of(model, task().example))
    sc.prune_(model, sc.Element(), sc.SparseGPT(), sc.uniform(sparsity=0.5), task(), only=blocks, walk=sc.in_blocks())
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_same_as_in_memory(tmp_path: Path, name: str) -> None:
    source = dense(tmp_path / "dense", name)
    before = told(source)
    found = pruned(source, tmp_path / "pruned")
    expected, model = in_memory(source), transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in model.state_dict().items())
    assert told(source) == before and not (tmp_path / "pruned.partial").exists()
    assert (found.sparsity, found.weights) == (0.5, sum(share.units for share in found.plan.shares.values()))
    now = told(tmp_path / "pruned")
    assert now.keys() == before.keys()  # the same shards, the index, the configuration, the tokenizer, the words about it
    assert {key for key in before if now[key] != before[key]} <= {file.name for file in source.glob("*.safetensors")}
    one, other = Shards.of(source), Shards.of(tmp_path / "pruned")
    assert one.entries == other.entries and (len(one.files) > 2 or name != "llama")


def test_bfloat16_is_rounded_block_by_block_and_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model, _, _ = family("llama")
    config = type(model.config)(**{**model.config.to_dict(), "tie_word_embeddings": True})
    type(model)(config).to(torch.bfloat16).save_pretrained(tmp_path / "dense", max_shard_size=9_000)
    before = tensors(tmp_path / "dense")
    assert "lm_head.weight" not in before
    pruned(tmp_path / "dense", tmp_path / "pruned", pattern=sc.NofM(2, 4), allocate=None)
    after = tensors(tmp_path / "pruned")
    assert after.keys() == before.keys() and {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {name for name in before if ".layers." in name and before[name].ndim == 2}
    for name in changed:
        assert (after[name].view(-1, 4) != 0).sum(1).tolist() == [2] * (after[name].numel() // 4)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_one_file_and_a_base_model_alone(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense", shards=False)
    pruned(source, tmp_path / "pruned")
    assert [file.name for file in (tmp_path / "pruned").glob("*.safetensors")] == ["model.safetensors"]
    without = {name.removeprefix("model."): tensor for name, tensor in tensors(source).items()}
    shutil.copytree(source, tmp_path / "base")
    save_file(without, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    pruned(tmp_path / "base", tmp_path / "pruned base")
    one, other = tensors(tmp_path / "pruned"), tensors(tmp_path / "pruned base")
    assert all(torch.equal(tensor, other[name.removeprefix("model.")]) for name, tensor in one.items())


class Stop(BaseException):
    """As where a process is killed: nothing behind it runs."""


class Stopping(NamedTuple):
    after: int
    solved: list[str]
    within: sc.SparseGPT = sc.SparseGPT()

    def __repr__(self) -> str:
        return repr(self.within)

    @property
    def needs(self) -> Any:
        return self.within.needs

    def scores(self, sites: Any, stats: Stats) -> Any:
        return self.within.scores(sites, stats)

    def __call__(self, site: Site, kept: int, stats: Stats) -> Solution:
        if len(self.solved) == self.after:
            raise Stop
        self.solved.append(site.name)
        return self.within(site, kept, stats)


@pytest.mark.parametrize("after", [3, 7])
def test_a_stopped_run_goes_on_to_the_bit(tmp_path: Path, after: int) -> None:
    source = dense(tmp_path / "dense", dtype=torch.bfloat16)
    pruned(source, tmp_path / "expected")
    with pytest.raises(Stop):
        pruned(source, tmp_path / "pruned", Stopping(after, []))
    assert not (tmp_path / "pruned").exists()
    with pytest.raises(FileError, match=r"pruned\.partial belongs to another pruning: its plan is"):
        pruned(source, tmp_path / "pruned", allocate=sc.uniform(sparsity=0.25))
    going_on = Stopping(1000, [])
    found = pruned(source, tmp_path / "pruned", going_on)
    assert len(going_on.solved) == 21 - after // 7 * 7
    assert told(tmp_path / "pruned") == told(tmp_path / "expected") and found.sparsity == 0.5


def test_what_no_block_came_of_leaves_nothing(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense")
    with pytest.raises(SecateursError, match="ThiNet chooses units that other layers read"):
        pruned(source, tmp_path / "pruned", sc.ThiNet())
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_damaged_partial_work_is_to_be_removed(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense")
    with pytest.raises(Stop):
        pruned(source, tmp_path / "pruned", Stopping(7, []))
    shard = min((tmp_path / "pruned.partial").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(FileError, match=r"pruned\.partial is damaged: remove it to begin again"):
        pruned(source, tmp_path / "pruned", Stopping(1000, []))


def test_what_blocks_share_is_there_for_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sharing(transformers.LlamaForCausalLM):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model.layers[2].mlp = self.model.layers[0].mlp

    monkeypatch.setattr(sys.modules["transformers"], "Sharing", Sharing, raising=False)
    model, source = Sharing(family("llama")[0].config).eval(), dense(tmp_path / "dense", shards=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    save_file(dict(model.named_parameters()), source / "model.safetensors", metadata={"format": "pt"})
    config = source / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": ["Sharing"]}))
    pruned(source, tmp_path / "pruned", skip="*.mlp.*")
    blocks = list(sc.blocks_of(model, task().example))
    how: dict[str, Any] = {"only": blocks, "skip": "*.mlp.*", "walk": sc.in_blocks()}
    sc.prune_(model, sc.Element(), sc.SparseGPT(), sc.uniform(sparsity=0.5), task(), **how)
    after = tensors(tmp_path / "pruned")
    assert all(torch.equal(after[name], parameter) for name, parameter in model.named_parameters())
    with pytest.raises(SecateursError, match=r"layers\.0\.mlp\.gate_proj\.weight of block .* is read in model\.layers\.2 too"):
        pruned(source, tmp_path / "other")
    with pytest.raises(SecateursError, match=r"layers\.2\.mlp\..* is part of block model\.layers\.0 too.*leave reconstruct= away"):
        pruned(source, tmp_path / "other", skip="*.mlp.*", reconstruct=2)


def test_weights_of_several_sites_count_once(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense")
    found = sc.prune_folder(
        source, tmp_path / "pruned", sc.Head(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task(), show=False
    )
    masked = {name for share in found.plan.shares.values() for name in share.elements}
    there = [weight for name, weight in tensors(tmp_path / "pruned").items() if name in masked]
    assert found.weights == sum(weight.numel() for weight in there)
    assert found.kept == sum(int(weight.count_nonzero()) for weight in there)


def test_stopped_between_the_files_of_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, copied, copyfile = dense(tmp_path / "dense"), list[Path](), shutil.copyfile

    def copy(one: Path, other: Path) -> None:
        if len(copied) == 3:
            other.write_bytes(one.read_bytes()[:10])
            raise Stop
        copied.append(other)
        copyfile(one, other)

    with monkeypatch.context() as patched:
        patched.setattr(output.shutil, "copyfile", copy)
        with pytest.raises(Stop):
            pruned(source, tmp_path / "pruned")
    pruned(source, tmp_path / "pruned")
    pruned(source, tmp_path / "expected")
    assert told(tmp_path / "pruned") == told(tmp_path / "expected")


def test_magnitude_needs_no_text(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense")
    nothing = sc.Task(torch.zeros(1, 8, dtype=torch.long))
    pruned(source, tmp_path / "pruned", sc.TopK(sc.magnitude()), task=nothing)
    with pytest.raises(TaskError, match=r"there is no text to calibrate on: give a task made by secateurs\.tasks\.text"):
        pruned(source, tmp_path / "other", task=nothing)


def damaged(folder: Path, how: str) -> str:
    """Damage a folder; gives what is to be said."""
    files = sorted(folder.glob("*.safetensors"))
    index, config = folder / "model.safetensors.index.json", folder / "config.json"
    listed = json.loads(index.read_text())
    if how == "a shard missing":
        files[1].unlink()
        return rf"{files[1].name} is missing, though the folder's index names it"
    if how == "a shard truncated":
        files[1].write_bytes(files[1].read_bytes()[:-8])
        return rf"{files[1].name} ends before .* does: it is truncated"
    if how == "a header truncated":
        files[1].write_bytes(files[1].read_bytes()[:20])
        return rf"{files[1].name} is no safetensors file, or truncated"
    if how == "a header damaged":
        content = files[1].read_bytes()
        files[1].write_bytes(content[:8] + b"x" + content[9:])
        return rf"{files[1].name} is damaged"
    if how == "an index of other tensors":
        index.write_text(json.dumps({"weight_map": {**listed["weight_map"], "more": files[0].name}}))
        return rf"{files[0].name} does not hold more, as model.safetensors.index.json says"
    if how == "an index into other folders":
        index.write_text(json.dumps({"weight_map": {"more": "../secret"}}))
        return "does not say which tensor is in which file of its folder"
    if how == "no weights":
        for file in (*files, index):
            file.unlink()
        return "holds neither model.safetensors nor model.safetensors.index.json"
    if how == "other names":
        rewrite(folder, lambda name, tensor: (name.replace("mlp.up", "mlp.other"), tensor))
        return r"holds no model\.layers\.\d\.mlp\.up_proj\.weight: its tensors have other names than .*: load it in memory"
    if how == "other sizes":
        rewrite(folder, lambda name, tensor: (name, tensor.T.contiguous() if "mlp.up" in name else tensor))
        return r"mlp\.up_proj\.weight is \(16, 24\), but LlamaForCausalLM wants \(24, 16\)"
    if how == "quantised weights":
        rewrite(folder, lambda name, tensor: (name, tensor.to(torch.int8) if "mlp.up" in name else tensor))
        return r"mlp\.up_proj\.weight is I8, a quantised weight: prune the model that it was made of"
    said = json.loads(config.read_text())
    if how == "a quantised configuration":
        config.write_text(json.dumps({**said, "quantization_config": {"quant_method": "gptq", "bits": 4}}))
        return "its weights are quantised"
    if how == "an unknown class":
        config.write_text(json.dumps({**said, "architectures": ["NobodysModel"]}))
        return "names NobodysModel, which transformers .* does not have"
    config.write_text("{")
    return r"config\.json is no configuration that transformers can read"


def rewrite(folder: Path, change: Callable[[str, Tensor], tuple[str, Tensor]]) -> None:
    where = {}
    for file in folder.glob("*.safetensors"):
        made = dict(change(name, tensor) for name, tensor in load_file(file).items())
        save_file(made, file, metadata={"format": "pt"})
        where |= dict.fromkeys(made, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


DAMAGES = [
    "a shard missing", "a shard truncated", "a header truncated", "a header damaged", "an index of other tensors",
    "an index into other folders", "no weights", "other names", "other sizes", "quantised weights", "a quantised configuration",
    "an unknown class", "a configuration damaged",
]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_folder_is_refused_before_anything_is_written(tmp_path: Path, how: str) -> None:
    source = dense(tmp_path / "dense")
    said = damaged(source, how)
    before = told(source)
    with pytest.raises(FileError, match=said):
        pruned(source, tmp_path / "pruned")
    assert told(source) == before and [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_what_cannot_be_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = dense(tmp_path / "dense")
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    for out, said in (
        (source, "is the folder that is read, or one lies in the other"),
        (source / "inside", "is the folder that is read, or one lies in the other"),
        (full, "full is there already: remove it, or name another one"),
        (full / "notes.txt", "is there already"),
    ):
        with pytest.raises(FileError, match=said):
            pruned(source, out)
    (tmp_path / "pruned.partial").mkdir()
    (tmp_path / "pruned.partial" / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match=r"pruned\.partial is there already and holds no work of this kind"):
        pruned(source, tmp_path / "pruned")
    with pytest.raises(TaskError, match="windows of 33 tokens are longer than the 32 that LlamaForCausalLM allows"):
        pruned(source, tmp_path / "new", task=sc.Task(task().example, calibration=[torch.zeros(1, 33, dtype=torch.long)]))
    with pytest.raises(SecateursError, match="change needs the gradient of the loss, which no block has by itself"):
        pruned(source, tmp_path / "new", sc.TopK(sc.taylor()))
    with pytest.raises(PlanError, match="the allocator compares the scores of all sites"):
        pruned(source, tmp_path / "new", allocate=sc.global_threshold(sparsity=0.5))
    with pytest.raises(SecateursError, match="lm_head lie outside the blocks, of which alone a folder is pruned"):
        pruned(source, tmp_path / "new", only=["lm_head", "model.layers.0"])
    with monkeypatch.context() as patched:
        patched.setattr(output.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(WriteError, match=r"new needs 0\.00 GB, but .* has 0\.00 GB left: make room"):
            pruned(source, tmp_path / "new")
    assert not (tmp_path / "new").exists() and not (tmp_path / "new.partial").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    (source / "pytorch_model.bin").write_bytes(b"other weights")
    assert pruned(source, empty).left_out == ("pytorch_model.bin",)


def test_a_mixture_whose_names_are_converted_says_what_to_do(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense", "mixtral")
    with pytest.raises(FileError, match=r"as where transformers convert them while loading: load it in memory \(from_pretrained\)"):
        pruned(source, tmp_path / "pruned")


def test_few_tokens_in_bfloat16_raise_the_damping_and_say_so(tmp_path: Path) -> None:
    source = dense(tmp_path / "dense", dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="its inputs depend on each other, so damping was raised"):
        pruned(source, tmp_path / "pruned", sc.SparseGPT(damping=0.0), task=task(1))


# ---------------------------------------------------------------- the command line


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs a command in a folder with a model and a text; returns its status and all that it said."""
    dense(tmp_path / "model")
    (tmp_path / "text.txt").write_text(WORDS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["secateurs", "llm", *arguments])
        capsys.readouterr()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cli.main()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call


def test_prune_and_perplexity(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    text = ("--text", "text.txt", "--window", "16", "--count", "8")
    status, said = run("prune", "model", "--method", "sparsegpt", "--sparsity", "0.5", *text, "--out", "pruned/")
    assert status == 0 and "2,880 of 5,760 weights in 21 layers stay (sparsity 0.5000)" in said
    status, said = run("perplexity", "pruned/", *text)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    windows = sc.tasks.text("text.txt", small_tokenizer(), window=16, count=8, seed=None)
    assert status == 0 and f"perplexity {sc.perplexity(model, windows):.4g} on 8 windows of 16 tokens of text.txt" in said
    for number, more in enumerate((("--method", "wanda"), ("--pattern", "2:4"), ("--solver", "Swaps(SparseGPT())", "--seed", "3"))):
        status, said = run("prune", "model", *more, *text, "--out", f"pruned{number}")
        assert status == 0 and "(sparsity 0.5000)" in said
    status, said = run(
        "prune", "model", "--method", "magnitude", "--sparsity", "0.25", "--blocks", "model.layers", "--out", "plain"
    )
    assert status == 0 and "(sparsity 0.2500)" in said
    status, said = run("prune", "model", "--method", "magnitude", "--skip", "*.mlp.*", "--out", "attention")
    assert status == 0 and "in 12 layers stay (sparsity 0.5000)" in said


def test_what_the_command_line_refuses(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    text, out = ("--text", "text.txt", "--window", "16", "--count", "8"), ("--out", "pruned")
    (tmp_path / "empty.txt").write_text("")
    bare = tmp_path / "bare"
    shutil.copytree(tmp_path / "model", bare)
    for file in bare.glob("token*"):
        file.unlink()
    for name, content in (("cut", "{"), ("list", "[]")):
        shutil.copytree(tmp_path / "model", tmp_path / name)
        (tmp_path / name / "config.json").write_text(content)
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    transformers.BertForMaskedLM(transformers.BertConfig(**sizes)).save_pretrained(tmp_path / "bert")
    for file in (tmp_path / "model").glob("token*"):
        shutil.copy(file, tmp_path / "bert")
    for arguments, expected in (
        (("perplexity", "bert", *text), "BertLMHeadModel sees the words that it is to tell"),
        (("prune", "cut", *text, *out), "config.json is damaged: Expecting property name"),
        (("prune", "list", *text, *out), "config.json is damaged: it holds no JSON object"),
        (("prune", "model", *out), "give --text, a file to calibrate on, or take --method magnitude"),
        (("prune", "model", "--text", "empty.txt", *out), "empty.txt is empty: give a file with text"),
        (("prune", "model", "--text", "text.txt", "--window", "33", "--count", "2", *out), "are longer than the 32"),
        (("prune", "bare", *text, *out), "bare holds no tokenizer that transformers can read"),
        (("prune", "nowhere", *text, *out), "nowhere is no Hugging Face folder: there is no config.json in it"),
        (("prune", "model", "--pattern", "2:4", "--sparsity", "0.5", *text, *out), "says itself how much stays"),
        (("prune", "model", "--method", "wanda", "--solver", "ALPS", *text, *out), "leave it or --solver ALPS away"),
        (("prune", "model", "--blocks", "layers", *text, *out), "did you mean model.layers"),
        (("prune", "model", *text, "--out", "model"), "is the folder that is read"),
        (("perplexity", "model", "--text", "text.txt", "--window", "33"), "are longer than the 32"),
        (("perplexity", "model", "--text", "text.txt", "--window", "1001"), "longer than the 1000 tokens that the tokenizer's"),
        (("perplexity", "model", "--text", "text.txt", "--window", "500"), "has 400 tokens, which make 0 windows of 500"),
    ):
        status, said = run(*arguments)
        assert status == 1 and expected in said, said
    assert not (tmp_path / "pruned").exists() and not (tmp_path / "pruned.partial").exists()
