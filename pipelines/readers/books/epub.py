"""Read an EPUB (2 or 3): the metadata of its package, and the text of its chapters in reading order.

    zip -> META-INF/container.xml -> package (OPF): metadata, manifest, spine -> XHTML -> text

Nothing is written to disk, so a path in the archive cannot point outside of it; every member is read up to a limit,
whatever size its header claims; XML is parsed without DTD, entities or network. A book is whole or it failed: one
missing or bad chapter fails the book, and is named, since a gap in a text would go unnoticed. Cost: 3 MB of XHTML a
second; the book's text and one chapter in memory.

    book = read_epub(file)
    book.edition.title, book.text
"""

from __future__ import annotations

import dataclasses
import posixpath
import re
import struct
import zipfile
import zlib
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from lxml import etree

from pipelines.readers.books.edition import Edition, joint_name
from pipelines.text.extract import decode, full_text
from pipelines.text.languages import language_code
from registry import identity
from registry.errors import RecordError

MAX_TEXT_BYTES = 64 << 20  # of all chapters, as of a plain text (`book.MAX_BOOK_BYTES`)
MAX_CHAPTER_BYTES = 32 << 20  # half of that, for a book in one chapter
MAX_PACKAGE_BYTES = 8 << 20  # the largest dictionaries list 20,000 files in 3 MB
MAX_DIRECTORY_BYTES = 16 << 20  # of the zip's list of members: 200,000 entries, 100 MB when parsed
MAX_CHAPTERS = 50_000

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
# Algorithms that obfuscate fonts only: the text is not protected.
_FONT_OBFUSCATION = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_TEXT_TYPES = ("application/xhtml+xml", "text/html", "text/x-oeb1-document", "application/x-dtbook+xml")
_OPF = "{http://www.idpf.org/2007/opf}"
_DECLARED = re.compile(rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
_DATE = re.compile(r"\d{4}-\d\d-\d\d(?:T\d\d:\d\d:\d\dZ)?")
_END_OF_DIRECTORY = struct.Struct("<4s4H2LH")
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, struct.error, OSError)


@dataclasses.dataclass(kw_only=True)
class Epub:
    """A book as far as it could be read: `text` is empty if `failure` says why the book is not whole."""

    edition: Edition
    text: str = ""
    failure: RecordError | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Item:
    path: str
    media_type: str
    is_contents: bool


def read_epub(file: BinaryIO) -> Epub:
    """Read an EPUB.

    Args:
        file: seekable.

    Raises:
        RecordError: not even the metadata could be read: `not-a-book` (a zip of something else), `corrupt-zip`,
            `too-large`, `malformed-book`, `encrypted`.
    """
    archive = _Archive(file)
    path = _package_path(archive)
    package = _xml(archive.read(path, MAX_PACKAGE_BYTES), path)
    book = Epub(edition=_edition(package))
    try:
        book.text = _book_text(archive, package, path)
    except RecordError as error:
        book.failure = error
    return book


class _Archive:
    """A zip archive whose members are read whole, up to a limit."""

    def __init__(self, file: BinaryIO) -> None:
        _check_directory(file)
        try:
            self._zip = zipfile.ZipFile(file)
        except _ZIP_ERRORS as error:
            raise RecordError("corrupt-zip", str(error)) from error
        self._names = {_clean(name): name for name in self._zip.namelist()}
        self._folded = {name.casefold(): real for name, real in self._names.items()}

    def find(self, path: str) -> str | None:
        """Return the name of the member at `path`, which may be percent-encoded or in another case; None if missing."""
        for name in (_clean(path), _clean(unquote(path))):
            found = self._names.get(name) or self._folded.get(name.casefold())
            if found:
                return found
        return None

    def read(self, path: str, limit: int) -> bytes:
        """Return a member's bytes.

        Raises:
            RecordError: `missing-file`, `too-large`, `encrypted`, `corrupt-zip`.
        """
        name = self.find(path)
        if name is None:
            raise RecordError("missing-file", f"{path} is not in the archive")
        info = self._zip.getinfo(name)
        if info.flag_bits & 1:
            raise RecordError("encrypted", f"{name} needs a password")
        # EPUB allows these two; zipfile decompresses the others without bound.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise RecordError("corrupt-zip", f"{name}: compression {info.compress_type} is none of EPUB's")
        try:
            with self._zip.open(info) as member:
                data = member.read(limit + 1)
        except _ZIP_ERRORS as error:
            raise RecordError("corrupt-zip", f"{name}: {error}") from error
        if len(data) > limit:
            raise RecordError("too-large", f"{name}: more than {limit} bytes")
        return data


