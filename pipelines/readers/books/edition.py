"""What a book says of itself, whatever format it came in, and the `Document` that follows from it.

The key is the Gutenberg number, else the ISBN, else the text (`registry.identity.book_key`): a number is taken from
where a publisher puts it only (a header, a package's metadata, the page with the copyright), since a wrong one would
take somebody else's book out. Names to look it up by: its title, "title / author" for each form of an author's name
that was published, and its ISBNs.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from pipelines.document import Document
from registry import identity
from registry.schema import AliasKind, Kind

_FIRST_PAGES_CHARS = 20_000  # the page with the copyright is within them: ten pages
_MAX_NAMES = 100  # authors of a book, and ISBNs; the longest list of contributors has no more that are asked for
_MAX_TITLES = 10
_MAX_NAME_CHARS = 1_000
_SAME_PAGE_CHARS = 600  # between the ISBNs of one book's bindings; another page lists other books of the author
_ISBN = re.compile(
    r"\be?ISBN(?:[ \t-]?1[03])?(?:[ \t]{0,3}\([^()\n]{1,40}\))?[ \t]{0,3}:?[ \t]{0,3}"
    r"([0-9](?:[ \t\u00ad\u2010-\u2015\u2212-]?[0-9]){8,11}[ \t\u00ad\u2010-\u2015\u2212-]?[0-9Xx])(?![0-9Xx])",
    re.IGNORECASE,
)


@dataclasses.dataclass(kw_only=True)
class Edition:
    """A book's own words about itself.

    Attributes:
        title: the main one; None if it does not say.
        titles: others, such as the one with the subtitle.
        authors: each form of each author's name, as published; no translators, no editors.
        joint: all authors together, "Jacob Grimm and Wilhelm Grimm"; "" if there is one or none.
        number: at Project Gutenberg.
        isbns: 13 digits each, the first is the book's key if it has no number.
        language: ISO 639-1; "" if it does not say.
        published: when this text was as it is, ISO 8601 UTC; "" if it does not say.
        url: where it is, if it says.
    """

    title: str | None = None
    titles: tuple[str, ...] = ()
    authors: tuple[str, ...] = ()
    joint: str = ""
    number: int | None = None
    isbns: tuple[str, ...] = ()
    language: str = ""
    published: str = ""
    url: str | None = None

    def key(self, text: str | None) -> str | None:
        """The key of a book of this text; None if nothing tells it from others."""
        if self.number is None and not self.isbns and not text:
            return None
        return identity.book_key(gutenberg=self.number, isbn=next(iter(self.isbns), None), text=text)

    def aliases(self, key: str) -> tuple[tuple[AliasKind, str], ...]:
        """The names that the source `key` goes by beside `title`, none twice."""
        titles = [title for title in (self.title, *self.titles) if title][:_MAX_TITLES]
        authors = [author for author in (self.joint, *self.authors) if 0 < len(author) <= _MAX_NAME_CHARS][:_MAX_NAMES]
        by_author = [f"{title} / {author}" for title in titles for author in authors]
        named = _plainly([name[: 2 * _MAX_NAME_CHARS] for name in (*titles, *by_author)])
        isbns = [isbn for isbn in self.isbns[:_MAX_NAMES] if key != f"book:isbn:{isbn}"]
        found = [(AliasKind.TITLE, name) for name in named if name != self.title]
        return tuple(dict.fromkeys(found + [(AliasKind.ISBN, isbn) for isbn in isbns]))

    def describe(self, document: Document, text: str | None) -> None:
        """Gives `document` its key, names, language and place; `text` is the whole book's, None if it is not known."""
        key = self.key(text)
        if key is not None:
            document.key = document.locator = key
            document.aliases = self.aliases(key)
        document.title = (self.title or document.title or "")[:_MAX_NAME_CHARS] or None
        document.language, document.captured = self.language, self.published
        document.url = self.url
        if self.number is not None:
            document.url = f"https://www.gutenberg.org/ebooks/{self.number}"


def blank_document(name: str, num_bytes: int, *, is_stored: bool) -> Document:
    """A book that nothing is known of: its file is all of it, and its title is the file's.

    Args:
        name: the input's name.
        num_bytes: of the file as it lies, or of what it decompresses to.
        is_stored: which of the two.
    """
    document = Document(kind=Kind.BOOK, key=None, locator="0", input_file=name, title=title_of_file(name))
    document.input_length, document.input_stored = num_bytes, is_stored
    return document


def title_of_file(name: str) -> str | None:
    """A file's name as a title: without folders and endings, separators as blanks ("a/moby-dick.txt.gz")."""
    stem = re.sub(r"(\.(txt|text|epub|htm|html|gz|bz2|xz|utf-?8))+$", "", name.rpartition("/")[2], flags=re.IGNORECASE)
    return " ".join(re.sub(r"[_\-.]+", " ", stem).split()) or None


def isbns_in(text: str) -> tuple[str, ...]:
    """The ISBNs that the first pages of a text name as such, on the page of the first; wrong check digits are none."""
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
    """ "A", "B", "C" -> "A, B and C"; "" for fewer than two."""
    return f"{', '.join(authors[:-1])} and {authors[-1]}" if len(authors) > 1 else ""


def _plainly(names: Sequence[str]) -> list[str]:
    """`names`, and each with the apostrophes that a keyboard has."""
    typed = [name.replace("’", "'").replace("‘", "'") for name in names]
    return list(dict.fromkeys([*names, *typed]))
