"""The keyed stage in Beam writes the same bytes as in DuckDB, and reports runs that lose rows or fail."""

from __future__ import annotations

import collections
import contextlib
import errno
import functools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

pytest.importorskip("apache_beam")

from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines.dedup.minhash import DedupConfig, fingerprint, shingles
from pipelines.document import Document, Redirect, WikiSite
from pipelines.ingest import IngestConfig, ingest
from pipelines.resolve import engines
from pipelines.resolve.aliases import MAX_HOPS
from pipelines.resolve.beam import documents as steps
from pipelines.resolve.beam import engine as beam_engine
from pipelines.resolve.beam import redirects as names
from pipelines.resolve.beam import run_files as beam_files
from pipelines.resolve.beam import runners
from pipelines.resolve.beam.job import BeamJob
from pipelines.resolve.beam.shingle_blocks import ShingleBlock, write_block
from pipelines.resolve.duckdb import engine as duckdb_engine
from pipelines.resolve.engines import Engine
from pipelines.resolve.resolution import Resolution, write_resolution
from pipelines.stage import staging
from registry import ids
from registry.errors import DamagedError, ServiceError, UsageError
from registry.schema import Status
from registry.snapshot import Registry, SnapshotWriter
from registry.storage.parquet import read_table
from tests.pipelines.readers.dumps import Page, siteinfo, write_dump
from tests.pipelines.resolve.test_duckdb_engine import CONFIG, article, corpus, edited, text_of

ROOT = Path(__file__).parents[3]
Files = dict[str, bytes]
Item = Document | Redirect | WikiSite


def stage(folder: Path, items: Sequence[Item], parts: int, is_settled: Callable[[Document], bool]) -> list[Path]:
    """Stage `items` in `parts` directories; return them."""
    staged = []
    for index in range(parts):
        staged.append(folder / staging.folder_name(index, f"{index:064x}"))
        with staging.StageWriter(staged[-1], index) as writer:
            for item in items[index::parts]:
                if isinstance(item, Document):
                    row = staging.document_row(item) | {"settled": is_settled(item)}
                    found = fingerprint(item.text, CONFIG) if item.status is Status.KEPT else None
                    writer.document(row, item.text, found)
                elif isinstance(item, Redirect):
                    writer.redirect(item)
                else:
                    writer.site(item)
    return staged


def written(
    folder: Path,
    folders: Sequence[Path],
    engine: Callable[..., Resolution],
    config: DedupConfig = CONFIG,
    **options: Any,
) -> Files:
    """Write a snapshot with `engine`; return its files."""
    run = folder / f"{engine.__module__}-{len(list(folder.iterdir()))}"
    work = run / "work"
    work.mkdir(parents=True)
    writer = SnapshotWriter(Registry.open(run / "registry", create=True), run / "snapshot")
    with contextlib.closing(engine(folders, config, work=work, **options)) as resolution:
        write_resolution(resolution, writer, work, shard_bytes=5000)
    return {str(p.relative_to(run / "snapshot")): p.read_bytes() for p in (run / "snapshot").rglob("*.parquet")}


def assert_equal(folder: Path, folders: Sequence[Path], config: DedupConfig = CONFIG, **options: Any) -> Files:
    """Check that both engines write the same files; return them."""
    expected = written(folder, folders, duckdb_engine.resolve, config)
    found = written(folder, folders, beam_engine.resolve, config, **options)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []
    assert len(expected) >= 5
    return found


def table(files: Files, name: str) -> list[dict[str, Any]]:
    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        file.write(files[f"{name}.parquet"])
        file.flush()
        rows: list[dict[str, Any]] = read_table(Path(file.name)).to_pylist()
    return rows


def redirects() -> list[Item]:
    """Chains, cycles, other cases, missing targets, and one redirect in two dumps that disagree."""
    pairs = {
        "Two hops": "One hop",
        "One hop": "Article 3",
        "Case": "ARTICLE 3",
        "Case of a redirect": "ONE HOP",
        "Round": "About",
        "About": "Round",
        "Itself": "Itself",
        "Nowhere": "Never written",
        "To nowhere": "Nowhere",
        "Section": "Article_3#Part",
        "Article 3": "Article 4",
        "Ambiguous": "aRTICLE tWIN",
    }
    found: list[Item] = [Redirect("enwiki", title, target) for title, target in pairs.items()]
    return [*found, Redirect("enwiki", "Two hops", "Article 5"), Redirect("dewiki", "Foreign", "One hop")]


