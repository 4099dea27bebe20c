"""Immutable snapshots of sources: commit, open, verify. A registry is a directory of snapshots, or a prefix at s3://.

    <registry>/newest                    the id of the newest snapshot (and newest.lock, held while it changes)
    <registry>/snapshots/<id>/           manifest.json, sources.parquet, ..., shards/part-00000.parquet
    <registry>/work/                     what a stopped ingest resumes from; may be deleted
    <registry>/catalog.db                the catalogue, unless NULLS_CATALOG names another

The manifest is written last, and the directory is published by one rename; at s3://, where `work` and the catalogue
are elsewhere, by storing the manifest after all files (`registry.storage.publish_s3`). The id is the SHA-256 of the
files' hashes, the inputs' names and hashes, and the configuration. It does not depend on paths, clock, workers or
engine, so the same input gives the same snapshot. Opening reads one small JSON file; verifying reads every byte.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from registry import schema
from registry.errors import DamagedError, NotFoundError, RefusedError, ServiceError, UsageError
from registry.identity import WebSource
from registry.ids import ID_SCHEME, DocId, format_id
from registry.manifest import MANIFEST, is_manifest_of, manifest_faults, read_manifest, sealed
from registry.storage import (
    Location,
    copy_verified,
    file_lock,
    open_root,
    parquet,
    publish_directory,
    publish_s3,
    translate_os_errors,
    work_directory,
    write_atomic,
)

ANY = "any"  # for `follows`: the newest snapshot may be any
_SNAPSHOT_ID = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A committed snapshot. Cheap to create; its tables are read on request."""

    path: Location
    manifest: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The snapshot id: 64 hex digits."""
        return str(self.manifest["snapshot"])

    @property
    def parent(self) -> str | None:
        """The id of the snapshot that this one continues, or None."""
        return self.manifest.get("parent")

    @functools.cached_property
    def wikis(self) -> dict[str, list[str]]:
        """The wikis in the snapshot, by the host that serves them."""
        hosts: dict[str, list[str]] = {}
        for site in self.manifest.get("wikis", ()):
            hosts.setdefault(site["host"], []).append(site["scope"])
        return hosts

    @property
    def removed(self) -> list[dict[str, str]]:
        """The sources that were removed from this snapshot or its ancestors: {"source_id" (hex), "key"} each."""
        return list(self.manifest.get("removed") or [])

    @property
    def web_source(self) -> WebSource:
        """The extent of a web source in this snapshot."""
        granularity = self.manifest["configuration"].get("granularity") or {}
        return WebSource(granularity.get("web") or WebSource.DOMAIN)

    def file(self, name: str) -> Location:
        """Return the path of a table's file ("sources") or of a shard's ("shards/part-00000")."""
        return self.path / f"{name}.parquet"

    def local(self, folder: Path, names: Iterable[str] | None = None) -> Path:
        """Return a local directory with the snapshot's files, for engines that read only local files.

        Args:
            folder: the download target, if the snapshot is at s3://; files in it that are right are kept.
            names: tables to download; by default every file.

        Returns:
            The snapshot's own directory if it is local (nothing is read then), else `folder`.

        Raises:
            DamagedError: a file is missing, or differs from what was written.
            ServiceError: S3 cannot be reached, or the folder cannot be written.
        """
        if isinstance(self.path, Path):
            return self.path
        chosen = self.manifest["files"] if names is None else [f"{name}.parquet" for name in names]
        for name in chosen:
            copy_verified(self.path / name, folder / name, self.manifest["files"][name]["sha256"])
        return folder

    def table(self, name: str) -> pa.Table:
        """Read a whole table of `registry.schema.TABLES`; `documents` and `bands` can be large: use `batches`."""
        return parquet.read_table(self.file(name))

    def where(self, name: str, column: str, values: Sequence[int]) -> pa.Table:
        """Return the rows of a table whose sort column has one of `values`."""
        return parquet.read_where(self.file(name), column, values)

    def batches(self, name: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield a table in pieces, in its sort order."""
        yield from parquet.read_batches(self.file(name), columns=columns)

    def shards(self, folder: str = "shards") -> list[str]:
        """Return the names of the snapshot's shards in order, as `file` takes them; `folder` may be "displaced"."""
        return sorted(n.removesuffix(".parquet") for n in self.manifest["files"] if n.startswith(folder + "/"))

    def shard_batches(self, folder: str = "shards") -> Iterator[pa.RecordBatch]:
        """Yield all training text (schema.SHARD), sorted by source and document, a few MB at a time."""
        for name in self.shards(folder):
            yield from parquet.read_batches(self.file(name), batch_size=256)

    def texts(self, source_id: int) -> list[tuple[DocId, str]]:
        """Return the documents that are trained under a source: (doc_id, text).

        Raises:
            NotFoundError: the snapshot does not hold the source.
        """
        rows = self.where("sources", "source_id", [source_id]).to_pylist()
        if not rows:
            raise NotFoundError(f"source {format_id(source_id)} is not in snapshot {self.id[:12]}")
        found: list[tuple[DocId, str]] = []
        for placement in rows[0]["placements"]:
            path = self.file(f"shards/part-{placement['shard']:05d}")
            table = parquet.read_rows(path, placement["row_start"], placement["row_end"])
            found += zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True)
        return found

    def verify(self) -> int:
        """Read every file, compare its hash, and return the number of bytes read.

        Raises:
            DamagedError: files are missing or differ, or the manifest was changed; the message names each of them.
        """
        damaged = [f"{MANIFEST} ({fault})" for fault in manifest_faults(self.manifest)]
        num_bytes = 0
        for name, entry in self.manifest["files"].items():
            path = self.path / name
            try:
                if path.stat().st_size != entry["bytes"] or parquet.sha256_file(path) != entry["sha256"]:
                    damaged.append(f"{name} (content differs)")
            except (FileNotFoundError, NotADirectoryError):
                damaged.append(f"{name} (missing)")
            num_bytes += entry["bytes"]
        if damaged:
            raise DamagedError(
                f"snapshot {self.id[:12]} in {self.path}: damaged: {', '.join(damaged)}; "
                "restore these files from a copy, or ingest the same inputs again"
            )
        return num_bytes


