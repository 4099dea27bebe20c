"""The Arrow schemas of every file in a snapshot: the contract between pipelines, training and orchestration.

Pipelines and training do not know each other; they meet here. A column added or changed raises `SCHEMA_VERSION`.
Ids are int64 (`registry.ids`), times ISO 8601 in UTC, sizes UTF-8 bytes. Each table's sort order is in `SORT_ORDER`:
point lookups rely on it (row-group statistics and page index), and so does the snapshot's digest.
"""

from __future__ import annotations

import enum

import pyarrow as pa

SCHEMA_VERSION = 3


class Kind(enum.StrEnum):
    """The kind of a source."""

    WEB = "web"
    WIKI = "wiki"
    BOOK = "book"
    SHARED = "shared"


class Status(enum.StrEnum):
    """The result of reading a document; each document has exactly one."""

    KEPT = "kept"
    FILTERED = "filtered"
    DUPLICATE = "duplicate"
    SUPERSEDED = "superseded"
    FAILED = "failed"


class AliasKind(enum.StrEnum):
    """The kind of an alias."""

    TITLE = "title"
    REDIRECT = "redirect"
    ISBN = "isbn"
    URL = "url"


_PLACEMENT = pa.struct(
    [
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("row_start", pa.int64(), nullable=False),
        pa.field("row_end", pa.int64(), nullable=False),
    ]
)

# One row for each source that published or owns a document that was read; num_* count what is trained under it (0 is
# possible: all of its text was filtered, or is shared with another source).
SOURCES = pa.schema(
    [
        pa.field("source_id", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("title", pa.string()),
        pa.field("num_documents", pa.int64(), nullable=False),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("placements", pa.list_(_PLACEMENT), nullable=False),
    ]
)

OWNERS = pa.schema(
    [
        pa.field("source_id", pa.int64(), nullable=False),  # a shared source
        pa.field("owner_id", pa.int64(), nullable=False),
    ]
)

# source_id is null if a redirect's target is not in the snapshot; only `target` is known then.
ALIASES = pa.schema(
    [
        pa.field("alias_hash", pa.int64(), nullable=False),  # ids.alias_hash(identity.fold_title(alias))
        pa.field("alias", pa.string(), nullable=False),  # as written
        pa.field("kind", pa.string(), nullable=False),
        pa.field("source_id", pa.int64()),
        pa.field("scope", pa.string()),  # the wiki that the alias belongs to ("enwiki"); null for books
        pa.field("target", pa.string()),  # for a redirect: the title that it points to
    ]
)

DOCUMENTS = pa.schema(
    [
        pa.field("doc_id", pa.int64(), nullable=False),
        pa.field("source_id", pa.int64()),  # the source that it is trained under; null if not trained on
        pa.field("origin_id", pa.int64()),  # the source that published it; null if a failure hid it
        pa.field("url", pa.string()),
        pa.field("title", pa.string()),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("text_sha256", pa.string()),
        pa.field("normal_hash", pa.binary()),  # hash of the words only; a later ingest finds equal texts by it
        pa.field("language", pa.string()),  # ISO 639-1, as detected or as the input says; null if neither
        pa.field("captured", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("survivor_id", pa.int64()),
        pa.field("jaccard", pa.float32()),
        pa.field("cluster_id", pa.int64()),
        pa.field("input_file", pa.string(), nullable=False),
        pa.field("input_offset", pa.int64(), nullable=False),
        pa.field("input_length", pa.int64(), nullable=False),  # 0 if not known
        pa.field("input_stored", pa.bool_(), nullable=False),  # offset and length refer to the stored bytes
    ]
)

BANDS = pa.schema(
    [
        pa.field("band", pa.int16(), nullable=False),
        pa.field("hash", pa.int64(), nullable=False),
        pa.field("doc_id", pa.int64(), nullable=False),
    ]
)

SHARD = pa.schema(
    [
        pa.field("source_id", pa.int64(), nullable=False),
        pa.field("doc_id", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
    ]
)

TABLES: dict[str, pa.Schema] = {
    "sources": SOURCES,
    "owners": OWNERS,
    "aliases": ALIASES,
    "documents": DOCUMENTS,
    "bands": BANDS,
}

# In `documents` one doc_id can have several rows: a superseded capture beside the one that won.
SORT_ORDER: dict[str, tuple[str, ...]] = {
    "sources": ("source_id",),
    "owners": ("source_id", "owner_id"),
    "aliases": ("alias_hash", "alias", "kind", "scope", "source_id"),
    "documents": ("doc_id", "status", "captured", "input_file", "input_offset"),
    "bands": ("band", "hash", "doc_id"),
    "shards": ("source_id", "doc_id"),
    "displaced": ("source_id", "doc_id"),
}
