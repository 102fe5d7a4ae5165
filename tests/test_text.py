"""Windows of text, what comes next in them, and perplexity."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parent))
from language_models import family, small_tokenizer

import secateurs as sc
from secateurs.types import KindError, SecateursError, Task, TaskError

WORDS = " ".join(f"w{number % 30}" for number in range(101))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "words.txt").write_text(WORDS)
    return tmp_path / "words.txt"


def tokens_of(task: Task) -> Tensor:
    return torch.cat([tokens for tokens, _ in task.calibration or ()])


def test_windows_do_not_overlap_and_are_drawn_by_the_seed(file: Path) -> None:
    tokenizer = small_tokenizer()
    whole = torch.tensor(tokenizer.encode(WORDS).ids)
    assert len(whole) == 101
    every = sc.tasks.text(file, tokenizer, window=10, count=None)
    assert torch.equal(tokens_of(every), whole[:100].view(10, 10))
    first = sc.tasks.text(str(file), tokenizer, window=10, count=3, seed=None)
    assert torch.equal(tokens_of(first), whole[:30].view(3, 10)) and first.example.shape == (1, 10)
    drawn = [tokens_of(sc.tasks.text(file, tokenizer, window=10, count=5, seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    starts = {tuple(row.tolist()) for row in tokens_of(every)}
    assert len(drawn[0]) == 5 and all(tuple(row.tolist()) in starts for row in drawn[0])
    by_two = sc.tasks.text(file, tokenizer, window=10, count=4, batch_size=2, validation=file, test=file)
    assert [tokens.shape for tokens, _ in by_two.calibration or ()] == [(2, 10), (2, 10)]
    assert len(by_two.test.inputs) == len(by_two.validation.inputs) == 10  # type: ignore[union-attr]


def test_tokenizers_of_both_makes(file: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = small_tokenizer()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=20)
    one, other = (tokens_of(sc.tasks.text(file, each, window=10, count=4)) for each in (tokenizer, wrapped))
    assert torch.equal(one, other)
    with pytest.raises(SecateursError, match="window=21 is longer than the 20 tokens that the tokenizer's model allows"):
        sc.tasks.text(file, wrapped, window=21, count=1)


def test_perplexity_is_that_of_all_tokens_told(file: Path) -> None:
    model, _, _ = family("llama")
    task = sc.tasks.text(file, small_tokenizer(), window=10, count=6, test=file)
    with torch.no_grad():
        nats = [
            functional.cross_entropy(model(window[None]).logits[0, :-1], window[1:], reduction="none")
            for window in task.test.inputs
        ]  # type: ignore[union-attr]
    expected = math.exp(torch.cat(nats).mean())
    assert sc.perplexity(model, task) == pytest.approx(expected, rel=1e-5)
    assert sc.evaluate(model, task, task.test) == pytest.approx(expected, rel=1e-5)
    assert sc.perplexity(model, task.test.inputs) == pytest.approx(expected, rel=1e-5)  # type: ignore[union-attr]
    of_lengths = [task.test.inputs[:1], task.test.inputs[1:2, :4]]  # type: ignore[union-attr]
    of_lengths.insert(0, task.test.inputs[:1, :1])  # type: ignore[union-attr]
    expected = math.exp(torch.cat([nats[0], nats[1][:3]]).mean())  # a token alone is not told
    assert sc.perplexity(model, of_lengths) == pytest.approx(expected, rel=1e-5)
    assert not model.training and task.metric_name == "perplexity" and not task.higher_is_better


def test_it_prunes_and_trains(file: Path) -> None:
    model, _, _ = family("llama")
    task = sc.tasks.text(file, small_tokenizer(), window=10, count=6, validation=file, batch_size=3)
    masks = sc.methods.wanda_(model, task, sparsity=0.5)
    before = sc.perplexity(model, task)
    run = sc.train_(model, task, torch.optim.Adam(model.parameters(), lr=1e-2), 3, masks=masks, show=False)
    after = sc.perplexity(model, task)
    assert after < before / 2 and masks.sparsity == 0.5
    assert run.history[-1]["validation"] == pytest.approx(after, rel=1e-4)


def test_long_windows_take_the_loss_in_parts_and_train_as_a_whole() -> None:
    logits, tokens = torch.randn(2, 700, 5), torch.randint(0, 5, (2, 700))
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss = sc.tasks.next_token_loss
    assert loss(logits, tokens) == pytest.approx(expected.item(), rel=1e-5)
    assert loss((logits,), tokens) == loss({"logits": logits}, tokens) == loss(logits, tokens)
    assert loss(logits.requires_grad_(), tokens).requires_grad


def test_errors_say_what_is_wrong(file: Path, tmp_path: Path) -> None:
    tokenizer = small_tokenizer()
    for path, content in (("empty.txt", b" \n"), ("bytes.txt", b"\xff\xfe\xff")):
        (tmp_path / path).write_bytes(content)
    with pytest.raises(SecateursError, match=r"no\.txt cannot be read as text"):
        sc.tasks.text(tmp_path / "no.txt", tokenizer)
    with pytest.raises(SecateursError, match=r"bytes\.txt cannot be read as text \(UTF-8\)"):
        sc.tasks.text(tmp_path / "bytes.txt", tokenizer)
    with pytest.raises(SecateursError, match=r"empty\.txt is empty: give a file with text"):
        sc.tasks.text(tmp_path / "empty.txt", tokenizer)
    with pytest.raises(SecateursError, match="has 101 tokens, which make 10 windows of 10, not 11: give more text"):
        sc.tasks.text(file, tokenizer, window=10, count=11)
    with pytest.raises(SecateursError, match="has 101 tokens, which make 0 windows of 512"):
        sc.tasks.text(file, tokenizer, count=None)
    with pytest.raises(SecateursError, match="window=1 must be a whole number from 2"):
        sc.tasks.text(file, tokenizer, window=1)
    with pytest.raises(SecateursError, match="the tokenizer is None, but must be one of transformers"):
        sc.tasks.text(file, None)
    with pytest.raises(SecateursError, match="the tokenizer is 'gpt2', but must be"):
        sc.tasks.text(file, "gpt2")
    with pytest.raises(SecateursError, match="seed='one' must be a whole number"):
        sc.tasks.text(file, tokenizer, window=10, count=2, seed="one")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match=r"the output is \(2, 3\), the target \(2, 3\): it needs logits"):
        sc.tasks.next_token_loss(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.long))
    model, _, _ = family("llama")
    with pytest.raises(TaskError, match="windows of 33 tokens are longer than the 32 that LlamaForCausalLM allows"):
        sc.perplexity(model, torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(TaskError, match=r"tokens are \(windows, tokens\), not \(8,\); of one window give tokens\[None\]"):
        sc.perplexity(model, torch.zeros(8, dtype=torch.long))
    certain = torch.nn.Embedding.from_pretrained(-1e6 * torch.eye(4))
    assert sc.perplexity(certain, torch.zeros(1, 8, dtype=torch.long)) == math.inf
    with pytest.raises(TaskError, match="there is no window of at least two tokens"):
        sc.perplexity(model, [])
    with pytest.raises(TaskError, match="the task has no batches"):
        sc.perplexity(model, Task(None))
    with pytest.raises(KindError, match="summary is 3, but must be a function"):
        Task(None, summary=3)  # type: ignore[arg-type]


class Around(nn.Module):
    """Tells each token from all of its window, or from those before it."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.words, self.causal = nn.Embedding(8, 8), causal

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        sums = self.words(tokens).cumsum(1)
        return sums if self.causal else sums[:, -1:].expand_as(sums)


@pytest.mark.parametrize(
    "window", [torch.arange(6) % 8, torch.zeros(6).long(), torch.ones(6).long(), torch.tensor([3, 0])], ids=str
)
def test_who_sees_the_words_that_it_is_to_tell_is_refused(window: Tensor) -> None:
    for data in (
        window[None],
        [window.repeat(3, 1)],
        [({"tokens": window[None], "attention_mask": window[None] >= 0}, window[None])],
    ):
        assert sc.perplexity(Around(causal=True), data) > 0
        with pytest.raises(TaskError, match="Around sees the words that it is to tell, so that its perplexity says nothing"):
            sc.perplexity(Around(causal=False), data)
    nothing = Around(causal=True)
    nothing.words.weight.data.fill_(math.nan)
    assert math.isnan(sc.perplexity(nothing, window[None]))


def test_a_plain_model_takes_part() -> None:
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8))
    assert 5 < sc.perplexity(model, torch.randint(0, 8, (4, 6))) < 20
