"""Canonical source keys from URLs, titles and ISBNs, and the sources that a person's query can mean.

All spellings of one source give one key, so that a removal request can still be resolved years later. Keys depend on
the public-suffix list (`registry.hosts.suffix_list_digest`), titles follow MediaWiki's rules (underscores are spaces,
the first letter's case does not count), ISBNs are 13 digits.

    web:<registrable domain>   wiki:<wiki>:<page id>   book:gutenberg:<n> | book:isbn:<13> | book:sha256:<16 hex>
    shared:<16 hex>            (registry.ids.shared_key)
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from urllib.parse import SplitResult, parse_qs, quote, unquote

from registry import ids
from registry.errors import RecordError
from registry.hosts import (
    canonical_host,
    desktop_host,
    registrable_domain,
    suffix_list_digest,
    wiki_scope_of_host,
)
from registry.urls import SCHEME, canonical_url, host_of, split_url

__all__ = [
    "Candidate",
    "WebSource",
    "article_url",
    "book_key",
    "candidates",
    "canonical_host",
    "canonical_isbn",
    "canonical_key",
    "canonical_title",
    "canonical_url",
    "desktop_host",
    "fold_title",
    "gutenberg_number",
    "suffix_list_digest",
    "url_spellings",
    "web_key",
    "wiki_key",
    "wiki_scope_of_host",
]

_BARE_HOST = re.compile(
    r"(?:\d+(?:\.\d+){3}|\[[0-9a-f:.]+\]|[^\s/?#@:]+[.。．｡][^\s/?#@:.]{2,}\.?)(?::\d+)?(?:[/?#].*)?", re.I
)
_WIKI_PATH = re.compile(r"/(?:wiki|w/index\.php|[a-z]{2,3}-[a-z]{2,4})/(?:index\.php/)?(.+)", re.IGNORECASE)
_PAGE_ID = re.compile(r"[0-9]{1,18}")
_GUTENBERG_PATH = re.compile(
    r"/(?:(?:ebooks|files|etext|cache/(?:epub|generated)|(?:dirs/)?[0-9](?:/[0-9])*)/)?([0-9]{1,9})(?:[/.].*)?",
    re.IGNORECASE,
)
_KEY = re.compile(
    r"(?P<web>web:)\S+|(?P<stem>wiki:[a-z0-9_-]+:|book:gutenberg:)0*(?P<number>[0-9]{1,18})"
    r"|book:isbn:[0-9]{13}|book:sha256:[0-9a-f]{16}|shared:[0-9a-f]{16}",
    re.IGNORECASE | re.ASCII,
)
_ISBN = re.compile(
    r"(?:urn:)?(?:isbn(?:[\s-]?1[03])?:?\s*)?([0-9](?:[\s-]*[0-9]){8}(?:(?:[\s-]*[0-9]){3})?[\s-]*[0-9x])", re.I
)
_DASHES = re.compile(r"[\u00ad\u2010-\u2015\u2043\u2212\ufe58\ufe63\uff0d]")
_INVISIBLE = re.compile(r"[\u200e\u200f\u202a-\u202e]+")  # MediaWiki's MediaWikiTitleCodec drops the same


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One meaning of a query: a source, or an alias (within `scope`, if given).

    Attributes:
        matched_by: the form that matched: "id", "key", "url", "isbn", "title".
        source_id: set if the query determines the source.
        alias: set if the source must be looked up in the alias table.
        scope: the wiki that the alias must belong to.
    """

    matched_by: str
    source_id: ids.SourceId | None = None
    alias: str | None = None
    scope: str | None = None


class WebSource(enum.StrEnum):
    """The extent of a web source; all web sources of a snapshot have the same one, which its manifest names."""

    DOMAIN = "domain"  # web:<registrable domain>
    HOST = "host"  # web:<host>
    PAGE = "page"  # web:<canonical URL>


