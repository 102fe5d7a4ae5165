"""From a model to a folder of C: files, numbers, errors."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.firmware.calls import call_of
from secateurs.firmware.cores import core_of
from secateurs.firmware.emulator import missing
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.folder import write_folder
from secateurs.firmware.host import SANITIZED, compiler, on_host
from secateurs.firmware.program import identifier, planned
from secateurs.integers.build import built
from secateurs.integers.layers import Conv
from secateurs.integers.module import IntegerModel
from secateurs.integers.quantise import quantised
from secateurs.integers.reference import run
from secateurs.types import SecateursError, WriteError

sys.path.insert(0, str(Path(__file__).parent))

from firmware_fuzz import program_of, wrong

CHIP = sc.targets.microcontroller(flash=64_000, sram=16_000)
needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler on this machine")
needs_emulator = pytest.mark.skipif(bool(missing()), reason=f"apt-get install {missing()}")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(392, 5),
    ).eval()


def images(count: int = 32, seed: int = 1) -> Tensor:
    return torch.randn(count, 1, 14, 14, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, sc.export.Firmware]:
    folder = tmp_path_factory.mktemp("c") / "firmware"
    model, inputs = network(), images()
    task = sc.Task(inputs, test=[(inputs, model(inputs).argmax(1))], metric=sc.tasks.accuracy)
    return folder, sc.export.c(model, inputs, folder, calibration=[inputs], target=CHIP, name="tiny", task=task)


def test_the_folder_has_all_that_a_project_needs(written: tuple[Path, Any]) -> None:
    folder, made = written
    assert {path.name for path in folder.iterdir()} == {
        "tiny.h",
        "tiny.c",
        "tiny_test.h",
        "main.c",
        "Makefile",
        "start.c",
        "link.ld",
    }
    text = (folder / "tiny.c").read_text()
    assert "malloc" not in text and "#include <stdlib" not in text
    assert f"#define TINY_ARENA_BYTES {made.arena.bytes}" in (folder / "tiny.h").read_text()
    assert made.sram == made.arena.bytes + 1024 and made.program.constants < made.flash < 64_000


def test_what_is_told_of_it(written: tuple[Path, Any]) -> None:
    _, made = written
    said = str(made)
    assert [step.what.split()[0] for step in made.steps] == ["conv", "depthwise", "linear"]
    assert made.accuracy is not None and made.accuracy[0] == 1.0 and made.accuracy[1] >= 0.9
    assert 0 < made.difference < 0.1 and made.agreement >= 0.9
    for part in ("flash", "SRAM", "instructions", "µJ", "accuracy", "largest difference"):
        assert part in said
    assert made.instructions == sum(step.instructions for step in made.steps) > 10_000 or not made.counted


@needs_compiler
def test_make_builds_and_runs_it(written: tuple[Path, Any]) -> None:
    folder, made = written
    done = subprocess.run(["make", "-s", "-C", str(folder), "check"], capture_output=True, text=True)
    assert done.returncode == 0 and "4 test vectors, 0 wrong numbers: all is as it must be" in done.stdout, done.stderr
    assert "this machine" in made.checked


@needs_emulator
def test_make_run_runs_it_on_an_emulated_core(written: tuple[Path, Any]) -> None:
    folder, made = written
    done = subprocess.run(["make", "-s", "-C", str(folder), "run"], capture_output=True, text=True)
    assert done.returncode == 0 and "0 wrong numbers" in done.stdout + done.stderr
    counts = [int(each) for each in re.findall(r"step \d+: (\d+) instructions", done.stdout + done.stderr)]
    assert len(counts) == 3 and sum(counts) == pytest.approx(made.instructions, rel=0.01)


@needs_compiler
def test_a_wrong_number_is_found(written: tuple[Path, Any]) -> None:
    folder, _ = written
    sources = {path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".c", ".h") and path.name != "start.c"}
    changed = re.sub(
        r"(tiny_test_out_output\[20\][^{]*\{\s*)(-?\d+)", lambda found: f"{found[1]}{int(found[2]) ^ 1}", sources["tiny_test.h"]
    )
    assert changed != sources["tiny_test.h"]
    with pytest.raises(FirmwareError, match=r"ended with 1: tiny: 4 test vectors, 1 WRONG NUMBERS"):
        on_host(sources | {"tiny_test.h": changed})


@needs_compiler
@pytest.mark.parametrize(("kind", "first"), [("int8", 0), ("int8", 5000), ("float32", 100), ("int16", 200)])
def test_random_networks_answer_to_the_bit(kind: Any, first: int) -> None:
    assert wrong(range(first, first + 25), kind) == []


def test_without_a_compiler_nothing_is_claimed(tmp_path: Path) -> None:
    made = sc.export.c(network(), images(1), tmp_path, calibration=[images()], target=CHIP, check=False)
    assert made.checked == () and not made.counted and "was not run" in str(made)


def test_float32_needs_no_calibration(tmp_path: Path) -> None:
    made = sc.export.c(network(), images(1), tmp_path, calibration=None, target=CHIP, kind="float32", check=False)
    assert made.difference == 0.0 and "float network_test_in_input" in (tmp_path / "network_test.h").read_text()


def test_the_integer_model_is_a_module(written: tuple[Path, Any]) -> None:
    _, made = written
    inputs, model = images(7, seed=9), IntegerModel(made.program.network)
    found = model(inputs)
    assert found.shape == (7, 5) and (found - network()(inputs)).abs().max() < 0.1 * network()(inputs).abs().max()


# ---------------------------------------------------------------- what is refused


def refused(message: str, **changes: Any) -> None:
    given = {"calibration": [images()], "target": CHIP} | changes
    model, folder = given.pop("model", network()), given.pop("folder")
    with pytest.raises(SecateursError, match=message):
        sc.export.c(model, given.pop("example", images(1)), folder, check=False, **given)
    assert not Path(folder).exists()


def test_what_does_not_fit_is_told_with_what_would(tmp_path: Path) -> None:
    small = sc.targets.microcontroller(flash=10_000, sram=16_000)
    message = r"about 1\d,\d{3} bytes of flash, \d,\d{3} more than the 10,000 of .*: its largest weight is that of 6 .* with \d+%"
    refused(message, target=small, folder=tmp_path / "f")
    narrow = sc.targets.microcontroller(flash=64_000, sram=2_000)
    refused(r"does not fit the 976 of the SRAM .* largest array is", target=narrow, folder=tmp_path / "f")


def test_names_that_c_cannot_have(tmp_path: Path) -> None:
    refused(r"name='my net' cannot begin names in C.*'my_net' would do", name="my net", folder=tmp_path / "f")
    refused("'net_int' would do", name="int", folder=tmp_path / "f")
    for name in ("", "1a", "sec_x", "größe", "a" * 60):
        with pytest.raises(FirmwareError) as told:
            identifier(name)
        assert identifier(re.findall(r"'([^']+)' would do", str(told.value))[0])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.GroupNorm(2, 8), r"no kernels for\n  1"),
        (nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(49, 7, 16, batch_first=True)), "no kernels for"),
        (nn.Upsample(scale_factor=2), "upsample_nearest2d"),
        (nn.ConvTranspose2d(8, 4, 2), "1: a transposed convolution"),
    ],
)
def test_layers_without_kernels_are_all_named(layer: nn.Module, message: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), layer).eval()
    refused(message, model=model, folder=tmp_path / "f")


def test_arguments_that_are_none(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    refused("give calibration=", calibration=None, folder=folder)
    refused("had 0 batches|has no batches", calibration=[], folder=folder)
    refused("target is 0.5, but must be a chip", target=0.5, folder=folder)
    refused("kind='int4', but must be", kind="int4", folder=folder)
    refused("there is no core 'z80' here; take one of cortex-m0", target=_Other(), folder=folder)
    refused("NaN or infinite", calibration=[images() * float("nan")], folder=folder)
    refused("but the network was built for", calibration=[torch.zeros(4, 1, 9, 9)], folder=folder)
    with pytest.raises(FirmwareError, match="there is no core 'z80'"):
        sc.targets.microcontroller(cpu="z80")
    with pytest.raises(FirmwareError, match="there is no core"):
        core_of("")


class _Other:
    name, flash, sram, cpu = "other", 1 << 20, 1 << 20, "z80"


def test_whole_numbers_and_shapes_that_depend_on_numbers_are_refused(tmp_path: Path) -> None:
    words = nn.Embedding(10, 4).eval()
    refused("takes float32", model=words, example=torch.zeros(1, 3, dtype=torch.long), folder=tmp_path / "f")

    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[x > 0].sum().reshape(1, 1)

    refused("depends on the numbers|data-dependent|nonzero|index", model=Counting(), folder=tmp_path / "f")


def test_a_range_that_calibration_never_saw() -> None:
    floats = built(network(), images(1))
    with pytest.raises(SecateursError, match="3: calibration never saw its range"):
        quantised(floats, {"input": (-1, 1), "0": (0, 1)})
    with pytest.raises(SecateursError, match=r"input: the range \(nan, 1\) that calibration saw is none"):
        quantised(floats, {"input": (float("nan"), 1)})


def test_a_file_that_was_changed_stays(tmp_path: Path) -> None:
    def write(**more: Any) -> Any:
        return sc.export.c(network(), images(1), tmp_path, calibration=[images()], target=CHIP, check=False, **more)

    write()
    write()  # over what we wrote ourselves
    (tmp_path / "main.c").write_text("int main(void) { return 7; }\n")
    assert "main.c was changed since it was written, and stays as it is" in str(write())
    assert (tmp_path / "main.c").read_text() == "int main(void) { return 7; }\n"
    (tmp_path / "network.c").write_text("mine")
    with pytest.raises(FirmwareError, match=r"network\.c is there already, and was not written by us or was changed since"):
        write()
    assert (tmp_path / "network.c").read_text() == "mine"


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match="could not write"):
        write_folder(tmp_path / "file", {"a.c": "x"})
    assert (tmp_path / "file").read_text() == "x"


def test_patches_where_arrays_do_not_fit_otherwise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 4, 3),
        nn.Flatten(),
        nn.Linear(100, 3),
    ).eval()
    inputs = torch.randn(8, 1, 28, 28)
    whole = sc.export.c(model, inputs, tmp_path / "a", calibration=[inputs], target=sc.targets.microcontroller())
    chip = sc.targets.microcontroller(flash=64_000, sram=5_000)
    patched = sc.export.c(model, inputs, tmp_path / "b", calibration=[inputs], target=chip)
    assert whole.sram > 8_000 and patched.sram <= 5_000 and "patches" in patched.steps[0].format
    assert np.array_equal(
        (tmp_path / "a" / "network_test.h").read_text().split(), (tmp_path / "b" / "network_test.h").read_text().split()
    )
    assert compiler() is None or patched.checked[0] == "this machine"


def test_the_page(written: tuple[Path, Any], tmp_path: Path) -> None:
    _, made = written
    text = sc.report.write_firmware_html(made, tmp_path / "tiny.html").read_text()
    assert "<title>tiny: int8 on a cortex-m4</title>" in text and text.count("<svg") == 2 and "depthwise 3x3" in text
    assert "<script" not in text


@needs_compiler
def test_sums_that_a_shift_to_the_left_would_carry_beyond_32_bits_saturate() -> None:
    """Outputs whose range was tiny when it was seen, and inputs at their ends: factors are above 1, sums far above what they fit."""
    torch.manual_seed(0)
    floats = built(nn.Linear(4000, 3).eval(), torch.zeros(1, 4000))
    network_ = quantised(floats, {"input": (-1.0, 1.0), floats.outputs[0].array.name: (-1e-9, 1e-9)}, "int8")
    [layer] = network_.layers
    assert isinstance(layer, Conv) and layer.rescale is not None and layer.rescale.shift.max() > 1
    ends = np.sign(layer.weight.astype(int)).reshape(3, 1, 1, 4000) * 127
    inputs = [np.concatenate([ends, -ends]).astype(np.int8)]
    calls = [call_of(each, f"left_{number}") for number, each in enumerate(network_.layers)]
    case = planned(network_, calls, "left"), inputs, run(network_, inputs)
    assert on_host(program_of([case]), ("-O1", *SANITIZED)).split() == ["left", "0"]
