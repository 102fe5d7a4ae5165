"""Masks in the training loops of Hugging Face and Lightning."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.recover import lightning_callback, trainer_callback

ADAM = {"lr": 0.05, "betas": (0.9, 0.99), "weight_decay": 0.1}


class Classifier(nn.Module):
    """Makes its own loss, as models of Hugging Face do."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def pruned():
    torch.manual_seed(0)
    model = Classifier()
    task = sc.Task(example=torch.zeros(1, 8))
    return model, sc.prune_(model, sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.75), task)


def holds(model, masks):
    return all(not parameter[~masks[name]].any() for name, parameter in model.named_parameters() if name in masks)


DATA = [{"x": torch.randn(8), "labels": torch.tensor(number % 3)} for number in range(32)]


def test_masks_hold_in_the_trainer_of_hugging_face_and_only_while_it_trains(tmp_path):
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    model, masks = pruned()
    before = model.net[0].weight.detach().clone()
    seen = []

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            seen.append(holds(model, masks))

    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=6, per_device_train_batch_size=8, gradient_accumulation_steps=2, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, learning_rate=0.05, weight_decay=0.1, logging_strategy="no", dataloader_pin_memory=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        transformers.Trainer(model, arguments, train_dataset=DATA, callbacks=[trainer_callback(masks), Watch()]).train()
    assert seen == [True] * 6
    assert holds(model, masks)
    assert not torch.equal(model.net[0].weight, before)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    nn.functional.cross_entropy(model(torch.randn(4, 8))["logits"], torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    assert not holds(model, masks)


def test_masks_hold_in_accelerates_optimizer():
    accelerate = pytest.importorskip("accelerate")
    model, masks = pruned()
    made, optimizer = accelerate.Accelerator(cpu=True).prepare(model, torch.optim.AdamW(model.parameters(), **ADAM))
    masks.attach(optimizer)
    for _ in range(3):
        made(torch.randn(4, 8), torch.tensor([0, 1, 2, 0]))["loss"].backward()
        optimizer.step()
        assert holds(model, masks)


def test_masks_hold_in_lightning_in_the_optimizers_that_train_them(tmp_path):
    lightning = pytest.importorskip("lightning")
    model, masks = pruned()
    seen = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.other = model, nn.Linear(3, 3)
            self.automatic_optimization = False

        def training_step(self, batch, index):
            loss = self.model(**batch)["loss"] + self.other(self.model(batch["x"])["logits"]).square().mean()
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()
            seen.append(holds(model, masks))

        def configure_optimizers(self):
            return torch.optim.AdamW(self.model.parameters(), **ADAM), torch.optim.SGD(self.other.parameters(), lr=0.1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, callbacks=[lightning_callback(masks)],
        )  # fmt: skip
        trainer.fit(Module(), torch.utils.data.DataLoader(DATA, batch_size=8))
    assert seen == [True] * 8
    assert holds(model, masks)


@pytest.mark.parametrize(
    ("make", "module", "extra"),
    [(trainer_callback, "transformers", "trainer"), (lightning_callback, "lightning.pytorch", "lightning")],
)
def test_a_library_that_is_not_there_is_named_with_how_to_get_it(monkeypatch, make, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(sc.SecateursError, match=rf"^{module} is not installed: pip install 'secateurs\[{extra}\]'"):
        make(pruned()[1])