class SnapshotWriter:
    """Writes a snapshot's files into a staging directory, and commits them to a registry.

    Args:
        registry: the target of the commit.
        staging: a local directory, on the file system of a local registry; it is created, or emptied if it exists.
    """

    def __init__(self, registry: Registry, staging: Path) -> None:
        self.registry = registry
        self.staging = staging
        with translate_os_errors(staging):
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)

    def table(self, name: str) -> parquet.ParquetFileWriter:
        """Return a writer for the table `name`; rows must come in `registry.schema.SORT_ORDER`."""
        return parquet.ParquetFileWriter(self.staging / f"{name}.parquet", schema.TABLES[name])

    def shard(self, number: int, folder: str = "shards") -> parquet.ParquetFileWriter:
        """Return a writer for a shard of `folder` ("shards" or "displaced")."""
        return parquet.ParquetFileWriter(self.staging / folder / f"part-{number:05d}.parquet", schema.SHARD)

    def link(self, name: str, folder: Path) -> None:
        """Take a file unchanged from another snapshot: by a hard link, or a copy if a link is not possible.

        Args:
            name: the file without ".parquet", e.g. "shards/part-00000".
            folder: the local directory of the other snapshot.
        """
        target = self.staging / f"{name}.parquet"
        with translate_os_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(folder / f"{name}.parquet", target)
            except OSError:
                shutil.copyfile(folder / f"{name}.parquet", target)

    def commit(
        self,
        *,
        configuration: Mapping[str, Any],
        inputs: list[dict[str, Any]],
        parent: str | None = None,
        follows: str | None = ANY,
        **facts: Any,
    ) -> Snapshot:
        """Hash the files, write the manifest and publish the directory; the snapshot is then the newest.

        Args:
            configuration: the settings that shape the content; part of the id, as are the inputs' names and hashes.
            inputs: {"name", "sha256", "bytes", ...} for each input file.
            parent: the snapshot that this one continues.
            follows: the id of the newest snapshot when this one was begun (None: there was none), or ANY.
            facts: more fields of the manifest, not part of the id: counts, conservation, wikis.

        Returns:
            The snapshot; if the same one exists already, the existing one.

        Raises:
            RefusedError: another snapshot became the newest meanwhile; this one does not contain its sources.
            ServiceError: the registry cannot be written.
        """
        files = {}
        for path in sorted(self.staging.rglob("*.parquet")):
            name = path.relative_to(self.staging).as_posix()
            rows = parquet.open_parquet(path).metadata.num_rows
            files[name] = {"sha256": parquet.sha256_file(path), "bytes": path.stat().st_size, "rows": rows}
        manifest = sealed(
            {
                "snapshot": "",
                "schema_version": schema.SCHEMA_VERSION,
                "id_scheme": ID_SCHEME,
                "parent": parent,
                "configuration": dict(configuration),
                "inputs": sorted(inputs, key=lambda entry: (entry["name"], entry["sha256"])),
                **facts,
                "files": files,
            }
        )
        with translate_os_errors(self.staging):
            write_atomic(self.staging / MANIFEST, json.dumps(manifest, indent=1).encode())
            return self.registry.publish(self.staging, manifest["snapshot"], follows)


