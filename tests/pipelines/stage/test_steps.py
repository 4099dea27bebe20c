"""The per-file stage: one directory per input file, whole or absent, the same with any number of workers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datatrove.pipeline.base import PipelineStep

from pipelines.inputs import InputKind, find_inputs
from pipelines.stage import staging
from pipelines.stage.local_executor import LocalExecutor
from pipelines.stage.steps import StageConfig, Task, run_tasks, tasks_for
from pipelines.text import extract
from registry import ids
from tests.pipelines.readers.dumps import Page, write_dump

SENTENCE = "The history of this place is long and has been told many times by the people who live in it. "


def pages(prefix: str, count: int = 4) -> list[Page]:
    own = [Page(f"{prefix} {number}", f"'''{prefix}''' {number}. {SENTENCE}") for number in range(count)]
    return [*own, Page(f"{prefix} stub", "Short."), Page(f"Old {prefix}", "#REDIRECT [[x]]", redirect=f"{prefix} 0")]


@pytest.fixture
def dumps(tmp_path: Path) -> Path:
    folder = tmp_path / "dumps"
    folder.mkdir()
    for name in ("one", "two", "three"):
        write_dump(folder / f"{name}.xml.bz2", pages(name), compress="bz2")
    return folder


def staged_tasks(dumps: Path, work: Path, workers: int = 1) -> list[Task]:
    tasks = tasks_for(find_inputs({InputKind.WIKIPEDIA: [str(dumps)]}).files, work / "stage")
    finished = run_tasks(tasks, config=StageConfig(), workers=workers, logging_dir=work / "logs")
    assert {task.index for task in finished} == {task.index for task in tasks}
    return tasks


def contents(work: Path) -> dict[str, bytes]:
    return {str(path.relative_to(work)): path.read_bytes() for path in work.glob("stage/*/*")}


def test_every_page_of_a_file_is_staged_with_its_status(dumps: Path, tmp_path: Path) -> None:
    task = staged_tasks(dumps, tmp_path)[0]
    rows = pq.read_table(task.folder / "documents.parquet").to_pylist()
    assert [row["status"] for row in rows] == ["kept"] * 4 + ["filtered"]
    assert rows[0]["doc_id"] == ids.doc_id("wiki:enwiki:1", "wiki:enwiki:1")
    assert rows[0]["text_sha256"]
    assert rows[0]["num_bytes"] > 90
    texts = pq.read_table(task.folder / "texts.parquet").to_pylist()
    assert [row["row"] for row in texts] == [row["row"] for row in rows[:4]]
    assert texts[1]["text"].startswith("one 1.")
    (redirect,) = pq.read_table(task.folder / "redirects.parquet").to_pylist()
    assert (redirect["alias"], redirect["target"]) == ("Old one", "one 0")
    assert pq.read_table(task.folder / "sites.parquet").to_pylist() == [{"scope": "enwiki", "host": "en.wikipedia.org"}]


def test_rows_are_unique_across_files(dumps: Path, tmp_path: Path) -> None:
    rows = [
        row
        for t in staged_tasks(dumps, tmp_path)
        for row in pq.read_table(t.folder / "documents.parquet")["row"].to_pylist()
    ]
    assert len(set(rows)) == len(rows) == 15


def test_workers_do_not_change_a_byte(dumps: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        staged_tasks(dumps, tmp_path / str(workers), workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    assert len(contents(tmp_path / "1")) == 21


def test_a_complete_directory_is_not_staged_again(dumps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged_tasks(dumps, tmp_path)
    monkeypatch.setattr(LocalExecutor, "run", lambda self: pytest.fail("ran again"))
    staged_tasks(dumps, tmp_path)


@pytest.mark.parametrize("damage", ["done.json", "texts.parquet", "bands.parquet"])
def test_a_damaged_directory_is_staged_again(damage: str, dumps: Path, tmp_path: Path) -> None:
    task = staged_tasks(dumps, tmp_path)[1]
    before = contents(tmp_path)
    file = task.folder / damage
    file.write_bytes(file.read_bytes()[:-1])
    assert not staging.is_complete(task.folder)
    staged_tasks(dumps, tmp_path)
    assert contents(tmp_path) == before


def test_a_directory_without_done_is_not_complete(tmp_path: Path) -> None:
    assert not staging.is_complete(tmp_path)
    (tmp_path / staging.DONE).write_text(json.dumps({"files": {}}))
    assert not staging.is_complete(tmp_path)


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), staging.StageWriter(tmp_path / "stage" / "x", 0):
        raise ZeroDivisionError
    assert not list((tmp_path / "stage").iterdir())


def test_a_page_that_breaks_the_extractor_fails_without_the_others(
    dumps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = extract.wikitext_to_text
    monkeypatch.setattr(extract, "wikitext_to_text", lambda text: 1 / 0 if "one''' 2" in text else whole(text))
    task = staged_tasks(dumps, tmp_path)[0]
    rows = pq.read_table(task.folder / "documents.parquet").to_pylist()
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert (failed["reason"], failed["title"]) == ("extract-error", "one 2")
    assert "ZeroDivisionError" in failed["detail"]
    assert len(rows) == 5


class Killed(PipelineStep):  # type: ignore[misc]
    """A worker that the system kills."""

    type, name = "Test", "killed"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[None]:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        yield


def test_datatrove_is_quiet(dumps: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    staged_tasks(dumps, tmp_path, workers=2)
    assert capfd.readouterr() == ("", "")
