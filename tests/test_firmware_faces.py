"""What the C of a network is called and declares, and what is refused before, or after, it was measured."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.firmware.cores import core_of
from secateurs.firmware.emulator import M0, emulated, missing
from secateurs.firmware.error import FirmwareError
from secateurs.firmware.harness import makefile
from secateurs.firmware.host import compiler
from secateurs.integers.build import built
from secateurs.types import NonFiniteError, SecateursError

CHIP = sc.targets.microcontroller(flash=64_000, sram=16_000)
needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C compiler on this machine")
needs_emulator = pytest.mark.skipif(bool(missing()), reason=f"apt-get install {missing()}")


class Named(nn.Module):
    """Outputs by given names."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.line = nn.Linear(4, 3)
        self.names = names

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: self.line(x) * (number + 1) for number, name in enumerate(self.names)}


def write(model: nn.Module, folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    given: dict[str, Any] = {"calibration": [torch.randn(12, 4)], "target": CHIP, "search": False} | changes
    return sc.export.c(model, given.pop("example", torch.randn(2, 4)), folder, **given)


@needs_compiler
@pytest.mark.parametrize(
    "names",
    [
        ("run", "step", "steps", "step_0", "arena_bytes"),
        ("input", "a.b", "a_b", "A_B", "output_input"),
        ("NAME", "UPPER", "é", "COPIES"),
    ],
)
def test_outputs_of_any_name_build(names: tuple[str, ...], tmp_path: Path) -> None:
    assert "this machine" in write(Named(*names), tmp_path).checked


def test_faces_keep_their_names_where_they_can() -> None:
    network = built(Named("x", "run", "X", "input"), torch.zeros(1, 4))
    assert [face.name for face in (*network.inputs, *network.outputs)] == ["input", "x", "output_run", "output_X", "output_input"]


@needs_compiler
@pytest.mark.parametrize("name", ["myNAME", "UPPER_NAME", "COUNT_STEPS", "CORE_TICK"])
def test_names_with_words_of_the_templates(name: str, tmp_path: Path) -> None:
    made = write(nn.Linear(4, 3), tmp_path, name=name)
    assert "this machine" in made.checked and f"{name}_host: main.c" in makefile(made.program, core_of("cortex-m4"))


@needs_compiler
def test_the_header_serves_cpp(tmp_path: Path) -> None:
    write(nn.Linear(4, 3), tmp_path, check=False)
    (tmp_path / "user.cpp").write_text('#include "network.h"\nvoid use(void *memory) { network_run(memory); }\n')
    done = subprocess.run(["gcc", "-c", "-o", "user.o", "user.cpp"], cwd=tmp_path, capture_output=True, text=True)
    if "cc1plus" in done.stderr:
        pytest.skip("there is no C++ compiler on this machine")
    symbols = subprocess.run(["nm", "user.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert " U network_run\n" in symbols


# ---------------------------------------------------------------- what is refused


def refused(error: type[Exception], message: str, folder: Path, model: nn.Module | None = None, **changes: Any) -> None:
    with pytest.raises(error, match=message):
        write(model or nn.Linear(4, 3), folder, check=False, **changes)
    assert not folder.exists()


def test_arguments_that_are_none_leave_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    refused(SecateursError, "name=5, but must be a text", folder, name=5)
    refused(SecateursError, "tests=0, but at least one", folder, tests=0)
    refused(SecateursError, "task is 'digits', but must be", folder, task="digits")
    refused(SecateursError, "there is no metric", folder, task=sc.Task(torch.zeros(1, 4)))
    refused(FirmwareError, "neither main nor start, .*; 'net_start' would do", folder, name="start")
    with pytest.raises(SecateursError, match="folder is 5, but must be a path"):
        write(nn.Linear(4, 3), 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["int8", "int16", "float32"])
def test_weights_that_are_no_numbers_are_named(kind: str, tmp_path: Path) -> None:
    last = nn.Linear(3, 2)
    with torch.no_grad():
        last.bias[1] = torch.inf
    refused(
        NonFiniteError,
        r"1: 1 of 2 numbers of its bias .* NaN or infinite",
        tmp_path / "f",
        nn.Sequential(nn.Linear(4, 3), last),
        kind=kind,
    )


def test_a_test_vector_has_numbers_only(tmp_path: Path) -> None:
    refused(NonFiniteError, "output: 3 of 36 numbers are NaN", tmp_path / "f", kind="float32", calibration=[_with_nan()])


def _with_nan() -> Tensor:
    inputs = torch.zeros(12, 4)
    inputs[3, 1] = torch.nan
    return inputs


@needs_emulator
def test_measured_flash_beyond_the_chip_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateurs.firmware.write.flash_of", lambda *_: 70_000)
    with pytest.raises(FirmwareError, match=r"needs 70,000 bytes of flash, 6,000 more than the 64,000"):
        write(nn.Linear(4, 2000), tmp_path / "f")
    monkeypatch.setattr("secateurs.firmware.write.flash_of", lambda *_: 170_000)
    with pytest.raises(FirmwareError, match=r"the kernels' code alone takes 1\d\d,\d{3} bytes of flash, and .* has 64,000"):
        write(nn.Linear(4, 3), tmp_path / "f")
    assert not (tmp_path / "f").exists()


@needs_emulator
def test_what_is_larger_than_the_emulated_board_is_not_run_there(tmp_path: Path) -> None:
    chip = sc.targets.microcontroller(flash=1 << 20, sram=64_000, cpu="cortex-m0")
    made = write(nn.Linear(256, 1024), tmp_path, target=chip, example=torch.zeros(1, 256), calibration=[torch.randn(8, 256)])
    assert made.checked == ("this machine",)
    assert "it was not run in the emulator: its cortex-m0 has 262,144 bytes of flash and 16,384 of memory" in made.notes
    large = "const volatile char large[300000] = {1}; int main(void) { return large[5]; }"
    with pytest.raises(FirmwareError, match="code and weights do not fit the board"):
        emulated({"main.c": large}, M0)


@needs_emulator
def test_steps_of_many_instructions_are_counted_whole(tmp_path: Path) -> None:
    """A step beyond 2^32 / 1000 instructions: as many times more than a smaller one as it multiplies more."""
    chip, counts = sc.targets.microcontroller(flash=100_000, sram=400_000), []
    for size in (16, 96):
        image = torch.randn(8, 4, size, size)
        made = write(
            nn.Conv2d(4, 16, 5, padding=2), tmp_path / str(size), target=chip, example=image[:1], calibration=[image], tests=1
        )
        counts.append(made.instructions / size**2)
    assert counts[0] * 96**2 > 2**32 / 1000 and counts[1] == pytest.approx(counts[0], rel=0.2)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.ConvTranspose2d(3, 2, 2), (2, 3, 4, 4), "the model itself: a transposed convolution"),
        (nn.Sequential(nn.Conv3d(3, 2, 2)), (2, 3, 4, 4, 4), "0: a convolution in three dimensions"),
        (nn.LSTM(3, 4), (5, 2, 3), "an LSTM over 2 sequences at a time: give an example of one sample"),
        (nn.Sequential(nn.Conv1d(3, 2, 2), nn.MaxPool1d(2)), (3, 9), r"1: a tensor .* with a batch dimension, x\[None\]"),
        (nn.Linear(4, 2).double(), (2, 4), r"input is float64 .* call model.float\(\), and .float\(\) of the example$"),
        (nn.Linear(4, 2).half(), (2, 4), r"input is float16 .* call model.float\(\), and .float\(\) of the example$"),
        (nn.Embedding(4, 2), (2, 4), r"input is int64 .* call .float\(\) of the example, or leave out .* embeddings"),
    ],
)
def test_layers_without_kernels_are_named(model: nn.Module, shape: tuple[int, ...], message: str) -> None:
    kind = torch.int64 if isinstance(model, nn.Embedding) else next(model.parameters()).dtype
    with pytest.raises(SecateursError, match=message):
        built(model, torch.zeros(shape, dtype=kind))