def web_key(url: str, source: WebSource = WebSource.DOMAIN) -> str:
    """Return the key of the web source that `url` belongs to; `url` may lack its scheme.

    Raises:
        RecordError: `bad-url` or `bad-host`.
    """
    if source is WebSource.PAGE:
        return "web:" + canonical_url(url)
    host = canonical_host(host_of(split_url(url)))
    return "web:" + (host if source is WebSource.HOST else registrable_domain(host))


def wiki_key(scope: str, page_id: int) -> str:
    """Return the key of an article; `scope` is the wiki's database name ("enwiki")."""
    return f"wiki:{scope.lower()}:{page_id}"


def book_key(*, gutenberg: int | None = None, isbn: str | None = None, text: str | None = None) -> str:
    """Return the key of a book: by Gutenberg number, else ISBN, else the SHA-256 of its text in UTF-8.

    Raises:
        RecordError: `no-identity`, if there is no Gutenberg number, no valid ISBN and no text.
    """
    if gutenberg is not None:
        return f"book:gutenberg:{gutenberg}"
    digits = canonical_isbn(isbn) if isbn else None
    if digits:
        return f"book:isbn:{digits}"
    if text is None:
        raise RecordError("no-identity", f"expected a Gutenberg number, a valid ISBN or text; got the ISBN {isbn!r}")
    return "book:sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def gutenberg_number(url: str) -> int | None:
    """Return the number of the Project Gutenberg book at `url`; None for any other URL."""
    try:
        parts = split_url(url)
        domain = registrable_domain(canonical_host(host_of(parts)))
    except RecordError:
        return None
    match = _GUTENBERG_PATH.fullmatch(parts.path) if domain in ("gutenberg.org", "gutenberg.net") else None
    return int(match.group(1)) if match else None


def canonical_isbn(text: str) -> str | None:
    """Return the 13 digits of an ISBN-10 or ISBN-13 in any punctuation; None if it or its check digit is not valid."""
    match = _ISBN.fullmatch(_DASHES.sub("-", unicodedata.normalize("NFKC", text)).strip())
    digits = re.sub(r"[^0-9X]", "", match.group(1).upper()) if match else ""
    if len(digits) == 10:
        total = sum((10 - i) * (10 if d == "X" else int(d)) for i, d in enumerate(digits))
        if total % 11 == 0:
            return _with_ean_check("978" + digits[:9])
    if len(digits) == 13 and digits.isdecimal() and digits[:3] in ("978", "979"):
        return digits if _with_ean_check(digits[:12]) == digits else None
    return None


def canonical_title(title: str) -> str:
    """Return a wiki title as MediaWiki stores it: NFC, spaces for underscores, blanks folded, first letter capital."""
    text = _INVISIBLE.sub("", unicodedata.normalize("NFC", title)).replace("_", " ")
    text = unicodedata.normalize("NFC", " ".join(text.split()))
    first = text[:1].title() if text[:1].islower() else ""  # title case: Georgian has no capital at a word's start
    return first + text[1:] if len(first) == 1 else text


def fold_title(title: str) -> str:
    """Return the title that alias hashes are computed from: canonical, without case and compatibility forms."""
    text = canonical_title(unicodedata.normalize("NFKC", title))
    for _ in range(2):  # NFKC can produce letters that case folding changes again
        text = unicodedata.normalize("NFKC", text.casefold())
    return " ".join(text.split())


def article_url(host: str, title: str) -> str:
    """Return the canonical URL of the article `title` on the wiki at `host`."""
    path = quote(canonical_title(title).replace(" ", "_").encode("utf-8", "surrogatepass"), safe="/:@!$'()*,;~")
    return f"https://{host}/wiki/{path}"


