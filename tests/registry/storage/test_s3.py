"""A registry at s3://, on a real server: the same snapshots as locally, and no fault leaves an incomplete one."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from orchestration.explain import explain
from registry import ids, schema, storage
from registry.errors import DamagedError, InputError, NotFoundError, RefusedError, ServiceError, UsageError
from registry.identity import fold_title
from registry.lookup import list_sources, lookup
from registry.manifest import MANIFEST
from registry.snapshot import Registry, Snapshot, SnapshotWriter
from registry.storage import publish_s3, retries, s3
from registry.storage.s3 import S3Path
from tests.registry.conftest import rows, write
from tests.s3 import Call, Proxy, always, keys, once_each, put

FAULTS = ("500", "refused", "lost", "cut", "slow")
QUERIES = ("Anarchism", "https://en.wikipedia.org/wiki/Anarchy_(politics)", "Mercury", "9780141439518", "Anarchsim")


@pytest.fixture
def remote(bucket: S3Path) -> Registry:
    return Registry.open(f"s3://{bucket.bucket}/some/where/", create=True)


@pytest.fixture
def stored(remote: Registry, tmp_path: Path) -> Snapshot:
    """The small snapshot, committed to the store."""
    return write(remote, tmp_path / "staging")


def damage(path: S3Path, how: Callable[[bytes], bytes]) -> None:
    put(path, how(path.read_bytes()))


class TestSameAsLocal:
    def test_the_same_content_is_the_same_snapshot(self, remote: Registry, stored: Snapshot, small: Snapshot) -> None:
        assert stored.id == small.id
        assert stored.manifest == small.manifest
        assert remote.ids() == [stored.id]
        found = remote.snapshot()
        assert (found.id, str(found.path)) == (stored.id, f"{remote.root}/snapshots/{stored.id}")
        for name in schema.TABLES:
            assert found.table(name).equals(small.table(name))
            assert [b.num_rows for b in found.batches(name)] == [b.num_rows for b in small.batches(name)]
        assert pa.Table.from_batches(found.shard_batches()).to_pylist() == rows()["shard"]
        assert found.verify() == small.verify() > 0
        for source in rows()["sources"]:
            assert found.texts(source["source_id"]) == small.texts(source["source_id"])

    def test_lookup(self, stored: Snapshot, small: Snapshot) -> None:
        for query in QUERIES:
            assert lookup(stored, query).to_dict() == lookup(small, query).to_dict()

    def test_explain_and_sources(self, remote: Registry, tmp_path: Path) -> None:
        document = {
            "doc_id": 7,
            "source_id": ids.source_id("wiki:enwiki:12"),
            "origin_id": ids.source_id("wiki:enwiki:12"),
            "num_bytes": 3,
            "status": "kept",
            "input_file": "dump.xml",
            "input_offset": 5,
            "input_length": 0,
            "input_stored": True,
        }
        made = []
        for index, registry in enumerate((remote, Registry.open(tmp_path / "local", create=True))):
            writer = SnapshotWriter(registry, tmp_path / f"staging{index}")
            for name in schema.TABLES:
                table = pa.Table.from_pylist([document] if name == "documents" else rows()[name], schema.TABLES[name])
                with writer.table(name) as file:
                    file.write(table)
            made.append(writer.commit(configuration={}, inputs=[]))
        assert explain(made[0], ids.format_id(7)) == explain(made[1], ids.format_id(7))
        assert list_sources(made[0]) == list_sources(made[1])

    def test_refs(self, remote: Registry, stored: Snapshot, tmp_path: Path) -> None:
        other = write(remote, tmp_path / "staging", configuration={})
        assert remote.snapshot().id == other.id
        assert remote.ids() == sorted([stored.id, other.id])
        assert remote.snapshot(stored.id[:16]).id == remote.snapshot(stored.id).id == stored.id
        with pytest.raises(NotFoundError, match="nulls snapshots"):
            remote.snapshot("f" * 64)
        with pytest.raises(UsageError, match="ambiguous"):
            remote.snapshot("")
        assert remote.committed_at(other.id).startswith("20")

    def test_committing_again_uploads_no_file_again(
        self,
        remote: Registry,
        stored: Snapshot,
        tmp_path: Path,
        proxy: Proxy,
    ) -> None:
        assert (
            len(proxy.made("PUT")) == len(stored.manifest["files"]) + 3
        )  # manifest, newest, and the conditional one that must fail
        proxy.calls.clear()
        assert write(remote, tmp_path / "staging").manifest == stored.manifest
        assert [call.key for call in proxy.made("PUT")] == ["some/where/newest"]
        assert not (tmp_path / "staging").exists()

    def test_the_work_directory_and_the_catalogue_are_not_in_the_store(
        self, remote: Registry, stored: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert {key.removeprefix("some/where/").split("/")[0] for key in keys(S3Path(remote.root.bucket, ""))} == {
            "newest",
            "snapshots",
        }
        monkeypatch.delenv("NULLS_WORK", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert remote.work.parent == tmp_path / "cache" / "nulls" / "work"
        monkeypatch.setenv("NULLS_WORK", str(tmp_path / "mine"))
        assert remote.work.parent == tmp_path / "mine"
        assert remote.work != Registry(remote.root / "other").work
        assert Registry.open(str(remote.root)).work == remote.work

    def test_a_local_copy_is_verified(self, stored: Snapshot, small: Snapshot, tmp_path: Path, proxy: Proxy) -> None:
        folder = stored.local(tmp_path / "copy")
        assert Snapshot(folder, stored.manifest).verify() == stored.verify()
        (folder / "sources.parquet").write_bytes(b"cut off")
        proxy.calls.clear()
        assert stored.local(tmp_path / "copy") == folder
        assert {call.key.rpartition("/")[2] for call in proxy.made("GET")} == {"sources.parquet"}
        assert Snapshot(folder, stored.manifest).verify()
        assert small.local(tmp_path / "none") == small.path
        assert not (tmp_path / "none").exists()
        damage(stored.path / "aliases.parquet", lambda data: data[:-1])
        with pytest.raises(DamagedError, match="aliases"):
            stored.local(tmp_path / "other")
        assert [path.name for path in (tmp_path / "other").iterdir()] == []


class TestReading:
    def test_a_point_lookup_fetches_a_small_part(self, remote: Registry, tmp_path: Path, proxy: Proxy) -> None:
        titles = sorted((ids.alias_hash(fold_title(t)), t) for t in (f"Title {i} of many" for i in range(200_000)))
        wanted = "Title 777 of many"
        count = len(titles)
        fields = {"alias_hash": [h for h, _ in titles], "alias": [t for _, t in titles], "kind": ["title"] * count}
        fields |= {
            "source_id": [ids.source_id("wiki:enwiki:12")] * count,
            "scope": ["enwiki"] * count,
            "target": [None] * count,
        }
        writer = SnapshotWriter(remote, tmp_path / "staging")
        for name in ("sources", "owners"):
            with writer.table(name) as file:
                file.write(pa.Table.from_pylist(rows()[name], schema=schema.TABLES[name]))
        with writer.table("aliases") as file:
            file.write(pa.table(fields, schema=schema.ALIASES))
        writer.commit(configuration={}, inputs=[])
        proxy.calls.clear()
        (match,) = lookup(remote.snapshot(), wanted).matches
        assert match.source.key == "wiki:enwiki:12"
        fetched = sum(call.sent for call in proxy.made("GET", "aliases.parquet"))
        whole = (remote.snapshot().path / "aliases.parquet").stat().st_size
        assert 0 < fetched < whole / 4
        assert all("range" in call.headers for call in proxy.made("GET", ".parquet"))

    def test_the_file_object_behaves_as_that_of_a_local_file(self, bucket: S3Path) -> None:
        data = bytes(i * i % 251 for i in range(1_000_000))
        put(bucket / "x", data)
        file, local = (bucket / "x").open(), io.BytesIO(data)
        for step in ((0, 10), (999_990, 20), (5, 0), (500_000, 400_000), (900_000, -1), (2_000_000, 5), (0, -1)):
            for one in (file, local):
                one.seek(step[0])
            assert file.read(step[1]) == local.read(step[1]), step
            assert file.tell() == local.tell()
        assert (file.seek(-3, io.SEEK_END), file.read()) == (999_997, data[-3:])
        with pytest.raises(ValueError, match="before its start"):
            file.seek(-1)
        put(bucket / "empty", b"")
        assert (bucket / "empty").open().read() == b""

    def test_reading_in_sequence_takes_few_requests(self, bucket: S3Path, proxy: Proxy) -> None:
        data = hashlib.sha256(b"seed").digest() * (1 << 18)  # 8 MiB
        put(bucket / "x", data)
        proxy.calls.clear()
        with (bucket / "x").open() as file:
            assert b"".join(iter(lambda: file.read(1 << 14), b"")) == data
        assert 2 < len(proxy.made("GET")) < 12

    def test_an_object_replaced_while_it_is_read_is_an_error(self, bucket: S3Path) -> None:
        put(bucket / "x", bytes(1 << 20))
        file = (bucket / "x").open()
        assert file.read(10) == bytes(10)
        put(bucket / "x", b"\1" * (1 << 20))
        with pytest.raises(DamagedError, match="was replaced while it was read"):
            file.read()

    @pytest.mark.parametrize("how", [lambda data: data[:-9], lambda data: data + b"x", lambda data: b"\0" + data[1:]])
    def test_verify_finds_a_changed_object(self, stored: Snapshot, how: Callable[[bytes], bytes]) -> None:
        assert stored.verify() > 0
        damage(stored.path / "sources.parquet", how)
        with pytest.raises(DamagedError, match=r"damaged: sources\.parquet \(content differs\);") as caught:
            stored.verify()
        assert caught.value.exit_code == 3

    def test_verify_finds_a_missing_object(self, stored: Snapshot) -> None:
        retries.client().delete_object(Bucket=stored.path.bucket, Key=f"{stored.path.key}/owners.parquet")
        with pytest.raises(DamagedError, match=r"damaged: owners\.parquet \(missing\);"):
            stored.verify()
        with pytest.raises(DamagedError, match=r"owners\.parquet: missing"):
            lookup(stored, "Anarchism")

    @pytest.mark.parametrize("victim", ["sources.parquet", "shards/part-00000.parquet", MANIFEST])
    def test_committing_again_repairs_a_damaged_snapshot(
        self, remote: Registry, stored: Snapshot, tmp_path: Path, victim: str
    ) -> None:
        damage(stored.path / victim, lambda data: data[:-9])
        assert write(remote, tmp_path / "staging").id == stored.id
        assert remote.snapshot().verify() > 0

    def test_a_newest_object_without_an_id_is_damage(self, remote: Registry, stored: Snapshot) -> None:
        put(remote.root / "newest", b"\xff")
        with pytest.raises(DamagedError, match="newest"):
            remote.snapshot()


class TestFaults:
    @pytest.mark.parametrize("kind", FAULTS)
    def test_every_call_may_fail_once(
        self,
        proxy: Proxy,
        bucket: S3Path,
        tmp_path: Path,
        small: Snapshot,
        kind: str,
    ) -> None:
        proxy.fault = once_each(kind)
        registry = Registry.open(bucket / "registry", create=True)
        made = write(registry, tmp_path / "staging")
        assert made.id == small.id
        assert registry.snapshot().verify() == small.verify()
        for query in QUERIES:
            assert lookup(made, query).to_dict() == lookup(small, query).to_dict()
        proxy.fault = lambda call: None
        assert (bucket / "registry" / "newest").read_bytes() == small.id.encode()
        assert made.verify() == small.verify()
        kinds = {(call.method, call.key.partition("?")[0].rpartition("/")[2]) for _, call in proxy.faulted}
        expected = {("PUT", MANIFEST), ("PUT", "newest"), ("GET", "newest"), ("GET", MANIFEST), ("GET", "")}
        assert expected | {(m, "part-00000.parquet") for m in ("PUT", "GET", "HEAD")} <= kinds
        assert {k for k, _ in proxy.faulted} == {kind}

    def test_a_body_that_stalls_is_requested_again(
        self, proxy: Proxy, bucket: S3Path, monkeypatch: pytest.MonkeyPatch, fresh_client: None
    ) -> None:
        data = bytes(range(256)) * 1000
        put(bucket / "x", data)
        monkeypatch.setattr(retries, "READ_TIMEOUT_S", 0.3)
        retries._client.cache_clear()
        file = (bucket / "x").open()
        proxy.fault = once_each("stall")
        assert file.read() == data
        assert {kind for kind, _ in proxy.faulted} == {"stall"}

    def test_reading_continues_at_the_byte_where_it_was_cut(self, proxy: Proxy, bucket: S3Path) -> None:
        data = hashlib.sha256(b"x").digest() * (1 << 16)
        put(bucket / "x", data)
        file = (bucket / "x").open()
        proxy.calls.clear()
        proxy.fault = once_each("cut")
        assert file.read(len(data)) == data
        first, second = proxy.made("GET")
        assert first.headers["range"] == f"bytes=0-{len(data) - 1}"
        start = int(second.headers["range"].removeprefix("bytes=").partition("-")[0])
        assert 0 < start <= len(data) // 2
        assert second.headers["if-match"] == first.headers["if-match"]

    @pytest.mark.parametrize(
        ("kind", "method", "suffix"),
        [
            ("500", "PUT", MANIFEST),
            ("refused", "PUT", MANIFEST),
            ("500", "PUT", "part-00000.parquet"),
            ("refused", "PUT", "sources.parquet"),
            ("500", "HEAD", "owners.parquet"),
            ("refused", "PUT", "newest"),
            ("500", "GET", MANIFEST),
            ("500", "GET", "newest"),
        ],
    )
    def test_a_fault_that_persists_is_an_error_and_leaves_no_incomplete_snapshot(
        self,
        proxy: Proxy,
        remote: Registry,
        tmp_path: Path,
        small: Snapshot,
        method: str,
        suffix: str,
        kind: str,
    ) -> None:
        proxy.fault = always(kind, method=method, suffix=suffix)
        with pytest.raises(ServiceError, match="run the same command again") as caught:
            write(remote, tmp_path / "staging")
        assert caught.value.exit_code == 2
        assert len(proxy.faulted) == retries.MAX_ATTEMPTS
        proxy.fault = lambda call: None
        assert remote.newest_id() is None
        assert remote.ids() == ([small.id] if suffix == "newest" and method == "PUT" else [])
        if remote.ids():
            assert remote.snapshot(small.id).verify() > 0
        assert write(remote, tmp_path / "staging").id == small.id
        assert remote.snapshot().verify() == small.verify()

    @pytest.mark.parametrize(
        ("status", "code"),
        [(409, "ConditionalRequestConflict"), (429, "TooManyRequests"), (503, "SlowDown"), (400, "RequestTimeout")],
    )
    def test_transient_responses_are_retried(self, proxy: Proxy, bucket: S3Path, status: int, code: str) -> None:
        answers = iter([(status, f"<Error><Code>{code}</Code><Message>later</Message></Error>".encode())] * 2)
        proxy.answer = lambda call: next(answers, None)
        assert (bucket / "x").replace(b"x", None)
        assert next(answers, None) is None

    @pytest.mark.parametrize(
        ("status", "code", "advice"),
        [
            (400, "ExpiredToken", "renew them"),
            (403, "InvalidAccessKeyId", "check AWS_ACCESS_KEY_ID"),
            (400, "InvalidRequest", "see the message of the store"),
        ],
    )
    def test_other_responses_are_not_retried(
        self, proxy: Proxy, bucket: S3Path, status: int, code: str, advice: str
    ) -> None:
        answers = [(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())]
        proxy.answer = lambda call: answers.pop()
        with pytest.raises(ServiceError, match=advice):
            (bucket / "x").replace(b"x", None)
        assert answers == []

    @pytest.mark.parametrize("kind", ["500", "refused", "cut"])
    def test_reading_gives_up_with_an_error(self, proxy: Proxy, stored: Snapshot, kind: str) -> None:
        proxy.fault = always(kind, method="GET", suffix="aliases.parquet")
        with pytest.raises(ServiceError, match="aliases") as caught:
            lookup(stored, "Anarchism")
        assert caught.value.exit_code == 2
        assert 2 < len(proxy.faulted) <= retries.MAX_ATTEMPTS

    def test_a_file_changed_on_its_way_is_not_committed(
        self,
        proxy: Proxy,
        remote: Registry,
        tmp_path: Path,
    ) -> None:
        def changed(call: Call, body: bytes) -> bytes:
            return body[:-1] + b"?" if call.method == "PUT" and call.key.endswith("sources.parquet") else body

        proxy.tampered = changed
        proxy.keeps_checksums = False
        with pytest.raises(ServiceError, match="not what was sent"):
            write(remote, tmp_path / "staging")
        assert remote.ids() == []


class TestCopies:
    """`copy_verified` without a given hash: the store's checksum of the object decides."""

    @pytest.fixture(params=[1000, 11 << 15], ids=["whole", "in parts"])
    def path(
        self, request: pytest.FixtureRequest, bucket: S3Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> S3Path:
        """An object that was sent at once, or in three parts."""
        monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
        source = tmp_path / "source"
        source.write_bytes(hashlib.sha256(b"copy").digest() * request.param)
        (bucket / "object").upload(source, storage.sha256_of(source))
        return bucket / "object"

    @pytest.mark.parametrize("keeps_checksums", [True, False])
    def test_a_right_copy_is_kept(self, path: S3Path, proxy: Proxy, tmp_path: Path, keeps_checksums: bool) -> None:
        proxy.keeps_checksums = keeps_checksums
        target = tmp_path / "folder" / "target"
        storage.copy_verified(path, target)
        assert target.read_bytes() == (tmp_path / "source").read_bytes()
        assert [file.name for file in target.parent.iterdir()] == ["target"]

    def test_an_existing_file_is_replaced(self, path: S3Path, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.write_bytes(b"another content")
        storage.copy_verified(path, target)
        assert target.read_bytes() == (tmp_path / "source").read_bytes()

    @pytest.mark.parametrize("keeps_checksums", [True, False])
    def test_a_corrupted_download_is_damage(
        self, path: S3Path, proxy: Proxy, tmp_path: Path, keeps_checksums: bool
    ) -> None:
        corrupted: list[Call] = []

        def flip_once(call: Call, data: bytes) -> bytes:
            if call.method != "GET" or corrupted:
                return data
            corrupted.append(call)
            return data[:-1] + bytes([data[-1] ^ 1])

        proxy.keeps_checksums, proxy.returned = keeps_checksums, flip_once
        target = tmp_path / "folder" / "target"
        with pytest.raises(DamagedError, match="object: content differs") as caught:
            storage.copy_verified(path, target)
        assert caught.value.exit_code == 3
        assert len(corrupted) == 1
        assert list(target.parent.iterdir()) == []
        storage.copy_verified(path, target)  # the next attempt succeeds
        assert target.read_bytes() == (tmp_path / "source").read_bytes()

    def test_a_missing_object_is_damage(self, bucket: S3Path, tmp_path: Path) -> None:
        with pytest.raises(DamagedError, match="none: missing"):
            storage.copy_verified(bucket / "none", tmp_path / "target")
        assert list(tmp_path.iterdir()) == []


class TestUploads:
    @pytest.fixture
    def big(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A file of three parts."""
        monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
        path = tmp_path / "big"
        path.write_bytes(hashlib.sha256(b"big").digest() * (11 << 15))
        return path

    @pytest.mark.parametrize("keeps_checksums", [True, False])
    @pytest.mark.parametrize("kind", [None, "500", "lost", "refused"])
    def test_large_files_are_sent_in_parts(
        self,
        proxy: Proxy,
        bucket: S3Path,
        big: Path,
        kind: str | None,
        keeps_checksums: bool,
    ) -> None:
        if not keeps_checksums:
            proxy.keeps_checksums = False
        if kind:
            proxy.fault = once_each(kind)
        path, sha256 = bucket / "deep" / "big", storage.sha256_of(big)
        path.upload(big, sha256)
        proxy.fault = lambda call: None
        assert storage.sha256_of(path) == sha256
        assert len({call.key for call in proxy.made("PUT")}) == 3
        proxy.calls.clear()
        path.upload(big, sha256)
        assert proxy.made("PUT") == proxy.made("POST") == []
        assert bool(proxy.made("GET")) is not keeps_checksums

    def test_a_failed_upload_leaves_no_parts(self, proxy: Proxy, bucket: S3Path, big: Path) -> None:
        proxy.fault = lambda call: "500" if "partNumber=2" in call.key else None
        with pytest.raises(ServiceError):
            (bucket / "big").upload(big, storage.sha256_of(big))
        assert "Uploads" not in retries.client().list_multipart_uploads(Bucket=bucket.bucket)
        assert keys(bucket) == []

    def test_an_object_of_the_same_size_that_differs_is_replaced(
        self,
        proxy: Proxy,
        bucket: S3Path,
        big: Path,
    ) -> None:
        put(bucket / "big", bytes(big.stat().st_size))
        (bucket / "big").upload(big, storage.sha256_of(big))
        assert storage.sha256_of(bucket / "big") == storage.sha256_of(big)


class TestRaces:
    def test_two_writers_of_one_snapshot_create_one_manifest(
        self,
        proxy: Proxy,
        remote: Registry,
        tmp_path: Path,
        small: Snapshot,
    ) -> None:
        together, one_by_one = threading.Barrier(2, timeout=60), threading.Lock()
        arrived: list[Call] = []

        def before(call: Call) -> None:
            if call.method == "PUT" and call.key.endswith(MANIFEST):
                assert call.headers["if-none-match"] == "*"
                arrived.append(call)
                if len(arrived) <= 2:
                    together.wait()
            if call.method == "PUT":
                one_by_one.acquire()
                threading.Timer(0.05, one_by_one.release).start()

        proxy.before = before
        made: list[str] = []
        threads = [
            threading.Thread(target=lambda n=n: made.append(write(remote, tmp_path / f"staging{n}").id))
            for n in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made == [small.id, small.id]
        assert sorted(call.status for call in proxy.made("PUT", MANIFEST)) == [200, 412]
        assert remote.ids() == [small.id]
        assert remote.snapshot().verify() == small.verify()

    def test_a_commit_refuses_if_another_ingest_committed_meanwhile(self, remote: Registry, tmp_path: Path) -> None:
        self.check_refused(remote, tmp_path)

    def test_a_commit_to_a_local_registry_refuses_too(self, registry: Registry, tmp_path: Path) -> None:
        self.check_refused(registry, tmp_path)

    def check_refused(self, registry: Registry, folder: Path) -> None:
        base = write(registry, folder / "a", follows=None)
        other = write(registry, folder / "b", configuration={"n": 1}, parent=base.id, follows=base.id)
        with pytest.raises(RefusedError, match=f"another ingest committed {other.id[:12]} meanwhile") as caught:
            write(registry, folder / "c", configuration={"n": 2}, parent=base.id, follows=base.id)
        assert caught.value.exit_code == 4
        assert registry.ids() == sorted([base.id, other.id])
        assert registry.newest_id() == other.id
        again = write(registry, folder / "b", configuration={"n": 1}, parent=base.id, follows=base.id)
        assert again.id == other.id  # the same snapshot, although it is the newest now
        child = write(registry, folder / "c", configuration={"n": 2}, parent=other.id, follows=other.id)
        assert registry.newest_id() == child.id

    def test_a_commit_between_the_last_two_steps_is_refused_too(
        self,
        proxy: Proxy,
        remote: Registry,
        tmp_path: Path,
    ) -> None:
        base = write(remote, tmp_path / "a")
        rival = "ab" * 32

        def before(call: Call) -> None:
            if call.method == "PUT" and call.key.endswith("newest") and call.body != rival.encode():
                assert "if-match" in call.headers
                put(remote.root / "newest", rival.encode())

        proxy.before = before
        with pytest.raises(RefusedError, match=f"another ingest committed {rival[:12]}"):
            write(remote, tmp_path / "b", configuration={}, parent=base.id, follows=base.id)
        assert remote.newest_id() == rival
        (loser,) = set(remote.ids()) - {base.id}
        assert remote.snapshot(loser).verify() > 0  # it can be opened by its id

    def test_a_first_commit_between_the_last_two_steps_is_refused_too(
        self, proxy: Proxy, remote: Registry, tmp_path: Path
    ) -> None:
        rival = "cd" * 32

        def before(call: Call) -> None:
            if call.method == "PUT" and call.key.endswith("newest") and call.body != rival.encode():
                assert call.headers["if-none-match"] == "*"
                put(remote.root / "newest", rival.encode())

        proxy.before = before
        with pytest.raises(RefusedError, match=rival[:12]):
            write(remote, tmp_path / "a", follows=None)
        assert remote.newest_id() == rival

    def test_a_writer_that_loses_every_race_gives_up(self, proxy: Proxy, bucket: S3Path) -> None:
        def before(call: Call) -> None:
            if call.method == "PUT" and call.body == b"mine":
                put(bucket / "x", str(len(proxy.calls)).encode())

        proxy.before = before
        with pytest.raises(ServiceError, match="other writers changed it 8 times meanwhile"):
            publish_s3._swap(bucket / "x", lambda found: b"mine")


class TestMessages:
    def test_a_registry_that_does_not_exist(self, bucket: S3Path) -> None:
        with pytest.raises(UsageError, match="nothing is there; run `nulls ingest` first"):
            Registry.open(bucket / "none")
        registry = Registry.open(bucket / "none", create=True)
        assert registry.ids() == []
        with pytest.raises(NotFoundError, match="no snapshot yet"):
            registry.snapshot()

    def test_a_bucket_that_does_not_exist(self, proxy: Proxy) -> None:
        with pytest.raises(ServiceError, match="bucket does not exist: create it"):
            Registry.open("s3://no-such-bucket/x", create=True)

    def test_access_denied(self, proxy: Proxy) -> None:
        proxy.answer = lambda call: (403, b"")
        with pytest.raises(ServiceError, match="access is denied: check the credentials"):
            Registry.open("s3://bucket/x")
        with pytest.raises(ServiceError, match="access is denied"):
            S3Path("bucket", "x").stat()

    @pytest.mark.usefixtures("proxy")
    def test_an_endpoint_without_a_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retries, "MAX_ATTEMPTS", 2)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        with pytest.raises(ServiceError, match=r"in 2 attempts.*check the network and AWS_ENDPOINT_URL"):
            Registry.open("s3://bucket/x")

    @pytest.mark.usefixtures("proxy", "fresh_client")
    def test_no_credentials(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(ServiceError, match="credentials"):
            Registry.open("s3://bucket/x")

    @pytest.mark.usefixtures("proxy", "fresh_client")
    def test_a_profile_that_does_not_exist(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(ServiceError, match=r"nobody.*check AWS_PROFILE"):
            Registry.open("s3://bucket/x")

    def test_a_store_without_conditional_writes(self, proxy: Proxy, bucket: S3Path) -> None:
        proxy.answer = lambda call: (501, b"<Error><Code>NotImplemented</Code><Message>no</Message></Error>")
        with pytest.raises(ServiceError, match="no conditional writes"):
            (bucket / "x").replace(b"x", None)

    def test_a_store_that_ignores_conditions(self, proxy: Proxy, remote: Registry, tmp_path: Path) -> None:
        proxy.keeps_conditions = False
        with pytest.raises(ServiceError, match="ignores If-None-Match"):
            write(remote, tmp_path / "staging")
        proxy.keeps_conditions = True
        assert remote.ids() == []
        assert write(remote, tmp_path / "staging").verify() > 0

    def test_without_boto3(self, tmp_path: Path) -> None:
        program = """
import sys
sys.modules["boto3"] = None
from registry.errors import UsageError
from registry.snapshot import Registry
try:
    Registry.open("s3://bucket/x")
except UsageError as error:
    print(error)
"""
        root = Path(__file__).parents[3]
        done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
        assert "pip install 'nulls[s3]'" in done.stdout


class TestInputs:
    @pytest.fixture
    def tree(self, bucket: S3Path) -> S3Path:
        for name in ("a/x.xml", "a/y.xml.gz", "a/b/x.xml", "c/x1.xml", "odd[1].xml", "ax.xml"):
            put(bucket / name, name.encode())
        retries.client().put_object(Bucket=bucket.bucket, Key="a/folder/", Body=b"")
        return bucket

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("a", ["a/b/x.xml", "a/x.xml", "a/y.xml.gz"]),
            ("a/", ["a/b/x.xml", "a/x.xml", "a/y.xml.gz"]),
            ("a/x.xml", ["a/x.xml"]),
            ("a/*.xml", ["a/x.xml"]),
            ("*/x*.xml", ["a/x.xml", "c/x1.xml"]),
            ("**/x.xml", ["a/b/x.xml", "a/x.xml"]),
            ("a/**", ["a/b/x.xml", "a/x.xml", "a/y.xml.gz"]),
            ("c/x?.xml", ["c/x1.xml"]),
            ("a?.xml", ["ax.xml"]),
            ("odd[1].xml", ["odd[1].xml"]),
        ],
    )
    def test_objects_that_a_uri_names(self, tree: S3Path, pattern: str, expected: list[str]) -> None:
        found = storage.list_inputs(f"s3://{tree.bucket}/{pattern}")
        assert [path.key for path, _ in found] == expected
        assert [size for _, size in found] == [len(name) for name in expected]

    @pytest.mark.parametrize("pattern", ["none", "a/*.warc", "a/x", "c/x??.xml"])
    def test_a_uri_that_names_no_object(self, tree: S3Path, pattern: str) -> None:
        with pytest.raises(InputError, match="expected an object, a prefix or a glob"):
            storage.list_inputs(f"s3://{tree.bucket}/{pattern}")

    def test_a_bucket_of_many_pages(self, bucket: S3Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for index in range(25):
            put(bucket / f"n/{index:02d}", b"x")
        original = S3Path._pages
        monkeypatch.setattr(S3Path, "_pages", lambda self, **more: original(self, MaxKeys=10, **more))
        assert len(storage.list_inputs(f"s3://{bucket.bucket}/n")) == 25

    @pytest.mark.parametrize("kind", FAULTS)
    def test_inputs_are_read_complete_in_spite_of_faults(
        self, proxy: Proxy, bucket: S3Path, tmp_path: Path, kind: str
    ) -> None:
        data = hashlib.sha256(b"input").digest() * 30_000
        put(bucket / "input", data)
        (tmp_path / "input").write_bytes(data)
        proxy.fault = once_each(kind)
        uri = f"s3://{bucket.bucket}/input"
        assert storage.sha256_of(uri) == storage.sha256_of(tmp_path / "input") == hashlib.sha256(data).hexdigest()
        with storage.open_input(uri) as file:
            assert file.read() == data
        assert proxy.faulted


def test_a_manifest_stored_with_a_lost_response_counts_as_stored(
    proxy: Proxy,
    remote: Registry,
    tmp_path: Path,
) -> None:
    seen: list[Call] = []

    def fault(call: Call) -> str | None:
        if call.method == "PUT" and call.key.endswith((MANIFEST, "newest")):
            seen.append(call)
            return "lost" if sum(c.key == call.key for c in seen) == 1 else None
        return None

    proxy.fault = fault
    made = write(remote, tmp_path / "staging", follows=None)
    assert [call.status for call in proxy.made("PUT", MANIFEST)] == [200, 412]
    assert [call.status for call in proxy.made("PUT", "newest")] == [200, 412]
    assert json.loads((made.path / MANIFEST).read_bytes())["snapshot"] == remote.newest_id() == made.id
