"""Read a MediaWiki XML dump (Wikipedia's `pages-articles`) as documents, redirects, and the wiki that they are of.

Every page of namespace 0 becomes a document or a redirect, which is only a name; pages of other namespaces are left
out. A page that cannot be read becomes a FAILED document with its offset and, if they can be made out, its key and
title. Formats 0.3 to 0.11 of the export schema (https://www.mediawiki.org/wiki/Help:Export), any compression.
Cost: 40 MB/s of XML, decompression not included; one page in memory. Pages are parsed by libxml2 without DTD, entity
expansion or network.

    from pipelines.readers.wikipedia.xml_dump import read_wikipedia
    print(*read_wikipedia("dump.xml.bz2", "dump"))
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

from lxml import etree

from pipelines.document import Document, Form, Redirect, WikiSite
from pipelines.readers.streams import Source, open_stream, opened
from pipelines.readers.wikipedia.article_document import host_of_scope, scope_of_name
from pipelines.readers.wikipedia.page_splitter import HEAD_BYTES, Fragment, PageSplitter, root_tag
from pipelines.text.disambiguation import is_disambiguation
from pipelines.text.mediawiki_words import REDIRECT_WORDS
from registry import identity
from registry.errors import InputError, RecordError
from registry.schema import Kind, Status

# Namespace names of an English wiki, for dumps without <ns> and siteinfo.
_DEFAULT_NAMESPACES = {
    "media": -2,
    "special": -1,
    "talk": 1,
    "user": 2,
    "user talk": 3,
    "wikipedia": 4,
    "wikipedia talk": 5,
    "file": 6,
    "image": 6,
    "file talk": 7,
    "image talk": 7,
    "mediawiki": 8,
    "mediawiki talk": 9,
    "template": 10,
    "template talk": 11,
    "help": 12,
    "help talk": 13,
    "category": 14,
    "category talk": 15,
    "portal": 100,
    "portal talk": 101,
}

_LANGUAGE = re.compile(rb"""\bxml:lang=["']([A-Za-z-]{2,20})["']""")

_PAGE_START_BYTES = 4096  # <title>, <ns> and <id> are within this: a title has at most 255 bytes before escaping
_PAGE_TITLE = re.compile(rb"<title>([^<]*)</title>")
_PAGE_ID = re.compile(rb"<id>\s*(\d{1,18})\s*</id>")
_PAGE_NS = re.compile(rb"<ns>\s*(-?\d{1,9})\s*</ns>")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
# "#REDIRECT [[Target]]" in any language: anything may follow a known word, only templates and categories may follow an
# unknown one, since "#Foo [[Bar]]" can also be a numbered list.
_REDIRECT = re.compile(
    r"\s*+[#＃]\s*+([^\s\[\]#:：{}|<>*]{2,40}+)\s*+[:：]?\s*+\[\[([^\[\]|{}<>\n]+)(?:\|[^\[\]\n]*)?\]\]"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Dump:
    """Facts that all pages of a dump share.

    Attributes:
        name: name of the input, for `Document.input_file`.
        site: the wiki.
        namespaces: number of each namespace, by its name in lower case.
    """

    name: str
    site: WikiSite
    namespaces: Mapping[str, int]


def read_wikipedia(source: Source, name: str) -> Iterator[Document | Redirect | WikiSite]:
    """Read a dump, compressed or not: first its wiki, then its articles and redirects, in the order of the file.

    Args:
        source: a path, or a binary file at the dump's start (memory-mapped or remote files are supported).
        name: the input's name in documents; a file name such as "enwiki-latest-pages-articles.xml.bz2" also names the
            wiki, if the dump does not.

    Raises:
        InputError: the file is no MediaWiki dump, or neither dump nor name says which wiki it is of.
    """
    with opened(source) as file:
        pages = PageSplitter(open_stream(file))
        head = pages.head()
        if not (b"<mediawiki" in head or b"<page>" in head):
            yield from _unreadable(pages, name, head)
            return
        dump = _dump(head, name)
        yield dump.site
        for fragment in pages:
            item = _read_fragment(fragment, dump)
            if item:
                yield item


def _unreadable(pages: PageSplitter, name: str, head: bytes) -> Iterator[Document]:
    """Yield a FAILED document if the file's start could not be decompressed; refuse a file that is no dump."""
    fragment = next((fragment for fragment in pages if fragment.failure), None)
    if not fragment or not fragment.failure:
        found = repr(head[:40])[1:] if head else "an empty file"
        raise InputError(
            f"{name} is no MediaWiki dump: expected <mediawiki> or <page> within its first {HEAD_BYTES} bytes, "
            f"found {found}; give a pages-articles.xml file, compressed or not"
        )
    yield _failed(fragment, fragment.failure, name)


def _dump(head: bytes, name: str) -> _Dump:
    info = _siteinfo(head)
    dbname = _text(info, "dbname")
    host = _base_host(_text(info, "base"))
    scope = dbname or (identity.wiki_scope_of_host(host) if host else None) or scope_of_name(name)
    language = _LANGUAGE.search(root_tag(head))
    if not scope and language:
        scope = language[1].decode("ascii").lower().replace("-", "_") + "wiki"
    if not scope:
        raise InputError(
            f"{name} does not say which wiki it is of: expected <dbname>, <base> or xml:lang in it; "
            "or name the file as Wikimedia does, e.g. enwiki-latest-pages-articles.xml.bz2"
        )
    scope = re.sub(r"[^a-z0-9_-]", "_", scope.lower())
    return _Dump(name=name, site=WikiSite(scope, host or host_of_scope(scope)), namespaces=_namespaces(info))


def _siteinfo(head: bytes) -> etree._Element | None:
    start = head.find(b"<siteinfo>")
    inner, end, _ = head[max(0, start) :].partition(b"</siteinfo>")
    with contextlib.suppress(etree.XMLSyntaxError):
        return etree.fromstring(inner + end, _parser()) if start >= 0 else None
    return None


def _base_host(base: str) -> str | None:
    try:
        return identity.canonical_host(urlsplit(base).hostname or "") if base else None
    except (ValueError, RecordError):
        return None


def _namespaces(info: etree._Element | None) -> Mapping[str, int]:
    found = {} if info is None else {_fold(e.text or ""): e.get("key", "") for e in info.iter("namespace")}
    numbers = {name: int(key) for name, key in found.items() if name and key.lstrip("-").isdecimal()}
    return numbers or _DEFAULT_NAMESPACES


def _read_fragment(fragment: Fragment, dump: _Dump) -> Document | Redirect | None:
    try:
        if fragment.failure:
            raise fragment.failure
        ns = _PAGE_NS.search(fragment.data, 0, _PAGE_START_BYTES)
        if ns and int(ns[1]):  # not parsed, which saves two pages of three in a full dump
            return None
        return _read_page(_parse(fragment.data), fragment, dump)
    except RecordError as error:
        return _failed(fragment, error, dump.name, dump)


def _parser() -> etree.XMLParser:
    return etree.XMLParser(
        resolve_entities=False, no_network=True, huge_tree=True, recover=False, remove_comments=True, load_dtd=False
    )


def _parse(data: bytes) -> etree._Element:
    try:
        return etree.fromstring(data, _parser())
    except etree.XMLSyntaxError as error:
        raise RecordError("malformed-page", str(error)) from error


def _read_page(page: etree._Element, fragment: Fragment, dump: _Dump) -> Document | Redirect | None:
    """Return a well-formed page's document or redirect; None if it is in another namespace.

    Raises:
        RecordError: `malformed-page`, if it lacks a title or an id.
    """
    title, page_id = _text(page, "title"), _text(page, "id")
    if not title or not (page_id.isascii() and page_id.isdecimal()):
        raise RecordError("malformed-page", f"expected a title and a numeric id, got {title!r} and {page_id!r}")
    if _namespace_of(page, title, dump):
        return None
    revision = _newest_revision(page)
    markup = _text(revision, "text", strip=False)
    target = _redirect_target(page, markup)
    if target:
        return Redirect(dump.site.scope, title, target)
    document = _document(fragment, dump, title, int(page_id))
    document.captured = _captured(revision)
    model, format_ = _text(revision, "model"), _text(revision, "format")
    if model not in ("", "wikitext") or format_ not in ("", "text/x-wiki"):
        document.end(Status.FILTERED, "not-wikitext", f"{model} ({format_})")
        return document
    document.form, document.markup = Form.WIKITEXT, markup
    document.is_disambiguation = is_disambiguation(markup, dump.site.scope)
    return document


def _document(fragment: Fragment, dump: _Dump, title: str, page_id: int) -> Document:
    key = identity.wiki_key(dump.site.scope, page_id)
    return Document(
        kind=Kind.WIKI,
        key=key,
        locator=key,
        url=identity.article_url(dump.site.host, title),
        title=title,
        scope=dump.site.scope,
        input_file=dump.name,
        input_offset=fragment.offset,
        input_length=fragment.length,
    )


def _failed(fragment: Fragment, error: RecordError, name: str, dump: _Dump | None = None) -> Document:
    """Return the FAILED document of a page, with its key and title if its start can be made out."""
    start = fragment.data.partition(b"<revision")[0]
    title, page_id = _PAGE_TITLE.search(start), _PAGE_ID.search(start)
    if dump and title and page_id:
        document = _document(fragment, dump, html.unescape(title[1].decode("utf-8", "replace")), int(page_id[1]))
    else:
        document = Document(kind=Kind.WIKI, key=None, locator=f"{name}:{fragment.offset}", input_file=name)
        document.input_offset, document.input_length = fragment.offset, fragment.length
        document.scope = dump.site.scope if dump else None
        document.title = html.unescape(title[1].decode("utf-8", "replace")) if title else None
    document.end(Status.FAILED, error.reason, error.detail)
    return document


def _text(element: etree._Element | None, path: str, *, strip: bool = True) -> str:
    """Return the text of a child element and the elements inside it; "" if there is no such child."""
    child = None if element is None else element.find(path)
    text = "" if child is None else "".join(child.itertext())
    return text.strip() if strip else text


def _namespace_of(page: etree._Element, title: str, dump: _Dump) -> int:
    number = _text(page, "ns")
    if not number:  # schema 0.3 and 0.4: by the title's prefix
        prefix, colon, _ = title.partition(":")
        return dump.namespaces.get(_fold(prefix), 0) if colon else 0
    if not number.lstrip("-").isdecimal():
        raise RecordError("malformed-page", f"expected a number in <ns>, got {number!r}")
    return int(number)


def _fold(name: str) -> str:
    return " ".join(name.replace("_", " ").split()).casefold()


def _newest_revision(page: etree._Element) -> etree._Element | None:
    """Return the revision with the latest time stamp; of equal ones the last in the file."""
    revisions = page.findall("revision")
    return max(reversed(revisions), key=_captured, default=None)


def _captured(revision: etree._Element | None) -> str:
    timestamp = _text(revision, "timestamp")
    return timestamp if _TIMESTAMP.fullmatch(timestamp) else ""


def _redirect_target(page: etree._Element, markup: str) -> str:
    """Return the title that a page redirects to, without fragment; "" if there is none (or the page's own section)."""
    redirect = page.find("redirect")
    named = redirect.get("title", "") if redirect is not None else ""
    if named:
        return _target_title(named)
    match = _REDIRECT.match(markup)
    if not match:
        return ""
    rest = markup[match.end() :].lstrip()
    is_known = redirect is not None or _fold(match[1]) in REDIRECT_WORDS
    is_bare = not rest or rest.startswith(("{{", "[[", "<!--", "__"))
    return _target_title(match[2]) if is_known or is_bare else ""


def _target_title(text: str) -> str:
    target = html.unescape(text).partition("#")[0].strip().lstrip(":")
    return " ".join((unquote(target) if "%" in target else target).replace("_", " ").split())
