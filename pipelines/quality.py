"""The quality rules that FineWeb keeps web pages by, as datatrove has them, over words that a regular expression finds.

In FineWeb's order (https://arxiv.org/abs/2406.17557, https://github.com/huggingface/datatrove, examples/fineweb.py):

    gopher-*    repetition, then quality (https://arxiv.org/abs/2112.11446, table A1 and section A.1.1)
    c4-*        lines of boilerplate go, pages with too few sentences (https://arxiv.org/abs/1910.10683, section 2.2);
                pages may lack final punctuation, as in FineWeb
    fineweb-*   share of lines that end a sentence, that are short, that are repeated

The rules are datatrove's own classes with their default thresholds; its default tokenizer (spaCy, 47 documents a
second) is replaced by two regular expressions: the rules only count words and sentences.
Cost: 8 ms for a page of 6 kB, most of it the nine n-gram rules.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable

from datatrove.data import Document as Datatrove
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.utils.word_tokenizers import WordTokenizer

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]+")
_SENTENCE = re.compile(r"[^.!?。！？…]*[.!?。！？…]+[\"'”’)\]]*\s*|[^.!?。！？…]+$")


class FastTokenizer(WordTokenizer):  # type: ignore[misc]
    """Words and sentences by regular expressions: 20 MB of text a second."""

    def word_tokenize(self, text: str) -> list[str]:
        """Words and runs of punctuation, in order. The same text is often asked for several times in a row."""
        return _words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Sentences without the blanks around them."""
        return [text[start:end].strip() for start, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Sentences as (start, end)."""
        return [match.span() for match in _SENTENCE.finditer(text)]


@functools.lru_cache(maxsize=2)
def _words(text: str) -> list[str]:
    return _WORD.findall(text)


@dataclasses.dataclass(frozen=True)
class _Rule:
    prefix: str
    judge: Callable[[Datatrove], bool | tuple[bool, str]]


@functools.cache
def _rules() -> tuple[_Rule, ...]:
    tokenizer = FastTokenizer()
    return (
        _Rule("gopher", GopherRepetitionFilter(language=tokenizer).filter),
        _Rule("gopher", GopherQualityFilter(language=tokenizer).filter),
        _Rule("c4", C4QualityFilter(filter_no_terminal_punct=False, language=tokenizer).filter),
        _Rule("fineweb", FineWebQualityFilter(language=tokenizer).filter),
    )


def fineweb(text: str) -> tuple[str, str | None]:
    """The text without lines of boilerplate, and the reason to drop it ("gopher-dup-line-frac"), or None to keep it."""
    document = Datatrove(text=text, id="")
    for rule in _rules():
        verdict = rule.judge(document)
        if verdict is not True:
            return document.text, _reason(rule.prefix, verdict)
    return document.text, None


def _reason(prefix: str, verdict: bool | tuple[bool, str]) -> str:
    words = verdict[1] if isinstance(verdict, tuple) else "quality"
    return f"{prefix}-{words.removeprefix(prefix + '_').replace('_', '-')}"