@pytest.mark.parametrize("given", [{"flash": "x"}, {"sram": None}, {"mhz": "4"}, {"flash": True}, {"bits": 0}, {"lanes": "2"}])
def test_sizes_that_are_none_are_named(given: dict[str, Any]) -> None:
    with pytest.raises(SecateursError, match=rf"targets.microcontroller: {next(iter(given))}\b.* but must be "):
        sc.targets.microcontroller(**given)


# ---------------------------------------------------------------- calibration


def test_calibration_that_is_no_batches_is_told(tmp_path: Path) -> None:
    inputs = torch.randn(12, 4)
    with pytest.raises(SecateursError, match=r"calibration is one mapping, .*: \[\{'input': …\}\]$"):
        write(nn.Linear(4, 3), tmp_path / "f", calibration={"input": inputs})
    with pytest.raises(SecateursError, match=r"\(12, 4\), but .* for \(4\); .* the example needs a batch dimension too, x\[None\]"):
        write(nn.Linear(4, 3), tmp_path / "f", example=inputs[0], calibration=[inputs])


class Two(nn.Module):
    """Two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y[:, :4]


@pytest.mark.parametrize("target", [False, True])
def test_a_pair_of_tensors_is_both_inputs(target: bool, tmp_path: Path) -> None:
    pair: Any = (torch.randn(12, 4), torch.randn(12, 6))
    example = tuple(each[:1] for each in pair)
    batch = (pair, torch.zeros(12)) if target else pair
    made = write(Two(), tmp_path, example=example, calibration=[batch], check=False)
    assert made.program.network.inputs[1].array.size == 6


@pytest.mark.parametrize("search", [False, True])
def test_what_is_always_0_is_warned_of_at_the_line_of_the_user(search: bool, tmp_path: Path) -> None:
    first = nn.Linear(4, 3)
    nn.init.constant_(first.bias, -1e3)
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(3, 2))
    with pytest.warns(UserWarning, match="nothing but 0 in 0") as told:
        write(model, tmp_path, calibration=[torch.randn(40, 4)], search=search, check=False)
    assert {each.filename for each in told} == {__file__}


def test_examples_without_a_batch_are_calibrated_one_by_one(tmp_path: Path) -> None:
    batches = [torch.full((4,), float(number)) for number in range(20)]
    made = write(nn.Linear(4, 3), tmp_path, example=torch.zeros(4), calibration=batches, check=False)
    assert np.isclose(made.program.network.inputs[0].array.scale * 255, 19.0)