def twins() -> list[Item]:
    """Two titles that differ only in case, so that a third spelling means neither."""
    return [article(70 + n, text_of(70 + n), title=title) for n, title in enumerate(["Article Twin", "Article twin"])]


def items(seed: int) -> list[Item]:
    """All that engines must agree on, including a capture that a parent superseded, newer than the one it kept."""
    again = [
        article(60, text_of(60), captured="2019"),
        article(60, text_of(61), captured="2021", offset=6001, end=(Status.SUPERSEDED, "newer-capture")),
    ]
    return [*corpus(seed), *again, *twins(), *redirects(), WikiSite("enwiki", "en.wikipedia.org")]


def some_settled(document: Document) -> bool:
    return document.text.count("edit") > 0  # the near copies


def nothing_settled(document: Document) -> bool:
    return False


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return stage(tmp_path / "stage", items(7), 3, some_settled)


SPECS = st.lists(
    st.tuples(
        st.integers(0, 12),  # page
        st.sampled_from(["enwiki", "dewiki", "frwiki"]),
        st.integers(0, 4),  # base text
        st.sampled_from(["same", "case", "near", "nearer", "far", "stub"]),
        st.sampled_from(["", "2019", "2020"]),
        st.sampled_from(["kept"] * 8 + ["settled", "settled", "filtered", "failed", "superseded", "lost"]),
        st.sampled_from(["", "other", "Caps"]),
    ),
    min_size=8,
    max_size=60,
)
LINKS = st.lists(
    st.tuples(
        st.sampled_from(["enwiki", "dewiki"]),
        st.sampled_from([f"name {n}" for n in range(6)] + ["Article 1"]),
        st.sampled_from([f"name {n}" for n in range(6)] + ["Article 1", "ARTICLE 2", "NAME 3", "gone"]),
    ),
    max_size=20,
)


def document(number: int, spec: tuple[Any, ...]) -> Document:
    """The document that a drawn `spec` describes."""
    page, wiki, base, change, captured, end, title = spec
    text = text_of(base, 80)
    text = {
        "same": text,
        "case": text.upper() + "!",
        "near": edited(text, number % 5, 1),
        "nearer": text + f" tail{number % 3}",
        "far": edited(text, number, 40),
        "stub": f"only {number % 3}",
    }[change]
    names = {"": f"Article {page}", "other": f"Moved {page}", "Caps": f"ARTICLE {page}"}
    made = article(page, text, wiki=wiki, captured=captured, offset=number, title=names[title])
    if end == "lost":  # failed before it had an identity
        made.key, made.title = None, None
    if end in ("filtered", "failed", "superseded", "lost"):
        made.end(Status.FAILED if end == "lost" else Status(end), "why")
    return made


def check_drawn(specs: list[Any], links: list[Any], parts: int, limit: int, workers: int) -> None:
    drawn = [document(number, spec) for number, spec in enumerate(specs)]
    settled = {made.input_offset for made, spec in zip(drawn, specs, strict=True) if spec[5] == "settled"}
    everything: list[Item] = [*drawn, *(Redirect(*link) for link in links)]
    random.Random(len(specs)).shuffle(everything)
    with tempfile.TemporaryDirectory() as name:
        staged = stage(Path(name) / "stage", everything, parts, lambda made: made.input_offset in settled)
        files = assert_equal(Path(name), staged, DedupConfig(bucket_limit=limit), workers=workers)
    assert len(table(files, "documents")) == len(drawn)


DRAWN = (SPECS, LINKS, st.integers(1, 4), st.sampled_from([1, 2, 64]), st.integers(1, 3))
# An example takes seconds, so failing ones are not shrunk, which takes minutes; the blob is printed.
DRAWING = settings(
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)


