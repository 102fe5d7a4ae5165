"""Language models after pruning: adapters merged under masks, the Trainer with checkpoints, a dense teacher."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.recover import trainer_callback
from secateurs.types import SecateursError

transformers = pytest.importorskip("transformers")
TOKENS = torch.arange(48).view(8, 6) * 7 % 50


def causal() -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, initializer_range=0.2)).eval()


def example(tokens: Tensor = TOKENS[:1], **more: Any) -> dict[str, Any]:
    return {"input_ids": tokens, "use_cache": False, **more}


def pruned(model: Any, pattern: Any = None) -> sc.Masks:
    task = sc.Task(example=example())
    return sc.prune_(model, pattern or sc.Element(), sc.TopK(sc.magnitude()), sc.uniform(sparsity=0.5), task)


def holds(model: Any, masks: sc.Masks) -> bool:
    named = masks.named_as_in(model)
    return all(not parameter[~named[name]].any() for name, parameter in model.named_parameters() if name in named)


# ------------------------------------------------------------------------------------------------ adapters


def adapted(model: Any) -> Any:
    """The model with adapters on two kinds of layers, trained for some steps."""
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        found = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([each for each in found.parameters() if each.requires_grad], lr=0.05)
    for _ in range(5):
        found(**example(TOKENS, labels=TOKENS)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return found


def test_adapters_trained_over_a_pruned_model_are_merged_and_the_masks_hold_the_merged_weights():
    model = causal()
    masks = pruned(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained = adapted(model)
    assert holds(trained, masks) and masks.named_as_in(trained).keys() >= {
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
        "base_model.model.model.layers.0.self_attn.k_proj.weight",
    }
    layer = trained.base_model.model.model.layers[1].mlp.down_proj
    added = layer.get_delta_weight("default").detach()
    merged = trained.merge_and_unload()
    assert not holds(merged, masks)
    masks.apply_()
    assert merged is model and holds(merged, masks)
    name = "model.layers.1.mlp.down_proj.weight"
    torch.testing.assert_close(merged.get_parameter(name), (before[name] + added) * masks[name])
    assert torch.equal(merged.model.layers[1].mlp.up_proj.weight, before["model.layers.1.mlp.up_proj.weight"])


def test_masks_from_a_file_find_their_weights_beneath_adapters(tmp_path):
    model = causal()
    masks = pruned(model)
    sc.save(model, tmp_path / "pruned.safetensors", masks)
    trained = adapted(model)
    again = sc.load_masks(tmp_path / "pruned.safetensors", trained)
    merged = trained.merge_and_unload()
    again.apply_()
    assert again.kept == masks.kept and holds(merged, masks)


def test_adapters_after_shrinking_need_no_masks(tmp_path):
    model = causal()
    sc.shrink_(model, pruned(model, sc.Channel()))
    merged = adapted(model).merge_and_unload()
    assert sc.params(merged) == sc.params(model) < sc.params(causal()) / 2
    sc.save(merged, tmp_path / "small")
    small = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "small").eval()
    torch.testing.assert_close(small(**example()).logits, merged.eval()(**example()).logits, rtol=1e-4, atol=1e-5)


def test_masks_cannot_be_attached_where_adapters_alone_are_trained():
    model = causal()
    masks = pruned(model)
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(SecateursError, match=r"^the masked parameters are frozen, .* call masks.apply_\(\) once they are merged"):
        masks.attach(optimizer)


# ------------------------------------------------------------------------------------------------ the Trainer


def test_a_language_model_is_trained_on_under_masks_and_a_run_that_was_stopped_goes_on(tmp_path):
    pytest.importorskip("accelerate")
    data = [{"input_ids": each, "labels": each} for each in TOKENS]

    def train(folder: str, steps: int, resume: bool = False) -> tuple[Any, sc.Masks]:
        model = causal()
        masks = pruned(model)
        arguments = transformers.TrainingArguments(
            str(tmp_path / folder), max_steps=steps, per_device_train_batch_size=4, use_cpu=True, report_to=[], seed=3, save_steps=2,
            disable_tqdm=True, learning_rate=0.05, lr_scheduler_type="constant", logging_strategy="no", dataloader_pin_memory=False,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs
            trainer = transformers.Trainer(model, arguments, train_dataset=data, callbacks=[trainer_callback(masks)])
            trainer.train(resume_from_checkpoint=resume)
        return model, masks

    whole, masks = train("whole", 4)
    assert holds(whole, masks) and not torch.equal(whole.lm_head.weight, causal().lm_head.weight)
    train("stopped", 2)
    again, masks = train("stopped", 4, resume=True)
    assert holds(again, masks)
    for name, parameter in whole.named_parameters():
        torch.testing.assert_close(again.get_parameter(name), parameter, msg=lambda text, name=name: f"{name}: {text}")


# ------------------------------------------------------------------------------------------------ a dense teacher


def divergence(teacher: Any, model: Any, counted: Tensor, temperature: float = 2.0) -> float:
    """T² · Σ p log(p / q), mean over the positions that count."""
    with torch.no_grad():
        p, q = (torch.softmax(each(**example(TOKENS)).logits / temperature, -1) for each in (teacher, model))
    each = (p * (p / q).log()).sum(-1)
    return float(temperature**2 * each[counted].mean())


@pytest.mark.parametrize("padded", [False, True])
def test_a_language_model_learns_from_the_dense_models_logits_and_padding_does_not_count(padded):
    teacher, model = causal(), causal()
    masks = pruned(model)
    there = torch.ones_like(TOKENS)
    if padded:
        there[:, -2:] = 0
    batch = (example(TOKENS, **({"attention_mask": there} if padded else {})), None)
    task = sc.Task(example=example(), train=[batch], loss=lambda output, target: 0 * output.logits.sum())
    expected = divergence(teacher, model, there.bool())
    hook, optimizer = sc.distill(teacher, temperature=2.0), torch.optim.Adam(model.parameters(), lr=0.01)
    run = sc.train_(model, task, optimizer, 12, masks=masks, hooks=[hook])
    assert run.history[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert run.history[-1]["loss"] < 0.5 * expected and holds(model, masks)


def test_what_stands_on_padding_has_no_gradient():
    teacher, model = causal(), causal()
    pruned(model)
    there = torch.tensor([[1, 1, 1, 1, 0, 0]])
    seen: dict[str, Tensor] = {}

    def look(run: sc.Run) -> None:
        seen["gradient"] = model.model.embed_tokens.weight.grad.clone()

    task = sc.Task(example(), train=[(example(attention_mask=there), None)], loss=lambda output, target: 0 * output.logits.sum())
    hooks = [sc.distill(teacher), sc.Hook("look", gradients=look)]
    sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.0), 1, hooks=hooks)
    touched = seen["gradient"].abs().sum(1).nonzero().flatten().tolist()
    assert touched == sorted(TOKENS[0, :4].tolist())


class Segments(nn.Module):
    """Named logits of three dimensions whose classes are in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(2, 3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.inner(x)}


def test_classes_elsewhere_are_named_by_hand():
    x = torch.randn(4, 2, 5)
    teacher, model = Segments(), Segments()
    p, q = (torch.softmax(each(x)["logits"], 1) for each in (teacher, model))
    task = sc.Task(x, train=[(x, None)], loss=lambda output, target: 0 * output["logits"].sum())
    hooks = [sc.distill(copy.deepcopy(teacher), temperature=1, dim=1)]
    run = sc.train_(model, task, torch.optim.SGD(model.parameters(), lr=0.0), 1, hooks=hooks)
    assert run.history[0]["loss"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-4)
