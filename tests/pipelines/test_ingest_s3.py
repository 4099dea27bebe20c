"""Ingests into and from s3:// give the same ids as local ones, also when calls fail or the process is killed."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.ingest import IngestConfig, ingest
from pipelines.inputs import InputKind, find_inputs
from pipelines.report import IngestReport
from pipelines.stage.local_executor import LocalExecutor
from registry.errors import DamagedError, InputError, RefusedError, ServiceError
from registry.lookup import lookup
from registry.manifest import MANIFEST
from registry.snapshot import Registry
from registry.storage import retries
from registry.storage.s3 import S3Path
from tests.pipelines.readers.dumps import Page, write_dump
from tests.pipelines.test_ingest import GERMAN, assert_whole, nearly, prose
from tests.pipelines.test_ingest_crash import started
from tests.s3 import Call, Proxy, always, keys, once_each, put

module = importlib.import_module("pipelines.ingest")  # `pipelines.ingest` is the function
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The local work directory of ingests into s3://."""
    monkeypatch.setenv("NULLS_WORK", str(tmp_path / "work"))
    return tmp_path / "work"


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dumps, with copies between them, and a file that is no dump."""
    folder = tmp_path_factory.mktemp("dumps")
    pages = [Page(f"Page {i}", prose(i), page_id=i + 1) for i in range(20)]
    copies = [Page(f"Seite {i}", nearly(prose(i)), page_id=i + 1) for i in range(5)] + [Page("Gleich", prose(7), 99)]
    write_dump(folder / "enwiki.xml.bz2", [*pages, Page("Redirect", redirect="Page 3")], compress="bz2")
    write_dump(folder / "dewiki.xml.gz", copies, siteinfo=GERMAN, compress="gz")
    (folder / "README.txt").write_text("No dump.")
    return folder


@pytest.fixture(scope="module")
def expected(dumps: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of the same ingest from and into local directories."""
    report = run(tmp_path_factory.mktemp("registry"), dumps)
    assert report.duplicate >= 5
    assert report.shared_sources == 1
    return str(report.snapshot)


@pytest.fixture
def uploaded(bucket: S3Path, dumps: Path) -> S3Path:
    """The dumps in the store."""
    for path in dumps.iterdir():
        put(bucket / "dumps" / path.name, path.read_bytes())
    put(bucket / "dumps" / "deeper" / ".hidden.xml", b"x")
    return bucket / "dumps"


def run(registry: Any, *patterns: Any, **options: Any) -> IngestReport:
    return ingest(IngestConfig(wikipedia=tuple(map(str, patterns))), registry_uri=str(registry), **options)


