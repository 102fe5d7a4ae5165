"""Files: what is saved comes back to the bit, and no file and no disk can do harm."""

from __future__ import annotations

import ast
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateurs as sc
from secateurs.files import container, layouts, nested_state
from secateurs.replacing import replacing
from secateurs.types import FileError, SecateursError, Share, WriteError

PLAN = sc.Plan({"0": Share(12, 5, {"0.weight": 1})}, {"params": 20.0})


def network() -> nn.Sequential:
    """A convolution, a normalisation with its buffers, and a linear layer."""
    return nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))


def pruned_network() -> tuple[nn.Sequential, sc.Masks]:
    model = network()
    model(torch.randn(4, 2, 3, 3))  # moves the running statistics
    masks = sc.Masks(
        {"0.weight": torch.rand(3, 2, 2, 2) < 0.5, "3.weight": torch.rand(2, 12) < 0.3}, model, sc.Origin(PLAN, "Element()")
    )
    return model, masks.apply_()


def bits(tensor: Tensor) -> Tensor:
    """A tensor's bytes, by which NaNs and minus zeros can be compared."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def assert_same_state(a: nn.Module, b: nn.Module) -> None:
    first, second = a.state_dict(), b.state_dict()
    assert first.keys() == second.keys()
    assert [name for name in first if not same_bits(first[name], second[name])] == []


def assert_same_masks(a: sc.Masks, b: sc.Masks) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


class Holder(nn.Module):
    """A model that is one parameter of any shape and dtype."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(value.clone(), requires_grad=False)


