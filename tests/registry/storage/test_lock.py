"""The file lock excludes processes and threads, and is released however its holder ends."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.errors import RefusedError, ServiceError
from registry.storage import file_lock

ROOT = Path(__file__).parents[3]
HOLDER = """
import sys, time
from pathlib import Path
from registry.storage import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A lock file in a folder that does not exist yet."""
    return tmp_path / "folder" / "x.lock"


@contextlib.contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the lock `path`, and kill it at the end."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLDER, str(path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_lock_that_another_process_holds_is_refused_with_the_given_message(path: Path) -> None:
    with holder(path):
        start = time.monotonic()
        with pytest.raises(RefusedError) as caught, file_lock(path, timeout_s=0, busy="another ingest runs here"):
            raise AssertionError("two holders")
        assert str(caught.value) == "another ingest runs here"
        assert time.monotonic() - start < 5
        assert caught.value.exit_code == 4
        with pytest.raises(RefusedError, match=r"x\.lock is locked by another"), file_lock(path, timeout_s=0.1):
            raise AssertionError("two holders")


def test_killing_the_holder_releases_the_lock(path: Path) -> None:
    with holder(path) as process:
        with pytest.raises(RefusedError), file_lock(path, timeout_s=0):
            raise AssertionError("two holders")
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        with file_lock(path, timeout_s=10):
            pass


@pytest.mark.parametrize("timeout_s", [None, 60.0])
def test_a_waiting_thread_gets_the_lock_when_it_is_released(path: Path, timeout_s: float | None) -> None:
    steps: list[str] = []
    started = threading.Event()

    def wait() -> None:
        started.set()
        with file_lock(path, timeout_s=timeout_s):
            steps.append("second holds")

    thread = threading.Thread(target=wait)
    with file_lock(path):
        thread.start()
        assert started.wait(60)
        time.sleep(0.3)  # several polls of the waiting thread
        assert thread.is_alive()
        steps.append("first releases")
    thread.join(60)
    assert steps == ["first releases", "second holds"]


def test_threads_exclude_each_other(path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(index: int) -> None:
        for _ in range(5):
            with file_lock(path):
                inside.append(index)
                time.sleep(0.002)
                most.append(len(inside))
                inside.remove(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20


def test_another_thread_is_refused(path: Path) -> None:
    refused: list[BaseException] = []

    def attempt() -> None:
        try:
            with file_lock(path, timeout_s=0, busy="busy"):
                pass
        except RefusedError as error:
            refused.append(error)

    with file_lock(path):
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    assert [str(error) for error in refused] == ["busy"]


def test_an_error_in_the_block_releases_the_lock(path: Path) -> None:
    with pytest.raises(RuntimeError), file_lock(path):
        raise RuntimeError
    with file_lock(path, timeout_s=0):
        pass


@contextlib.contextmanager
def read_only_folder() -> Iterator[Path]:
    """Yield a folder that this process may not write; root gives up its rights meanwhile."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o555)
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            if is_root:
                os.seteuid(0)
            os.chmod(name, 0o755)


def test_a_read_only_folder_is_a_service_error() -> None:
    with read_only_folder() as folder:
        for path in (folder / "x.lock", folder / "below" / "x.lock"):
            with pytest.raises(ServiceError, match=r"cannot write .*may not write it"), file_lock(path, timeout_s=10):
                raise AssertionError("locked")


def test_a_folder_that_is_a_file_is_a_service_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "x.lock"
    with pytest.raises(ServiceError, match="cannot write"), file_lock(path, timeout_s=10):
        raise AssertionError("locked")


def _count(folder: Path, times: int) -> None:
    for _ in range(times):
        with file_lock(folder / "x.lock"):
            value = int((folder / "count").read_text())
            time.sleep(0.0005)
            (folder / "count").write_text(str(value + 1))


def test_processes_that_delete_the_file_on_release_still_exclude_each_other(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count, args=(tmp_path, 50)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "count").read_text() == "200"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]
