"""Show text from data (titles, keys, URLs, reasons) so that it cannot act on a terminal or pass for other text.

    escaped("a\x1b[2Jb\nc")      a\x1b[2Jb\nc, in 12 printable characters
    listed(["wiki:a", ...])      wiki:a, wiki:b and 8,899 more
    shortened("a long title", 8) a long …

Escaped are control characters, newlines and tabs, controls of text direction, invisible characters (zero-width, byte
order marks, tags, variation selectors, fillers), lone surrogates, and code points without an assigned character.
Letters of every script, ordinary combining marks and all visible signs stay. Escaping an escaped text changes nothing.

Cost: 0.1 us for ASCII, about 1 us for a title in another script.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

from registry.errors import UsageError

ELLIPSIS = "…"
LIST_CHARS = 120
"""The length of a list of names in a message, beyond which it is cut."""

# Invisible (Default_Ignorable_Code_Point of Unicode), though `str.isprintable` is true of them: the grapheme joiner,
# Hangul fillers, Khmer inherent vowels, Mongolian and other variation selectors; and the empty Braille pattern.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]"
)
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_MAX_CHARS_A_CELL = 4  # combining marks have no width, and a title may hold thousands of them


def refuse_controls(name: str, text: str) -> None:
    """Check text that is to be recorded, as a reason is: it must be one line, and hold nothing that acts on a terminal.

    Raises:
        UsageError: it holds a control character, a line break, a control of text direction or a lone surrogate.
    """
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _BIDI for c in text):
        raise UsageError(f"{name} '{escaped(text)}': expected one line of text without control characters")


def escaped(text: str) -> str:
    r"""Return `text` with the characters that must not reach a terminal written as `\n`, `\x1b`, `\u202e`, ..."""
    if text.isprintable() and (text.isascii() or not _INVISIBLE.search(text)):
        return text
    return "".join(_escape(character) if _is_unsafe(character) else character for character in text)


def json_text(data: Any) -> str:
    r"""Return `data` as indented JSON: exact for a parser, and safe on a terminal: `\u001b`, `\u202e`, `\ud800`."""
    text = json.dumps(data, ensure_ascii=False, indent=2)
    if text.isascii() and "\x7f" not in text:  # json.dumps escapes the other control characters
        return text
    return "\n".join(
        "".join(json.dumps(c)[1:-1].replace("\x7f", r"\u007f") if _is_unsafe(c) else c for c in line)
        if not line.isprintable() or _INVISIBLE.search(line)
        else line
        for line in text.split("\n")
    )


def listed(names: Iterable[str], *, most_chars: int = LIST_CHARS) -> str:
    """Join names with commas, as far as they fit; then say how many more there are."""
    found = list(names)
    shown: list[str] = []
    length = 0
    for name in found:
        text = shortened(escaped(name), most_chars)
        length += len(text) + 2
        if shown and length > most_chars:
            break
        shown.append(text)
    more = len(found) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")


def width(text: str) -> int:
    """Return how many columns of a terminal `text` takes: a Chinese character two, a combining mark none."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return int(cell_len(text))


def shortened(text: str, columns: int) -> str:
    """Return `text` if it fits into `columns` of a terminal, else its beginning and an ellipsis."""
    if len(text) <= _MAX_CHARS_A_CELL * columns and width(text) <= columns:
        return text
    kept, taken = [], 0
    for character in text[: _MAX_CHARS_A_CELL * columns - 1]:
        taken += width(character)
        if taken > columns - 1:
            break
        kept.append(character)
    return "".join(kept) + ELLIPSIS


def _is_unsafe(character: str) -> bool:
    if character.isprintable():
        return _INVISIBLE.match(character) is not None
    return unicodedata.category(character) != "Zs"  # a wide or narrow space


def _escape(character: str) -> str:
    code = ord(character)
    if character in _SHORT:
        return _SHORT[character]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