class Named(nn.Module):
    """A model with parameters of any names that torch allows."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.eye(2)))


def hostile(path: Path, document: Any, tensors: dict[str, Tensor] | None = None) -> Path:
    text = document if isinstance(document, str) else json.dumps(document)
    save_file(tensors if tensors is not None else {"weight": torch.ones(1, 2)}, path, metadata={"secateurs": text})
    return path


# ---------------------------------------------------------------- round trips

SPECIAL = (0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e-45, 6e-8, 5e-324, 1.0, -3.5)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
shapes = st.lists(st.integers(0, 4), max_size=5)


@st.composite
def sparse_weights(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    shape = draw(shapes)
    count = torch.Size(shape).numel()
    values = draw(st.lists(st.sampled_from(SPECIAL), min_size=count, max_size=count))
    kept = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    value = torch.tensor(values, dtype=torch.float64).to(draw(st.sampled_from(DTYPES))).view(shape)
    if value.ndim == 4 and draw(st.booleans()):
        value = value.contiguous(memory_format=torch.channels_last)
    return value, torch.tensor(kept, dtype=torch.bool).view(shape)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@given(sparse_weights(), st.booleans())
@settings(max_examples=150)
def test_weights_and_masks_come_back_to_the_bit(folder: Path, weight: tuple[Tensor, Tensor], sparse: bool) -> None:
    value, mask = weight
    model = Holder(value)
    masks = sc.Masks({"weight": mask}, model).apply_()
    size = sc.save(model, folder / "one.safetensors", masks, sparse=sparse)
    other = Holder(torch.full_like(value, 7))
    assert sc.load(folder / "one.safetensors", other) is other
    assert same_bits(other.weight, model.weight)
    assert_same_masks(sc.load_masks(folder / "one.safetensors", other), masks)
    assert size == (folder / "one.safetensors").stat().st_size


STORABLE = ["bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "complex64"]
STORABLE += [name for name in vars(torch) if name.startswith("float8_")]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", STORABLE)
def test_every_dtype_that_can_be_saved_can_be_loaded(tmp_path: Path, dtype: str, sparse: bool) -> None:
    values = torch.arange(1, 9, dtype=torch.uint8)
    whole = values.bool() if dtype == "bool" else values.repeat_interleave(8).view(getattr(torch, dtype))
    model, mask = Holder(whole), torch.arange(whole.numel()) % 3 == 0
    masks = sc.Masks({"weight": mask}, model).apply_()
    sc.save(model, tmp_path / "model", masks, sparse=sparse)
    loaded = sc.load(tmp_path / "model", lambda: Holder(torch.zeros_like(model.weight)))
    assert same_bits(loaded.weight, model.weight)
    assert int((bits(loaded.weight) != 0).sum()) == sum(mask) * whole.element_size()
    assert_same_masks(sc.load_masks(tmp_path / "model", loaded), masks)


def test_numbers_that_are_negated_or_conjugated_later_are_saved_as_they_are_seen(tmp_path: Path) -> None:
    """Their memory holds the others; two views of one memory are not one tensor."""
    model = nn.Module()
    number = torch.tensor([1 + 2j, 3 - 4j])
    for name, tensor in {"plain": number, "conj": number.conj(), "neg": number.conj().imag}.items():
        model.register_buffer(name, tensor)
    sc.save(model, tmp_path / "model")
    assert {name: tensor.tolist() for name, tensor in load_file(tmp_path / "model").items()} == {
        "plain": [1 + 2j, 3 - 4j],
        "conj": [1 - 2j, 3 + 4j],
        "neg": [-2, 4],
    }


@pytest.mark.parametrize("sparse", [False, True])
def test_a_network_comes_back_whole(tmp_path: Path, sparse: bool) -> None:
    """Buffers, masks, plan, pattern, metric and seed; into a model, or into one that a function makes."""
    model, masks = pruned_network()
    path = tmp_path / "model.safetensors"
    sc.save(model, path, masks, sparse=sparse, metric={"accuracy": 0.75}, seed=7)
    loaded = sc.load(path, network)
    assert_same_state(loaded, model)
    back = sc.load_masks(path, loaded)
    assert_same_masks(back, masks)
    assert (back.plan, back.pattern) == (PLAN, "Element()")
    saved = sc.read_saved(path)
    assert saved == sc.Saved("Sequential", "Element()", PLAN, ("0.weight", "3.weight"), {"accuracy": 0.75}, 7)


@pytest.mark.parametrize("sparse", [False, True])
def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path: Path, sparse: bool) -> None:
    model, masks = pruned_network()
    sc.save(model, tmp_path / "first", masks, sparse=sparse)
    again = sc.load(tmp_path / "first", network)
    sc.save(again, tmp_path / "second", sc.load_masks(tmp_path / "first", again), sparse=sparse)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_masks_are_read_from_the_zeros_where_these_say_it_all(tmp_path: Path) -> None:
    """Bits are stored only where a kept weight is zero by itself."""
    layer = nn.Linear(3, 1, bias=False)
    masks = sc.Masks({"weight": torch.tensor([[True, False, True]])}, layer).apply_()
    sc.save(layer, tmp_path / "clear", masks)
    assert list(load_file(tmp_path / "clear")) == ["weight"]
    layer.weight.data[0, 0] = 0
    sc.save(layer, tmp_path / "ambiguous", masks)
    assert sorted(load_file(tmp_path / "ambiguous")) == ["weight", "weight::mask"]
    for name in ("clear", "ambiguous"):
        assert sc.load_masks(tmp_path / name, layer)["weight"].tolist() == [[True, False, True]]


def test_sparse_files_hold_the_kept_weights_and_one_bit_for_each(tmp_path: Path) -> None:
    layer = nn.Linear(100, 10, bias=False)
    masks = sc.Masks({"weight": torch.rand(10, 100) < 0.1}, layer).apply_()
    sc.save(layer, tmp_path / "sparse", masks, sparse=True)
    payload = sum(tensor.numel() * tensor.element_size() for tensor in load_file(tmp_path / "sparse").values())
    assert payload == 4 * masks.kept + 1000 // 8


def test_dense_files_are_plain_safetensors(tmp_path: Path) -> None:
    model, masks = pruned_network()
    sc.save(model, tmp_path / "model", masks)
    plain = load_file(tmp_path / "model")
    assert all(torch.equal(plain[name], tensor) for name, tensor in model.state_dict().items())


def test_files_of_other_programs_load(tmp_path: Path) -> None:
    model = network()
    save_file(model.state_dict(), tmp_path / "foreign", metadata={"format": "pt"})
    assert_same_state(sc.load(tmp_path / "foreign", network), model)
    assert len(sc.load_masks(tmp_path / "foreign", model)) == 0
    assert sc.read_saved(tmp_path / "foreign") == sc.Saved()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Embedding(5, 3)
        self.write = nn.Linear(3, 5, bias=False)
        self.write.weight = self.read.weight


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("masked", ["read.weight", "write.weight", "module.read.weight"])
def test_tied_weights_are_stored_once_with_their_mask(tmp_path: Path, sparse: bool, masked: str) -> None:
    """Under whichever of its names the mask goes."""
    model = Tied()
    masks = sc.Masks({masked: torch.rand(5, 3) < 0.5}, model).apply_()
    sc.save(model, tmp_path / "tied", masks, sparse=sparse)
    assert "write.weight" not in load_file(tmp_path / "tied")
    loaded = sc.load(tmp_path / "tied", Tied)
    assert_same_state(loaded, model)
    assert loaded.read.weight is loaded.write.weight
    assert torch.equal(sc.load_masks(tmp_path / "tied", loaded)["read.weight"], masks[masked])


def test_two_parameters_in_one_memory_keep_the_mask_of_either(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data)
    masks = sc.Masks({"1.weight": torch.eye(2).bool()}, model).apply_()
    sc.save(model, tmp_path / "shared", masks)
    assert list(sc.read_saved(tmp_path / "shared").masks) == ["0.weight"]


def test_a_buffer_that_is_a_view_of_a_weight_is_saved(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    model.register_buffer("flat", model.weight.data.view(-1))
    model.register_buffer("bits", model.weight.data.view(torch.int32))
    sc.save(model, tmp_path / "views")
    assert torch.equal(load_file(tmp_path / "views")["flat"], model.weight.detach().view(-1))
    assert load_file(tmp_path / "views")["bits"].dtype == torch.int32


def test_files_can_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    sc.save(nn.Linear(2, 1), tmp_path / "model")
    (tmp_path / "other").write_bytes(b"")
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "other").stat().st_mode


# ---------------------------------------------------------------- layouts


def test_a_new_layout_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The places of what stays as whole numbers, instead of a bit for each weight."""

    def decode(lying: layouts.Lying) -> layouts.Read:
        def mask() -> Tensor:
            return torch.zeros(6, dtype=torch.bool).index_fill(0, lying.bits.long(), True).view(2, 3)

        return layouts.Read((2, 3), lying.value.dtype, lambda: torch.zeros(2, 3).masked_scatter(mask(), lying.value), mask)

    places = layouts.Layout(
        lambda value, mask, sparse: sparse and mask.numel() < 256,
        lambda name, value, mask: ({"": value[mask], layouts.BITS: mask.flatten().nonzero()[:, 0].byte()}, {"in": "places"}),
        lambda entry: entry.get("in") == "places",
        decode,
    )
    model = nn.Linear(3, 2)
    masks = sc.Masks({"weight": torch.tensor([[True, False, False], [False, True, False]])}, model).apply_()
    monkeypatch.setattr(layouts, "LAYOUTS", {"places": places, **layouts.LAYOUTS})
    sc.save(model, tmp_path / "model", masks, sparse=True)
    tensors, document = container.read(tmp_path / "model")
    assert tensors["weight::mask"].tolist() == [0, 4] and document["masks"] == {"weight": {"in": "places"}}
    loaded = sc.load(tmp_path / "model", nn.Linear(3, 2))
    assert torch.equal(loaded.weight, model.weight)
    assert torch.equal(sc.load_masks(tmp_path / "model", loaded)["weight"], masks["weight"])


