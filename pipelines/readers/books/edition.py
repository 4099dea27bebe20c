"""The facts that a book states about itself, in any format, and the `Document` that follows from them.

The key is the Gutenberg number, else the ISBN, else the text (`registry.identity.book_key`). A number is taken only
from where a publisher puts it (a header, a package's metadata, the copyright page), since with a wrong one somebody
else's book would be removed. A book is looked up by its title, by "title / author" for each published form of an
author's name, and by its ISBNs. No I/O.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from pipelines.document import Document
from registry import identity
from registry.schema import AliasKind, Kind

_FIRST_PAGES_CHARS = 20_000  # ten pages, the copyright page among them
_MAX_NAMES = 100  # authors of a book, and ISBNs; nobody looks a book up by its hundredth contributor
_MAX_TITLES = 10
_MAX_NAME_CHARS = 1_000
_SAME_PAGE_CHARS = 600  # between the ISBNs of one book's bindings; other pages list other books of the author
_ISBN = re.compile(
    r"\be?ISBN(?:[ \t-]?1[03])?(?:[ \t]{0,3}\([^()\n]{1,40}\))?[ \t]{0,3}:?[ \t]{0,3}"
    r"([0-9](?:[ \t\u00ad\u2010-\u2015\u2212-]?[0-9]){8,11}[ \t\u00ad\u2010-\u2015\u2212-]?[0-9Xx])(?![0-9Xx])",
    re.IGNORECASE,
)


@dataclasses.dataclass(kw_only=True)
class Edition:
    """The facts that a book states about itself.

    Attributes:
        title: the main title; None if not stated.
        titles: other titles, such as the one with the subtitle.
        authors: each form of each author's name, as published; no translators, no editors.
        joint: all authors together, "Jacob Grimm and Wilhelm Grimm"; "" if there is one or none.
        gutenberg_number: number at Project Gutenberg.
        isbns: 13 digits each; the first is the book's key if it has no Gutenberg number.
        language: ISO 639-1; "" if not stated.
        published: date of this version of the text, ISO 8601 UTC; "" if not stated.
        url: URL of the book, if stated.
    """

    title: str | None = None
    titles: tuple[str, ...] = ()
    authors: tuple[str, ...] = ()
    joint: str = ""
    gutenberg_number: int | None = None
    isbns: tuple[str, ...] = ()
    language: str = ""
    published: str = ""
    url: str | None = None

    def key(self, text: str | None) -> str | None:
        """Return the key of a book with this text; None without number, ISBN and text."""
        if self.gutenberg_number is None and not self.isbns and not text:
            return None
        return identity.book_key(gutenberg=self.gutenberg_number, isbn=next(iter(self.isbns), None), text=text)

    def aliases(self, key: str) -> tuple[tuple[AliasKind, str], ...]:
        """Return the names of the source `key` beside `title`, without repetition."""
        titles = [title for title in (self.title, *self.titles) if title][:_MAX_TITLES]
        authors = [author for author in (self.joint, *self.authors) if 0 < len(author) <= _MAX_NAME_CHARS][:_MAX_NAMES]
        by_author = [f"{title} / {author}" for title in titles for author in authors]
        named = _with_plain_apostrophes([name[: 2 * _MAX_NAME_CHARS] for name in (*titles, *by_author)])
        isbns = [isbn for isbn in self.isbns[:_MAX_NAMES] if key != f"book:isbn:{isbn}"]
        found = [(AliasKind.TITLE, name) for name in named if name != self.title]
        return tuple(dict.fromkeys(found + [(AliasKind.ISBN, isbn) for isbn in isbns]))

    def describe(self, document: Document, text: str | None) -> None:
        """Set key, names, language and URL of `document`; `text` is the whole book's text, None if not known."""
        key = self.key(text)
        if key is not None:
            document.key = document.locator = key
            document.aliases = self.aliases(key)
        document.title = (self.title or document.title or "")[:_MAX_NAME_CHARS] or None
        document.language, document.captured = self.language, self.published
        document.url = self.url
        if self.gutenberg_number is not None:
            document.url = f"https://www.gutenberg.org/ebooks/{self.gutenberg_number}"


def blank_document(name: str, num_bytes: int, *, is_stored: bool) -> Document:
    """Return the document of a book that is not read yet: it is the whole file, and its title is the file's name.

    Args:
        name: the input's name.
        num_bytes: size of the file as stored, or of its decompressed content.
        is_stored: whether `num_bytes` is the size as stored.
    """
    document = Document(kind=Kind.BOOK, key=None, locator="0", input_file=name, title=title_of_file(name))
    document.input_length, document.input_stored = num_bytes, is_stored
    return document


def title_of_file(name: str) -> str | None:
    """Return a file's name as a title, without folders, suffixes and separators ("a/moby-dick.txt.gz": "moby dick")."""
    stem = re.sub(r"(\.(txt|text|epub|htm|html|gz|bz2|xz|utf-?8))+$", "", name.rpartition("/")[2], flags=re.IGNORECASE)
    return " ".join(re.sub(r"[_\-.]+", " ", stem).split()) or None


def isbns_in(text: str) -> tuple[str, ...]:
    """Return the valid, labelled ISBNs on the first page that has any, within a text's first pages."""
    found: list[str] = []
    page_end = _FIRST_PAGES_CHARS
    for match in _ISBN.finditer(text, 0, _FIRST_PAGES_CHARS):
        isbn = identity.canonical_isbn(match[1])
        if match.start() > page_end:
            break
        if isbn:
            page_end = match.end() + _SAME_PAGE_CHARS
            found.append(isbn)
    return tuple(dict.fromkeys(found))


def joint_name(authors: Sequence[str]) -> str:
    """Return the names joined, as "A, B and C"; "" for fewer than two."""
    return f"{', '.join(authors[:-1])} and {authors[-1]}" if len(authors) > 1 else ""


def _with_plain_apostrophes(names: Sequence[str]) -> list[str]:
    """Return `names`, and each of them with the apostrophes that a keyboard has."""
    plain = [name.replace("’", "'").replace("‘", "'") for name in names]
    return list(dict.fromkeys([*names, *plain]))
