"""Staging: the output of the per-file stage, one directory per input file, either whole or absent.

    stage/00007-<first 16 hex digits of the file's SHA-256>/
        documents.parquet    every document read, without text; `row` is unique across directories
        texts.parquet        row -> text, for the kept ones; in file order, zstd
        bands.parquet        row, band, hash
        redirects.parquet    titles that only name another title
        names.parquet        more names of a source: "title / author", an ISBN
        sites.parquet        the wikis whose pages the file holds
        done.json            bytes and SHA-256 of each; written last

A directory is written under a temporary name, flushed to disk and published by one rename; `is_complete` then compares
it with its `done.json`, since the existence of a file proves nothing. Memory: one batch, about 8 MiB of text.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.dedup.minhash import Fingerprint
from pipelines.document import Document, Redirect, WikiSite
from registry import identity, ids
from registry.schema import AliasKind
from registry.storage import publish_directory, translate_os_errors, write_atomic
from registry.storage.parquet import ParquetFileWriter, sha256_file

DONE = "done.json"
ROW_BITS = 32  # `row` = index of the directory << ROW_BITS | position in documents.parquet
_BATCH_ROWS = 4096
_BATCH_BYTES = 8 << 20

DOCUMENTS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("doc_id", pa.int64(), nullable=False),
        pa.field("origin_id", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("locator", pa.string()),  # null if the document comes from a parent snapshot that does not hold it
        pa.field("url", pa.string()),
        pa.field("title", pa.string()),
        pa.field("canonical", pa.string()),  # the title as MediaWiki stores it
        pa.field("alias_hash", pa.int64()),  # of the folded title
        pa.field("scope", pa.string()),
        pa.field("captured", pa.string(), nullable=False),
        pa.field("input_file", pa.string(), nullable=False),
        pa.field("input_offset", pa.int64(), nullable=False),
        pa.field("input_length", pa.int64(), nullable=False),
        pa.field("input_stored", pa.bool_(), nullable=False),
        pa.field("language", pa.string()),
        pa.field("num_bytes", pa.int64(), nullable=False),
        pa.field("text_sha256", pa.string()),
        pa.field("normal_hash", pa.binary()),  # null unless kept
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        # For documents that come from a parent snapshot: what was decided there.
        pa.field("settled", pa.bool_(), nullable=False),  # kept
        pa.field("survivor_id", pa.int64()),
        pa.field("jaccard", pa.float32()),
        pa.field("cluster_id", pa.int64()),
    ]
)
TEXTS = pa.schema([pa.field("row", pa.int64(), nullable=False), pa.field("text", pa.string(), nullable=False)])
BANDS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("band", pa.int16(), nullable=False),
        pa.field("hash", pa.int64(), nullable=False),
    ]
)
REDIRECTS = pa.schema(
    [
        pa.field("scope", pa.string(), nullable=False),
        pa.field("alias", pa.string(), nullable=False),
        pa.field("canonical", pa.string(), nullable=False),
        pa.field("alias_hash", pa.int64(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field("target_canonical", pa.string(), nullable=False),
        pa.field("target_hash", pa.int64(), nullable=False),
    ]
)
NAMES = pa.schema(
    [
        pa.field("source_id", pa.int64(), nullable=False),
        pa.field("alias", pa.string(), nullable=False),
        pa.field("alias_hash", pa.int64(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
    ]
)
SITES = pa.schema([pa.field("scope", pa.string(), nullable=False), pa.field("host", pa.string(), nullable=False)])
TABLES = {
    "documents": DOCUMENTS,
    "texts": TEXTS,
    "bands": BANDS,
    "redirects": REDIRECTS,
    "names": NAMES,
    "sites": SITES,
}


def folder_name(index: int, sha256: str) -> str:
    """Return the name of a directory: that of input `index`, in the inputs' order, whose content has `sha256`."""
    return f"{index:05d}-{sha256[:16]}"