def candidates(
    query: str, wikis: Mapping[str, Sequence[str]] | None = None, web: WebSource = WebSource.DOMAIN
) -> list[Candidate]:
    """Return every meaning of `query`, in the order: id, key, ISBN, title, article or book by URL, site.

    Args:
        query: a URL, title, ISBN, key or id, as a person would type it.
        wikis: the wikis that the snapshot holds, by host; needed for wikis that are not Wikimedia's.
        web: the extent of a web source in the snapshot.
    """
    text = query.strip()
    if not text:
        return []
    found: list[Candidate] = []
    parsed = ids.parse_id(text)
    if parsed is not None:
        found.append(Candidate(matched_by="id", source_id=ids.SourceId(parsed)))
    key = canonical_key(text, web)
    if key:
        found.append(Candidate(matched_by="key", source_id=ids.source_id(key)))
    isbn = canonical_isbn(text)
    if isbn:
        found.append(Candidate(matched_by="isbn", source_id=ids.source_id(f"book:isbn:{isbn}")))
        found.append(Candidate(matched_by="isbn", alias=isbn))
    explicit_url = bool(SCHEME.match(text)) or text.startswith("//")
    if not explicit_url and not key:
        found.extend(Candidate(matched_by="title", alias=alias) for alias in _titles_in(text))
    if explicit_url or (not key and _BARE_HOST.fullmatch(text)):
        found.extend(_url_candidates(text, wikis or {}, web))
    return found


def canonical_key(text: str, web: WebSource = WebSource.DOMAIN) -> str | None:
    """Return `text` as a canonical key if it is one (in any case; a web key's host in any spelling), else None."""
    match = _KEY.fullmatch(text.strip())
    if not match:
        return None
    if match["web"]:
        try:
            return web_key(match[0][len("web:") :], web)
        except RecordError:
            return None
    return match["stem"].lower() + match["number"] if match["stem"] else match[0].lower()


def _url_candidates(url: str, wikis: Mapping[str, Sequence[str]], web: WebSource) -> list[Candidate]:
    try:
        parts = split_url(url)
        host = canonical_host(host_of(parts))
    except RecordError:
        return []
    scopes = set(wikis.get(desktop_host(host), ()))
    known = wiki_scope_of_host(host)
    found = _article_candidates(parts, sorted(scopes | {known} if known else scopes))
    book = gutenberg_number(url)
    if book is not None:
        found.append(Candidate(matched_by="url", source_id=ids.source_id(book_key(gutenberg=book))))
    for spelling in url_spellings(url) if web is WebSource.PAGE else [url]:
        found.append(Candidate(matched_by="url", source_id=ids.source_id(web_key(spelling, web))))
    return found


def url_spellings(url: str) -> list[str]:
    """Return the canonical URLs that can be meant by `url`: with its own scheme (`http` if none), then the other one.

    Raises:
        RecordError: `bad-url` or `bad-host`.
    """
    first = canonical_url(url)
    scheme, rest = first.split("://", 1)
    other = {"http": "https", "https": "http"}.get(scheme)
    return [first, f"{other}://{rest}"] if other else [first]


def _titles_in(text: str) -> list[str]:
    """Return `text`, and the part before "#" ("Anarchism#History" names a section; only book titles contain a "#")."""
    head = text.partition("#")[0].strip()
    return [text, head] if head not in ("", text) else [text]


def _article_candidates(parts: SplitResult, scopes: list[str]) -> list[Candidate]:
    fields = parse_qs(parts.query, errors="replace")
    page = fields.get("curid", [""])[0]
    if _PAGE_ID.fullmatch(page):
        keys = [wiki_key(scope, int(page)) for scope in scopes]
        return [Candidate(matched_by="url", source_id=ids.source_id(key)) for key in keys]
    match = _WIKI_PATH.fullmatch(parts.path)
    title = fields.get("title", [""])[0] or (unquote(match.group(1)) if match else "")
    title = title.partition("#")[0]  # an encoded fragment: no wiki title contains a "#"
    return [Candidate(matched_by="url", alias=title, scope=scope) for scope in scopes] if title else []


def _with_ean_check(digits: str) -> str:
    total = sum(int(d) * (3 if i % 2 else 1) for i, d in enumerate(digits))
    return digits + str(-total % 10)
