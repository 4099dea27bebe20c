"""What a reader found -> clean text. One function for each kind of document, and one door to them.

A page in wikitext costs 12 MB/s (`pipelines.wikitext`); other kinds arrive from their readers as text.

    python -c "from pipelines.extract import wikitext_to_text as t; print(t('[[Douglas Adams|Adams]] wrote it.{{cn}}'))"
"""

from __future__ import annotations

from pipelines.document import Document
from pipelines.wikitext import wikitext_to_text
from registry.schema import Kind, Status

__all__ = ["extract", "wikitext_to_text"]


def extract(document: Document) -> None:
    """Fills `document.text` from its markup, which is then dropped. A document that has ended is left as it is."""
    if document.status is Status.KEPT and document.kind is Kind.WIKI and document.markup:
        document.text = wikitext_to_text(document.markup)
    document.markup = ""