def is_complete(folder: Path) -> bool:
    """Return whether `folder` holds every file of its `done.json`, with that size and content; reads all of them."""
    try:
        files = json.loads((folder / DONE).read_bytes())["files"]
        return files.keys() == TABLES.keys() and all(
            (folder / f"{name}.parquet").stat().st_size == entry["bytes"]
            and sha256_file(folder / f"{name}.parquet") == entry["sha256"]
            for name, entry in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


class StageWriter:
    """The writer of one input's directory: a context manager that publishes it unless an exception leaves it.

    Args:
        folder: the directory to publish.
        index: of the input, for `row`.

    Raises:
        ServiceError: the directory cannot be written.
    """

    def __init__(self, folder: Path, index: int) -> None:
        self._folder, self._next_row = folder, index << ROW_BITS
        with translate_os_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            self._partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
            self._writers = {
                name: ParquetFileWriter(self._partial / f"{name}.parquet", TABLES[name]) for name in TABLES
            }
        self._columns: dict[str, dict[str, list[Any]]] = {}
        self._clear()

    def __enter__(self) -> StageWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            with translate_os_errors(self._folder):
                if error is None:
                    self._flush()
                for writer in self._writers.values():
                    writer.__exit__(kind, error, None)
                if error is None:
                    self._publish()
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def document(self, document: Mapping[str, Any], text: str, fingerprint: Fingerprint | None) -> None:
        """Add a row of `DOCUMENTS`, except `row` and `normal_hash`; `text` is stored if there is a fingerprint."""
        row, self._next_row = self._next_row, self._next_row + 1
        known = {"normal_hash": fingerprint.normal_hash} if fingerprint else {}
        self._add("documents", {"normal_hash": None, **document, **known, "row": row})
        if fingerprint:
            self._add("texts", {"row": row, "text": text})
            self._pending_bytes += len(text)
            for band, value in enumerate(fingerprint.bands.tolist()):
                self._add("bands", {"row": row, "band": band, "hash": value})
        self._flush_if_full()

    def redirect(self, redirect: Redirect) -> None:
        """Add a redirect."""
        self._add("redirects", redirect_row(redirect))
        self._flush_if_full()

    def name(self, source_id: ids.SourceId, kind: AliasKind, alias: str) -> None:
        """Add a name of a source that is not the title of a document."""
        row = {"source_id": source_id, "alias": alias, "alias_hash": title_hash(alias), "kind": kind.value}
        self._add("names", row)

    def site(self, site: WikiSite) -> None:
        """Add a wiki."""
        self._add("sites", {"scope": site.scope, "host": site.host})

    def _add(self, table: str, row: dict[str, Any]) -> None:
        columns = self._columns[table]
        for name, value in row.items():
            columns[name].append(value)

    def _flush_if_full(self) -> None:
        rows = len(self._columns["documents"]["row"]) + len(self._columns["redirects"]["alias"])
        if rows >= _BATCH_ROWS or self._pending_bytes >= _BATCH_BYTES:
            with translate_os_errors(self._folder):
                self._flush()

    def _flush(self) -> None:
        for name, columns in self._columns.items():
            self._writers[name].write(pa.table(columns, schema=TABLES[name]))
        self._clear()

    def _clear(self) -> None:
        self._columns = {name: {column: [] for column in schema.names} for name, schema in TABLES.items()}
        self._pending_bytes = 0

    def _publish(self) -> None:
        files = {}
        for name in TABLES:
            path = self._partial / f"{name}.parquet"
            files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        write_atomic(self._partial / DONE, json.dumps({"files": files}).encode())
        publish_directory(self._partial, self._folder, keep=is_complete)


def document_row(document: Document) -> dict[str, Any]:
    """Return a reader's document as a row for `StageWriter.document`.

    One that failed before it had an identity gets an id from its file and offset, so that it can be looked up too.
    """
    key, locator = document.key, document.locator
    if key is None:
        key, locator = f"failed:{document.input_file}", str(document.input_offset)
    encoded = document.text.encode("utf-8", "surrogatepass")
    return {
        "doc_id": ids.doc_id(key, locator),
        "origin_id": None if document.key is None else ids.source_id(document.key),
        "key": document.key,
        "kind": document.kind.value,
        "locator": locator,
        "url": document.url,
        "title": document.title,
        "canonical": document.title and identity.canonical_title(document.title),
        "alias_hash": document.title and title_hash(document.title),
        "scope": document.scope,
        "captured": document.captured,
        "input_file": document.input_file,
        "input_offset": document.input_offset,
        "input_length": document.input_length,
        "input_stored": document.input_stored,
        "language": document.language or None,
        "num_bytes": len(encoded),
        "text_sha256": hashlib.sha256(encoded).hexdigest() if encoded else None,
        "status": document.status.value,
        "reason": document.reason,
        "detail": document.detail or None,
        "settled": False,
        "survivor_id": None,
        "jaccard": None,
        "cluster_id": None,
    }


def redirect_row(redirect: Redirect) -> dict[str, Any]:
    """Return a redirect as a row of `REDIRECTS`."""
    return {
        "scope": redirect.scope,
        "alias": redirect.title,
        "canonical": identity.canonical_title(redirect.title),
        "alias_hash": title_hash(redirect.title),
        "target": redirect.target,
        "target_canonical": identity.canonical_title(redirect.target.partition("#")[0]),
        "target_hash": title_hash(redirect.target.partition("#")[0]),
    }


def title_hash(title: str) -> int:
    """Return the alias hash of a title, the same for every spelling of it."""
    return ids.alias_hash(identity.fold_title(title))