# ---------------------------------------------------------------- names with a prefix


@pytest.mark.filterwarnings("ignore")  # torch.compile's own
@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["module.", "_orig_mod."])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_wrappers_prefix_is_named_with_the_way_out(wrap: Any, ending: str, tmp_path: Path) -> None:
    wrapped, model, path = wrap(nn.Linear(3, 2)), nn.Linear(3, 2), str(tmp_path / f"model.{ending}")
    torch.save(wrapped.state_dict(), path) if ending == "pth" else sc.save(wrapped, path)
    with pytest.raises(
        FileError, match=r"its names begin with '(module|_orig_mod)\.', as .* do; sc.load\(path, (.*)\) loads the"
    ) as told:
        sc.load(path, model)
    around = re.search(r"sc.load\(path, (.*)\) loads", str(told.value)).group(1)
    sc.load(path, eval(around, {"torch": torch, "model": model}))
    assert torch.equal(model.weight, next(wrapped.parameters()))


def test_a_file_of_the_model_within_a_wrapper_says_so(tmp_path: Path) -> None:
    sc.save(nn.Linear(3, 2), tmp_path / "model")
    with pytest.raises(FileError, match=r"of the model within this wrapper; sc.load\(path, model.module\) loads that"):
        sc.load(tmp_path / "model", nn.DataParallel(nn.Linear(3, 2)))


# ---------------------------------------------------------------- golden bytes


def tiny() -> tuple[nn.Module, sc.Masks]:
    model = nn.Linear(5, 2)
    model.weight.data = torch.tensor([[1.0, 0, 0, -2, 0], [0, 0, 3, 0, 0]])
    model.bias.data = torch.tensor([0.5, -0.5])
    mask = torch.tensor([[True, False, False, True, False], [False, False, True, False, True]])
    plan = sc.Plan({"weight": Share(10, 4, {"weight": 1})})
    return model, sc.Masks({"weight": mask}, model, sc.Origin(plan, "Element()"))


DENSE_DOCUMENT = (
    r"{\"format\": 1, \"model\": \"Linear\", \"pattern\": \"Element()\", \"plan\": \"{\\\"shares\\\": {\\\"weight\\\": "
    r"{\\\"units\\\": 10, \\\"kept\\\": 4, \\\"elements\\\": {\\\"weight\\\": 1}}}, \\\"promised\\\": {}}\", "
    r"\"masks\": {\"weight\": {\"in\": \"bits\"}}, \"tied\": {}, \"metric\": {\"accuracy\": 0.5}, \"seed\": 3, "
    r"\"checksums\": {\"weight\": \"5cd33a95\", \"weight::mask\": \"5f5fe834\", \"bias\": \"1d8d5e23\"}, \"checksum\": \"4a716802\"}"
)
SPARSE_DOCUMENT = (
    DENSE_DOCUMENT.replace(r"\"in\": \"bits\"", r"\"in\": \"bits\", \"shape\": [2, 5]")
    .replace("5cd33a95", "a0adcdc0")
    .replace("4a716802", "6d61a76d")
)
GOLDEN = {
    False: (
        '{"__metadata__":{"secateurs":"' + DENSE_DOCUMENT + '"},"bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"weight":{"dtype":"F32","shape":[2,5],"data_offsets":[8,48]},'
        '"weight::mask":{"dtype":"U8","shape":[2],"data_offsets":[48,50]}}',
        "0000003f000000bf"  # bias: 0.5, -0.5
        "0000803f0000000000000000000000c000000000"  # first row: 1, 0, 0, -2, 0
        "0000000000000000000040400000000000000000"  # second row: 0, 0, 3, 0, 0
        "9140",  # bits, most significant first: 10010 00101 and six of nothing
    ),
    True: (
        '{"__metadata__":{"secateurs":"' + SPARSE_DOCUMENT + '"},"bias":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
        '"weight":{"dtype":"F32","shape":[4],"data_offsets":[8,24]},'
        '"weight::mask":{"dtype":"U8","shape":[2],"data_offsets":[24,26]}}',
        "0000003f000000bf"
        "0000803f000000c00000404000000000"  # the kept weights: 1, -2, 3, and the kept 0
        "9140",
    ),
}


