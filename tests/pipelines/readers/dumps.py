"""Small real MediaWiki dumps, written as `dumpBackup.php` writes them.

write_dump(tmp_path / "enwiki-test.xml.bz2", [Page("A title", "Some ''text''.")], compress="multistream")
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import lzma
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

PAGES_PER_STREAM = 100  # in a multistream dump, as in Wikimedia's

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "bz2": bz2.compress,
    "gz": lambda data: gzip.compress(data, mtime=0),
    "xz": lzma.compress,
}

_NAMESPACES = {
    -2: "Media",
    -1: "Special",
    0: "",
    1: "Talk",
    2: "User",
    3: "User talk",
    4: "Wikipedia",
    6: "File",
    10: "Template",
    14: "Category",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Revision:
    """One revision of a page."""

    text: str
    timestamp: str = "2020-01-01T00:00:00Z"
    model: str | None = "wikitext"
    format: str | None = "text/x-wiki"


@dataclasses.dataclass(frozen=True)
class Page:
    """A page of a dump.

    Attributes:
        page_id: its id; by default its position among the pages written, from 1.
        ns: namespace; None leaves the element out.
        redirect: the title in `<redirect>`; "" writes the element without one, as schema 0.4 did.
        revisions: other revisions, written before the one of `text`.
    """

    title: str
    text: str = ""
    page_id: int | None = None
    ns: int | None = 0
    redirect: str | None = None
    timestamp: str = "2020-01-01T00:00:00Z"
    model: str | None = "wikitext"
    format: str | None = "text/x-wiki"
    revisions: tuple[Revision, ...] = ()


def siteinfo(dbname: str | None = "enwiki", base: str | None = "https://en.wikipedia.org/wiki/Main_Page") -> str:
    """Return the siteinfo at the start of a dump."""
    names = "".join(f'<namespace key="{key}">{name}</namespace>' for key, name in _NAMESPACES.items())
    database = f"<dbname>{dbname}</dbname>" if dbname else ""
    base_tag = f"<base>{base}</base>" if base else ""
    return f"<siteinfo><sitename>Wikipedia</sitename>{database}{base_tag}<namespaces>{names}</namespaces></siteinfo>"


def page_xml(page: Page, default_id: int) -> str:
    """Return `page` as an XML element."""
    ns = "" if page.ns is None else f"    <ns>{page.ns}</ns>\n"
    title = "" if not page.redirect else f" title={quoteattr(page.redirect)}"
    redirect = "" if page.redirect is None else f"    <redirect{title} />\n"
    last = Revision(text=page.text, timestamp=page.timestamp, model=page.model, format=page.format)
    revisions = "".join(_revision_xml(revision) for revision in (*page.revisions, last))
    page_id = default_id if page.page_id is None else page.page_id
    start = f"    <title>{escape(page.title)}</title>\n{ns}    <id>{page_id}</id>\n"
    return f"  <page>\n{start}{redirect}{revisions}  </page>\n"


def dump_parts(pages: Iterable[Page], head: str | bool = True, version: str = "0.10") -> Iterator[str]:
    """Yield a dump in parts: start, pages, end. `head` is a siteinfo, True for enwiki's, False for none."""
    schema = f"http://www.mediawiki.org/xml/export-{version}/"
    info = siteinfo() if head is True else head or ""
    yield f'<mediawiki xmlns="{schema}" version="{version}" xml:lang="en">\n{info}\n'
    for position, page in enumerate(pages, start=1):
        yield page_xml(page, position)
    yield "</mediawiki>\n"


def dump_xml(pages: Iterable[Page], siteinfo: str | bool = True) -> bytes:
    """Return a whole dump, not compressed."""
    return "".join(dump_parts(pages, siteinfo)).encode()


def write_dump(path: Path, pages: Iterable[Page], siteinfo: str | bool = True, compress: str | None = None) -> Path:
    """Write a dump.

    Args:
        path: the file; its suffix does not choose the compression.
        pages: pages of the dump.
        siteinfo: True for enwiki's, False for none, or one made with `siteinfo()`.
        compress: None, "bz2", "gz", "xz", or "multistream": bzip2 with a stream for each `PAGES_PER_STREAM` pages.
    """
    if compress == "multistream":
        path.write_bytes(b"".join(multistream(pages, siteinfo)))
    else:
        data = dump_xml(pages, siteinfo)
        path.write_bytes(COMPRESSORS[compress](data) if compress else data)
    return path


def multistream(
    pages: Iterable[Page], siteinfo: str | bool = True, pages_per_stream: int = PAGES_PER_STREAM
) -> Iterator[bytes]:
    """Return the bzip2 streams of a dump: its start, groups of pages, its end."""
    head, *bodies, end = dump_parts(pages, siteinfo)
    groups = ["".join(bodies[i : i + pages_per_stream]) for i in range(0, len(bodies), pages_per_stream)]
    return (bz2.compress(part.encode()) for part in (head, *groups, end))


def _revision_xml(revision: Revision) -> str:
    model = "" if revision.model is None else f"      <model>{revision.model}</model>\n"
    format_ = "" if revision.format is None else f"      <format>{revision.format}</format>\n"
    return (
        "    <revision>\n      <id>7</id>\n"
        f"      <timestamp>{revision.timestamp}</timestamp>\n"
        "      <contributor><username>An editor</username><id>9</id></contributor>\n"
        f'{model}{format_}      <text xml:space="preserve">{escape(revision.text)}</text>\n    </revision>\n'
    )
