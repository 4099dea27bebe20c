"""Decide whether a document is kept, or dropped with a reason. Dropped documents stay on record and can be looked up.

    empty            at every level: no text is left after extraction
    disambiguation   from LIGHT on: a page that lists the meanings of its title, by its own template
    short            from LIGHT on: fewer than `min_words` words. 10, where C4 asks for 3 sentences and Gopher for 50
                     words: a stub of one sentence is still a source that someone can ask to remove
    language         in none of `languages`, if any are given
    gopher-*, c4-*, fineweb-*   at FINEWEB, web pages only: `pipelines.filters.fineweb`
    not-wikitext     a page of another content model, such as Wikidata's items; set by the reader, as are the reasons
                     for which a web record is no page (`pipelines.document.NO_CAPTURE`)

The language is detected by resiliparse and recorded whether or not documents are filtered by it. FineWeb's rules are
for English, so that level keeps only English. Cost: 0.1 ms a document for the language, and that of
`pipelines.filters.fineweb` at FINEWEB.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from typing import Any

from pipelines.document import Document
from pipelines.text.languages import detect_language
from registry.errors import UsageError
from registry.schema import Kind, Status

# Scripts that put no spaces between words: each character counts as one (UAX #29 breaks Han, kana and Hangul likewise).
_WORD = re.compile(
    "[\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
    "\u0e01-\u0e2e\u0e80-\u0eae\u1000-\u102a\u1780-\u17b3]"
    "|[^\\W_]+"
)


class FilterLevel(enum.StrEnum):
    """How much is dropped, from `empty` documents only (NONE) to all of FineWeb's rules."""

    NONE = "none"
    LIGHT = "light"
    FINEWEB = "fineweb"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """The rules that drop documents. They shape a snapshot, and so are part of its digest.

    Attributes:
        level: set of rules that apply.
        languages: ISO 639-1 codes of the languages that are kept; empty for all.
        min_words: a document with fewer words is dropped; 0 keeps all that have any text.
        keep_disambiguation: whether pages that only list the meanings of a title are kept.
    """

    level: FilterLevel = FilterLevel.LIGHT
    languages: tuple[str, ...] = ()
    min_words: int = 10
    keep_disambiguation: bool = False

    def __post_init__(self) -> None:
        if self.min_words < 0:
            raise UsageError(f"min_words must be 0 or more, got {self.min_words}")
        unknown = [code for code in self.languages if not re.fullmatch("[a-z]{2,3}", code)]
        if unknown:
            raise UsageError(f"--language {unknown[0]}: expected a code of ISO 639, such as en")
        if self.level is FilterLevel.FINEWEB and set(self.languages) - {"en"}:
            raise UsageError(
                f"--filters fineweb has rules for English only, not for {', '.join(self.languages)}; "
                "use --filters light with other languages"
            )

    def shaping(self) -> dict[str, Any]:
        """Return the settings that a snapshot depends on, with the thresholds of the rules that apply."""
        found = dataclasses.asdict(self) | {"languages": list(self.languages)}
        if self.level is FilterLevel.FINEWEB:
            from pipelines.filters import fineweb

            found["fineweb"] = fineweb.shaping()
        return found

    @property
    def kept_languages(self) -> tuple[str, ...]:
        """The languages that are kept: `languages`, or English where the level implies it."""
        return ("en",) if self.level is FilterLevel.FINEWEB else self.languages


def judge(document: Document, config: FilterConfig) -> tuple[str, str] | None:
    """Return reason and detail for which `document`, after text extraction, is dropped; None to keep it."""
    is_judged = config.level is not FilterLevel.NONE
    if is_judged and document.is_disambiguation and not config.keep_disambiguation:
        return "disambiguation", "a page that lists the meanings of its title"
    if not document.text.strip():
        return "empty", "no text is left after extraction"
    num_words = count_words(document.text, limit=config.min_words) if is_judged else config.min_words
    if num_words < config.min_words:
        return "short", f"{num_words} words, expected {config.min_words} or more"
    if config.kept_languages and document.language not in config.kept_languages:
        return "language", f"{document.language or 'unknown'}, kept: {', '.join(config.kept_languages)}"
    if config.level is FilterLevel.FINEWEB and document.kind is Kind.WEB:
        return _fineweb(document)
    return None


def _fineweb(document: Document) -> tuple[str, str] | None:
    from pipelines.filters import fineweb

    text, reason = fineweb.fineweb(document.text)
    if reason:
        return reason, "by FineWeb's rules for web pages"
    document.text = text
    return None


def apply(document: Document, config: FilterConfig) -> None:
    """Detect the language of `document` and end it FILTERED if a rule drops it; one that has ended is left as it is."""
    if document.status is not Status.KEPT:
        return
    document.language = document.language or detect_language(document.text)
    verdict = judge(document, config)
    if verdict:
        document.end(Status.FILTERED, *verdict)


def count_words(text: str, *, limit: int) -> int:
    """Return the number of words in `text`, at most `limit`, where counting stops."""
    num_words = 0
    for _ in _WORD.finditer(text):
        if num_words >= limit:
            break
        num_words += 1
    return num_words