@pytest.mark.parametrize("sparse", [False, True])
def test_the_bytes_of_a_file_are_these(tmp_path: Path, sparse: bool) -> None:
    header, payload = GOLDEN[sparse]
    padded = header.encode() + b" " * (-len(header) % 8)
    golden = struct.pack("<Q", len(padded)) + padded + bytes.fromhex(payload)
    model, masks = tiny()
    sc.save(model, tmp_path / "written", masks, sparse=sparse, metric={"accuracy": 0.5}, seed=3)
    assert (tmp_path / "written").read_bytes() == golden
    (tmp_path / "golden").write_bytes(golden)
    assert [f"{zlib.crc32(bytes.fromhex(payload)[start:end]):08x}" in header for start, end in ((0, 8), (8, -2), (-2, None))] == [
        True
    ] * 3
    loaded = sc.load(tmp_path / "golden", lambda: nn.Linear(5, 2))
    assert_same_state(loaded, model)
    assert_same_masks(sc.load_masks(tmp_path / "golden", loaded), masks)


# ---------------------------------------------------------------- attacks


def survives(path: Path, model: nn.Module, verify: bool = True) -> bool:
    """Whether a file loads; where it does not, it must be a `FileError`, and the model as it was."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = True
    for use in (
        lambda: sc.load_masks(path, model, verify=verify),
        lambda: sc.read_saved(path, verify=verify),
        lambda: sc.load(path, model, verify=verify),
    ):
        loaded = True
        try:
            use()
        except FileError:
            loaded = False
    if not loaded:
        assert all(same_bits(tensor, before[name]) for name, tensor in model.state_dict().items())
    return loaded


@pytest.fixture(params=[False, True], ids=["dense", "sparse"])
def original(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model, masks = tiny()
    sc.save(model, tmp_path / "original", masks, sparse=request.param, metric={"accuracy": 0.5}, seed=3)
    return tmp_path / "original"


def test_truncated_files_are_refused(original: Path) -> None:
    content = original.read_bytes()
    cuts = {len(content) * k // 7 for k in range(7)} | {1, 7, 8, 9, len(content) - 1}
    for cut in sorted(cuts):
        original.write_bytes(content[:cut])
        assert not survives(original, nn.Linear(5, 2)), cut


@pytest.mark.parametrize("more", [b"\0", b"more" * 100])
def test_files_that_go_on_after_their_end_are_refused(original: Path, more: bytes) -> None:
    original.write_bytes(original.read_bytes() + more)
    assert not survives(original, nn.Linear(5, 2))


def test_flipped_bits_are_seen_or_without_checksums_give_other_values_and_never_anything_else(original: Path) -> None:
    """All bits of the header's length and of the data, one of each byte of the rest."""
    content = original.read_bytes()
    data, document_ends = 8 + struct.unpack("<Q", content[:8])[0], content.index(b'"bias"')
    places = [(byte, bit) for byte in (*range(8), *range(data, len(content))) for bit in range(8)]
    places += [(byte, byte % 8) for byte in range(document_ends, data)]
    places += [(byte, byte % 7) for byte in range(8, document_ends)]
    loads = 0
    for byte, bit in places:
        flipped = bytearray(content)
        flipped[byte] ^= 1 << bit
        original.write_bytes(flipped)
        assert byte < data or not survives(original, nn.Linear(5, 2))
        model = nn.Linear(5, 2)
        if survives(original, model, verify=False):
            loads += 1
            assert model.weight.shape == (2, 5)
            assert model.weight.dtype == torch.float32
    assert loads >= 8 * 24  # flipped values, at least, cannot be seen without


def test_a_flipped_bit_is_named_with_the_way_out(original: Path) -> None:
    """In a tensor, or in the story: there whatever number it is that still reads as one."""
    content = original.read_bytes()
    for old, new, where in ((b"\0\0\0\xbf", b"\0\0\1\xbf", "bias"), (b"0.5", b"0.7", "its secateurs document")):
        original.write_bytes(content.replace(old, new, 1))
        with pytest.raises(FileError, match=rf"{where} is not what was written .* get it again \(load takes verify=False\)"):
            sc.load(original, nn.Linear(5, 2))
        sc.load(original, nn.Linear(5, 2), verify=False)
    assert sc.read_saved(original, verify=False).metric == {"accuracy": 0.7}


@pytest.mark.parametrize("checksums", [None, {}, {"weight": "00000000"}, {"weight": 0}, {"bias": ""}, ["weight"]])
def test_checksums_that_are_not_those_of_the_tensors_are_refused(tmp_path: Path, checksums: Any) -> None:
    """Files without any load."""
    path = hostile(tmp_path / "hostile", {"format": 1, "checksums": checksums})
    assert survives(path, nn.Linear(2, 1, bias=False)) is (checksums is None)


