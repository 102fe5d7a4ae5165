"""Compressed files: a model comes back to the bit with all that belongs to it, and no file and no disk can do harm."""

from __future__ import annotations

import json
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.cli.commands import app
from secateurs.coding import Levels, file
from secateurs.coding.bits import same
from secateurs.files import container
from secateurs.models import digits_cnn
from secateurs.types import FileError, KindError, SecateursError, WriteError

HEAD = struct.Struct("<8sIIII")


def network() -> nn.Sequential:
    """A convolution, a normalisation with its buffers, and two linear layers that share a weight."""
    made = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 12), nn.Linear(12, 12))
    made[4].weight = made[3].weight
    return made


def pruned() -> tuple[nn.Sequential, sc.Masks]:
    torch.manual_seed(0)
    model = network()
    model(torch.randn(4, 2, 3, 3))  # moves the running statistics
    task = sc.Task(torch.zeros(1, 2, 3, 3))
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task)
    with torch.no_grad():
        model[3].weight.mul_(2).round_().div_(2).add_(0.0)  # some of those that are kept become zero
    return model, masks


def assert_same(a: nn.Module, b: nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert [name for name in first if not same(first[name], second[name])] == []


# ---------------------------------------------------------------- there and back


def test_a_model_comes_back_with_masks_plan_and_metric(tmp_path: Path) -> None:
    model, masks = pruned()
    told = sc.compress(model, tmp_path / "small.scz", masks, metric={"accuracy": 0.5}, seed=3)
    assert told.bytes == (tmp_path / "small.scz").stat().st_size
    for loaded in (sc.decompress(tmp_path / "small.scz", network), sc.load(tmp_path / "small.scz", network())):
        assert_same(model, loaded)
        assert loaded[4].weight is loaded[3].weight
        found = sc.load_masks(tmp_path / "small.scz", loaded)
        assert found.keys() >= masks.keys() and all(torch.equal(found[name], masks[name]) for name in masks)
    saved = sc.read_saved(tmp_path / "small.scz")
    assert (saved.metric, saved.seed, saved.plan) == ({"accuracy": 0.5}, 3, masks.plan)


def test_a_shrunk_model_comes_back_small(tmp_path: Path) -> None:
    torch.manual_seed(0)
    make: Callable[[], nn.Module] = lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))  # noqa: E731
    model, example = make(), torch.randn(3, 6)
    masks = sc.prune_(model, sc.Channel(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), sc.Task(example))
    sc.shrink_(model, masks, example)
    sc.compress(model, tmp_path / "small.scz")
    loaded = sc.decompress(tmp_path / "small.scz", make)
    assert loaded[0].weight.shape == (4, 6)  # type: ignore[index]
    assert_same(model, loaded)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_lose_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    model = nn.Linear(40, 30).to(dtype)
    model.register_buffer("count", torch.tensor(7))
    with torch.no_grad():
        model.weight[0, 0], model.weight[0, 1] = float("nan"), -0.0
    sc.compress(model, tmp_path / "small.scz")
    fresh = nn.Linear(40, 30).to(dtype)
    fresh.register_buffer("count", torch.tensor(0))
    assert_same(model, sc.decompress(tmp_path / "small.scz", fresh))