class TestRegistry:
    def test_the_same_snapshot_as_locally(self, bucket: S3Path, dumps: Path, expected: str, work: Path) -> None:
        report = run(bucket / "registry", dumps)
        snapshot = Registry.open(bucket / "registry").snapshot()
        assert report.snapshot == snapshot.id == expected
        assert_whole(report, snapshot)
        assert [m.source.key for m in lookup(snapshot, "Redirect").matches] == ["wiki:enwiki:4"]
        assert [path for path in work.rglob("*") if path.is_file()] == []

    def test_an_ingest_without_new_files_gives_the_same_snapshot(
        self, bucket: S3Path, dumps: Path, expected: str, proxy: Proxy
    ) -> None:
        first = run(bucket / "registry", dumps)
        proxy.calls.clear()
        again = run(bucket / "registry", dumps)
        assert (again.snapshot, again.is_new, again.failures) == (expected, False, first.failures)
        assert proxy.made("PUT") == []

    def test_a_child_is_the_same_as_locally(self, bucket: S3Path, dumps: Path, tmp_path: Path) -> None:
        children = []
        for registry in (bucket / "registry", tmp_path / "registry"):
            parent = run(registry, dumps / "enwiki.xml.bz2")
            children.append(run(registry, dumps))
            snapshot = Registry.open(registry).snapshot()
            assert snapshot.parent == parent.snapshot
            assert_whole(children[-1], snapshot)
        assert children[0].snapshot == children[1].snapshot

    def test_a_damaged_parent_is_not_continued(self, bucket: S3Path, dumps: Path) -> None:
        run(bucket / "registry", dumps / "enwiki.xml.bz2")
        parent = Registry.open(bucket / "registry").snapshot()
        shard = parent.path / "shards" / "part-00000.parquet"
        put(shard, shard.read_bytes()[:-9])
        with pytest.raises(DamagedError, match="part-00000"):
            run(bucket / "registry", dumps)
        assert Registry.open(bucket / "registry").ids() == [parent.id]
        run(bucket / "registry", dumps / "enwiki.xml.bz2")  # repairs it
        assert run(bucket / "registry", dumps).is_new

    @pytest.mark.parametrize("kind", ["500", "lost", "cut"])
    def test_each_call_may_fail_once(self, bucket: S3Path, dumps: Path, expected: str, proxy: Proxy, kind: str) -> None:
        proxy.fault = once_each(kind)
        report = run(bucket / "registry", dumps)
        proxy.fault = lambda call: None
        assert report.snapshot == expected
        assert len(proxy.faulted) > 20
        assert_whole(report, Registry.open(bucket / "registry").snapshot())

    @pytest.mark.parametrize("suffix", ["aliases.parquet", MANIFEST])
    def test_a_store_that_is_down_commits_nothing_and_staged_files_are_used_later(
        self,
        bucket: S3Path,
        dumps: Path,
        expected: str,
        proxy: Proxy,
        monkeypatch: pytest.MonkeyPatch,
        suffix: str,
    ) -> None:
        proxy.fault = always("500", method="PUT", suffix=suffix)
        with pytest.raises(ServiceError, match=suffix):
            run(bucket / "registry", dumps)
        proxy.fault = lambda call: None
        assert Registry.open(bucket / "registry").ids() == []
        sent = {call.key for call in proxy.made("PUT") if call.status == 200}
        proxy.calls.clear()
        monkeypatch.setattr(LocalExecutor, "run", lambda self: pytest.fail("read a file again"))
        assert run(bucket / "registry", dumps).snapshot == expected
        assert sent
        assert sent.isdisjoint(call.key for call in proxy.made("PUT") if call.status == 200)

    @pytest.mark.parametrize("storage", ["local", "s3"])
    def test_of_two_children_of_one_snapshot_the_second_is_refused_and_continues_the_first(
        self, bucket: S3Path, dumps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
    ) -> None:
        registry = bucket / "registry" if storage == "s3" else tmp_path / "registry"
        write_dump(tmp_path / "one.xml", [Page("One", prose(100), page_id=500)])
        write_dump(tmp_path / "two.xml", [Page("Two", prose(200), page_id=600)])
        run(registry, dumps)
        resolve = module.resolve

        def meanwhile(*arguments: Any, **options: Any) -> Any:
            monkeypatch.setattr(module, "resolve", resolve)
            rivals.append(run(registry, tmp_path / "one.xml"))
            return resolve(*arguments, **options)

        rivals: list[IngestReport] = []
        monkeypatch.setattr(module, "resolve", meanwhile)
        with pytest.raises(RefusedError, match="run the same command again to continue it"):
            run(registry, tmp_path / "two.xml")
        (rival,) = rivals
        found = Registry.open(registry)
        assert found.newest_id() == rival.snapshot
        assert len(found.ids()) == 2
        assert [path for path in found.work.rglob("*") if path.is_file()] == []
        report = run(registry, tmp_path / "two.xml")
        assert found.snapshot().parent == rival.snapshot
        assert_whole(report, found.snapshot())
        for title in ("One", "Two", "Page 1"):
            assert lookup(found.snapshot(), title).found

    def test_two_machines_with_the_same_ingest_agree(
        self, bucket: S3Path, dumps: Path, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resolve = module.resolve

        def meanwhile(*arguments: Any, **options: Any) -> Any:
            monkeypatch.setattr(module, "resolve", resolve)
            monkeypatch.setenv("NULLS_WORK", str(tmp_path / "another machine"))
            assert run(bucket / "registry", dumps).snapshot == expected
            monkeypatch.setenv("NULLS_WORK", str(tmp_path / "work"))
            return resolve(*arguments, **options)

        monkeypatch.setattr(module, "resolve", meanwhile)
        assert run(bucket / "registry", dumps).snapshot == expected
        assert Registry.open(bucket / "registry").ids() == [expected]

    @pytest.mark.parametrize("moment", [0, 3, 8])  # 8 is the manifest, which arrives
    def test_killed_during_the_upload_and_run_again_it_gives_the_same_snapshot(
        self, bucket: S3Path, dumps: Path, expected: str, tmp_path: Path, proxy: Proxy, moment: int
    ) -> None:
        stored: set[str] = set()

        def kill(call: Call) -> None:
            if call.method == "PUT" and len(proxy.made("PUT")) >= moment:
                stored.update(call.key for call in proxy.made("PUT"))
                os.kill(process.pid, signal.SIGKILL)

        proxy.before = kill
        with started(tmp_path, bucket / "registry", 1, 0, dumps) as process:
            process.wait(120)
        assert process.returncode == -signal.SIGKILL
        proxy.before = lambda call: None
        registry = Registry.open(bucket / "registry")
        assert keys(bucket / "registry")  # a file being sent may have arrived; without a manifest there is no snapshot
        assert registry.ids() == ([expected] if moment == 8 else [])
        proxy.calls.clear()
        assert run(bucket / "registry", dumps).snapshot == expected
        assert registry.snapshot().verify() > 0
        assert len(stored) >= min(moment, 7)  # of seven files
        assert stored.isdisjoint(call.key for call in proxy.made("PUT") if call.status == 200)


class TestInputs:
    def test_the_same_snapshot_as_from_local_files(
        self, uploaded: S3Path, expected: str, tmp_path: Path, dumps: Path
    ) -> None:
        report = run(tmp_path / "registry", uploaded, workers=2)
        assert report.snapshot == expected
        assert report.left_out == (f"{uploaded}/README.txt",)
        assert report.num_input_bytes == sum(path.stat().st_size for path in dumps.glob("*.xml.*"))

    @pytest.mark.parametrize("kind", ["500", "refused", "cut", "slow"])
    def test_each_call_may_fail_once(
        self, uploaded: S3Path, expected: str, tmp_path: Path, proxy: Proxy, kind: str
    ) -> None:
        proxy.fault = once_each(kind)
        assert run(tmp_path / "registry", uploaded).snapshot == expected
        assert {call.key for _, call in proxy.faulted} >= {"dumps/enwiki.xml.bz2", "dumps/dewiki.xml.gz"}

    def test_a_lasting_fault_while_reading_commits_nothing(
        self, uploaded: S3Path, tmp_path: Path, proxy: Proxy, expected: str
    ) -> None:
        def fault(call: Call) -> str | None:  # after both files were hashed
            return "cut" if (tmp_path / "registry").exists() and call.method == "GET" else None

        proxy.fault = fault
        with pytest.raises(ServiceError, match="wiki"):
            run(tmp_path / "registry", uploaded)
        assert Registry.open(tmp_path / "registry").ids() == []
        proxy.fault = lambda call: None
        assert run(tmp_path / "registry", uploaded).snapshot == expected

    def test_prefixes_globs_and_objects_are_found(self, uploaded: S3Path, dumps: Path) -> None:
        def names(pattern: str) -> list[str]:
            return [file.name for file in find_inputs({InputKind.WIKIPEDIA: [pattern]}).files]

        assert names(str(uploaded)) == names(f"{uploaded}/") == ["dewiki.xml.gz", "enwiki.xml.bz2"]
        assert names(f"{uploaded}/en*") == names(f"{uploaded}/enwiki.xml.bz2") == ["enwiki.xml.bz2"]
        assert names(f"{uploaded}/README.txt") == ["README.txt"]
        both = find_inputs({InputKind.WIKIPEDIA: [str(dumps), str(uploaded)]})
        assert [file.name for file in both.files] == ["dewiki.xml.gz", "enwiki.xml.bz2"]
        with pytest.raises(InputError, match="no such object"):
            names(f"{uploaded}/none")
        put(uploaded / "other" / "notes.txt", b"x")
        with pytest.raises(InputError, match="no dump in this directory"):
            names(f"{uploaded}/other")


class TestCommands:
    def nulls(self, *arguments: str, code: int = 0, **environment: str) -> Any:
        """Run the command in a process of its own; return its JSON, or its message."""
        command = [sys.executable, "-m", "orchestration.cli.main", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout) if code == 0 else done.stderr

    @pytest.mark.slow
    def test_the_commands_work_on_a_registry_in_the_store(
        self, bucket: S3Path, uploaded: S3Path, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("NULLS_CATALOG", raising=False)
        where = ("--registry", str(bucket / "registry"), "--json")
        assert self.nulls("ingest", "--wikipedia", str(uploaded), *where)["snapshot"] == expected
        (answer,) = self.nulls("lookup", "Page 3", *where)
        assert answer["matches"][0]["key"] == "wiki:enwiki:4"
        assert self.nulls("explain", "Page 3", *where)["shard"] == "shards/part-00000.parquet"
        assert len(self.nulls("sources", *where)) == 20 + 6 + 1  # one is shared
        (row,) = self.nulls("snapshots", *where)
        assert (row["snapshot"], row["newest"], row["created_at"][:2]) == (expected, True, "20")
        assert self.nulls("snapshots", "verify", *where)["ok"]
        assert "set NULLS_CATALOG" in self.nulls("ledger", *where, code=2)
        catalog = f"sqlite:///{tmp_path / 'catalog.db'}"
        assert self.nulls("ledger", *where, NULLS_CATALOG=catalog) == []
        self.nulls("ingest", "--wikipedia", str(uploaded), *where, NULLS_CATALOG=catalog)
        (row,) = self.nulls("snapshots", *where, NULLS_CATALOG=catalog)
        assert row["created_at"].endswith("Z")
        documents = bucket / "registry" / "snapshots" / expected / "documents.parquet"
        put(documents, documents.read_bytes()[:-1])
        assert "documents.parquet (content differs)" in self.nulls("snapshots", "verify", *where, code=3)
        retries.client().delete_object(Bucket=bucket.bucket, Key=documents.key)
        assert "documents.parquet: missing" in self.nulls("explain", "Page 3", *where, code=3)
        assert "the bucket does not exist" in self.nulls("lookup", "x", "--registry", "s3://no-such-bucket/x", code=2)