DEEP = "[" * 5000 + "]" * 5000
DEEP_DICT = '{"a":' * 800 + "1" + "}" * 800
BITS = {"weight::mask": torch.tensor([128], dtype=torch.uint8)}
ONE = {"weight": torch.ones(1)}
DOCUMENTS: dict[str, tuple[Any, dict[str, Tensor] | None]] = {
    "no JSON": ("{", None),
    "empty text": ("", None),
    "deep list": (DEEP, None),
    "deep document": ('{"format": ' + DEEP_DICT + "}", None),
    "deep pattern": ('{"format": 1, "pattern": ' + DEEP_DICT + "}", None),
    "deep masks": ('{"format": 1, "masks": {"weight": ' + DEEP_DICT + "}}", None),
    "a list": ([1], None),
    "a number": (1, None),
    "null": (None, None),
    "no format": ({}, None),
    "format of the future": ({"format": 2}, None),
    "format is text": ({"format": "1"}, None),
    "format is null": ({"format": None}, None),
    "masks are a list": ({"format": 1, "masks": ["weight"]}, None),
    "masks are null": ({"format": 1, "masks": None}, None),
    "mask of nothing": ({"format": 1, "masks": {"nope": {"in": "zeros"}}}, None),
    "mask is a list": ({"format": 1, "masks": {"weight": ["bits"]}}, None),
    "mask in the sky": ({"format": 1, "masks": {"weight": {"in": "sky"}}}, None),
    "no bits": ({"format": 1, "masks": {"weight": {"in": "bits"}}}, None),
    "bits of another length": (
        {"format": 1, "masks": {"weight": {"in": "bits"}}},
        {"weight": torch.ones(1, 2), "weight::mask": torch.zeros(2, dtype=torch.uint8)},
    ),
    "bits after the end": (
        {"format": 1, "masks": {"weight": {"in": "bits"}}},
        {"weight": torch.ones(1, 2), "weight::mask": torch.tensor([255], dtype=torch.uint8)},
    ),
    "bits of another dtype": (
        {"format": 1, "masks": {"weight": {"in": "bits"}}},
        {"weight": torch.ones(1, 2), "weight::mask": torch.tensor([64], dtype=torch.int8)},
    ),
    "huge shape": ({"format": 1, "masks": {"weight": {"in": "bits", "shape": [2**40, 2**40]}}}, ONE | BITS),
    "huge shape of nothing": (
        {"format": 1, "masks": {"weight": {"in": "bits", "shape": [2**70, 0]}}},
        {"weight": torch.ones(0), "weight::mask": torch.zeros(0, dtype=torch.uint8)},
    ),
    "hundred dimensions": ({"format": 1, "masks": {"weight": {"in": "bits", "shape": [1] * 100}}}, ONE | BITS),
    "shape of a thousand numbers of a thousand digits": (
        {"format": 1, "masks": {"weight": {"in": "bits", "shape": [10**1000] * 1000}}},
        {"weight": torch.ones(0), "weight::mask": torch.zeros(0, dtype=torch.uint8)},
    ),
    "sparse and yet not": (
        {"format": 1, "masks": {"weight": {"in": "bits", "shape": [1, 2]}}},
        {"weight": torch.ones(1, 2), "weight::mask": torch.tensor([192], dtype=torch.uint8)},
    ),
    "a format that is true": ({"format": True}, None),
    "a format of a thousand digits": ({"format": 10**1000}, None),
    "no object": ([1], None),
    "negative shape": ({"format": 1, "masks": {"weight": {"in": "bits", "shape": [-1, -2]}}}, ONE | BITS),
    "shape of text": ({"format": 1, "masks": {"weight": {"in": "bits", "shape": "12"}}}, ONE | BITS),
    "shape of fractions": ({"format": 1, "masks": {"weight": {"in": "bits", "shape": [1.0, 2.0]}}}, ONE | BITS),
    "shape of truths": ({"format": 1, "masks": {"weight": {"in": "bits", "shape": [True, 2]}}}, ONE | BITS),
    "too few values": (
        {"format": 1, "masks": {"weight": {"in": "bits", "shape": [1, 2]}}},
        {"weight": torch.ones(1), "weight::mask": torch.tensor([192], dtype=torch.uint8)},
    ),
    "tied are a list": ({"format": 1, "tied": ["weight"]}, None),
    "tied to nothing": ({"format": 1, "tied": {"a": "b"}}, None),
    "tied in a circle": ({"format": 1, "tied": {"a": "b", "b": "a"}}, None),
    "tied to itself": ({"format": 1, "tied": {"weight": "weight"}}, None),
    "tied to a list": ({"format": 1, "tied": {"a": ["weight"]}}, None),
    "tied over a tensor": ({"format": 1, "tied": {"weight": "b"}}, {"weight": torch.ones(1, 2), "b": torch.ones(1, 2)}),
}
TOLD: dict[str, Any] = {
    "deep plan": {"plan": DEEP},
    "plan is a number": {"plan": 5},
    "plan is no plan": {"plan": "[]"},
    "plan keeps too much": {"plan": '{"shares": {"a": {"units": 1, "kept": 2, "elements": {}}}, "promised": {}}'},
    "plan without end": {"plan": '{"shares": {"a": {"units": 1e999, "kept": 0, "elements": {}}}, "promised": {}}'},
    "metric is a list": {"metric": [1]},
    "metric of text": {"metric": {"accuracy": "high"}},
    "seed of text": {"seed": "1"},
    "model is a list": {"model": []},
    "pattern is a number": {"pattern": 3},
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_hostile_documents_are_refused(tmp_path: Path, name: str) -> None:
    document, tensors = DOCUMENTS[name]
    assert not survives(hostile(tmp_path / "hostile", document, tensors), nn.Linear(2, 1, bias=False))


@pytest.mark.parametrize("name", TOLD)
def test_a_damaged_story_is_refused_where_it_is_read(tmp_path: Path, name: str) -> None:
    path = hostile(tmp_path / "hostile", {"format": 1, **TOLD[name]})
    model = nn.Linear(2, 1, bias=False)
    for read in (lambda: sc.read_saved(path), lambda: sc.load_masks(path, model)):
        with pytest.raises(FileError):
            read()
    assert torch.equal(sc.load(path, model).weight, torch.ones(1, 2))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["bits", "weight"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["in", "shape", "weight", "a"]), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["masks", "tied", "plan", "pattern", "metric", "seed", "model"]), json_values, max_size=4))
