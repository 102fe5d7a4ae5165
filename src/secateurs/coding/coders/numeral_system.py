"""Static asymmetric numeral systems (arXiv 1311.2540): four states take turns, each of which takes in a token by its share of 2^14."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from secateurs.coding.coders.bits import BitReader, BitWriter
from secateurs.coding.coders.payload import Malformed, Numbers, Payload, Shape, decoded, encoded
from secateurs.coding.coders.tokens import counts_of, decode_table, encode_table, number_of, token_of

SCALE, STATES, LEAST = 14, 4, 1 << 16
WHOLE = 1 << SCALE


def encode(levels: Numbers) -> bytes:
    """Levels (rows, columns, inner), int32, as bytes: within a thousandth of their zeroth-order entropy, and 16 bytes and a table.

    Raises `SecateursError` for another kind of array.

    >>> import numpy as np
    >>> len(encode(np.eye(32, dtype=np.int32)[..., None])), len(encode(np.zeros((32, 32, 1), np.int32)))
    (49, 23)
    """
    return encoded(levels, "rans", encode_plain)


def decode(data: Payload, rows: int, columns: int, inner: int) -> Numbers:
    """The levels again, int32 (rows, columns, inner).

    Raises `FileError` where the bytes are not what `encode` gives for so many numbers.
    """
    return decoded(data, rows, columns, inner, "rans", decode_plain)


def encode_plain(levels: Numbers, shape: Shape) -> bytes:
    """The same in Python, as `secateurs.coding._native` does it: the normative text of the format.

    The last number is taken in first, so that the first comes out first.
    """
    tokens = [token_of(number) for number in levels.ravel().tolist()]
    shares = shares_of(counts_of(tokens))
    starts = [0, *accumulate(shares)]
    states, words = [LEAST] * STATES, []
    for at in range(len(tokens) - 1, -1, -1):
        share, x = shares[tokens[at].token], states[at % STATES]
        if x >= share << (32 - SCALE):
            words.append(x & 0xFFFF)
            x >>= 16
        states[at % STATES] = (x // share << SCALE) + x % share + starts[tokens[at].token]
    head = encode_table(shares) + b"".join(x.to_bytes(4, "big") for x in states)
    bits = BitWriter(head + b"".join(word.to_bytes(2, "big") for word in reversed(words)))
    for token in tokens:
        bits.put(token.rest, token.width)
    return bits.finish()


def decode_plain(data: bytes, shape: Shape) -> list[int]:
    """As `encode_plain`, the other way."""
    shares, at = decode_table(data)
    if sum(shares) != WHOLE:
        raise Malformed("shares that do not add up")
    starts = [0, *accumulate(shares)]
    token_at = [token for token, share in enumerate(shares) for _ in range(share)]
    words = [int.from_bytes(data[each : each + 2], "big") for each in range(at, len(data) - 1, 2)]
    if len(words) < 2 * STATES:
        raise Malformed("it ends too early")
    states = [words[2 * each] << 16 | words[2 * each + 1] for each in range(STATES)]
    if min(states) < LEAST:
        raise Malformed("a state that there is not")
    taken, tokens = 2 * STATES, []
    for number in range(shape.numbers):
        x = states[number % STATES]
        token = token_at[x % WHOLE]
        x = shares[token] * (x >> SCALE) + x % WHOLE - starts[token]
        if x < LEAST:
            if taken == len(words):
                raise Malformed("it ends too early")
            x, taken = x << 16 | words[taken], taken + 1
        states[number % STATES] = x
        tokens.append(token)
    if any(x != LEAST for x in states):
        raise Malformed("states that do not end where they began")
    bits = BitReader(data, at + 2 * taken)
    found = [number_of(token, bits.get(token_of(number_of(token, 0)).width)) for token in tokens]
    bits.finish(shape.numbers)
    return found


def shares_of(counts: Sequence[int]) -> list[int]:
    """Shares of 2^14 as near to the counts as whole numbers above 0 come.

    What rounding down leaves goes to the largest remainders; what tokens too rare for a share of their own take comes off the largest
    share.

    >>> shares_of([3, 0, 1]), shares_of([10**6, 1])
    ([12288, 0, 4096], [16383, 1])
    """
    total = sum(counts)
    shares = [max(1, count * WHOLE // total) if count else 0 for count in counts]
    remainders = [count * WHOLE % total if count * WHOLE >= total else 0 for count in counts]
    order = sorted((token for token, count in enumerate(counts) if count), key=lambda token: -remainders[token])
    left = WHOLE - sum(shares)
    for at in range(left):
        shares[order[at % len(order)]] += 1
    for _ in range(-left):
        shares[shares.index(max(shares))] -= 1
    return shares
