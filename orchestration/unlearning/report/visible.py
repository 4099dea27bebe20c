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
_MARKS = frozenset({"Mn", "Me"})
_MAX_MARKS = 4  # Hebrew, Vietnamese and phonetic spelling stack up to three


def visible(text: object, limit: int = MAX_CHARACTERS) -> str:
    r"""Return text without hidden characters: each is replaced by its escape, e.g. `\u202e`; long text is cut.

    Marks that pile up on one letter, and so cover the lines above and below, are escaped after the fourth.

    Args:
        text: anything; its `str` is shown.
        limit: characters of the original that are shown, before an ellipsis.
    """
    whole = str(text)
    shown: list[str] = []
    num_marks = 0
    for character in whole[:limit]:
        category = unicodedata.category(character)
        num_marks = num_marks + 1 if category in _MARKS else 0
        harmless = category not in _HIDDEN or character in _JOINERS
        shown.append(character if harmless and num_marks <= _MAX_MARKS else _escape(character))
    return "".join(shown) + ("…" if len(whole) > limit else "")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