def _check_directory(file: BinaryIO) -> None:
    """Check the size of the zip's list of members, stated at the end of the file, before it is parsed."""
    size = file.seek(0, 2)
    file.seek(max(0, size - (1 << 16) - _END_OF_DIRECTORY.size))
    tail = file.read()
    position = tail.rfind(b"PK\5\6")
    if position < 0 or len(tail) - position < _END_OF_DIRECTORY.size:
        raise RecordError("corrupt-zip", "the archive has no end record: the file is cut off, or is no zip")
    num_bytes = _END_OF_DIRECTORY.unpack_from(tail, position)[5]
    if num_bytes > MAX_DIRECTORY_BYTES:
        raise RecordError("too-large", f"a list of members of {num_bytes} bytes")


def _package_path(archive: _Archive) -> str:
    if archive.find(_CONTAINER) is None:
        raise RecordError("not-a-book", f"a zip without {_CONTAINER}, so no EPUB")
    container = _xml(archive.read(_CONTAINER, MAX_PACKAGE_BYTES), _CONTAINER)
    for element in _named(container, "rootfile"):
        if element.get("media-type", "application/oebps-package+xml") == "application/oebps-package+xml":
            return str(element.get("full-path", ""))
    raise RecordError("malformed-book", f"{_CONTAINER} names no package")


def _book_text(archive: _Archive, package: etree._Element, package_path: str) -> str:
    """Return the text of all chapters in reading order.

    Raises:
        RecordError: a chapter is missing, bad, encrypted or too large.
    """
    paths = [item.path for item in _chapters(package, package_path)]
    locked = _locked(archive)
    budget, parts = MAX_TEXT_BYTES, []
    for path in paths:
        if archive.find(path) in locked:
            raise RecordError("encrypted", f"{path} is protected (DRM); give a copy without DRM")
        data = archive.read(path, MAX_CHAPTER_BYTES)
        budget -= len(data)
        if budget < 0:
            raise RecordError("too-large", f"chapters of more than {MAX_TEXT_BYTES} bytes together")
        parts.append(_chapter_text(data, path))
    return "\n\n".join(part for part in parts if part)


def _chapter_text(data: bytes, path: str) -> str:
    if b"\0" in data[:1024] and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RecordError("bad-chapter", f"{path} is binary, not XHTML")
    declared = _DECLARED.search(data[:1024])
    try:
        return full_text(decode(data, declared[1].decode("ascii") if declared else ""))
    except RecordError as error:
        raise RecordError("bad-chapter", f"{path}: {error}") from error


def _chapters(package: etree._Element, package_path: str) -> list[_Item]:
    """Return the spine's chapters in reading order, without tables of contents and auxiliary content."""
    items = _manifest(package, package_path)
    contents = {
        _path_in_archive(package_path, reference.get("href", ""))
        for reference in _named(package, "reference")
        if reference.get("type", "").lower() == "toc" and "#" not in reference.get("href", "")
    }
    chapters = []
    refs = _named(package, "itemref")
    if len(refs) > MAX_CHAPTERS:
        raise RecordError("too-large", f"a spine of {len(refs)} chapters, {MAX_CHAPTERS} at most are read")
    for ref in refs:
        item = items.get(ref.get("idref", ""))
        if ref.get("linear", "yes").strip().lower() == "no":
            continue
        if item is None:
            raise RecordError("missing-file", f"the spine names {ref.get('idref')!r}, which the manifest does not have")
        if item.media_type in _TEXT_TYPES and not item.is_contents and item.path not in contents:
            chapters.append(item)
    if not refs:
        raise RecordError("malformed-book", "the package has no spine")
    return list(dict.fromkeys(chapters))


def _manifest(package: etree._Element, package_path: str) -> dict[str, _Item]:
    return {
        element.get("id", ""): _Item(
            path=_path_in_archive(package_path, element.get("href", "")),
            media_type=element.get("media-type", "").strip().lower(),
            is_contents="nav" in element.get("properties", "").split(),
        )
        for element in _named(package, "item")
    }


def _locked(archive: _Archive) -> set[str | None]:
    """Return the encrypted members, those not counted that only obfuscate a font."""
    if archive.find(_ENCRYPTION) is None:
        return set()
    locked = set()
    for data in _named(_xml(archive.read(_ENCRYPTION, MAX_PACKAGE_BYTES), _ENCRYPTION), "EncryptedData"):
        methods = [element.get("Algorithm", "") for element in _named(data, "EncryptionMethod")]
        if not (methods and all(method in _FONT_OBFUSCATION for method in methods[:1])):
            locked |= {archive.find(element.get("URI", "")) for element in _named(data, "CipherReference")}
    return locked - {None}