@given(*DRAWN)
@settings(DRAWING, max_examples=3)
def test_any_corpus_gives_the_same_files(
    specs: list[Any], links: list[Any], parts: int, limit: int, workers: int
) -> None:
    check_drawn(specs, links, parts, limit, workers)


@pytest.mark.slow
@given(*DRAWN)
@settings(DRAWING, max_examples=15)
def test_many_corpora_give_the_same_files(
    specs: list[Any], links: list[Any], parts: int, limit: int, workers: int
) -> None:
    check_drawn(specs, links, parts, limit, workers)


def test_several_bundles_with_everything_in_them_give_the_same_files(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles: collections.Counter[str] = collections.Counter()
    pairs: list[int] = []
    start, verify = beam_files.Counting.start_bundle, steps.Verify.process

    def counted(step: beam_files.Counting) -> None:
        bundles[type(step).__name__] += 1
        start(step)

    def seen(step: Any, group: Any, written: int) -> Iterator[Any]:
        pairs.append(written)
        yield from verify(step, group, written)

    def connect(self: socket.socket, address: Any) -> None:
        pytest.fail(f"connected to {address}")

    monkeypatch.setattr(beam_files.Counting, "start_bundle", counted)
    monkeypatch.setattr(steps.Verify, "process", seen)
    monkeypatch.setattr(socket.socket, "connect", connect)
    files = assert_equal(tmp_path, folders, workers=3)
    for step in ("Captures", "Equals", "Banded", "Buckets", "Shingles", "Verify", "Targets", "Nodes"):
        assert bundles[step] > 1, step
    assert set(pairs) == {3}  # blocks: all shingles were there before any pair was compared
    found = table(files, "documents")
    assert {row["status"] for row in found} == {status.value for status in Status}
    assert {"near", "exact", "newer-capture"} <= {row["reason"] for row in found}
    assert table(files, "owners")
    assert any(name.startswith("displaced/") for name in files)


def test_a_bundle_that_runs_twice_changes_nothing(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: collections.Counter[str] = collections.Counter()
    write = beam_files._WritePart.process

    def counted(step: Any, part: Any) -> Iterator[Any]:
        attempts[step._table] += 1
        yield from write(step, part)

    monkeypatch.setattr(beam_files._WritePart, "process", counted)
    monkeypatch.setattr(runners, "_runner", lambda name: FnApiRunner(bundle_repeat=2))
    assert_equal(tmp_path, folders)
    assert attempts["edges"] >= 3


def test_a_part_without_a_receipt_is_not_read(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strays = []
    read = BeamJob.read_receipts

    def with_stray(self: BeamJob, runner: str) -> None:
        part = next(self.files.parts.glob("edges-*"))
        strays.append(part.with_name("edges-99999-0000000000000000.parquet"))
        strays[0].write_bytes(part.read_bytes())
        read(self, runner)

    monkeypatch.setattr(BeamJob, "read_receipts", with_stray)
    assert_equal(tmp_path, folders)
    assert strays


def test_redirects_are_followed_for_the_same_number_of_hops(tmp_path: Path) -> None:
    chain: list[Item] = [Redirect("enwiki", f"hop {n}", f"hop {n - 1}") for n in range(2, MAX_HOPS + 4)]
    chain += [
        Redirect("enwiki", "hop 1", "Article 1"),
        article(1, text_of(1)),
        *redirects(),
        article(3, text_of(3)),
        *twins(),
    ]
    files = assert_equal(tmp_path, stage(tmp_path / "stage", chain, 2, nothing_settled))
    found = collections.defaultdict(set)
    for row in table(files, "aliases"):
        found[row["alias"]].add(row["source_id"])
    first, third = (ids.source_id(f"wiki:enwiki:{page}") for page in (1, 3))
    assert found[f"hop {MAX_HOPS}"] == {first}
    assert found[f"hop {MAX_HOPS + 1}"] == {None}
    for alias in ("Two hops", "Case", "Case of a redirect", "Section"):
        assert third in found[alias], alias
    for alias in ("Round", "About", "Itself", "To nowhere", "Foreign", "Ambiguous"):
        assert found[alias] == {None}, alias


def test_boilerplate_makes_a_linear_number_of_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[Item] = [article(page, f"{text_of(1)} tail {page} {page}") for page in range(120)]
    receipts: collections.Counter[str] = collections.Counter()
    read = BeamJob.read_receipts

    def kept(self: BeamJob, runner: str) -> None:
        read(self, runner)
        receipts.update(self.receipts)

    monkeypatch.setattr(BeamJob, "read_receipts", kept)
    config = DedupConfig(bucket_limit=3)
    files = assert_equal(tmp_path, stage(tmp_path / "stage", pages, 1, nothing_settled), config)
    assert 119 <= receipts["pairs sent"] <= 3 * receipts["entries sent"] <= 3 * 14 * 120
    assert [row["status"] for row in table(files, "documents")].count("kept") == 1


def test_no_documents_give_an_empty_snapshot(tmp_path: Path) -> None:
    files = assert_equal(tmp_path, stage(tmp_path / "stage", [], 1, nothing_settled))
    assert not any(table(files, name) for name in ("documents", "sources", "aliases", "bands", "owners"))


@pytest.mark.parametrize("kind", ["doc_id", "source_id"])
def test_two_keys_with_one_id_are_refused_and_named(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ids, kind, lambda *arguments: 42)
    staged = stage(tmp_path / "stage", [article(1, text_of(1)), article(2, text_of(2))], 2, nothing_settled)
    with pytest.raises(DamagedError, match=rf"{kind} .*wiki:enwiki:1.*wiki:enwiki:2"):
        written(tmp_path, staged, beam_engine.resolve)


def failing(error: Exception) -> Callable[..., Any]:
    def fails(*arguments: Any) -> Any:
        raise error

    return fails


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (DamagedError("a.parquet: torn; restore it"), DamagedError, r"^a\.parquet: torn; restore it$"),
        (ServiceError("the store is down"), ServiceError, "^the store is down$"),
        (ZeroDivisionError("a bug: it"), ServiceError, "^beam on local: ZeroDivisionError: a bug: it; .*again$"),
    ],
)
def test_an_error_in_a_worker_keeps_its_message(
    error: Exception,
    kind: type[Exception],
    message: str,
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(steps, "write_block", failing(error))
    with pytest.raises(kind, match=message) as caught:
        written(tmp_path, folders, beam_engine.resolve, workers=2)
    assert type(caught.value) is kind
    assert capfd.readouterr() == ("", "")


def test_errors_are_restored_from_the_traceback_of_a_cluster() -> None:
    trace = "Pipeline job-1 failed in state FAILED: java.lang.RuntimeException: Error received from SDK harness:\n"
    trace += "Traceback (most recent call last):\n  File 'x.py', line 1\n{} [while running 'verify/ParDo(Verify)']\n"
    ours = runners._translated(RuntimeError(trace.format("registry.errors.DamagedError: a: torn; restore it")), "flink")
    assert (type(ours), str(ours)) == (DamagedError, "a: torn; restore it")
    other = runners._translated(RuntimeError(trace.format("KeyError: 'a'")), "flink")
    assert type(other) is ServiceError
    assert str(other).startswith("beam on flink: KeyError: 'a'; ")
    assert "no such host" in str(runners._translated(OSError("no such host\nmore"), "flink"))


def test_a_full_disk_at_a_worker_is_a_service_error(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = failing(OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(beam_files, "os", types.SimpleNamespace(close=os.close, replace=full))
    with pytest.raises(ServiceError, match=r"parts: No space left on device; free some space"):
        written(tmp_path, folders, beam_engine.resolve)
    assert not [path for path in tmp_path.rglob("parts/*") if path.is_file()]


def test_a_damaged_staged_file_is_named(folders: list[Path], tmp_path: Path) -> None:
    (folders[1] / "texts.parquet").write_bytes(b"PAR1 not any more")
    with pytest.raises(DamagedError, match=r"00001-\w+/texts\.parquet: not readable"):
        written(tmp_path, folders, beam_engine.resolve)


@pytest.mark.parametrize(
    "step",
    [
        steps.Captures,
        steps.Buckets,
        names.Nodes,
        pytest.param(steps.Equals, marks=pytest.mark.slow),
        pytest.param(steps.Banded, marks=pytest.mark.slow),
        pytest.param(steps.Verify, marks=pytest.mark.slow),
        pytest.param(names.Targets, marks=pytest.mark.slow),
        pytest.param(names.Steps, marks=pytest.mark.slow),
    ],
)
def test_a_runner_that_loses_rows_is_detected(
    step: Any, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, calls = step.process, []

    @functools.wraps(process)  # Beam reads its signature
    def loses(self: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        calls.append(1)
        if len(calls) != 2:
            yield from process(self, *arguments, **options)

    monkeypatch.setattr(step, "process", loses)
    with pytest.raises(DamagedError, match=r"beam: \d+ \w+ sent, but \d+ \w+ (received|at \w+): the runner lost"):
        written(tmp_path, folders, beam_engine.resolve)
    assert len(calls) > 2


def test_a_lost_part_is_detected(folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = BeamJob.read_receipts

    def without_part(self: BeamJob, runner: str) -> None:
        next(self.files.parts.glob("exact-*")).unlink()
        read(self, runner)

    monkeypatch.setattr(BeamJob, "read_receipts", without_part)
    with pytest.raises(DamagedError, match=r"rows of exact-00.*but 0 rows found"):
        written(tmp_path, folders, beam_engine.resolve)


def test_a_job_without_receipts_is_detected(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "run", lambda *arguments, **options: None)
    with pytest.raises(DamagedError, match=r"left no receipts.*storage that they share"):
        written(tmp_path, folders, beam_engine.resolve)


@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        ("dask", (), "got 'dask', expected local, flink, spark, dataflow"),
        ("DirectRunner", (), "got 'DirectRunner'"),
        ("", (), "got ''"),
        ("flink", (), "add --runner-option=--flink_master=... or --runner-option=--job_endpoint=..."),
        ("flink", ("--parallelism=2",), "the address of its cluster is missing"),
        ("dataflow", ("--region=x",), "--project"),
        ("flink", ("--flink_master=h:1", "--runner=DaskRunner"), "name the runner with --runner"),
        ("local", ("--direct_num_workers=4",), "takes none"),
    ],
)
def test_a_runner_that_is_not_allowed_is_refused_before_any_work(
    runner: str, options: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    config = IngestConfig(wikipedia=(str(tmp_path / "not-even-looked-for"),))
    with pytest.raises(UsageError) as caught:
        ingest(
            config,
            registry_uri=tmp_path / "registry",
            engine=Engine(name="beam", runner=runner, runner_options=options),
        )
    assert message in str(caught.value)
    assert not (tmp_path / "registry").exists()


def test_an_unknown_engine_and_a_runner_without_beam_are_refused() -> None:
    with pytest.raises(UsageError, match="got 'spark', expected duckdb or beam"):
        engines.Engine(name="spark")
    with pytest.raises(UsageError, match="add --engine beam"):
        engines.Engine(runner="flink", runner_options=("--flink_master=h:1",))
    assert engines.Engine(name="beam", runner="flink", runner_options=("--flink_master=h:1",)).runner == "flink"


def test_options_of_a_cluster_are_passed_on_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    from apache_beam.options.pipeline_options import FlinkRunnerOptions, SetupOptions, WorkerOptions

    monkeypatch.setattr(sys, "argv", ["nulls", "--flink_master=not-this:1"])
    given_options = ["--flink_master=host:8081", "--sdk_container_image=ours:1"]
    options = runners._options("flink", given_options, workers=7)
    assert options.view_as(FlinkRunnerOptions).flink_master == "host:8081"
    assert options.view_as(WorkerOptions).sdk_container_image == "ours:1"
    assert options.view_as(SetupOptions).save_main_session is False


def test_without_beam_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("pipelines.resolve.beam")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UsageError, match=r"pip install 'nulls\[beam\]'"):
        engines.Engine(name="beam")
    assert engines.Engine().name == "duckdb"


def dump_of(folder: Path) -> Path:
    """Two wikis with an article in both, a near copy, a stub and redirects."""
    folder.mkdir()
    near = text_of(2).split()
    english = [Page(f"Article {n}", text_of(n)) for n in range(1, 6)]
    english += [Page("Stub", "Short."), Page("Other name", "#REDIRECT [[Article 2]]", redirect="Article 2")]
    german = [Page("Artikel 1", text_of(1)), Page("Artikel 2", " ".join([*near[:50], "anders", *near[51:-1]]))]
    write_dump(folder / "enwiki.xml", english)
    german_site = siteinfo("dewiki", "https://de.wikipedia.org/wiki/Hauptseite")
    write_dump(folder / "dewiki.xml.bz2", german, siteinfo=german_site, compress="bz2")
    return folder


def test_an_ingest_and_its_child_have_the_same_ids_with_both_engines(tmp_path: Path) -> None:
    first = dump_of(tmp_path / "dumps")
    later = tmp_path / "later"
    later.mkdir()
    newer = [Page("Article 3", text_of(33), 3, timestamp="2024-01-01T00:00:00Z"), Page("New", text_of(4), 99)]
    write_dump(later / "enwiki-later.xml", newer)
    found = {}
    for engine in engines.ENGINES:
        reports = [
            ingest(
                IngestConfig(wikipedia=(str(dumps),)),
                registry_uri=tmp_path / engine,
                engine=Engine(name=engine),
                workers=2,
            )
            for dumps in (first, later)
        ]
        found[engine] = [report.snapshot for report in reports]
        assert reports[0].shared_sources == 1
        assert [report.duplicate for report in reports] == [2, 3]
        assert reports[1].superseded == 1
        assert not (tmp_path / engine / "work" / "scratch").exists()
    assert found["beam"] == found["duckdb"]
    assert found["beam"][0] != found["beam"][1]


def test_the_command_line_prints_json_and_no_output_of_beam(tmp_path: Path) -> None:
    dump_of(tmp_path / "dumps")
    command = [
        sys.executable,
        "-m",
        "orchestration.cli.main",
        "ingest",
        "--wikipedia",
        "dumps",
        "--engine",
        "beam",
        "--json",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["read"] == 8
    for word in ("WARNING", "apache_beam", "apitools", "Traceback"):
        assert word not in done.stderr
    refused = subprocess.run(
        [*command, "--runner", "dask"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 2
    assert "expected local, flink, spark, dataflow" in refused.stdout + refused.stderr


def test_a_block_file_holds_the_shingles_of_its_texts(tmp_path: Path) -> None:
    rows, texts = np.array([3, 7, 1 << 40]), [text_of(1), "too short", text_of(2)]
    write_block(tmp_path / "block", rows, texts, ngram=5)
    first = (tmp_path / "block").read_bytes()
    write_block(tmp_path / "block", rows, texts, ngram=5)
    assert (tmp_path / "block").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["block"]
    block = ShingleBlock(tmp_path / "block")
    for row, text in zip(rows.tolist(), texts, strict=True):
        assert np.array_equal(block.read(row), shingles(text, 5))
    assert block.read(7).size == 0
    for row in (0, 4, 1 << 50):
        with pytest.raises(DamagedError, match=f"no shingles of row {row}"):
            block.read(row)
    (tmp_path / "block").write_bytes(first[:-8])
    for name in ("block", "missing"):
        with pytest.raises(DamagedError, match=f"{name}"):
            ShingleBlock(tmp_path / name)


@pytest.mark.slow
def test_real_wikis_have_the_same_id_with_both_engines(data_dir: Path, tmp_path: Path) -> None:
    dumps = str(data_dir / "wikipedia" / "minidumps")
    config = IngestConfig(wikipedia=(dumps,))
    reports = [
        ingest(config, registry_uri=tmp_path / engine, engine=Engine(name=engine), workers=2)
        for engine in ("duckdb", "beam")
    ]
    assert reports[0].read > 100
    assert reports[1].snapshot == reports[0].snapshot
