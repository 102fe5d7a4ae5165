"""The small tasks split their data cleanly, reproduce from their seeds, and say what is missing."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from secateurs import tasks
from secateurs.tasks import Batches, accuracy, cifar10, digits, mnist
from secateurs.tasks.cifar10 import decode, shift_and_mirror
from secateurs.tasks.images import Images, Normalise, image_task
from secateurs.types import FileError, SecateursError, Task, TaskError

needs_data = pytest.mark.skipif("SECATEURS_DATA" not in os.environ, reason="SECATEURS_DATA is not set: it names the data folder")


def parts(task: Task) -> tuple[Batches, Batches, Batches]:
    assert isinstance(task.train, Batches) and isinstance(task.validation, Batches) and isinstance(task.test, Batches)
    return task.train, task.validation, task.test


def rows(batches: Batches) -> list[bytes]:
    return [row.numpy().tobytes() for row in batches.inputs]


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("count", "batch_size"), [(1, 4), (7, 7), (7, 3), (8, 4), (9, 1)])
def test_batches_hand_out_every_sample_once(count: int, batch_size: int, shuffle: bool) -> None:
    batches = Batches(torch.arange(count), 10 * torch.arange(count), batch_size, shuffle)
    walked = list(batches)
    inputs = torch.cat([part for part, _ in walked])
    assert len(walked) == len(batches)
    assert all(len(part) == batch_size for part, _ in walked[:-1])
    assert sorted(inputs.tolist()) == list(range(count))
    assert torch.equal(torch.cat([target for _, target in walked]), 10 * inputs)


def test_batches_in_order_can_be_walked_again_without_copies() -> None:
    inputs = torch.arange(10)
    batches = Batches(inputs, inputs, batch_size=4)
    for _ in range(2):
        assert [part.tolist() for part, _ in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert next(iter(batches))[0].data_ptr() == inputs.data_ptr()


def test_batches_in_order_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    list(Batches(torch.arange(10), torch.arange(10), batch_size=4))
    assert torch.equal(before, torch.get_rng_state())


def test_shuffle_follows_the_global_generator() -> None:
    batches = Batches(torch.arange(100), torch.arange(100), batch_size=30, shuffle=True)

    def walk() -> list[int]:
        return [int(i) for part, _ in batches for i in part]

    torch.manual_seed(1)
    first = walk()
    state = torch.get_rng_state()
    second = walk()
    torch.set_rng_state(state)
    assert walk() == second != first
    torch.manual_seed(1)
    assert walk() == first


def test_augment_maps_inputs_only() -> None:
    batches = Batches(torch.arange(3), torch.arange(3), batch_size=2, augment=lambda inputs: inputs + 100)
    assert [(part.tolist(), target.tolist()) for part, target in batches] == [([100, 101], [0, 1]), ([102], [2])]


@pytest.mark.parametrize(
    ("inputs", "targets", "batch_size", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(4), 2, r"inputs \(3, 2\), targets \(4,\): the first dimensions must be equal"),
        (torch.tensor(1.0), torch.zeros(1), 2, r"inputs \(\), targets \(1,\): the first dimensions must be equal"),
        (torch.zeros(0, 2), torch.zeros(0), 2, r"inputs \(0, 2\) hold no sample"),
        (torch.zeros(3), torch.zeros(3), 0, r"batch_size=0\): the batch size must be a positive integer"),
        (torch.zeros(3), torch.zeros(3), 2.0, r"batch_size=2.0\): the batch size must be a positive integer"),
    ],
)
def test_batches_refuse(inputs: Tensor, targets: Tensor, batch_size: Any, message: str) -> None:
    with pytest.raises(SecateursError, match=message):
        Batches(inputs, targets, batch_size)


# ---------------------------------------------------------------- accuracy


def test_accuracy() -> None:
    output = torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    assert accuracy(output, torch.tensor([1, 0, 2, 2])) == 0.75
    assert accuracy(output.reshape(2, 2, 3), torch.tensor([[1, 0], [2, 2]])) == 0.75


def test_accuracy_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(TaskError, match=r"output \(4, 3\), target \(3,\): the output needs the target's dimensions and one more"):
        accuracy(torch.zeros(4, 3), torch.zeros(3))


# ---------------------------------------------------------------- digits


def test_digits_splits_are_disjoint_complete_and_stratified() -> None:
    pixels = pytest.importorskip("sklearn.datasets").load_digits().data.astype(np.float32) / 16
    splits = parts(digits(seed=3))
    assert [len(part.inputs) for part in splits] == [1197, 300, 300]
    assert sorted(row for part in splits for row in rows(part)) == sorted(row.tobytes() for row in pixels)
    for part in splits:
        frequencies = part.targets.bincount(minlength=10) / len(part.targets)
        assert frequencies.sub(0.1).abs().max() < 0.01


def test_digits_task() -> None:
    task = digits()
    train, _, test = parts(task)
    assert task.name == "digits" and task.metric is accuracy
    assert task.example.shape == (1, 1, 8, 8) and task.example.dtype == torch.float32
    assert train.inputs.min() == 0 and train.inputs.max() == 1
    assert train.shuffle and not test.shuffle
    assert test.targets.dtype == torch.int64
    assert task.loss is not None and task.loss(torch.zeros(300, 10), test.targets).item() == pytest.approx(np.log(10))


def test_digits_reproduce_from_the_seed_and_share_the_test_images() -> None:
    first, again, other = (parts(digits(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a.inputs, b.inputs) and torch.equal(a.targets, b.targets) for a, b in zip(first, again, strict=True))
    assert set(rows(first[1])) != set(rows(other[1]))
    assert torch.equal(first[2].inputs, other[2].inputs)


def test_digits_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    digits()
    assert torch.equal(before, torch.get_rng_state())


def test_digits_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(SecateursError, match="pip install scikit-learn"):
        digits()


# ---------------------------------------------------------------- image tasks


def numbered(count: int, channels: int = 1) -> Images:
    """Images of one grey value each, which is their number and their label."""
    labels = torch.arange(count)
    return Images(labels.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, channels, 4, 4), labels)


def small_task(seed: int = 0, holdout: int = 20, augment: Callable[[Tensor], Tensor] | None = None) -> Task:
    return image_task("small", numbered(100), numbered(30), Normalise((0.0,), (1.0,)), 8, seed, holdout, augment)


def test_image_task_splits_are_disjoint_and_complete() -> None:
    train, validation, test = parts(small_task())
    assert (len(train.inputs), len(validation.inputs), len(test.inputs)) == (80, 20, 30)
    assert sorted(torch.cat([train.targets, validation.targets]).tolist()) == list(range(100))
    assert torch.equal(train.inputs[:, 0, 0, 0].long(), train.targets)


def test_image_task_reproduces_from_the_seed() -> None:
    first, again, other = (parts(small_task(seed))[1].targets.tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_image_task_augments_the_training_images_only() -> None:
    task = small_task(augment=lambda pixels: 255 - pixels)
    for inputs, target in parts(task)[0]:
        assert torch.allclose(inputs[:, 0, 0, 0], 1 - target / 255)
    assert task.calibration is not None
    for batches in (*parts(task)[1:], task.calibration):
        for inputs, target in batches:
            assert torch.allclose(inputs[:, 0, 0, 0], target / 255)
    assert task.example.shape == (1, 1, 4, 4) and task.example.dtype == torch.float32


@pytest.mark.parametrize("holdout", [0, -1, 100])
def test_image_task_refuses_a_holdout_that_leaves_nothing(holdout: int) -> None:
    with pytest.raises(SecateursError, match=rf"small\(holdout={holdout}\): must be from 1 to 99, of 100 training images"):
        small_task(holdout=holdout)


def test_normalise() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 2, 1, 1)
    assert Normalise((0.5, 0.25), (0.5, 0.25))(pixels).flatten().tolist() == [-1, 3]


def test_shift_and_mirror_is_a_crop_of_the_padded_image_or_of_its_mirror_image() -> None:
    torch.manual_seed(0)
    image = torch.arange(1, 3 * 36 + 1, dtype=torch.uint8).reshape(3, 6, 6)
    crops = set()
    for candidate in (image, image.flip(2)):
        padded = torch.nn.functional.pad(candidate, (4, 4, 4, 4))
        crops |= {padded[:, i : i + 6, j : j + 6].numpy().tobytes() for i in range(9) for j in range(9)}
    augmented = shift_and_mirror(image.expand(2000, -1, -1, -1))
    assert augmented.dtype == torch.uint8 and augmented.shape == (2000, 3, 6, 6) and augmented.is_contiguous()
    assert {crop.numpy().tobytes() for crop in augmented} == crops


def test_shift_and_mirror_follows_the_global_generator() -> None:
    pixels = torch.rand(8, 3, 32, 32)
    torch.manual_seed(5)
    first = shift_and_mirror(pixels)
    assert not torch.equal(shift_and_mirror(pixels), first)
    torch.manual_seed(5)
    assert torch.equal(shift_and_mirror(pixels), first)


# ---------------------------------------------------------------- files


def save_mnist(folder: Path, count: int = 12) -> None:
    images = np.arange(count, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    np.savez(folder / "mnist.npz", train_images=images, train_labels=labels, test_images=images[:5], test_labels=labels[:5])


def jpeg_file(grey: int, side: int = 32) -> bytes:
    file = io.BytesIO()
    pytest.importorskip("PIL.Image").new("RGB", (side, side), (grey, grey, grey)).save(file, "jpeg")
    return file.getvalue()


def end_to_end(files: list[bytes]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return np.frombuffer(b"".join(files), np.uint8), np.cumsum([0, *map(len, files)])


def save_cifar10(folder: Path, files: list[bytes]) -> None:
    jpeg, offsets = end_to_end(files)
    labels = np.arange(len(files), dtype=np.uint8)
    np.savez(
        folder / "cifar10_jpeg.npz",
        train_jpeg=jpeg,
        train_offsets=offsets,
        train_labels=labels,
        test_jpeg=jpeg,
        test_offsets=offsets,
        test_labels=labels,
    )


def test_mnist_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_mnist(tmp_path)
    monkeypatch.setenv("SECATEURS_DATA", str(tmp_path))
    task = mnist(batch_size=4, holdout=3)
    train, validation, test = parts(task)
    assert (len(train.inputs), len(validation.inputs), len(test.inputs)) == (9, 3, 5)
    assert task.name == "mnist" and task.example.shape == (1, 1, 28, 28)
    inputs, target = next(iter(test))
    assert target.dtype == torch.int64
    assert torch.allclose(inputs[:, 0, 0, 0], (target / 255 - 0.1307) / 0.3081)


def test_cifar10_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_cifar10(tmp_path, [jpeg_file(20 * i) for i in range(8)])
    monkeypatch.setenv("SECATEURS_DATA", str(tmp_path))
    task = cifar10(batch_size=4, holdout=3, augment=False)
    train, validation, test = parts(task)
    assert (len(train.inputs), len(validation.inputs), len(test.inputs)) == (5, 3, 8)
    assert task.name == "cifar10" and task.example.shape == (1, 3, 32, 32)
    red, green, blue = next(iter(test))[0][1, :, 0, 0].tolist()
    expected = [(20 / 255 - mean) / std for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]
    assert [red, green, blue] == pytest.approx(expected, abs=0.03)


def test_decode_refuses_what_is_not_a_jpeg_of_the_right_size() -> None:
    with pytest.raises(FileError, match="image 1 is not a JPEG image of 32x32 pixels"):
        decode(*end_to_end([jpeg_file(0), b"something else"]))
    with pytest.raises(FileError, match="image 0 is not a JPEG image of 32x32 pixels"):
        decode(*end_to_end([jpeg_file(0, side=16)]))


def test_cifar10_without_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(SecateursError, match=r'pip install "secateurs\[images\]"'):
        decode(np.zeros(1, np.uint8), np.array([0, 1]))


@pytest.mark.parametrize(("make", "file"), [(mnist, "mnist.npz"), (cifar10, "cifar10_jpeg.npz")])
def test_missing_data(make: Callable[[], Task], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECATEURS_DATA", raising=False)
    with pytest.raises(SecateursError, match=f"SECATEURS_DATA is not set: set it to the folder that holds {file}"):
        make()
    monkeypatch.setenv("SECATEURS_DATA", str(tmp_path))
    with pytest.raises(
        SecateursError, match=rf"{file} is not there: set SECATEURS_DATA \(now '.*'\) to the folder that holds {file}"
    ):
        make()
    (tmp_path / file).write_bytes(b"not an archive")
    with pytest.raises(FileError, match=rf"{file}: expected an .npz file with the arrays train_"):
        make()
    np.savez(tmp_path / file, train_images=np.zeros(3))
    with pytest.raises(FileError, match=rf"{file}: expected an .npz file with the arrays train_"):
        make()


@needs_data
def test_real_mnist() -> None:
    train, validation, test = parts(mnist())
    assert (len(train.inputs), len(validation.inputs), len(test.inputs)) == (55_000, 5_000, 10_000)
    assert test.targets.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    inputs = torch.cat([inputs for inputs, _ in test])
    assert abs(inputs.mean()) < 0.02 and abs(inputs.std() - 1) < 0.02


def test_names() -> None:
    assert set(tasks.__all__) == {"digits", "mnist", "cifar10", "text", "Batches", "accuracy", "next_token_loss"}