def _edition(package: etree._Element) -> Edition:
    about = _refinements(package)
    main, others = _titles(package, about)
    authors, forms = _authors(package, about)
    identifiers = _identifiers(package)
    isbns = [isbn for text in identifiers if (isbn := identity.canonical_isbn(text))]
    numbers = [number for text in identifiers if "//" in text and (number := identity.gutenberg_number(text))]
    links = [text for text in identifiers if re.match(r"https?://\S+$", text)]
    languages = [code for element in _named(package, "language") if (code := language_code(_text_of(element)))]
    return Edition(
        title=main,
        titles=others,
        authors=tuple(dict.fromkeys(authors + forms)),
        joint=joint_name(authors),
        gutenberg_number=next(iter(numbers), None),
        isbns=tuple(dict.fromkeys(isbns)),
        language=next(iter(languages), ""),
        published=_modified(package),
        url=next(iter(links), None),
    )


def _refinements(package: etree._Element) -> dict[tuple[str, str], list[str]]:
    """Return (id, property) -> values, from EPUB 3's `<meta refines="#id" property="role">aut</meta>`."""
    found: dict[tuple[str, str], list[str]] = {}
    for element in _named(package, "meta"):
        if element.get("refines"):
            key = element.get("refines", "").lstrip("#"), element.get("property", "")
            found.setdefault(key, []).append(_text_of(element))
    return found


def _titles(package: etree._Element, about: dict[tuple[str, str], list[str]]) -> tuple[str | None, tuple[str, ...]]:
    """Return the main title and the expanded ones; a subtitle by itself is no name of the book."""
    titles = {"main": list[str](), "": list[str](), "expanded": list[str]()}
    for element in _named(package, "title"):
        kind = next(iter(about.get((element.get("id", ""), "title-type"), [])), "")
        if kind in titles and _text_of(element):
            titles[kind].append(_text_of(element))
    ranked = titles["main"] + titles[""] + titles["expanded"]
    main = next(iter(ranked), None)
    return main, tuple(title for title in titles["expanded"] if title != main)


def _authors(package: etree._Element, about: dict[tuple[str, str], list[str]]) -> tuple[list[str], list[str]]:
    """Return the authors' names, and the forms they are filed as ("Carroll, Lewis"); a creator without role counts."""
    names, forms = list[str](), list[str]()
    for element in _named(package, "creator"):
        element_id = element.get("id", "")
        roles = about.get((element_id, "role"), []) or [role for role in (element.get(f"{_OPF}role"),) if role]
        if _text_of(element) and (not roles or "aut" in [role.lower() for role in roles]):
            names.append(_text_of(element))
            filed = [*about.get((element_id, "file-as"), []), element.get(f"{_OPF}file-as", "")]
            forms += [" ".join(form.split()) for form in filed if form.strip()]
    return names, forms


def _identifiers(package: etree._Element) -> list[str]:
    """Return the identifiers that can be an ISBN or a URL, that of `unique-identifier` first."""
    unique = package.get("unique-identifier")
    elements = sorted(_named(package, "identifier"), key=lambda element: element.get("id") != unique)
    found = []
    for element in elements:
        text = _text_of(element)
        scheme = element.get(f"{_OPF}scheme", element.get("scheme", "")).strip().lower()
        is_named = scheme in ("", "isbn") or "isbn" in text.lower()
        found.append(text if is_named or "//" in text else "")
    return [text for text in found if text]


def _modified(package: etree._Element) -> str:
    for element in _named(package, "meta"):
        if element.get("property") == "dcterms:modified" and _DATE.fullmatch(_text_of(element)):
            return _text_of(element) if "T" in _text_of(element) else f"{_text_of(element)}T00:00:00Z"
    return ""


def _xml(data: bytes, path: str) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, recover=True)
    try:
        root = etree.fromstring(data, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise RecordError("malformed-book", f"{path}: {error}") from error
    if root is None:
        raise RecordError("malformed-book", f"{path} is no XML")
    return root


def _named(root: etree._Element, name: str) -> list[etree._Element]:
    """Return every element of that name below `root`, in any namespace, since producers differ."""
    return list(root.iterfind(f".//{{*}}{name}"))


def _text_of(element: etree._Element) -> str:
    return " ".join(str(element.xpath("string()")).split())


def _path_in_archive(package_path: str, href: str) -> str:
    """Return the path within the archive that `href` of the package points to; never one outside of it."""
    return _clean(posixpath.join(posixpath.dirname(package_path), _path_of(href)))


def _path_of(href: str) -> str:
    """Return a relative reference without query and fragment; unchanged if it cannot be parsed."""
    try:
        return urlsplit(href).path or href
    except ValueError:
        return href


def _clean(path: str) -> str:
    return posixpath.normpath("/" + path.replace("\\", "/")).lstrip("/")
