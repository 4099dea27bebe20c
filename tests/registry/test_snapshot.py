"""A snapshot is whole or absent, its id depends only on its content, and verify names its damaged files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from registry import ids, schema, snapshot, storage
from registry.errors import DamagedError, NotFoundError, ServiceError, UsageError
from registry.manifest import MANIFEST
from registry.snapshot import Registry, Snapshot, SnapshotWriter
from tests.registry.conftest import INPUTS, SHARED_KEY, documents, rows

Commit = Callable[..., Snapshot]


def test_a_snapshot_reads_back_as_written(commit: Commit, registry: Registry) -> None:
    made = commit(counts={"read": 3})
    found = registry.snapshot()
    assert (found.id, found.parent, found.manifest["counts"]) == (made.id, None, {"read": 3})
    for name in schema.TABLES:
        assert found.table(name).to_pylist() == rows()[name]
        assert sum(batch.num_rows for batch in found.batches(name)) == len(rows()[name])
        assert found.table(name).schema.equals(schema.TABLES[name])
    assert len(rows()["sources"]) == 18
    assert found.shards() == ["shards/part-00000"]
    assert found.shards("displaced") == []
    assert pa.Table.from_batches(found.shard_batches()).to_pylist() == rows()["shard"]
    assert found.verify() == sum(path.stat().st_size for path in found.path.rglob("*.parquet"))
    assert found.wikis == {"wiki.example.org": ["simplewiki"]}


def test_the_id_does_not_depend_on_path_time_or_workers(tmp_path: Path, commit: Commit) -> None:
    first = commit(started_at="monday", workers=4)
    again = commit(started_at="tuesday", workers=8)
    assert again.id == first.id
    assert again.manifest == first.manifest  # the first one was kept
    elsewhere = Registry.open(tmp_path / "elsewhere" / "deep", create=True)
    shutil.copytree(first.path, elsewhere.root / "work")
    (elsewhere.root / "work" / MANIFEST).unlink()
    writer = SnapshotWriter.__new__(SnapshotWriter)
    writer.registry, writer.staging = elsewhere, elsewhere.root / "work"
    inputs = [{"name": "dump.xml", "sha256": "ab" * 32, "bytes": 7, "path": "/another/path"}]
    assert writer.commit(configuration={"threshold": 0.75}, inputs=inputs).id == first.id


@pytest.mark.parametrize(
    "changes",
    [
        {"configuration": {"threshold": 0.8}},
        {"configuration": {}},
        {"inputs": []},
        {"inputs": [{**INPUTS[0], "sha256": "cd" * 32}]},
        {"inputs": [{**INPUTS[0], "name": "other.xml"}]},
        {"inputs": INPUTS * 2},
        {"parent": "ef" * 32},
    ],
)
def test_configuration_inputs_and_parent_change_the_id(commit: Commit, changes: dict[str, Any]) -> None:
    assert commit().id != commit(**changes).id


def test_the_order_of_inputs_does_not_change_the_id(commit: Commit) -> None:
    inputs = [{"name": name, "sha256": "ab" * 32} for name in "abc"]
    assert commit(inputs=inputs).id == commit(inputs=inputs[::-1]).id


def test_a_configuration_with_tuples_and_number_keys_verifies_after_reading(commit: Commit, registry: Registry) -> None:
    configuration = {"bands": (14, 8), 10: "x", 9: "y", "name": "caf\udce9", "ratio": 0.1}
    commit(configuration=configuration, reasons={10: 1, 9: 2})
    assert registry.snapshot().verify() > 0


@pytest.mark.parametrize("step", ["write_atomic", "publish_directory", "publish"])
def test_a_crash_before_the_commit_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, commit: Commit, registry: Registry, step: str
) -> None:
    def crash(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Registry if step == "publish" else snapshot, step, crash)
        with pytest.raises(KeyboardInterrupt):
            commit()
    assert registry.ids() == []
    with pytest.raises(NotFoundError, match="no snapshot yet"):
        registry.snapshot()
    assert commit().verify() > 0  # nothing prevents a second attempt


def test_a_crash_after_the_rename_leaves_the_snapshot_whole(
    monkeypatch: pytest.MonkeyPatch, commit: Commit, registry: Registry
) -> None:
    before = commit(configuration={})

    def crash(path: Path, data: bytes) -> None:
        if path.name == "newest":
            raise KeyboardInterrupt
        storage.write_atomic(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "write_atomic", crash)
        with pytest.raises(KeyboardInterrupt):
            commit()
    assert registry.snapshot().id == before.id
    (new,) = set(registry.ids()) - {before.id}
    assert registry.snapshot(new).verify() > 0
    assert commit().id == registry.snapshot().id == new


def test_a_writer_empties_its_staging_directory(registry: Registry, commit: Commit) -> None:
    staging = registry.root / "work" / "staging"
    (staging / "shards").mkdir(parents=True)
    (staging / "shards" / "part-00007.parquet").write_bytes(b"half")
    assert commit().shards() == ["shards/part-00000"]
    assert not staging.exists()


def test_refs(commit: Commit, registry: Registry) -> None:
    made = [
        commit(configuration={"seed": seed}) for seed in range(20)
    ]  # of 20 ids, at least two share their first digit
    assert registry.snapshot().id == made[-1].id
    assert registry.ids() == sorted(s.id for s in made)
    for one in made:
        assert registry.snapshot(one.id).id == registry.snapshot(one.id[:20]).id == one.id
    shared = next(d for d in "0123456789abcdef" if sum(name.startswith(d) for name in registry.ids()) > 1)
    with pytest.raises(UsageError, match="ambiguous"):
        registry.snapshot(shared)
    with pytest.raises(NotFoundError, match="nulls snapshots"):
        registry.snapshot("f" * 64)


@pytest.mark.parametrize("where", ["sources.parquet", "shards/part-00000.parquet", "owners.parquet"])
@pytest.mark.parametrize("how", ["flip", "truncate", "grow", "delete"])
def test_verify_names_only_the_damaged_file(commit: Commit, where: str, how: str) -> None:
    made = commit()
    path = made.path / where
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    changed = {"flip": bytes(data), "truncate": bytes(data[:-9]), "grow": bytes(data) + b"x"}
    path.write_bytes(changed[how]) if how in changed else path.unlink()
    with pytest.raises(DamagedError) as caught:
        made.verify()
    assert caught.value.exit_code == 3
    assert f"{where} ({'missing' if how == 'delete' else 'content differs'})" in str(caught.value)
    assert [name for name in made.manifest["files"] if name in str(caught.value)] == [where]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("configuration", {"threshold": 0.5}),
        ("parent", "ab" * 32),
        ("inputs", []),
        ("files", {}),
        ("wikis", []),
        ("counts", {"read": 4}),
        ("more", 1),
    ],
)
def test_verify_finds_an_edited_manifest(commit: Commit, registry: Registry, field: str, value: Any) -> None:
    made = commit(counts={"read": 3})
    path = made.path / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        registry.snapshot().verify()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b'{"schema_version": 1}', b"null"])
def test_an_invalid_manifest_is_damage(commit: Commit, registry: Registry, content: bytes) -> None:
    (commit().path / MANIFEST).write_bytes(content)
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        registry.snapshot()


def test_a_snapshot_under_another_id_is_damage(commit: Commit, registry: Registry) -> None:
    made = commit()
    made.path.rename(made.path.with_name("0" * 64))
    with pytest.raises(DamagedError, match="belongs to snapshot"):
        registry.snapshot("0" * 64)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff\xfe", b"../../etc"])
def test_a_newest_file_without_an_id_is_damage(commit: Commit, registry: Registry, content: bytes) -> None:
    commit()
    (registry.root / "newest").write_bytes(content)
    with pytest.raises(DamagedError, match="newest"):
        registry.snapshot()


def test_a_deleted_newest_snapshot_is_not_found(commit: Commit, registry: Registry) -> None:
    shutil.rmtree(commit().path)
    with pytest.raises(NotFoundError, match="no snapshot"):
        registry.snapshot()


@pytest.mark.parametrize("victim", ["sources.parquet", MANIFEST])
def test_committing_again_repairs_a_damaged_snapshot(commit: Commit, registry: Registry, victim: str) -> None:
    made = commit()
    (made.path / victim).write_bytes(b"damaged")
    assert commit().id == made.id
    assert registry.snapshot().verify() > 0
    assert os.listdir(registry.root / "snapshots") == [made.id]


def test_another_schema_version_is_reported(
    commit: Commit, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit()
    monkeypatch.setattr(schema, "SCHEMA_VERSION", 99)
    with pytest.raises(DamagedError, match="schema version 3, this release reads 99"):
        registry.snapshot()


def test_texts_of_a_source(small: Snapshot) -> None:
    assert len(documents()) == 18
    for key, texts in documents().items():
        source_id = ids.source_id(key)
        expected = sorted((ids.doc_id(key, str(i)), text) for i, text in enumerate(texts))
        assert small.texts(source_id) == expected
    with pytest.raises(NotFoundError, match="0000000000000007 is not in snapshot"):
        small.texts(7)


def test_texts_of_a_source_that_outgrew_its_shard(registry: Registry) -> None:
    writer = SnapshotWriter(registry, registry.root / "work")
    for index in range(3):
        shard = [{"source_id": i, "doc_id": 10 * index + i, "text": f"{index}{i}"} for i in range(4)]
        with writer.shard(index) as file:
            file.write(pa.Table.from_pylist(shard, schema=schema.SHARD))
    placements = [{"shard": 0, "row_start": 3, "row_end": 4}, {"shard": 2, "row_start": 0, "row_end": 2}]
    source = {"source_id": 7, "key": "web:a.b", "kind": "web", "num_documents": 3, "num_bytes": 6}
    source |= {"placements": placements}
    with writer.table("sources") as file:
        file.write(pa.Table.from_pylist([source], schema=schema.SOURCES))
    made = writer.commit(configuration={}, inputs=[])
    assert made.texts(7) == [(3, "03"), (20, "20"), (21, "21")]


def test_where_finds_all_owners_of_a_shared_source(small: Snapshot) -> None:
    found = small.where("owners", "source_id", [ids.source_id(SHARED_KEY)])
    assert found.num_rows == 3


def test_a_registry_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file" / "below", Path("/proc/nulls-registry")):
        with pytest.raises(ServiceError, match="cannot write"):
            Registry.open(root, create=True)
        with pytest.raises(ServiceError, match="cannot write"):
            SnapshotWriter(Registry(root), root / "work")
        with pytest.raises(ServiceError, match="cannot write"):
            storage.check_writable(root)
        with pytest.raises(ServiceError, match="cannot write"):
            storage.write_atomic(root / "x", b"")


@pytest.mark.parametrize("uri", ["s3://", "s3:///x", "gs://x", "http://example.com/"])
def test_unsupported_schemes_are_reported(uri: str) -> None:
    with pytest.raises(UsageError, match=r"expected (a local directory|s3://BUCKET)"):
        Registry.open(uri)


def test_opening_a_registry_that_does_not_exist(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="no such directory"):
        Registry.open(tmp_path / "none")
    with pytest.raises(UsageError, match="found a file"):
        Registry.open(tmp_path / "file")
    assert Registry.open(f"file://{tmp_path}").root == tmp_path
    assert Registry.open(tmp_path).ids() == []


def test_write_atomic_leaves_the_old_or_the_new_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    storage.write_atomic(path, b"old")

    def crash(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)
        with pytest.raises(ServiceError, match="free some space"):
            storage.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_write_atomic_gives_the_permissions_of_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0o027)
    try:
        storage.write_atomic(tmp_path / "file", b"x")
    finally:
        os.umask(previous)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
