"""Numbers in the words that people use: 95.1 %, 1.20 M, 45.3 kB, 12.3x fewer."""

from __future__ import annotations

import math
import unicodedata

UNKNOWN = "\N{EM DASH}"
"""What stands in the place of a number that nobody measured."""


def percent(fraction: float | None, decimals: int = 1) -> str:
    """A fraction in %, with more decimals where rounding would claim all or nothing.

    >>> percent(0.951), percent(0.99996), percent(1.0), percent(None)
    ('95.1 %', '99.996 %', '100.0 %', '—')
    """
    if fraction is None or not math.isfinite(fraction):
        return number(fraction)
    text = f"{100 * fraction:.{decimals}f}"
    while float(text) in (0.0, 100.0) and fraction not in (0, 1) and decimals < 12:
        decimals += 1
        text = f"{100 * fraction:.{decimals}f}"
    return f"{text} %"


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many significant digits, or in words where it is not one.

    >>> number(13.43721), number(float("nan")), number(None)
    ('13.44', 'not a number', '—')
    """
    if value is None:
        return UNKNOWN
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    return f"{value:.{digits}g}"


def whole(value: int | None) -> str:
    """A whole number with all its digits.

    >>> whole(24_600), whole(None)
    ('24,600', '—')
    """
    return UNKNOWN if value is None else f"{value:,}"


def scaled(value: float | None) -> str:
    """Three significant digits and k, M, G or T; whole numbers below 1000.

    >>> scaled(950), scaled(24_600), scaled(999_960), scaled(4.1e9)
    ('950', '24.6 k', '1.00 M', '4.10 G')
    """
    if value is None or not math.isfinite(value):
        return number(value)
    if abs(value) < 999.5:
        return f"{value:.0f}"
    for letter in "kMGT":
        value /= 1000
        if abs(value) < 999.5 or letter == "T":
            break
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f} {letter}"


def rounded(value: float) -> str:
    """A round number, such as a tick of an axis, without the zeros that say how exact it is.

    >>> rounded(25_000), rounded(1_600_000), rounded(150_000)
    ('25 k', '1.6 M', '150 k')
    """
    digits, space, letter = scaled(value).partition(" ")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + space + letter


def size(count: int | None) -> str:
    """Bytes in B, kB, MB or GB, of 1000 each.

    >>> size(612), size(45_300), size(102_400_000)
    ('612 B', '45.3 kB', '102 MB')
    """
    if count is None:
        return UNKNOWN
    text = scaled(count)
    return f"{text}B" if text[-1].isalpha() else f"{text} B"


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours.

    >>> duration(0.4321), duration(75.2), duration(200), duration(7500)
    ('0.43 s', '75.2 s', '3.3 min', '2.1 h')
    """
    if seconds is None or not math.isfinite(seconds):
        return number(seconds)
    if seconds < 100:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def times(before: float | None, after: float | None, less: str, more: str, same: str = "the same") -> str:
    """By what factor something shrank or grew; empty where that is unknown or has no factor.

    >>> times(1000, 81, "fewer", "more"), times(10, 12, "smaller", "larger"), times(1000, 970, "fewer", "more")
    ('12.3x fewer', '1.2x larger', '1.03x fewer')
    >>> times(1000, 1000, "fewer", "more"), times(1000, None, "fewer", "more"), times(1000, 0, "fewer", "more")
    ('the same', '', 'none left')
    """
    if before is None or after is None or not (0 <= before < math.inf and 0 <= after < math.inf) or before == 0:
        return ""
    if after == 0:
        return "none left"
    factor, word = (before / after, less) if after <= before else (after / before, more)
    decimals = 2 if factor < 1.095 else 1 if factor < 99.95 else 0
    text = f"{factor:.{decimals}f}"
    return same if text == "1.00" else f"{text}x {word}"


def printable(text: str) -> str:
    r"""The text with control characters and lone surrogates, which neither a terminal nor XML can bear, made visible as �.

    >>> printable("conv1\x1b[31m")
    'conv1�[31m'
    """
    text = text.replace("\r\n", "\n")
    return "".join(character if _is_printable(character) else "\N{REPLACEMENT CHARACTER}" for character in text)


def _is_printable(character: str) -> bool:
    # Besides Cc (control) and Cs (surrogate), U+FFFE and U+FFFF are no XML; Cf includes joiners that scripts need, and stays.
    return character in "\n\t" or (unicodedata.category(character) not in ("Cc", "Cs") and character not in "\ufffe\uffff")


def shortened(text: str, width: int) -> str:
    """At most ``width`` characters, the middle left out: both ends of a layer's name carry its meaning.

    >>> shortened("model.layers.10.self_attn.q_proj", 20)
    'model.lay…ttn.q_proj'
    """
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (width - 1 - head) :]}"
