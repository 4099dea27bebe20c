r"""Make any text safe to show on a page: what is hidden in it is shown as an escape, and long text is cut.

Titles, keys, reasons and URLs come from other people's data. The templates escape what is markup; this escapes what is
not and still changes what a reader sees, as on a terminal (`registry.messages.shown`), with two differences: joiners
stay, since browsers spell Persian and Indic scripts with them, and marks that pile up on a letter are escaped.

Run: ``visible("abc\u202edcba")``.
"""

from __future__ import annotations

import unicodedata

from registry.messages.masking import without_login
from registry.messages.shown import ELLIPSIS, escaped

MAX_CHARACTERS = 300
_JOINERS = "\u200c\u200d"
_MARKS = frozenset({"Mn", "Me"})
_MAX_MARKS = 4  # Hebrew, Vietnamese and phonetic spelling stack up to three


def visible(text: object, limit: int = MAX_CHARACTERS) -> str:
    r"""Return text without hidden characters: each is replaced by its escape, e.g. `\u202e`; long text is cut.

    Args:
        text: anything; its `str` is shown, without the passwords of URLs.
        limit: characters of the original that are shown, before an ellipsis.
    """
    whole = without_login(str(text))
    shown: list[str] = []
    num_marks = 0
    for character in whole[:limit]:
        num_marks = num_marks + 1 if unicodedata.category(character) in _MARKS else 0
        if num_marks > _MAX_MARKS:
            shown.append(f"\\u{ord(character):04x}")
        else:
            shown.append(character if character in _JOINERS else escaped(character))
    return "".join(shown) + (ELLIPSIS if len(whole) > limit else "")
