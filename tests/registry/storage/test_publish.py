"""Directories are published whole or not at all, and a damaged one is never taken for a whole one."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from registry.errors import ServiceError
from registry.storage import new_directory, publish_directory, read_marker, write_marker

MARKER = "complete.json"
GARBLED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"7",
    b"{}",
    b"\xff\xfe",
    b'{"files": 3}',
    b'{"files": ["x"]}',
    b'{"files": {"x": 1}}',
]


def is_whole(directory: Path) -> bool:
    return read_marker(directory, MARKER) is not None


def write(target: Path, text: str, **options: Any) -> None:
    """Publish two files with the same content, and their marker."""
    with new_directory(target, **options) as staging:
        (staging / "one").write_text(text)
        (staging / "two").write_text(text)
        write_marker(staging, MARKER, text=text)


def content(target: Path) -> str:
    """Return the content of a directory that `write` published, after checking that it is whole."""
    marker = read_marker(target, MARKER)
    assert marker is not None
    assert sorted(os.listdir(target)) == [MARKER, "one", "two"]
    assert (target / "one").read_text() == (target / "two").read_text() == marker["text"]
    return str(marker["text"])


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A path whose parent does not exist yet."""
    return tmp_path / "parent" / "target"


def test_a_new_directory_is_there_with_its_files(target: Path) -> None:
    write(target, "first")
    assert content(target) == "first"
    assert os.listdir(target.parent) == ["target"]
    assert target.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [False, True])
def test_an_exception_in_the_block_changes_nothing(target: Path, error: type[BaseException], exists: bool) -> None:
    if exists:
        write(target, "old")
    with pytest.raises(error), new_directory(target) as staging:  # noqa: PT012
        (staging / "one").write_text("new")
        assert staging.parent == target.parent
        raise error
    assert os.listdir(target.parent) == (["target"] if exists else [])
    assert not exists or content(target) == "old"


def test_a_directory_is_replaced_by_default(target: Path) -> None:
    write(target, "old")
    write(target, "new")
    assert content(target) == "new"
    assert os.listdir(target.parent) == ["target"]


def test_keep_leaves_the_directory_that_is_there(target: Path) -> None:
    write(target, "old")
    asked: list[Path] = []
    write(target, "new", keep=lambda path: not asked.append(path))
    assert asked == [target]
    assert content(target) == "old"
    assert os.listdir(target.parent) == ["target"]


def test_publish_directory_reports_whether_it_published(target: Path) -> None:
    for text, published in (("first", True), ("second", False)):
        staging = target.parent / "staging"
        staging.mkdir(parents=True)
        for name in ("one", "two"):
            (staging / name).write_text(text)
        write_marker(staging, MARKER, text=text)
        assert publish_directory(staging, target, keep=is_whole) is published
        assert not staging.exists()
    assert content(target) == "first"


@pytest.mark.parametrize("damage", ["short", "missing", "unmarked"])
def test_a_damaged_directory_is_replaced(target: Path, damage: str) -> None:
    write(target, "old")
    if damage == "short":
        (target / "one").write_text("ol")
    else:
        (target / ("one" if damage == "missing" else MARKER)).unlink()
    write(target, "new", keep=is_whole)
    assert content(target) == "new"
    assert os.listdir(target.parent) == ["target"]


@pytest.mark.parametrize("keep", [True, False])
def test_two_threads_at_once_leave_one_whole_directory(target: Path, keep: bool) -> None:
    errors: list[BaseException] = []
    for _ in range(20):
        together = threading.Barrier(2, timeout=60)

        def publish(text: str, together: threading.Barrier = together) -> None:
            try:
                with new_directory(target, **({"keep": is_whole} if keep else {})) as staging:
                    (staging / "one").write_text(text)
                    (staging / "two").write_text(text)
                    write_marker(staging, MARKER, text=text)
                    together.wait()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=publish, args=(text,)) for text in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert content(target) in ("a", "b")
        assert os.listdir(target.parent) == ["target"]
        shutil.rmtree(target)


def test_a_rename_that_fails_leaves_what_was_there(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(target, "old")
    rename = os.rename

    def fails(source: Path, destination: Path) -> None:
        if Path(destination) == target and Path(source).parent == target.parent:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, destination)

    with (  # noqa: PT012
        monkeypatch.context() as patch,
        pytest.raises(ServiceError, match="cross-device"),
        new_directory(target) as staging,
    ):
        (staging / "one").write_text("new")
        patch.setattr(os, "rename", fails)
    assert content(target) == "old"
    assert os.listdir(target.parent) == ["target"]


def test_a_full_disk_in_the_block_is_a_service_error(target: Path) -> None:
    write(target, "old")
    full = r"cannot write .*target: No space left.*free some space"
    with pytest.raises(ServiceError, match=full), new_directory(target) as staging:  # noqa: PT012
        (staging / "one").symlink_to("/dev/full")
        (staging / "one").write_text("new")
    assert content(target) == "old"
    assert os.listdir(target.parent) == ["target"]


def test_a_full_disk_at_the_flush_is_a_service_error(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(target, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (  # noqa: PT012
        monkeypatch.context() as patch,
        pytest.raises(ServiceError, match="free some space"),
        new_directory(target) as staging,
    ):
        (staging / "one").write_text("new")
        patch.setattr(os, "fsync", full)
    assert content(target) == "old"
    assert os.listdir(target.parent) == ["target"]


def test_a_parent_that_is_a_file_is_a_service_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServiceError, match="cannot write"):
        write(tmp_path / "file" / "target", "new")


def test_a_marker_holds_its_facts_and_the_size_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"123")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    write_marker(tmp_path, MARKER, kind="test")
    assert read_marker(tmp_path, MARKER) == {"kind": "test", "files": {"x": 3, "empty": 0}}
    (tmp_path / "more").write_bytes(b"later")  # a file that the marker does not name
    assert read_marker(tmp_path, MARKER) is not None


@pytest.mark.parametrize("change", [b"12", b"1234", b"", None])
def test_a_marker_is_none_if_a_file_is_missing_or_of_another_size(tmp_path: Path, change: bytes | None) -> None:
    (tmp_path / "x").write_bytes(b"123")
    write_marker(tmp_path, MARKER)
    assert read_marker(tmp_path, MARKER) is not None
    (tmp_path / "x").unlink() if change is None else (tmp_path / "x").write_bytes(change)
    assert read_marker(tmp_path, MARKER) is None


@pytest.mark.parametrize("data", GARBLED)
def test_a_garbled_marker_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / MARKER).write_bytes(data)
    assert read_marker(tmp_path, MARKER) is None


def test_a_missing_marker_is_none(tmp_path: Path) -> None:
    assert read_marker(tmp_path, MARKER) is None
    assert read_marker(tmp_path / "none", MARKER) is None
