"""Masks in other people's training loops: a callback for the Trainer of Hugging Face, and one for Lightning."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from torch.utils.hooks import RemovableHandle

from secateurs.masks import Masks
from secateurs.types import SecateursError


def trainer_callback(masks: Masks) -> Any:
    """A callback with which masks hold in ``transformers.Trainer``: ``Trainer(..., callbacks=[trainer_callback(masks)])``.

    They hold for that training alone, through every step, mixed precision and ``load_best_model_at_end``. Raises `SecateursError`
    where transformers are not installed.
    """
    held: list[RemovableHandle] = []

    def on_train_begin(self: Any, args: Any, state: Any, control: Any, *, optimizer: Any, **_: Any) -> None:
        held.append(masks.attach(optimizer))

    def on_train_end(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        _let_go_(held, masks)

    return _of("transformers", "TrainerCallback", "trainer", on_train_begin=on_train_begin, on_train_end=on_train_end)


def lightning_callback(masks: Masks) -> Any:
    """A callback with which masks hold in Lightning: ``lightning.Trainer(..., callbacks=[lightning_callback(masks)])``.

    They hold for that training alone, in every optimizer that trains one of the masked weights. Raises `SecateursError` where
    lightning is not installed, or where no optimizer trains them.
    """
    held: list[RemovableHandle] = []

    def on_train_start(self: Any, trainer: Any, pl_module: Any) -> None:
        theirs = [optimizer for optimizer in trainer.optimizers if masks.trained_by(optimizer)]
        held.extend(masks.attach(optimizer) for optimizer in theirs or trainer.optimizers)

    def on_train_end(self: Any, trainer: Any, pl_module: Any) -> None:
        _let_go_(held, masks)

    return _of("lightning.pytorch", "Callback", "lightning", on_train_start=on_train_start, on_train_end=on_train_end)


def _let_go_(held: list[RemovableHandle], masks: Masks) -> None:
    masks.apply_()  # the weights may come from a checkpoint by now
    while held:
        held.pop().remove()


def _of(module: str, base: str, extra: str, **methods: Any) -> Any:
    """An object of a class of another library, which is imported now."""
    try:
        kind = getattr(import_module(module), base)
    except ImportError as error:
        raise SecateursError(f"{module} is not installed: pip install 'secateurs[{extra}]'") from error
    return type("KeepMasks", (kind,), methods)()
