"""A document -> keep it, or drop it with a reason. A filter drops what is no text to learn from, and nothing else.

    disambiguation   a page that lists what its title can mean, by its own template
    empty            no text is left after extraction
    short            fewer than `min_words` words. 10, where C4 asks for 3 sentences and Gopher for 50 words: a stub of
                     one sentence is still a source that someone can ask to take out
    not-wikitext     a page of another content model, such as Wikidata's items; set by the reader

Quality filters (Gopher, C4, FineWeb) are not here: they would hide from a source's owner that it was read.
Cost: 5 microseconds for a short document, none that grows with its length.
"""

from __future__ import annotations

import dataclasses
import re

from pipelines.document import Document
from registry.errors import UsageError
from registry.schema import Status

# Scripts that put no spaces between words: each character counts as one (UAX #29 breaks Han, kana and Hangul likewise).
_WORD = re.compile(
    "[\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
    "\u0e01-\u0e2e\u0e80-\u0eae\u1000-\u102a\u1780-\u17b3]"
    "|[^\\W_]+"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which documents are dropped. Part of what a snapshot is made from, and so of its digest.

    Attributes:
        min_words: a document with fewer words is dropped; 0 keeps all that have any text.
        keep_disambiguation: keep pages that only list what a title can mean.
    """

    min_words: int = 10
    keep_disambiguation: bool = False

    def __post_init__(self) -> None:
        if self.min_words < 0:
            raise UsageError(f"--min-words must be 0 or more, got {self.min_words}")


def judge(document: Document, config: FilterConfig) -> tuple[str, str] | None:
    """Why `document`, whose text is extracted, should be dropped: reason and detail; None to keep it."""
    if document.is_disambiguation and not config.keep_disambiguation:
        return "disambiguation", "a page that lists what its title can mean"
    if not document.text.strip():
        return "empty", "no text is left after extraction"
    num_words = count_words(document.text, limit=config.min_words)
    if num_words < config.min_words:
        return "short", f"{num_words} words, expected {config.min_words} or more"
    return None


def apply(document: Document, config: FilterConfig) -> None:
    """Ends `document` FILTERED if it is to be dropped; one that has ended already is left as it is."""
    if document.status is not Status.KEPT:
        return
    verdict = judge(document, config)
    if verdict:
        document.end(Status.FILTERED, *verdict)


def count_words(text: str, *, limit: int) -> int:
    """The number of words in `text`, but not more than `limit`: counting stops there."""
    num_words = 0
    for _ in _WORD.finditer(text):
        if num_words >= limit:
            break
        num_words += 1
    return num_words
