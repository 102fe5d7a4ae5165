"""Equally many bits a number: the lowest number, the width, then what each is above the lowest."""

from __future__ import annotations

import numpy as np

from secateurs.coding.coders.bits import BitReader
from secateurs.coding.coders.payload import Malformed, Numbers, Payload, Shape, decoded, encoded


def encode(levels: Numbers) -> bytes:
    """Levels (rows, columns, inner), int32, as bytes.

    Raises `SecateursError` for another kind of array.

    >>> encode(np.array([[[3], [-1]], [[0], [2]]], np.int32)).hex(" ")
    '03 ff ff ff ff 80 b0'
    """
    return encoded(levels, "fixed", encode_plain)


def decode(data: Payload, rows: int, columns: int, inner: int) -> Numbers:
    """The levels again, int32 (rows, columns, inner).

    Raises `FileError` where the bytes are not what `encode` gives for so many numbers.

    >>> decode(bytes.fromhex("03 ff ff ff ff 80 b0"), 2, 2, 1).ravel()
    array([ 3, -1,  0,  2], dtype=int32)
    """
    return decoded(data, rows, columns, inner, "fixed", decode_plain)


def encode_plain(levels: Numbers, shape: Shape) -> bytes:
    """The same in Python, as `secateurs.coding._native` does it: the normative text of the format."""
    flat = levels.ravel().astype(np.int64)
    lowest = int(flat.min())
    width = (int(flat.max()) - lowest).bit_length()
    bits = (flat - lowest)[:, None] >> np.arange(width - 1, -1, -1) & 1
    return bytes([width]) + lowest.to_bytes(4, "big", signed=True) + np.packbits(bits.astype(np.uint8).ravel()).tobytes()


def decode_plain(data: bytes, shape: Shape) -> Numbers:
    """As `encode_plain`, the other way."""
    width, lowest = BitReader(data, 0).get(8), int.from_bytes(data[1:5].ljust(4, b"\0"), "big", signed=True)
    if width > 32:
        raise Malformed("a number of more than 32 bits")
    end = 5 + -(-shape.numbers * width // 8)
    if len(data) < end:
        raise Malformed("it ends too early")
    bits = np.unpackbits(np.frombuffer(data, np.uint8)[5:end])[: shape.numbers * width].astype(np.int64)
    found = lowest + bits.reshape(shape.numbers, width) @ (1 << np.arange(width - 1, -1, -1, dtype=np.int64))
    if found.max() >= 1 << 31:
        raise Malformed("a number of more than 32 bits")
    reader = BitReader(data, 5)
    reader.skip(shape.numbers * width)
    reader.finish(shape.numbers)
    return found.astype(np.int32)
