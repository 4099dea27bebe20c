"""Read a Parquet file of articles: Hugging Face's `wikimedia/wikipedia`, with the columns id, url, title and text.

The file is read one row group after another, 64 rows at a time, so that memory does not grow with the file (the least
that can be read is one page of a column). A document's offset is its row in the file, counted from 0, and its length is
0, since a row has no byte range. A damaged row group is one failure, at the row where it broke; reading continues at
the next group. Cost: 60 MB of text a second, 30 MB of memory.

    pq.read_table("train-00000-of-00041.parquet").slice(offset, 1)   # the row that a document came from
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.document import Document, WikiSite
from pipelines.readers.streams import Source
from pipelines.readers.wikipedia.article_document import article, each_wiki_once, failed_article, wiki_of
from pipelines.readers.wikipedia.page_splitter import MAX_PAGE_BYTES
from registry.errors import InputError, RecordError

_COLUMNS = ("id", "url", "title", "text")
_BATCH_ROWS = 64  # an article has 3 kB, the longest 500 kB
_BUFFER_BYTES = 1 << 20
_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)  # raised by pyarrow for bad bytes


def read_rows(source: Source, name: str) -> Iterator[Document | WikiSite]:
    """Read a Parquet file of articles; a wiki is yielded before its first article.

    Args:
        source: the file.
        name: the input's name in documents.

    Raises:
        InputError: a column is missing or has another type.
    """
    try:
        file = pq.ParquetFile(
            source, buffer_size=_BUFFER_BYTES, pre_buffer=False, page_checksum_verification=True, memory_map=False
        )
        schema = file.schema_arrow
    except _DAMAGE as error:
        yield failed_article(_damage(error, "the file's footer cannot be read"), name, 0)
        return
    with file:
        _check_columns(schema, name)
        yield from each_wiki_once(_articles(file, name))


def _damage(error: BaseException, where: str) -> RecordError:
    """Return pyarrow's error for bad bytes as a RecordError; raise an error of the disk (it has an errno) unchanged."""
    if isinstance(error, OSError) and error.errno:
        raise error
    return RecordError("corrupt-rows", f"{where}: {' '.join(str(error).split())[:300]}")


def _check_columns(schema: pa.Schema, name: str) -> None:
    wrong = [
        column
        for column in _COLUMNS
        if column not in schema.names or not _is_readable(schema.field(column).type, column)
    ]
    if wrong:
        raise InputError(
            f"{name} is Parquet, but has no {', '.join(wrong)} as text; "
            f"expected the columns {', '.join(_COLUMNS)} of wikimedia/wikipedia, found {', '.join(schema.names[:20])}"
        )


def _is_readable(kind: pa.DataType, column: str) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return is_text or (column == "id" and pa.types.is_integer(kind))


def _articles(file: pq.ParquetFile, name: str) -> Iterator[Document | WikiSite]:
    start = 0
    for group in range(file.num_row_groups):
        row = start
        try:
            start += file.metadata.row_group(group).num_rows
            for batch in file.iter_batches(_BATCH_ROWS, [group], columns=list(_COLUMNS), use_threads=False):
                for fields in _fields(batch):
                    yield from _read_row(fields, name, row)
                    row += 1
        except _DAMAGE as error:
            where = f"row group {group}, rows {row} to {start - 1}"
            yield failed_article(_damage(error, where), name, row)


def _fields(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return the rows, with text as bytes, since Arrow does not check that it is UTF-8."""
    columns = {}
    for column in _COLUMNS:
        values = batch.column(column)
        values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
        columns[column] = values if pa.types.is_integer(values.type) else values.cast(pa.large_binary())
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns)).to_pylist()  # type: ignore[no-any-return]


def _read_row(fields: dict[str, Any], name: str, row: int) -> Iterator[Document | WikiSite]:
    title = None
    try:
        page_id, url, title, text = (_text(fields[column], column) for column in _COLUMNS)
        site = wiki_of(url, name)
        document = article(site, page_id, title, name)
        if len(text) > MAX_PAGE_BYTES:
            raise RecordError("too-large", f"an article of more than {MAX_PAGE_BYTES} bytes")
        document.markup, document.input_offset = text, row
        yield site
        yield document
    except RecordError as error:
        yield failed_article(error, name, row, title)


def _text(value: Any, column: str) -> str:
    if value is None:
        raise RecordError("malformed-page", f"the row has no {column}")
    try:
        return value.decode() if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise RecordError("malformed-page", f"{column} is not UTF-8: {error}") from error