def test_what_each_stage_takes_is_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(200, 100, bias=False)
    with torch.no_grad():
        model.weight.copy_((torch.randint(-3, 4, (100, 200)) * (torch.rand(100, 200) < 0.1)) * 0.1)
    told = sc.compress(model, tmp_path / "small.scz")
    (one,) = told.tensors
    assert (one.dense, one.values) == (80_000, 7)
    assert one.sparsity == pytest.approx(float((model.weight == 0).float().mean()))
    kept = int((model.weight != 0).sum())
    assert one.pruned - 4 * kept == one.shared - -(-kept * 3 // 8) - 4 < 2000  # the places; a scale
    assert told.dense > told.pruned > told.shared > told.coded
    again = sc.read_compressed(tmp_path / "small.scz")
    assert again.tensors == told.tensors and again.bytes == told.bytes
    assert "weight" in str(told) and f"{told.bytes:,} bytes" in str(told)


def test_what_is_read_tells_the_same_as_what_was_written(tmp_path: Path) -> None:
    model = nn.Module()
    for name, tensor in {"one": torch.tensor(2.0), "two": torch.ones(2), "small": torch.zeros(64).to(torch.float8_e5m2)}.items():
        model.register_buffer(name, tensor)  # raw and floats are as small as levels, and of few values all the same
    told = sc.compress(model, tmp_path / "small.scz")
    assert sc.read_compressed(tmp_path / "small.scz").tensors == told.tensors


def test_a_file_becomes_another_without_a_model(tmp_path: Path) -> None:
    model, masks = pruned()
    sc.save(model, tmp_path / "a.safetensors", masks, metric={"accuracy": 0.5})
    told = sc.recode(tmp_path / "a.safetensors", tmp_path / "a.scz")
    assert isinstance(told, sc.Compressed) and told.bytes < (tmp_path / "a.safetensors").stat().st_size
    sc.recode(tmp_path / "a.scz", tmp_path / "b.safetensors")
    (first, told_first), (second, told_second) = (container.read(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    assert told_first == told_second and first.keys() == second.keys()
    assert all(same(first[name], second[name]) for name in first)


def test_tensors_are_read_one_by_one(tmp_path: Path) -> None:
    model, _ = pruned()
    sc.compress(model, tmp_path / "small.scz")
    with file.opened(tmp_path / "small.scz") as reader:
        assert same(reader.tensor("3.bias"), model[3].bias.detach())
        values, levels = reader.decoded("3.weight")
        assert levels is not None and same(levels.values(), values)


# ---------------------------------------------------------------- what is refused


@pytest.fixture
def small(tmp_path: Path) -> Path:
    model, masks = pruned()
    sc.compress(model, tmp_path / "small.scz", masks)
    return tmp_path / "small.scz"


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the index of a file as somebody does who makes the checksums anew."""
    content = path.read_bytes()
    magic, version, packed, _, _ = HEAD.unpack(content[: HEAD.size])
    index = json.loads(zlib.decompress(content[HEAD.size : HEAD.size + packed]))
    change(index)
    text = json.dumps(index).encode()
    data = zlib.compress(text)
    checksum = zlib.crc32(data, zlib.crc32(struct.pack("<III", version, len(data), len(text))))
    path.write_bytes(HEAD.pack(magic, version, len(data), len(text), checksum) + data + content[HEAD.size + packed :])


def test_a_truncated_file_is_refused_at_every_length(small: Path) -> None:
    content, model = small.read_bytes(), network()
    before = [tensor.clone() for tensor in model.state_dict().values()]
    for length in range(0, len(content), 7):
        small.write_bytes(content[:length])
        with pytest.raises(FileError, match=r"small\.scz"):
            sc.load(small, model)
    small.write_bytes(content + b"\0")
    with pytest.raises(FileError, match="cut off, or damaged"):
        sc.load(small, model)
    assert all(map(torch.equal, before, model.state_dict().values()))


def test_a_flipped_bit_is_told(small: Path) -> None:
    content = bytearray(small.read_bytes())
    for place in range(8, len(content), 11):
        content[place] ^= 4
        small.write_bytes(content)
        with pytest.raises(FileError, match=r"small\.scz"):
            sc.load(small, network())
        content[place] ^= 4


def test_a_small_file_cannot_ask_for_much_memory(small: Path) -> None:
    rewrite(small, lambda index: index["tensors"][0].update(shape=[1 << 20, 1 << 10]))
    tracemalloc.start()
    with pytest.raises(FileError, match=r"2048 a byte\); nothing was read"):
        sc.read_compressed(small)
    assert tracemalloc.get_traced_memory()[1] < 2**21
    tracemalloc.stop()


def test_a_model_of_zeros_is_filled_up_to_what_a_reader_takes(tmp_path: Path) -> None:
    model = nn.Linear(1200, 1200, bias=False)
    nn.init.zeros_(model.weight)
    told = sc.compress(model, tmp_path / "small.scz", codecs=sc.coding.FAST)
    assert 1_440_000 / file.NUMBERS_A_BYTE <= told.bytes < 1_440_000 / file.NUMBERS_A_BYTE + 100
    assert_same(model, sc.decompress(tmp_path / "small.scz", lambda: nn.Linear(1200, 1200, bias=False)))
    content = bytearray((tmp_path / "small.scz").read_bytes())
    content[-1] = 1
    (tmp_path / "small.scz").write_bytes(content)
    with pytest.raises(FileError, match="fills it up"):
        sc.read_compressed(tmp_path / "small.scz")


@pytest.mark.parametrize(
    ("name", "said", "numbers"),
    [
        ("330a12b2b", "0676320122030503016076657240046980934104586158222", 545_408),
        ("00bba1aaa", "8109497440423869781587841557388779034464300432", 496_917),
    ],
)
def test_a_head_that_tells_of_zeros_may_be_shorter_than_one_that_does_not(
    name: str, said: str, numbers: int, tmp_path: Path
) -> None:
    file.write(tmp_path / "small.scz", {name: torch.zeros(numbers, dtype=torch.bool)}, {"x": said}, sc.coding.FAST)
    with file.opened(tmp_path / "small.scz") as reader:  # which refuses a file that is too short for its numbers
        assert reader.padding and reader.sections[name].numbers == numbers


CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda index: index["tensors"].append(index["tensors"][0]), "there twice"),
    (lambda index: index["tensors"][0].update(dtype="float3"), "float3, which this version does not know"),
    (lambda index: index["tensors"][0].update(shape=[-1]), "no tensor has the shape"),
    (lambda index: index["tensors"][0].update(bytes=1 << 40), "cut off, or damaged"),
    (lambda index: index["tensors"][0]["codec"].update({"is": "magic"}), r"0\.weight: it is coded as magic.*update secateurs"),
    (lambda index: index["tensors"][0].pop("codec"), "says nothing for codec"),
    (lambda index: index["document"].update(format=2), "of format 2"),
    (lambda index: index.update(document=[]), "for document"),
    (lambda index: index.update(tensors={}), "for tensors"),
    (lambda index: index.update(padding=True), "for padding"),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_an_index_that_is_wrong_is_refused(small: Path, number: int) -> None:
    change, words = CHANGES[number]
    rewrite(small, change)
    with pytest.raises(FileError, match=words):
        sc.load(small, network())


def test_a_file_of_another_version_says_what_to_do(small: Path) -> None:
    content = small.read_bytes()
    small.write_bytes(content[:8] + struct.pack("<I", 2) + content[12:])
    with pytest.raises(FileError, match="of version 2; this version reads 1: update secateurs"):
        sc.load(small, network())


def test_an_index_that_unpacks_to_more_than_it_says_is_refused(small: Path) -> None:
    content = small.read_bytes()
    data = zlib.compress(b" " * 10_000_000)
    checksum = zlib.crc32(data, zlib.crc32(struct.pack("<III", 1, len(data), 100)))
    small.write_bytes(HEAD.pack(content[:8], 1, len(data), 100, checksum) + data)
    with pytest.raises(FileError, match="its index is damaged"):
        sc.read_compressed(small)


def test_what_is_no_plain_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # as /dev/null is, in the place of which the superuser would get a file
    for path, what in ((tmp_path / "pipe", "a device or a pipe"), (tmp_path, "a folder")):
        with pytest.raises(WriteError, match=f"could not write .*: it is {what}"):
            file.write(path, {}, {})
    assert (tmp_path / "pipe").is_fifo() and [each.name for each in tmp_path.iterdir()] == ["pipe"]


def test_of_two_files_in_a_folder_one_is_named(small: Path) -> None:
    small.rename(small.parent / "model.scz")
    assert_same(sc.decompress(small.parent, network), sc.load(small.parent, network))
    sc.save(network(), small.parent / "model.safetensors")
    for read in (sc.decompress, sc.load):
        with pytest.raises(FileError, match=r"has model\.safetensors and model\.scz.*name one of them"):
            read(small.parent, network)
    sc.decompress(small.parent / "model.scz", network)


def test_deep_compression_has_indices_of_one_bit_to_sixteen() -> None:
    with pytest.raises(SecateursError, match="deep_compression: bits=17 must be from 1 to 16"):
        sc.coding.deep_compression(17)
    with pytest.raises(KindError, match="deep_compression: bits is '5', but must be a whole number"):
        sc.coding.deep_compression("5")  # type: ignore[arg-type]


def test_what_is_no_compressed_file_is_not_decompressed(tmp_path: Path) -> None:
    sc.save(network(), tmp_path / "a.safetensors")
    with pytest.raises(FileError, match="no compressed file; load"):
        sc.decompress(tmp_path / "a.safetensors", network)
    with pytest.raises(FileError, match=r"nothing\.scz"):
        sc.decompress(tmp_path / "nothing.scz", network)
    with pytest.raises(KindError, match="path"):
        sc.decompress(network(), tmp_path)  # type: ignore[arg-type]


def test_what_cannot_be_compressed_is_told_and_the_old_file_stays(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = small.read_bytes()
    with pytest.raises(SecateursError, match=r"0\.weight is on the meta device"):
        sc.compress(network().to("meta"), small)
    with pytest.raises(SecateursError, match=r"levels of 9\.weight"):
        sc.compress(network(), small, levels={"9.weight": Levels(torch.zeros(1, dtype=torch.int32))})
    with pytest.raises(SecateursError, match=r"0\.weight: its levels do not give"):
        sc.compress(network(), small, levels={"0.weight": Levels(torch.zeros(3, 2, 2, 2, dtype=torch.int32), scale=torch.ones(1))})
    wrong = Levels(torch.full((3, 2, 2, 2), 3, dtype=torch.int32).tril(), table=torch.tensor([[0.0, 1.0]]))
    with pytest.raises(SecateursError, match=r"levels go from 0 to 3, and their table from 0 to 1: give a value to each"):
        sc.compress(network(), small, levels={"0.weight": wrong})
    with pytest.raises(KindError, match=r"codecs is 'fast', but must be what coding\.FAST"):
        sc.compress(network(), small, codecs="fast")  # type: ignore[arg-type]
    with pytest.raises(KindError, match=r"codecs is 'fast', but must be what coding\.FAST"):
        sc.recode(small, small, codecs="fast")  # type: ignore[arg-type]
    for levels in (None, {"0.weight": 3}):
        with pytest.raises(KindError, match=r"levels is .*, but must be levels by the names of their weights"):
            sc.compress(network(), small, levels=levels)  # type: ignore[arg-type]
    monkeypatch.setattr(file, "_head", lambda *given: b"x" * 100_000_000)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", full_disk)
        with pytest.raises(WriteError, match="No space left"):
            sc.compress(network(), small)
    assert small.read_bytes() == before and [each.name for each in small.parent.iterdir()] == [small.name]


def full_disk(path: Any, mode: str = "r", *given: Any, **named: Any) -> Any:
    """A file on a disk that is full once something is written."""
    opened = io_open(path, mode, *given, **named)
    if "w" in mode:

        def write(content: Any) -> int:
            raise OSError(28, "No space left on device")

        opened = Full(opened, write)
    return opened


io_open = open


class Full:
    """A file whose `write` is another."""

    def __init__(self, opened: Any, write: Callable[[Any], int]) -> None:
        self._opened, self.write = opened, write

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def fileno(self) -> int:
        return self._opened.fileno()


# ---------------------------------------------------------------- budgets, and the command line


def test_a_budget_of_compressed_bytes_is_met_by_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, example = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32)), torch.zeros(1, 64)
    cost = sc.compressed_bytes_at(4)
    budget = sc.Budget(cost, limit=5000)
    masks = sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.within_budget(budget, sc.global_threshold), sc.Task(example))
    assert masks.plan is not None and 4900 < masks.plan.promised[cost.name] <= 5000
    for layer in (model[0], model[2]):
        scale = layer.weight.detach().abs().max() / 7
        with torch.no_grad():
            layer.weight.div_(scale).round_().mul_(scale)
    told = sc.compress(model, tmp_path / "small.scz", sc.Masks.of_zeros(model))
    assert 2000 < told.bytes <= 5000
    assert abs(sc.compressed_bytes(model, example) - told.bytes) < 0.2 * told.bytes


def test_bits_that_no_table_has_are_told() -> None:
    with pytest.raises(SecateursError, match="bits=17"):
        sc.compressed_bytes_at(17)


def test_the_command_line_compresses_looks_and_extracts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = lambda *words: app([str(word) for word in words], result_action="return_value", exit_on_error=False)  # noqa: E731
    small, plain = tmp_path / "small.scz", tmp_path / "plain.safetensors"
    run("compress", "digits_cnn", small)
    run("inspect", small)
    run("extract", small, plain)
    run("compress", plain, tmp_path / "again.scz", "--fast")
    run("compress", "digits_cnn", tmp_path / "shared.scz", "--weights", small, "--bits", "3")
    assert len(sc.load(tmp_path / "shared.scz", digits_cnn).conv2.weight.unique()) == 8
    said = capsys.readouterr().out
    assert said.count("conv1.weight") == 4 and f"{plain}: {plain.stat().st_size:,} bytes" in said.replace("\n", "")
    for words, problem in (
        (("compress", plain, tmp_path / "x.safetensors"), "does not end in"),
        (("compress", plain, tmp_path / "x.scz", "--weights", plain), "is a file, and has weights"),
        (("compress", plain, tmp_path / "x.scz", "--bits", "3"), "told by their model; name it"),
        (("extract", plain, tmp_path / "x.safetensors"), "no compressed file"),
        (("extract", small, tmp_path / "x.scz"), "ends in .safetensors"),
        (("extract", tmp_path, tmp_path / "x.safetensors"), "is a folder: name the file in it"),
        (("extract", tmp_path / "none.scz", tmp_path / "x.safetensors"), "there is no file .*none.scz"),
        (("compress", tmp_path / "none.safetensors", tmp_path / "x.scz"), "there is no file .*none.safetensors"),
        (("compress", tmp_path, tmp_path / "x.scz"), "is a folder, no model; compress takes a file in it, such as .*safetensors"),
        (("inspect", plain), "is a file, no model: name the model, and --weights"),
    ):
        with pytest.raises(SecateursError, match=problem):
            run(*words)


def test_masks_that_zeros_do_not_tell_are_there(small: Path) -> None:
    with file.opened(small) as reader:
        assert reader.document["masks"]["3.weight"] == {"in": "bits"} and "3.weight::mask" in reader.sections


def test_minus_zeros_that_cost_bytes_are_told(tmp_path: Path) -> None:
    model = nn.Linear(100, 10, bias=False)
    with torch.no_grad():
        model.weight.copy_(-torch.rand(10, 100) * (torch.rand(10, 100) < 0.1))
    with pytest.warns(UserWarning, match=r"weight has \d+ minus zeros"):
        sc.compress(model, tmp_path / "small.scz")
    assert_same(model, sc.decompress(tmp_path / "small.scz", lambda: nn.Linear(100, 10, bias=False)))
