"""Make any text safe to show: what is invisible or changes the order of its surroundings is shown as an escape.

Titles, keys, reasons and URLs come from other people's data. HTML's own characters are escaped by the templates; a
right-to-left override, a null or a line separator is not markup, and still changes what a reader sees.

Run: ``visible("abc\\u202edcba")``.
"""

from __future__ import annotations

import unicodedata

MAX_CHARACTERS = 300
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # Persian, Indic scripts and emoji are spelled with them
_SPACES = "\u00a0\u2007\u202f\u3000"  # seen as a space, as they are meant


def visible(text: object, limit: int = MAX_CHARACTERS) -> str:
    r"""Return text without hidden characters: each is replaced by its escape, e.g. `\u202e`; long text is cut.

    Args:
        text: anything; its `str` is shown.
        limit: characters of the original that are shown, before an ellipsis.
    """
    whole = str(text)
    shown = "".join(_shown(character) for character in whole[:limit])
    return shown + ("…" if len(whole) > limit else "")


def _shown(character: str) -> str:
    if character in _JOINERS or character in _SPACES:
        return character
    if unicodedata.category(character) not in _HIDDEN:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
