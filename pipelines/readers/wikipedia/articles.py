"""Read a wiki's articles in any form that they come in; the form is recognised by the file's content, not its name.

    MediaWiki XML dump                     xml_dump.py
    WikiExtractor: <doc ...> or JSON       wikiextractor.py
    Hugging Face: wikimedia/wikipedia      rows/parquet.py

The last two forms hold text and no date, so where a dump has the same article, the dump's capture is the newer one.
Cost: the first 64 KiB of a file are decompressed twice.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

from pipelines.document import Document, Redirect, WikiSite
from pipelines.readers.streams import Source, open_stream, opened
from pipelines.readers.wikipedia.wikiextractor import read_extracted
from pipelines.readers.wikipedia.xml_dump import read_wikipedia
from registry.errors import RecordError

_SNIFF_BYTES = 1 << 16  # a dump's start tag, or the first <doc>, is within these
_PARQUET = b"PAR1"
_FORMS = re.compile(rb"<mediawiki|<page>|^\s*(<doc)\s", re.MULTILINE)
_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{(?=.*"id")(?=.*"title")', re.DOTALL)


def read_articles(source: Source, name: str) -> Iterator[Document | Redirect | WikiSite]:
    """Read a file of a wiki's articles in any form; a wiki is yielded before its first article.

    Args:
        source: the file.
        name: the input's name in documents; "enwiki-..." also names the wiki, where the file's content does not.

    Raises:
        InputError: the file is in none of the forms.
    """
    with opened(source) as file:
        yield from _reader_of(file)(file, name)


def _reader_of(file: BinaryIO) -> Callable[[BinaryIO, str], Iterator[Document | Redirect | WikiSite]]:
    """Return the reader for the form that `file` has; `file` is at its start before and after."""
    is_parquet = file.read(len(_PARQUET)) == _PARQUET
    file.seek(0)
    if is_parquet:
        from pipelines.readers.rows.parquet import read_rows

        return read_rows
    head = _head(open_stream(file))
    file.seek(0)
    found = _FORMS.search(head)
    if (found and found[1]) or (not found and _JSON.match(head)):
        return read_extracted
    return read_wikipedia


def _head(stream: Iterator[bytes]) -> bytes:
    head = b""
    try:
        while len(head) < _SNIFF_BYTES and (chunk := next(stream, b"")):
            head += chunk
    except RecordError:
        pass  # the form's reader meets the same damage and reports it
    return head
