"""Damage by chance, and changes that somebody makes who knows the format."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from random import Random
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 3, -1, -3, 2**31, 2**63 - 1, 2**63, 10**30, 10**400, 0.5, -0.0, float("nan"), float("inf")),
    *("", "x", "0", "weight", "w::mask", "\ud800", "a" * 1000, [], {}, [[]], [0] * 50, {"x": None}, [None], {"tensor": "x"}),
    *(["bits"], {"in": "zeros"}, {"in": "bits", "shape": [2**40, 2**40]}, {"dict": [[1, 2]]}, {"list": []}, {"tuple": [0]}),
)


def damaged(content: bytes, chance: Random) -> bytes:
    """Bytes as a bad disk, a cut connection or a careless editor leaves them."""
    found = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        place, length = chance.randrange(len(found) + 1), chance.choice((1, 1, 2, 8, 64))
        match chance.randrange(7):
            case 0 | 1 if place < len(found):
                found[place] ^= 1 << chance.randrange(8)
            case 2 if place < len(found):
                found[place] = chance.randrange(256)
            case 3:
                del found[place : place + length]
            case 4:
                found[place:place] = chance.randbytes(length)
            case 5:
                other = chance.randrange(len(found) + 1)
                found[place : place + length] = found[other : other + length]
            case _:
                found[place : place + length] = bytes(len(found[place : place + length]))
    return bytes(found)


def places(document: Any) -> list[tuple[Any, Any]]:
    """Each place of a JSON document: what holds it, and under which key."""
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        here = waiting.pop()
        keys: Any = here.keys() if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else ()
        for key in keys:
            found.append((here, key))
            waiting.append(here[key])
    return found


def changed(document: Any, chance: Random) -> Any:
    """A JSON document in which something is another thing, is gone, has another name, or stands elsewhere too."""
    document = copy.deepcopy(document)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        there = places(document)
        if not there:
            return copy.deepcopy(chance.choice(ODD))
        (holder, key), (other, name) = chance.choice(there), chance.choice(there)
        if isinstance(holder, list) and key >= len(holder):
            continue
        match chance.randrange(8):
            case 0:
                del holder[key]
            case 1:
                holder[key] = copy.deepcopy(other[name])
            case 2 if isinstance(holder, dict):
                holder[chance.choice(("", "x", "0", str(key) + "'", "weight"))] = holder.pop(key)
            case 3 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case 4 if type(holder[key]) in (int, float):
                holder[key] = holder[key] + chance.choice((-1, 1, -2, 10, 1000))
            case 5:
                holder[key] = _deep(chance.choice((5, 60, 300)), holder[key])
            case _:
                holder[key] = copy.deepcopy(chance.choice(ODD))
    return document


def _deep(depth: int, value: Any) -> Any:
    for _ in range(depth):
        value = [value]
    return value


def parts(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, document and tensors' bytes of a safetensors file of ours; the document without its checksums."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    document = json.loads(header.pop("__metadata__")["secateurs"])
    return header, {key: value for key, value in document.items() if not key.startswith("checksum")}, content[8 + length :]


def whole(header: dict[str, Any], document: Any, data: bytes) -> bytes:
    """The file that these parts make."""
    metadata = {"__metadata__": {"secateurs": json.dumps(document)}}
    text = json.dumps({**metadata, **header}).encode("utf-8", "replace")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def rewritten(content: bytes, chance: Random) -> bytes:
    """A safetensors file whose document, or whose tensors' names, shapes and dtypes, somebody has changed."""
    header, document, data = parts(content)
    if chance.random() < 0.15:
        header = changed(header, chance)
        return whole(header if isinstance(header, dict) else {}, document, data)
    plan = document.get("plan")
    if isinstance(plan, str) and chance.random() < 0.1:
        return whole(header, {**document, "plan": json.dumps(changed(json.loads(plan), chance))}, data)
    return whole(header, changed(document, chance), data)


# ---------------------------------------------------------------- compressed files

_HEAD = struct.Struct("<8sIIII")


def recoded(content: bytes, chance: Random) -> bytes:
    """A compressed file of which somebody has changed the index, or the bytes of a tensor, and made all checksums anew."""
    magic, version, packed, size, _ = _HEAD.unpack(content[: _HEAD.size])
    index = json.loads(zlib.decompress(content[_HEAD.size : _HEAD.size + packed]))
    place, payloads = _HEAD.size + packed, []
    for entry in index["tensors"]:
        payloads.append(content[place : place + entry["bytes"]])
        place += entry["bytes"] + 4
    if chance.random() < 0.5:
        which = chance.randrange(len(payloads))
        payloads[which] = damaged(payloads[which], chance)
        if chance.random() < 0.7:
            index["tensors"][which]["bytes"] = len(payloads[which])
    if chance.random() < 0.6:
        which = chance.randrange(len(payloads))
        index["tensors"][which] = changed(index["tensors"][which], chance)
    try:
        if chance.random() < 0.2:
            index = changed(index, chance)
        text = json.dumps(index).encode("utf-8", "surrogatepass")
    except RecursionError:  # nested twice, beyond what can be copied or written here
        return damaged(content, chance)
    size = len(text) if chance.random() < 0.95 else chance.choice((0, size, 1 << 26, (1 << 32) - 1))
    deflated = zlib.compress(text, chance.choice((1, 9)))
    told = struct.pack("<III", version, len(deflated), size)
    head = _HEAD.pack(magic, version, len(deflated), size, zlib.crc32(deflated, zlib.crc32(told)))
    return head + deflated + b"".join(payload + struct.pack("<I", zlib.crc32(payload)) for payload in payloads)
