"""Wikipedia in whatever form it comes -> documents and their wikis: the form is told by the file's content.

    MediaWiki XML dump                     wikipedia.py
    WikiExtractor: <doc ...> or JSON       extracted.py
    Hugging Face: wikimedia/wikipedia      rows.py (Parquet)

An article has one key, `wiki:<wiki>:<page id>`, in each of them, so that they meet as captures of one document. The
last two hold text and no date, so a dump, which says when, is the newer capture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO
from urllib.parse import urlsplit

from pipelines.document import Document, Redirect, WikiSite
from pipelines.readers.streams import Source, open_stream, opened
from pipelines.readers.wikipedia.xml_dump import host_of_scope, read_wikipedia, scope_of_name
from pipelines.text.disambiguation import is_disambiguation_title
from registry import identity
from registry.errors import RecordError
from registry.schema import Kind, Status

_SNIFF_BYTES = 1 << 16  # a dump's start tag, or the first <doc>, is within them
_PARQUET = b"PAR1"
_FORMS = re.compile(rb"<mediawiki|<page>|^\s*(<doc)\s", re.MULTILINE)
_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{(?=.*"id")(?=.*"title")', re.DOTALL)
_MAX_ID_DIGITS = 18


def read_articles(source: Source, name: str) -> Iterator[Document | Redirect | WikiSite]:
    """Reads a file of a wiki's articles in any form: each wiki before its first article.

    Args:
        source: the file.
        name: what documents call the input; "enwiki-..." also tells the wiki, where nothing in the file does.

    Raises:
        InputError: it is none of the forms.
    """
    with opened(source) as file:
        yield from _reader(file)(file, name)


def _reader(file: BinaryIO) -> Callable[[BinaryIO, str], Iterator[Document | Redirect | WikiSite]]:
    """Which reader the file is for; it stands at its start again afterwards."""
    is_parquet = file.read(len(_PARQUET)) == _PARQUET
    file.seek(0)
    if is_parquet:
        from pipelines.readers.rows.parquet import read_rows

        return read_rows
    head = _head(open_stream(file))
    file.seek(0)
    found = _FORMS.search(head)
    if (found and found[1]) or (not found and _JSON.match(head)):
        from pipelines.readers.wikipedia.wikiextractor import read_extracted

        return read_extracted
    return read_wikipedia


def _head(stream: Iterator[bytes]) -> bytes:
    head = b""
    try:
        while len(head) < _SNIFF_BYTES and (chunk := next(stream, b"")):
            head += chunk
    except RecordError:
        pass  # whoever reads the file tells
    return head


def wiki_of(url: str, name: str, language: Callable[[], str] = lambda: "") -> WikiSite:
    """The wiki that an article's URL is on.

    Where the URL has no host ("?curid=12", which WikiExtractor writes for a dump without siteinfo), the file's name
    tells, and if it does not, the language of its text: the Wikipedia of that language.

    Args:
        url: of the article. A host that is none of Wikimedia's is a wiki of its own ("wiki_example_org").
        name: of the input.
        language: of the input's text, ISO 639-1; "" if it cannot be told. Asked only if nothing else tells.

    Raises:
        RecordError: `no-wiki`.
    """
    try:
        written = urlsplit(url).hostname or ""
        host = identity.desktop_host(identity.canonical_host(written)) if written else ""
    except (ValueError, RecordError) as error:
        raise RecordError("no-wiki", f"the URL {url!r} has no host that could be one") from error
    if host:
        scope = identity.wiki_scope_of_host(host) or re.sub(r"[^a-z0-9-]", "_", host)
        return WikiSite(scope, host)
    named = scope_of_name(name) or (f"{language()}wiki" if language() else None)
    if not named:
        raise RecordError(
            "no-wiki",
            f"the URL {url!r} does not say which wiki it is of; name the file as Wikimedia does, e.g. enwiki-wiki_00",
        )
    return WikiSite(named, host_of_scope(named))


def article(site: WikiSite, page_id: str, title: str, name: str) -> Document:
    """An article without its text yet.

    Raises:
        RecordError: `malformed-page`, if the id is no number or there is no title.
    """
    if not (page_id.isascii() and page_id.isdecimal() and len(page_id) <= _MAX_ID_DIGITS):
        raise RecordError("malformed-page", f"expected a number as the page's id, got {page_id!r}")
    if not title.strip():
        raise RecordError("malformed-page", f"page {page_id} has no title")
    key = identity.wiki_key(site.scope, int(page_id))
    return Document(
        kind=Kind.WIKI,
        key=key,
        locator=key,
        url=identity.article_url(site.host, title),
        title=title,
        scope=site.scope,
        input_file=name,
        is_disambiguation=is_disambiguation_title(title),
    )


def failed_article(error: RecordError, name: str, offset: int, title: str | None = None) -> Document:
    """What could not be read, by its place."""
    document = Document(kind=Kind.WIKI, key=None, locator=f"{name}:{offset}", title=title, input_file=name)
    document.input_offset = offset
    document.end(Status.FAILED, error.reason, error.detail)
    return document
