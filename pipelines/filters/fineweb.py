"""FineWeb's quality rules for web pages, as implemented by datatrove, with a faster tokenizer.

In FineWeb's order (https://arxiv.org/abs/2406.17557, https://github.com/huggingface/datatrove, examples/fineweb.py):

    gopher-*    repetition, then quality (https://arxiv.org/abs/2112.11446, table A1 and section A.1.1)
    c4-*        lines of boilerplate are removed, pages with too few sentences dropped
                (https://arxiv.org/abs/1910.10683, section 2.2); lines may lack final punctuation, as in FineWeb
    fineweb-*   share of lines that end a sentence, that are short, that are repeated

The rules are datatrove's own classes, with the thresholds of `QualityConfig`. Their default tokenizer (spaCy, 47
documents a second) is replaced by two regular expressions, since the rules only count words and sentences.
Cost: 8 ms for a page of 6 kB, most of it the nine n-gram rules.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import re
from collections.abc import Callable
from typing import Any

from datatrove.data import Document as Datatrove
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.utils.word_tokenizers import WordTokenizer

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]+")
_SENTENCE = re.compile(r"[^.!?。！？…]*[.!?。！？…]+[\"'”’)\]]*\s*|[^.!?。！？…]+$")


class FastTokenizer(WordTokenizer):  # type: ignore[misc]
    """A tokenizer for words and sentences by regular expressions: 10 MB of text a second."""

    def word_tokenize(self, text: str) -> list[str]:
        """Return words and runs of punctuation, in order; cached, since several rules ask for the same text."""
        return _words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Return the sentences without the blanks around them."""
        return [text[start:end].strip() for start, end in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Return the sentences as (start, end) offsets."""
        return [match.span() for match in _SENTENCE.finditer(text)]


@functools.lru_cache(maxsize=2)
def _words(text: str) -> list[str]:
    return _WORD.findall(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """The thresholds of all rules, by default FineWeb's. They shape a snapshot where the rules apply.

    Attributes:
        max_duplicate_line_share, max_duplicate_paragraph_share: share of repeated lines and paragraphs, by number
            (Gopher, table A1); the next two fields are the same by characters.
        max_top_ngram_share: (n, share of the characters in the most frequent n-gram) (Gopher, table A1).
        max_duplicate_ngram_share: (n, share of the characters in repeated n-grams) (Gopher, table A1).
        min_words, max_words: words of a page (Gopher, A.1.1, which the fields up to `min_stop_words` are from as well).
        min_mean_word_length, max_mean_word_length: in characters.
        max_symbol_share: number of "#", and of ellipses, per word.
        max_bullet_line_share, max_ellipsis_line_share: share of lines that begin with a bullet, end with an ellipsis.
        min_alphabetic_word_share: share of words with a letter.
        min_stop_words: number of distinct words among the, be, to, of, and, that, have, with.
        min_sentences, min_words_per_line, max_word_length: of a page, a line, a word (C4, section 2.2); lines with too
            few or too long words, or about Javascript, cookies or terms of use, are removed.
        min_ended_line_share: share of lines that end a sentence (FineWeb, section 3.6, as the fields below).
        max_short_line_share, short_line_chars: share of lines of at most `short_line_chars` characters.
        max_duplicate_char_share: share of characters in repeated lines.
        max_line_breaks_per_word: number of line breaks per word; a list has more.
    """

    max_duplicate_line_share: float = 0.30
    max_duplicate_paragraph_share: float = 0.30
    max_duplicate_line_char_share: float = 0.20
    max_duplicate_paragraph_char_share: float = 0.20
    max_top_ngram_share: tuple[tuple[int, float], ...] = ((2, 0.20), (3, 0.18), (4, 0.16))
    max_duplicate_ngram_share: tuple[tuple[int, float], ...] = (
        *((5, 0.15), (6, 0.14), (7, 0.13)),
        *((8, 0.12), (9, 0.11), (10, 0.10)),
    )
    min_words: int = 50
    max_words: int = 100_000
    min_mean_word_length: int = 3
    max_mean_word_length: int = 10
    max_symbol_share: float = 0.1
    max_bullet_line_share: float = 0.9
    max_ellipsis_line_share: float = 0.3
    min_alphabetic_word_share: float = 0.8
    min_stop_words: int = 2
    min_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1000
    min_ended_line_share: float = 0.12
    max_short_line_share: float = 0.67
    short_line_chars: int = 30
    max_duplicate_char_share: float = 0.01
    max_line_breaks_per_word: float = 0.3


FINEWEB = QualityConfig()


@dataclasses.dataclass(frozen=True)
class _Rule:
    prefix: str
    judge: Callable[[Datatrove], bool | tuple[bool, str]]


@functools.cache
def _rules(config: QualityConfig) -> tuple[_Rule, ...]:
    tokenizer = FastTokenizer()
    repetition = GopherRepetitionFilter(
        dup_line_frac=config.max_duplicate_line_share,
        dup_para_frac=config.max_duplicate_paragraph_share,
        dup_line_char_frac=config.max_duplicate_line_char_share,
        dup_para_char_frac=config.max_duplicate_paragraph_char_share,
        top_n_grams=config.max_top_ngram_share,
        dup_n_grams=config.max_duplicate_ngram_share,
        language=tokenizer,
    )
    gopher = GopherQualityFilter(
        min_doc_words=config.min_words,
        max_doc_words=config.max_words,
        min_avg_word_length=config.min_mean_word_length,
        max_avg_word_length=config.max_mean_word_length,
        max_symbol_word_ratio=config.max_symbol_share,
        max_bullet_lines_ratio=config.max_bullet_line_share,
        max_ellipsis_lines_ratio=config.max_ellipsis_line_share,
        max_non_alpha_words_ratio=config.min_alphabetic_word_share,
        min_stop_words=config.min_stop_words,
        language=tokenizer,
    )
    c4 = C4QualityFilter(
        filter_no_terminal_punct=False,
        min_num_sentences=config.min_sentences,
        min_words_per_line=config.min_words_per_line,
        max_word_length=config.max_word_length,
        language=tokenizer,
    )
    fine = FineWebQualityFilter(
        line_punct_thr=config.min_ended_line_share,
        short_line_thr=config.max_short_line_share,
        short_line_length=config.short_line_chars,
        char_duplicates_ratio=config.max_duplicate_char_share,
        new_line_ratio=config.max_line_breaks_per_word,
        language=tokenizer,
    )
    rules = (("gopher", repetition), ("gopher", gopher), ("c4", c4), ("fineweb", fine))
    return tuple(_Rule(prefix, step.filter) for prefix, step in rules)


def fineweb(text: str, config: QualityConfig = FINEWEB) -> tuple[str, str | None]:
    """Return the text without boilerplate lines, and the reason to drop it ("gopher-dup-line-frac") or None."""
    document = Datatrove(text=text, id="")
    for rule in _rules(config):
        verdict = rule.judge(document)
        if verdict is not True:
            return document.text, _reason(rule.prefix, verdict)
    return document.text, None


def _reason(prefix: str, verdict: bool | tuple[bool, str]) -> str:
    rule = verdict[1] if isinstance(verdict, tuple) else "quality"
    return f"{prefix}-{rule.removeprefix(prefix + '_').replace('_', '-')}"


def shaping(config: QualityConfig = FINEWEB) -> dict[str, Any]:
    """Return all that the rules' verdicts depend on besides the text: thresholds, and datatrove's release."""
    thresholds = {
        name: [list(pair) for pair in value] if isinstance(value, tuple) else value
        for name, value in dataclasses.asdict(config).items()
    }
    return {"rules": f"datatrove {importlib.metadata.version('datatrove')}", **thresholds}
