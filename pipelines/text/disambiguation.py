"""Recognise disambiguation pages, which only list the meanings of a title and are no text to learn from.

MediaWiki marks such a page by a template that holds `__DISAMBIG__`. Each wiki chooses these templates, and a page in a
dump does not show what its templates hold, so their names decide (`pipelines.text.mediawiki_words`). Hatnotes, which
link *to* such a page ("{{nota disambigua}}", "{{dablink}}"), do not mark one. Cost: 0.1 ms an article.
"""

from __future__ import annotations

import re

from pipelines.text.mediawiki_words import DISAMBIGUATION_TEMPLATES, DISAMBIGUATION_WORDS
from pipelines.text.wikitext import without_comments

# English has a template for each kind of thing: "Airport disambiguation", "Human name disambiguation", ...
_SUFFIXES = (" disambiguation", " disambig", " dab")
_NOT_PREFIXES = ("r ", "redirect", "incomplete ", "link ", "for ")
_TEMPLATE_NAME = re.compile(r"\{\{\s*+([^{}|<>\[\]\n]{1,80}+)(?=[|}\n])")
_MAGIC_WORD = "__DISAMBIG__"


def is_disambiguation(markup: str, scope: str = "") -> bool:
    """Whether a page's wikitext marks it as a disambiguation page of the wiki `scope` ("enwiki")."""
    if _MAGIC_WORD in markup:
        return True
    language = scope.removesuffix("wiki")
    names = set(_TEMPLATE_NAME.findall(without_comments(markup)))
    return any(_marks(name, language) for name in names)


def is_disambiguation_title(title: str) -> bool:
    """Whether a title ends in such a note ("Athene (disambiguation)"); used where a form has no wikitext."""
    bare, parenthesis, word = title.rstrip().rpartition(" (")
    return bool(bare and parenthesis) and word.removesuffix(")").casefold() in DISAMBIGUATION_WORDS


def _marks(template: str, language: str) -> bool:
    name = " ".join(template.replace("_", " ").split()).lower()
    name = name.partition(":")[2].strip() if name.startswith(("template:", "msg:")) else name
    if name in DISAMBIGUATION_TEMPLATES or f"{language}/{name}" in DISAMBIGUATION_TEMPLATES:
        return True
    return name.endswith(_SUFFIXES) and not name.startswith(_NOT_PREFIXES)
