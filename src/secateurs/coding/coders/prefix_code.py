"""Canonical prefix codes of at most 15 bits, one a token (Huffman 1952; Larmore and Hirschberg 1990 for the limit)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateurs.coding.coders.bits import BitReader, BitWriter
from secateurs.coding.coders.payload import Malformed, Numbers, Payload, Shape, decoded, encoded
from secateurs.coding.coders.tokens import counts_of, decode_table, encode_table, number_of, rest_width, token_of

LONGEST = 15


def encode(levels: Numbers) -> bytes:
    """Levels (rows, columns, inner), int32, as bytes.

    Raises `SecateursError` for another kind of array.

    >>> import numpy as np
    >>> len(encode(np.eye(32, dtype=np.int32)[..., None])), len(encode(np.zeros((32, 32, 1), np.int32)))
    (134, 5)
    """
    return encoded(levels, "huffman", encode_plain)


def decode(data: Payload, rows: int, columns: int, inner: int) -> Numbers:
    """The levels again, int32 (rows, columns, inner).

    Raises `FileError` where the bytes are not what `encode` gives for so many numbers.
    """
    return decoded(data, rows, columns, inner, "huffman", decode_plain)


def encode_plain(levels: Numbers, shape: Shape) -> bytes:
    """The same in Python, as `secateurs.coding._native` does it: the normative text of the format."""
    tokens = [token_of(number) for number in levels.ravel().tolist()]
    lengths = lengths_of(counts_of(tokens))
    words = _words_of(lengths)
    bits = BitWriter(encode_table(lengths))
    for token in tokens:
        if len(words) > 1:
            bits.put(words[token.token].word, words[token.token].length)
        bits.put(token.rest, token.width)
    return bits.finish()


def decode_plain(data: bytes, shape: Shape) -> list[int]:
    """As `encode_plain`, the other way."""
    lengths, start = decode_table(data)
    words = _words_of(lengths)
    token_by_word = {(each.length, each.word): token for token, each in words.items()}
    bits, found = BitReader(data, start), []
    for _ in range(shape.numbers):
        token, length, word = next(iter(words)), 0, 0
        while len(words) > 1:
            length, word = length + 1, word * 2 + bits.get(1)
            if (length, word) in token_by_word:
                token = token_by_word[length, word]
                break
        found.append(number_of(token, bits.get(rest_width(token))))
    bits.finish(shape.numbers)
    return found


@dataclass(frozen=True)
class _Word:
    word: int
    length: int


def lengths_of(counts: Sequence[int]) -> list[int]:
    """How many bits the word of each token has in the best code of at most 15 bits; 0 for those that do not come.

    Package-merge: of each row's items, tokens and pairs of the row before, the cheapest 2·tokens - 2 of the last row are taken, and a
    token's length is how often it is in them. Among equals tokens come before pairs, and earlier tokens before later ones.

    >>> lengths_of([5, 1, 0, 1]), lengths_of([0, 7])
    ([1, 2, 0, 2], [0, 1])
    """
    lengths = [0] * len(counts)
    tokens = sorted((token for token, count in enumerate(counts) if count), key=lambda token: counts[token])
    if len(tokens) == 1:
        lengths[tokens[0]] = 1
        return lengths
    singles: list[tuple[int, tuple[int, ...]]] = [(counts[token], (token,)) for token in tokens]
    row = singles
    for _ in range(LONGEST - 1):
        pairs = [(a[0] + b[0], a[1] + b[1]) for a, b in zip(row[::2], row[1::2], strict=False)]
        row = sorted(singles + pairs, key=lambda item: item[0])  # stable: singles first
    for _, inside in row[: 2 * len(tokens) - 2]:
        for token in inside:
            lengths[token] += 1
    return lengths


def _words_of(lengths: Sequence[int]) -> dict[int, _Word]:
    """The word of each token that has a length: in the order of lengths, and among equals of tokens, each is the next."""
    if max(lengths) > LONGEST:
        raise Malformed("a word of more than 15 bits")
    words, word, before = {}, 0, 0
    for length, token in sorted((length, token) for token, length in enumerate(lengths) if length):
        word <<= length - before
        words[token] = _Word(word, length)
        word, before = word + 1, length
    if len(words) == 1 and before == 1:
        return words
    if word != 1 << before:
        raise Malformed("a code with words that mean nothing, or with more words than there are")
    return words
