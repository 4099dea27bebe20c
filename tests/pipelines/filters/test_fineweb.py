"""Test FineWeb's rules, which are datatrove's classes, and the filter levels that apply them."""

from __future__ import annotations

import pytest
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

from pipelines.document import Document
from pipelines.filters import fineweb as rules
from pipelines.filters.fineweb import FastTokenizer, fineweb
from pipelines.filters.rules import FilterConfig, FilterLevel, apply
from pipelines.text.languages import detect_language
from registry.errors import UsageError
from registry.schema import Kind, Status

ARTICLES = (
    "The committee met on Tuesday to talk about the plans for the new library. Most of the members were in favour "
    "of the proposal, which would see it built beside the old town hall. Some were worried about the cost of it. "
    "They asked for another report before the end of March. The mayor said that she would be happy to have one "
    "written, and that nothing would be decided until everyone had read it. People who live nearby have been asked "
    "what they think. Their answers are going to be published with the report."
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ARTICLES, None),
        ("word " * 20, "gopher-top-2-gram"),
        ("\n\n".join(["The same paragraph that is here again and again."] * 9), "gopher-dup-para-frac"),
        (ARTICLES[:170], "gopher-short-doc"),
        (ARTICLES.replace(". ", ". { "), "c4-curly-bracket"),
        (ARTICLES.replace(".", ","), "c4-too-few-sentences"),
        (ARTICLES + "\nLorem ipsum dolor sit amet is here.", "c4-lorem-ipsum"),
    ],
)
def test_each_rule_drops_with_its_reason(text: str, reason: str | None) -> None:
    assert fineweb(text)[1] == reason


def test_lines_of_boilerplate_are_removed() -> None:
    boilerplate = "This site uses cookies to make things better.\nPlease enable Javascript to go on."
    text, reason = fineweb(f"{ARTICLES}\n{boilerplate}")
    assert reason is None
    assert text == ARTICLES


def test_the_tokenizer_finds_words_and_sentences() -> None:
    tokenizer = FastTokenizer()
    words = ["Don't", ",", "said", "R2", "-", "D2", ":", "née", "!"]
    assert tokenizer.word_tokenize("Don't, said  R2-D2: née!") == words
    assert tokenizer.sent_tokenize("One. Two?! 'Three.' Four") == ["One.", "Two?!", "'Three.'", "Four"]


def web(text: str, kind: Kind = Kind.WEB) -> Document:
    return Document(kind=kind, key="web:a.example", locator="", text=text)


@pytest.mark.parametrize(
    ("level", "text", "reason"),
    [
        ("none", "word", None),
        ("none", " ", "empty"),
        ("light", "word", "short"),
        ("light", "word " * 20, None),
        ("fineweb", "The dog has been with us and it is the best of all. " * 20, "gopher-dup-line-frac"),
        ("fineweb", "Das ist ein deutscher Satz, und er hat genug Wörter, damit man es merken kann.", "language"),
    ],
)
def test_each_level_drops_with_its_reason(level: str, text: str, reason: str | None) -> None:
    document = web(text)
    apply(document, FilterConfig(level=FilterLevel(level)))
    if reason == "gopher-dup-line-frac":
        assert document.reason is not None
        assert document.reason.startswith("gopher-")
    else:
        assert document.reason == reason
    assert document.status is (Status.FILTERED if reason else Status.KEPT)


def test_fineweb_rules_apply_only_to_web_pages() -> None:
    document = web("The dog has been with us and it is the best of all. " * 20, Kind.WIKI)
    apply(document, FilterConfig(level=FilterLevel.FINEWEB))
    assert document.status is Status.KEPT


def test_the_language_is_recorded_and_filtered_by() -> None:
    german = "Das ist ein deutscher Satz, und er hat genug Wörter, damit man es merken kann, wie es heißt."
    assert (detect_language(german), detect_language(ARTICLES)) == ("de", "en")
    document = web(german)
    apply(document, FilterConfig(languages=("en", "fr")))
    assert (document.language, document.reason) == ("de", "language")
    document = web(german)
    apply(document, FilterConfig(languages=("de",)))
    assert document.status is Status.KEPT


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"languages": ("german",)}, "expected a code"),
        ({"languages": ("de",), "level": FilterLevel.FINEWEB}, "English only"),
    ],
)
def test_a_bad_configuration_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FilterConfig(**wrong)  # type: ignore[arg-type]


def test_every_default_threshold_is_datatroves_and_in_the_configuration() -> None:
    config = FilterConfig(level=FilterLevel.FINEWEB).shaping()["fineweb"]
    assert config["rules"].startswith("datatrove ")
    assert config["max_duplicate_ngram_share"][0] == [5, 0.15]
    assert "fineweb" not in FilterConfig().shaping()
    ours = [rule.judge.__self__ for rule in rules._rules(rules.FINEWEB)]  # type: ignore[attr-defined]
    theirs = [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(filter_no_terminal_punct=False)]
    for mine, stock in zip(ours, [*theirs, FineWebQualityFilter()], strict=True):
        for name, value in vars(stock).items():
            if isinstance(value, (int, float, tuple, bool)) and name not in ("language",):
                assert getattr(mine, name) == value, (type(stock).__name__, name)


def test_a_changed_threshold_changes_the_verdict() -> None:
    assert fineweb(ARTICLES, rules.QualityConfig(min_words=500))[1] == "gopher-short-doc"
    assert fineweb(ARTICLES, rules.QualityConfig(min_sentences=50))[1] == "c4-too-few-sentences"