@settings(max_examples=200)
def test_any_document_gives_a_load_or_a_file_error(folder: Path, document: dict[str, Any]) -> None:
    tensors = {"weight": torch.ones(1, 2), "weight::mask": torch.tensor([192], dtype=torch.uint8)}
    path = hostile(folder / "fuzzed", {"format": 1, **document}, tensors)
    assert survives(path, nn.Linear(2, 1, bias=False)) in (False, True)


def test_a_mask_of_another_shape_than_the_parameter_is_refused(tmp_path: Path) -> None:
    path = hostile(tmp_path / "hostile", {"format": 1, "masks": {"weight": {"in": "zeros"}}})
    with pytest.raises(
        FileError, match=r"belongs to another model: weight: the mask is of shape \(1, 2\), but the weight of \(1, 3\)"
    ):
        sc.load_masks(path, nn.Linear(3, 1, bias=False))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: nn.Linear(3, 2, bias=False), r"it has, and the model does not have, bias \(0 tensors are missing, 1 are not"),
        (lambda: nn.Sequential(nn.Linear(3, 2)), r"it lacks 0\.bias \(2 tensors are missing, 2 are not expected\)"),
        (lambda: nn.Linear(4, 2), r"weight is \(2, 3\) in the file and \(2, 4\) in the model"),
        (
            lambda: nn.Linear(3, 2).half(),
            r"is torch\.float32 in the file and torch\.float16 in the model; .*model\.to\(torch\.float32\)",
        ),
    ],
)
def test_a_file_of_another_model_names_the_difference(tmp_path: Path, other: Callable[[], nn.Module], message: str) -> None:
    sc.save(nn.Linear(3, 2), tmp_path / "model")
    model = other()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FileError, match=message):
        sc.load(tmp_path / "model", model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="nothing-here"):
        sc.load(tmp_path / "nothing-here", nn.Linear(2, 1))
    with pytest.raises(FileError, match="no readable safetensors file"):
        sc.read_saved(tmp_path)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: nn.Linear(2, 1, device="meta"), "weight has no memory to load values into"),
        (lambda: nn.LazyLinear(1), "weight has no memory to load values into"),
    ],
)
def test_a_model_without_memory_is_not_loaded_in_silence(tmp_path: Path, model: Callable[[], nn.Module], message: str) -> None:
    sc.save(nn.Linear(2, 1), tmp_path / "model")
    with pytest.raises(SecateursError, match=message):
        sc.load(tmp_path / "model", model())


def test_what_lies_in_one_place_of_memory_is_not_loaded_into(tmp_path: Path) -> None:
    """Torch would complain in the middle, with some tensors loaded and some not."""
    model = nn.Linear(2, 1)
    model.register_buffer("scale", torch.ones(1).expand(3))
    sc.save(model, tmp_path / "model")
    with pytest.raises(SecateursError, match=r"scale is expanded, many of its numbers in one place of memory; .* clone\(\)"):
        sc.load(tmp_path / "model", model)


CLASHING = Named("w", "w::mask")


class Odd(nn.Linear):
    def get_extra_state(self) -> str:
        return "a secret"


@pytest.mark.parametrize(
    ("model", "masks", "message"),
    [
        (lambda: nn.Linear(2, 1, device="meta"), None, "weight is on the meta device and has no values to save"),
        (lambda: nn.LazyLinear(1), None, "weight is lazy and has no values to save"),
        (lambda: Odd(2, 1), None, "_extra_state: the model's state has a str there; only tensors can be saved"),
        (
            lambda: nn.Linear(2, 1),
            sc.Masks({"0.weight": torch.ones(1, 2).bool()}, nn.Sequential(nn.Linear(2, 1))),
            r"none of the masked parameters \(0\.weight, …\) is one of this Linear's.*masks\.bind\(model\)",
        ),
        (
            lambda: CLASHING,
            sc.Masks({"w": torch.eye(2).bool()}, CLASHING),
            "w::mask is where the mask of w is to be stored; rename it",
        ),
        (lambda: Named("__metadata__"), None, "cannot be called '__metadata__' in a safetensors file; rename it"),
        (lambda: Named("\udc80"), None, "cannot be called '.udc80' in a safetensors file; rename it"),
        (lambda: Holder(torch.ones(1, dtype=torch.complex128)), None, "weight is torch.complex128, which safetensors files cannot"),
        (lambda: Holder(torch.eye(2).to_sparse()), None, r"weight is torch.sparse_coo; only dense tensors .* to_dense\(\)"),
    ],
)
def test_what_cannot_be_saved_is_named(
    tmp_path: Path, model: Callable[[], nn.Module], masks: sc.Masks | None, message: str
) -> None:
    with pytest.raises(SecateursError, match=message):
        sc.save(model(), tmp_path / "model", masks)
    assert list(tmp_path.iterdir()) == []