class Registry:
    """A directory of snapshots, or a prefix at s3://."""

    def __init__(self, root: Location) -> None:
        self.root = root

    @classmethod
    def open(cls, uri: str | Location, *, create: bool = False) -> Registry:
        """Open the registry at `uri`; for the errors see `registry.storage.open_root`."""
        return cls(open_root(uri, create=create))

    @property
    def work(self) -> Path:
        """The local directory from which stopped ingests resume; see `registry.storage.work_directory`."""
        return work_directory(self.root)

    def snapshot(self, ref: str | None = None) -> Snapshot:
        """Return the snapshot whose id is, or starts with, `ref`; by default the newest.

        Raises:
            NotFoundError: there is no snapshot, or none with such an id.
            UsageError: several ids start with `ref`.
            DamagedError: its manifest cannot be read.
        """
        if ref is None:
            ref = self.newest_id()
        if ref is None:
            raise NotFoundError(f"registry {self.root} holds no snapshot yet; run `nulls ingest` first")
        known = self.ids(ref)
        if not known:
            raise NotFoundError(f"no snapshot {ref!r} in {self.root}; `nulls snapshots` lists what is there")
        if len(known) > 1:
            raise UsageError(f"snapshot {ref!r} is ambiguous: {', '.join(name[:16] for name in known)}")
        return self._open(known[0])

    def ids(self, prefix: str = "") -> list[str]:
        """Return the ids of all committed snapshots that begin with `prefix`, sorted."""
        folder = self.root / "snapshots"
        if isinstance(folder, Path):
            names = [path.parent.name for path in folder.glob(f"*/{MANIFEST}")]
        else:
            known = [prefix] if _SNAPSHOT_ID.fullmatch(prefix) else folder.folders()
            names = [name for name in known if name.startswith(prefix) and (folder / name / MANIFEST).is_file()]
        return sorted(name for name in names if _SNAPSHOT_ID.fullmatch(name) and name.startswith(prefix))

    def committed_at(self, snapshot_id: str) -> str:
        """Return when the manifest of a snapshot was stored here, in UTC: ISO 8601, to the second."""
        seconds = (self.root / "snapshots" / snapshot_id / MANIFEST).stat().st_mtime
        return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"

    def newest_id(self) -> str | None:
        """Return the id of the newest snapshot; None if there is none yet.

        Raises:
            DamagedError: the file `newest` does not contain an id.
            ServiceError: it cannot be read.
        """
        try:
            return self._pointed((self.root / "newest").read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ServiceError(
                f"registry {self.root} cannot be read: {error.strerror}; check its permissions"
            ) from error

    def _pointed(self, data: bytes) -> str:
        newest = data.decode("ascii", "replace").strip()
        if not _SNAPSHOT_ID.fullmatch(newest):
            raise DamagedError(f"{self.root / 'newest'}: holds no snapshot id; name one with --snapshot")
        return newest

    def publish(self, staging: Path, snapshot_id: str, follows: str | None = ANY) -> Snapshot:
        """Publish a staged snapshot, and make it the newest; if it exists already and is undamaged, that one is kept.

        Args:
            staging: a directory with the files and their manifest; deleted afterwards.
            snapshot_id: the id of the staged snapshot.
            follows: the id that must be the newest until then (None: there is none), or ANY.

        Raises:
            RefusedError: another snapshot became the newest meanwhile. Nothing is published then, unless (at s3://) it
                was committed between the last two steps: then the snapshot exists, but is not the newest.
        """
        if isinstance(self.root, Path):
            self._publish_locally(self.root, staging, snapshot_id, follows)
        else:
            publish_s3.publish(
                self.root,
                snapshot_id,
                staging=staging,
                manifest=MANIFEST,
                is_sound=lambda data: is_manifest_of(data, snapshot_id),
                check_newest=lambda data: self._refuse_another(data, follows, snapshot_id),
            )
        shutil.rmtree(staging, ignore_errors=True)
        return self._open(snapshot_id)

    def _publish_locally(self, root: Path, staging: Path, snapshot_id: str, follows: str | None) -> None:
        target = root / "snapshots" / snapshot_id
        with translate_os_errors(target), file_lock(root / "newest.lock"):
            newest = root / "newest"
            self._refuse_another(newest.read_bytes() if newest.exists() else None, follows, snapshot_id)
            target.parent.mkdir(exist_ok=True)
            publish_directory(staging, target, keep=lambda _: self._is_sound(snapshot_id))
            write_atomic(newest, snapshot_id.encode())

    def _refuse_another(self, pointer: bytes | None, follows: str | None, snapshot_id: str) -> None:
        """Raise a RefusedError if the newest snapshot is neither the one that was continued nor this one."""
        if follows == ANY:
            return
        newest = None if pointer is None else self._pointed(pointer)
        if newest not in (None, follows, snapshot_id):
            raise RefusedError(
                f"another ingest committed {newest[:12]} meanwhile; run the same command again to continue it"
            )

    def _is_sound(self, snapshot_id: str) -> bool:
        """Return whether a snapshot exists undamaged; a damaged one is replaced, so ingesting again repairs it."""
        if not (self.root / "snapshots" / snapshot_id / MANIFEST).is_file():
            return False
        try:
            self._open(snapshot_id).verify()
        except DamagedError:
            return False
        return True

    def _open(self, snapshot_id: str) -> Snapshot:
        path = self.root / "snapshots" / snapshot_id
        return Snapshot(path, read_manifest(path / MANIFEST, snapshot_id))
