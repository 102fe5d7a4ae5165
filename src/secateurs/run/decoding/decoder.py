"""The face of decoders: a prompt, tokens one by one, and text of any length."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from secateurs.answers import difference
from secateurs.forward import call
from secateurs.nested import tensors_in
from secateurs.run.choosing.limits import limits
from secateurs.run.choosing.ready import Ready
from secateurs.run.choosing.tune import Tuned, choices, reckon, tune
from secateurs.run.clock.memory import Memory
from secateurs.run.clock.timing import torch_threads
from secateurs.run.decoding.head import Screen
from secateurs.run.decoding.pieces import Sequence, ending, logits_of, piece_of, sequence_of, vocabulary
from secateurs.run.decoding.ready import ReadyPiece
from secateurs.run.explain import Explanation, explain
from secateurs.run.kernels.machine import InstructionSet, instruction_set, native_module
from secateurs.run.lowering.lower import lower
from secateurs.run.network.error import CompileError
from secateurs.run.network.nodes import Linear, Network, Node
from secateurs.run.planning.layers import Choice
from secateurs.run.planning.plan import plan
from secateurs.run.planning.runner import Runner
from secateurs.run.recording.one_call import network_of
from secateurs.types import TaskError

_PIECE = 128
"""Tokens of a prompt that are run together: their weights are read once for all."""
_SHORT = 16
"""What is left of a prompt is run token by token where it is no longer: a piece takes about as long."""
_EXAMPLE = (20, 24)
"""Tokens on which a decoder is held against the model: so many in a piece, and up to so many one by one."""
_TOLERANCE = 1e-3
_FULL, _SCREENED = 0.9, 0.2
"""A head that has more of its weights than this is not worth packing; one that has fewer is read as fast as its screen."""


class Decoder:
    """A language model that remembers: `prompt` begins a text, `step` and `follow` add a token, `generate` writes on. Made by
    `compile_decoder`.

    One text at a time, and one thread of the program; ``length`` tokens of at most ``max_length`` are remembered.
    """

    def __init__(self, sequence: Sequence, isa: InstructionSet, threads: int, tuning: bool) -> None:
        self.max_length, self.threads, self.length = sequence.length, threads, 0
        self._isa, self._memory, self._tuning = isa, Memory(), tuning
        self._vocabulary = vocabulary(sequence)
        self._tuned: dict[Node, Tuned] = {}
        room = sequence.length + _PIECE
        pieces = [piece_of(sequence, count, room) for count in (1, min(_PIECE, sequence.length))]
        kept = [torch.zeros(each.shape) for past in pieces[0].layers for each in (past.keys, past.values)]
        tables = [_padded(tensor, room) for tensor in sequence.tables.values()]
        self._pieces = {piece.count: ReadyPiece(piece, isa, threads, self._chosen(piece.network), tables, kept) for piece in pieces}
        self._last = ending(sequence)
        full = _density(sequence.head) > _FULL
        chosen: Mapping[Node, Choice] = {self._last.nodes[0]: Choice(dense=True)} if full else self._chosen(self._last)
        self._ending = Runner(self._last, plan(self._last, isa, threads, chosen), threads)
        screens = not sequence.tail and sequence.head.activation is None and _density(sequence.head) > _SCREENED
        self._screen = Screen(sequence.head, isa, threads) if screens else None

    def _chosen(self, network: Network) -> dict[Node, Choice]:
        """A kernel for each layer, also where torch's is faster: what is kept of earlier tokens is theirs."""
        if self._tuning:
            tuned = tune(network, self._isa, self.threads, self._memory)
        else:
            tuned = reckon(network, self._isa, self.threads, limits(self._isa, self._memory))
        ours = {node: replace(each, choice=replace(each.choice, dense=False)) for node, each in tuned.items()}
        self._tuned |= ours
        return choices(ours)

    def prompt(self, ids: Tensor | Many[int]) -> Tensor:
        """Forget what was before, and read these tokens, (tokens) or (1, tokens); the logits (words) of the one after them."""
        return self._logits(self._read(ids))

    def step(self, token: int) -> Tensor:
        """Read one more token; the logits (words) of the one after it."""
        return self._logits(self._more(self._tokens([int(token)])))

    def follow(self, token: int) -> int:
        """Read one more token; the most likely one after it, without all logits."""
        return self._next(self._more(self._tokens([int(token)])), 0.0, None)

    def generate(
        self,
        ids: Tensor | Many[int],
        max_new_tokens: int,
        *,
        temperature: float = 0.0,
        stop: int | Many[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Tokens (1, tokens) with those that follow, up to ``max_new_tokens`` or the first that is in ``stop``.

        Without a temperature each is the most likely one, as ``model.generate(do_sample=False)`` gives; with one they are drawn. What ends
        a text is not taken from the model's configuration: give its ``eos_token_id`` as ``stop``.
        """
        if not 0 <= temperature < math.inf or max_new_tokens < 0:
            raise CompileError(
                f"temperature={temperature}, max_new_tokens={max_new_tokens}: neither can be negative, nor without end"
            )
        ends = set() if stop is None else {stop} if isinstance(stop, int) else set(stop)
        found = self._given(ids).tolist()
        if len(found) + max_new_tokens > self.max_length:
            raise CompileError(
                f"{len(found)} tokens and {max_new_tokens} new ones are more than the {self.max_length} that were made room for: "
                "compile_decoder(model, max_length=...)"
            )
        hidden = self._read(found)
        for number in range(max_new_tokens):
            found.append(self._next(hidden, temperature, generator))
            if found[-1] in ends or number + 1 == max_new_tokens:
                break
            hidden = self._more(self._tokens([found[-1]]))
        return torch.tensor([found])

    def explain(self) -> Explanation:
        """What was chosen for each layer, for prompts and for single tokens."""
        ready = Ready(self._last, lambda inputs: None, "kernels", None, self._tuned)
        return explain(ready, self.threads, self._isa, limits(self._isa, self._memory), "float32")

    # ------------------------------------------------------------ within

    def _next(self, hidden: Tensor, temperature: float, generator: torch.Generator | None) -> int:
        if temperature:
            logits = self._logits(hidden).double()
            chances = ((logits - logits.max()) / temperature).softmax(-1)
            return int(torch.multinomial(chances, 1, generator=generator))
        if self._screen is not None:
            return self._screen.largest(hidden)
        return int(self._logits(hidden).argmax())

    def _logits(self, hidden: Tensor) -> Tensor:
        with torch.no_grad(), torch_threads(self.threads):
            return self._ending(hidden.view(1, 1, -1))[0].view(-1).clone()

    def _read(self, ids: Tensor | Many[int]) -> Tensor:
        given = self._given(ids)
        self.length = 0
        return self._more(given)

    def _given(self, ids: Tensor | Many[int]) -> Tensor:
        try:
            given = torch.as_tensor(ids)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CompileError(
                f"a prompt is (tokens) or (1, tokens) of whole numbers, not {type(ids).__name__}: give what the tokenizer makes of the text"
            ) from error
        if given.ndim == 2 and given.shape[0] == 1:
            given = given[0]
        if given.ndim != 1 or not given.numel() or given.dtype.is_floating_point:
            raise CompileError(f"a prompt is (tokens) or (1, tokens) of whole numbers, not {tuple(given.shape)} {given.dtype}")
        return self._tokens(given)

    def _tokens(self, ids: Any) -> Tensor:
        tokens = torch.as_tensor(ids, dtype=torch.int64)
        known = self._vocabulary
        if known is not None and bool(((tokens < 0) | (tokens >= known)).any()):
            raise CompileError(f"tokens from {tokens.min()} to {tokens.max()}: the model's words are 0 to {known - 1}")
        return tokens

    def _more(self, ids: Tensor) -> Tensor:
        """Read tokens after those that are remembered; what the head takes of the last."""
        if self.length + len(ids) > self.max_length:
            raise CompileError(
                f"{self.length + len(ids)} tokens are more than the {self.max_length} that were made room for: "
                "compile_decoder(model, max_length=...)"
            )
        most, hidden = max(self._pieces), torch.empty(0)
        at = 0
        while at < len(ids):
            left = len(ids) - at
            size = most if left > _SHORT else 1
            some = ids[at : at + size]
            hidden = self._pieces[size](some, self.length)[len(some) - 1]
            self.length += len(some)
            at += len(some)
        return hidden


def compile_decoder(
    model: nn.Module,
    max_length: int = 1024,
    *,
    threads: int | None = None,
    tune: bool = True,
    isa: str | None = None,
) -> Decoder:
    """Make a pruned language model fast on this CPU, for prompts and for text that it writes: ``compile_decoder(model).generate(ids, 50)``.

    ``model(input_ids)`` gives logits (1, tokens, words), as the causal models of transformers do (in their results, or alone). It is
    recorded once for a sequence of ``max_length`` tokens. Each step of it must treat tokens one by one or be causal attention, which is
    shown from the graph; what earlier tokens left (keys and values) is then kept, not computed again.
    The kernels always run, also where little is pruned. ``generate`` computes only the logits that can be the largest.

    Raises `CompileError` that names the operation where one mixes tokens otherwise (sliding windows shorter than ``max_length``, masks,
    convolutions over tokens), and `KernelError` where there are no kernels.

    >>> from secateurs.run import available
    >>> class Words(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.embed, self.norm, self.head = nn.Embedding(9, 8), nn.LayerNorm(8), nn.Linear(8, 9)
    ...
    ...     def forward(self, input_ids):
    ...         return self.head(self.norm(self.embed(input_ids)))
    >>> if available():
    ...     assert compile_decoder(Words(), max_length=20, threads=1, tune=False).generate([1, 2], 3).shape == (1, 5)
    """
    if max_length < 2:
        raise CompileError(f"max_length={max_length}: at least 2 is needed")
    native_module()
    found = instruction_set(isa)
    if found is None:
        raise CompileError("a decoder needs the kernels, which are switched off or were not built: call the model itself")
    other = next((each.dtype for each in model.parameters() if each.is_floating_point() and each.dtype != torch.float32), None)
    if other is not None:
        raise CompileError(f"the model has weights in {other}, and the kernels work in float32: compile_decoder(model.float())")
    own = copy.deepcopy(model).eval().requires_grad_(False)
    count = torch.get_num_threads() if threads is None else threads
    with torch_threads(count), torch.no_grad():
        ids = torch.arange(max_length)[None] % _words(own)
        try:
            network = lower(network_of(own, _call(own, ids)))
        except TaskError as error:
            raise CompileError(
                f"max_length={max_length}: the model rejects a text of so many tokens; where it has fewer positions, give a smaller one "
                f"({error})"
            ) from error
        made = Decoder(sequence_of(network, logits_of(network, max_length)), found, count, tune)
        _prove(own, made, ids[:, : _EXAMPLE[1]])
    return made


def _call(model: nn.Module, ids: Tensor) -> Any:
    """What the model is called with: ids alone, and no cache where it would make one."""
    takes = inspect.signature(model.forward).parameters
    if "input_ids" not in takes:
        return ids
    return {"input_ids": ids, **({"use_cache": False} if "use_cache" in takes else {})}


def _words(model: nn.Module) -> int:
    """So many words that every table has them."""
    return min((module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)), default=1)


def _prove(model: nn.Module, made: Decoder, ids: Tensor) -> None:
    """Raise where the decoder's answers are not those of the model, for a text that is shorter than the one that was recorded."""
    (logits, *_) = (each for each in tensors_in(call(model, _call(model, ids))) if each.ndim == 3)
    first = min(_EXAMPLE[0], ids.shape[1] - 1)
    found = [made.prompt(ids[:, :first]), *(made.step(token) for token in ids[0, first:].tolist())]
    unlike = difference(logits[0, first - 1 :], torch.stack(found), least=1e-6)
    if not unlike <= _TOLERANCE:
        raise CompileError(
            f"the decoder's logits differ from the model's by {unlike:.1e} of the largest for {ids.shape[1]} tokens: what the model "
            f"computes from positions changes with the length of the text (it was recorded for {made.max_length}); "
            "run whole sequences with sc.run.compile(model, example)"
        )


def _padded(table: Tensor, room: int) -> Tensor:
    """Rows of zeros after those for each position: what is read for tokens that do not exist."""
    more = table.new_zeros((*table.shape[:-2], room - table.shape[-2], table.shape[-1]))
    return torch.cat([table, more], -2).contiguous()


def _density(layer: Linear) -> float:
    return float((layer.weight != 0).float().mean())