def test_masked_weights_that_are_not_zero_are_not_dropped_from_a_sparse_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    masks = sc.Masks({"1.weight": torch.eye(2).bool()}, model).apply_()
    model[1].weight.data[0, 1], model[1].weight.data[1, 0] = torch.nan, 0.5
    with pytest.raises(SecateursError, match=r"1\.weight: 2 of its masked weights are not zero.*masks\.apply_\(\).*masks\.attach"):
        sc.save(model, tmp_path / "model", masks, sparse=True)
    assert list(tmp_path.iterdir()) == []
    sc.save(model, tmp_path / "whole", masks)
    loaded = sc.load(tmp_path / "whole", nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    assert same_bits(loaded[1].weight, model[1].weight)
    model[1].weight.data[0, 1], model[1].weight.data[1, 0] = -0.0, 0
    assert sc.save(model, tmp_path / "sparse", masks, sparse=True)


# ---------------------------------------------------------------- writing that fails


@pytest.fixture
def old(tmp_path: Path) -> Iterator[Path]:
    """A file that must survive, byte by byte, alone in its folder."""
    path = tmp_path / "model.safetensors"
    sc.save(nn.Linear(2, 1), path)
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


_FULL_DISK = """
import resource, signal, sys
import torch
import secateurs as sc
from secateurs.types import WriteError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    sc.save(torch.nn.Linear(1000, 1000), sys.argv[1])
except WriteError as error:
    print(error)
"""


def test_a_full_disk_leaves_the_old_file(old: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _FULL_DISK, str(old)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"could not write {old}: ")
    assert "File too large" in done.stdout
    assert "what was there before is untouched" in done.stdout


@pytest.mark.parametrize("step", ["replace", "chmod", "fsync"])
def test_a_read_only_folder_leaves_the_old_file(old: Path, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(WriteError, match=r"could not write .*Permission denied.* untouched"):
        sc.save(nn.Linear(3, 3), old)


def test_an_interrupt_while_writing_leaves_the_old_file(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sc.save(nn.Linear(3, 3), old)


def test_a_file_that_was_written_in_part_never_has_the_files_name(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment before the replacement the old file is whole, so SIGKILL at any time leaves one of the two."""
    seen: list[bytes] = []

    def watch(source: Any, target: Any) -> None:
        seen.append(Path(target).read_bytes())
        assert len(load_file(source)) == 2
        assert Path(source).parent.parent == Path(target).parent

    before = old.read_bytes()
    monkeypatch.setattr(os, "replace", watch)
    sc.save(nn.Linear(3, 3), old)
    assert seen == [before]


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    dead, of_another = (tmp_path / f".{name}.abc_1234.part" for name in ("model.safetensors", "model.safetensors.old"))
    for folder in (dead, of_another):
        folder.mkdir()
        (folder / "half").write_text("")
    (tmp_path / ".model.safetensors.mine.part").write_text("a file that is no folder")
    with replacing(path) as living:
        living.write_bytes(b"half")
        sc.save(nn.Linear(2, 1), path)
        assert living.exists()
        assert not dead.exists()
    assert sorted(each.name for each in tmp_path.iterdir()) == [".model.safetensors.mine.part", of_another.name, path.name]
    assert path.read_bytes() == b"half"


@pytest.mark.parametrize("path", ["missing/model.safetensors", "file/model.safetensors", "folder"])
def test_no_folder_to_write_to_is_an_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="could not write"):
        sc.save(nn.Linear(2, 1), tmp_path / path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]


def test_write_errors_are_of_both_families() -> None:
    """Those who catch OSError catch them, and those who catch everything of this package."""
    assert issubclass(WriteError, OSError)
    assert issubclass(WriteError, SecateursError)


# ---------------------------------------------------------------- a checkpoint's tree

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
tensors = st.builds(lambda n, dtype: torch.arange(n).to(dtype), st.integers(0, 3), st.sampled_from([torch.float32, torch.int64]))
keys = st.integers(-2, 2) | st.sampled_from(["", "0", "1", "/", "a", "a/b", "a.key", "tensor", "dict"]) | st.none()
trees = st.recursive(
    leaves | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and same_bits(a, b)
    if isinstance(a, dict):
        pairs = zip(a.items(), b.items(), strict=True)
        return isinstance(b, dict) and all(type(k) is type(j) and k == j and equal(v, w) for (k, v), (j, w) in pairs)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


@given(trees)
@settings(max_examples=200)
def test_trees_come_back_with_all_their_types(data: Any) -> None:
    found, document = nested_state.pack(data)
    assert equal(nested_state.unpack(found, json.loads(json.dumps(document))), data)


@pytest.mark.parametrize(
    "data", [{1: torch.ones(1), "1": torch.zeros(1)}, {"a": {"b": torch.ones(1)}, "a/b": torch.zeros(1), "a/b'": torch.ones(2)}]
)
def test_keys_that_look_alike_do_not_get_each_others_tensors(data: Any) -> None:
    found, document = nested_state.pack(data)
    assert equal(nested_state.unpack(found, document), data)


def test_what_is_no_data_cannot_go_into_a_tree() -> None:
    with pytest.raises(TypeError, match=r"/a/0: object cannot go into a checkpoint"):
        nested_state.pack({"a": [object()]})


NO_TREES: list[Any] = [
    *({"tensor": "nope"}, {"tensor": 1}, {"dict": [[1]]}, {"dict": 1}, {"list": 1}, {}, {"a": 1}, [1], {"list": [], "tuple": []}),
    *({"dict": [[{"list": []}, 1]]}, {"dict": [["a", 1], ["a", 2]]}, {"dict": [[{"tuple": [{"list": []}]}, 1]]}),
    *({"list": [{"tensor": "there"}, {"tensor": "there"}]}, {"dict": [[{"tensor": "there"}, 1]]}),
]


@pytest.mark.parametrize("document", NO_TREES)
def test_what_is_no_tree_is_refused(document: Any) -> None:
    with pytest.raises(FileError, match="no part of the format"):
        nested_state.unpack({"there": torch.ones(1)}, document)


def test_documents_and_tensors_come_back_from_the_container(tmp_path: Path) -> None:
    container.write(tmp_path / "file", {"a": torch.arange(3)}, {"text": "déjà vu", "numbers": [1, 2.5, float("inf")]})
    found, document = container.read(tmp_path / "file")
    assert torch.equal(found["a"], torch.arange(3))
    assert document == {"format": container.FORMAT, "text": "déjà vu", "numbers": [1, 2.5, float("inf")]}


# ---------------------------------------------------------------- no pickle

MODULES = sorted(Path(sc.__file__).parent.rglob("*.py"))
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN = re.compile(rf"\b({'|'.join(sorted(UNPICKLERS))}|save|load|allow_pickle)\b")
"""Without one of these words there is nothing to look for, and parsing takes a while."""
BETWEEN_PROCESSES = {"comparing/workers.py": {"pickle"}, "search/workers.py": {"cloudpickle", "joblib", "torch"}}
"""Bytes for a process's own children: through their pipes, or in a folder that nobody else may read and that goes with the search."""


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(Path(sc.__file__).parent)))
def test_no_module_pickles_and_torchs_files_are_read_as_tensors_alone(module: Path) -> None:
    text = module.read_text(encoding="utf-8")
    if not FORBIDDEN.search(text):
        return
    tree = ast.parse(text)
    safe = {id(call.func) for call in ast.walk(tree) if isinstance(call, ast.Call) and _reads_tensors_alone(call)}
    may = BETWEEN_PROCESSES.get(module.relative_to(Path(sc.__file__).parent).as_posix(), set())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & UNPICKLERS - may
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in UNPICKLERS - may
            assert node.module != "torch" or not {alias.name for alias in node.names} & {"save", "load"}
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and id(node) not in safe:
            assert "torch" in may or (node.value.id, node.attr) not in {("torch", "save"), ("torch", "load")}
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False


def _reads_tensors_alone(call: ast.Call) -> bool:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    value = given.get("weights_only")
    return isinstance(value, ast.Constant) and value.value is True and ast.unparse(call.func) == "torch.load"


def test_there_are_modules_to_look_at() -> None:
    assert len(MODULES) > 30


# ------------------------------------------------------------------------------------------------ files of torch


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("legacy", [False, True])
def test_weights_that_torch_saved_are_read(tmp_path, suffix, legacy):
    saved, fresh = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    path = tmp_path / f"weights{suffix}"
    torch.save(saved.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    assert sc.load(path, fresh) is fresh
    assert all(torch.equal(value, saved.state_dict()[name]) for name, value in fresh.state_dict().items())
    assert (dict(sc.load_masks(path, fresh)), sc.read_saved(path)) == ({}, sc.Saved())


def test_what_save_wrote_is_read_whatever_it_is_called(tmp_path):
    model, fresh = nn.Linear(4, 3), nn.Linear(4, 3)
    sc.save(model, tmp_path / "model.pth")
    assert torch.equal(sc.load(tmp_path / "model.pth", fresh).weight, model.weight)


class Harmful:
    def __reduce__(self):
        return exec, ("import pathlib; pathlib.Path('was here').touch()",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (nn.Linear(4, 3), r"cannot be read as tensors alone .*whole pickled models run code of their own and are never loaded"),
        (Harmful(), r"cannot be read as tensors alone"),
        ({"model": {"weight": torch.ones(1)}, "epoch": 3}, r"is no state_dict, but it has 'model', 'epoch': if one of these is"),
        (torch.ones(3), r"is no state_dict, but it is a Tensor"),
        (b"no pickle", r"cannot be read as tensors alone"),
    ],
    ids=["model", "harmful", "checkpoint", "tensor", "bytes"],
)
def test_other_files_of_torch_are_refused_and_run_nothing(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    layer = nn.Linear(4, 3)
    before = layer.weight.clone()
    with pytest.raises(FileError, match=message):
        sc.load(path, layer)
    assert torch.equal(layer.weight, before)
    assert not (tmp_path / "was here").exists()


def test_a_file_that_does_not_count_batches_is_read_and_nothing_else_may_lack(tmp_path):
    model, path = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), tmp_path / "old.safetensors"
    state = {name: value + 1 for name, value in model.state_dict().items()}
    save_file({name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}, path)
    model[1].num_batches_tracked.fill_(7)
    sc.load(path, model)
    assert torch.equal(model[1].running_mean, state["1.running_mean"])
    assert int(model[1].num_batches_tracked) == 7
    save_file({name: value for name, value in state.items() if not name.endswith(("num_batches_tracked", "mean"))}, path)
    with pytest.raises(FileError, match=r"it lacks 1.running_mean \(1 tensors are missing"):
        sc.load(path, model)
