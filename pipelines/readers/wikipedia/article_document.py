"""The document of a wiki's article, and the wiki that it is of: shared by the readers of every form.

An article has the key `wiki:<wiki>:<page id>` in every form, so that captures of one article meet as one document. The
wiki is known by its database name (`enwiki`), which a dump states and which follows from an article's URL, a file's
name, or the language of its text. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import urlsplit

from pipelines.document import Document, WikiSite
from pipelines.text.disambiguation import is_disambiguation_title
from registry import identity
from registry.errors import RecordError
from registry.schema import Kind, Status

_FILE_SCOPE = re.compile(r"([a-z_]+wik[a-z]+)-")
_PROJECT = re.compile(r"([a-z0-9_]+?)(wiki|wiktionary|wikibooks|wikinews|wikiquote|wikisource|wikiversity|wikivoyage)")
_SPECIAL_HOSTS = {
    "wikidatawiki": "www.wikidata.org",
    "commonswiki": "commons.wikimedia.org",
    "specieswiki": "species.wikimedia.org",
    "metawiki": "meta.wikimedia.org",
    "mediawikiwiki": "www.mediawiki.org",
}
_MAX_ID_DIGITS = 18


def scope_of_name(name: str) -> str | None:
    """Return the wiki that a file's name begins with ("enwiki-latest-pages-articles.xml"), or None."""
    match = _FILE_SCOPE.match(name.rpartition("/")[2])
    return match[1] if match else None


def host_of_scope(scope: str) -> str:
    """Return the host of a Wikimedia wiki, given its database name ("dewiktionary" gives "de.wiktionary.org")."""
    match = _PROJECT.fullmatch(scope)
    if scope in _SPECIAL_HOSTS or not match:
        return _SPECIAL_HOSTS.get(scope, f"{scope.replace('_', '-')}.wikipedia.org")
    project = "wikipedia" if match[2] == "wiki" else match[2]
    return f"{match[1].replace('_', '-')}.{project}.org"


def wiki_of(url: str, name: str, language: Callable[[], str] = lambda: "") -> WikiSite:
    """Return the wiki that an article's URL is on.

    Where the URL has no host ("?curid=12", which WikiExtractor writes for a dump without siteinfo), the wiki follows
    from the file's name, else from the language of its text: the Wikipedia of that language.

    Args:
        url: URL of the article. A host that is none of Wikimedia's is a wiki of its own ("wiki_example_org").
        name: name of the input.
        language: returns the language of the input's text, ISO 639-1, or "" if it cannot be detected. Called only if
            neither URL nor name decides.

    Raises:
        RecordError: `no-wiki`.
    """
    try:
        written = urlsplit(url).hostname or ""
        host = identity.desktop_host(identity.canonical_host(written)) if written else ""
    except (ValueError, RecordError) as error:
        raise RecordError("no-wiki", f"the URL {url!r} has no valid host") from error
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


def each_wiki_once(items: Iterable[Document | WikiSite]) -> Iterator[Document | WikiSite]:
    """Yield `items` without the second and later occurrences of a wiki."""
    sites = set[WikiSite]()
    for item in items:
        if not isinstance(item, WikiSite):
            yield item
        elif item not in sites:
            sites.add(item)
            yield item


def article(site: WikiSite, page_id: str, title: str, name: str) -> Document:
    """Return the document of an article, without its text.

    Raises:
        RecordError: `malformed-page`, if the id is no number or the title is blank.
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
    """Return the FAILED document of an article that could not be read, located by its offset in the input."""
    document = Document(kind=Kind.WIKI, key=None, locator=f"{name}:{offset}", title=title, input_file=name)
    document.input_offset = offset
    document.end(Status.FAILED, error.reason, error.detail)
    return document
