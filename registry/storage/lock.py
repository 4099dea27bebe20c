"""A file lock that the operating system releases when its holder ends, even by a crash.

Two threads of one process exclude each other too. The lock file is empty, and is deleted on
release. It must be on a file system that supports `flock` (local disks, and NFS 4).

    with file_lock(root / "newest.lock"): ...                                # waits
    with file_lock(path, timeout_s=0, busy="another run holds it"): ...      # refuses
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from registry.errors import RefusedError
from registry.storage.paths import translate_os_errors

_POLL_S = 0.05


@contextlib.contextmanager
def file_lock(path: Path, *, timeout_s: float | None = None, busy: str = "") -> Iterator[None]:
    """Hold the lock file `path` while the block runs.

    Args:
        path: the lock file; its folder is created if needed.
        timeout_s: seconds to wait for another holder; 0 does not wait, None waits as long as it takes.
        busy: the error message if another process or thread still holds it then.

    Raises:
        RefusedError: another holder did not release it in time.
        ServiceError: the lock file cannot be created.
    """
    # A soft lock, filelock's substitute where there is no flock, would outlive a holder that is killed.
    wait_s = -1 if timeout_s is None else timeout_s
    held = FileLock(path, timeout=wait_s, thread_local=False, mode=0o666, fallback_to_soft=False)
    with translate_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.acquire(poll_interval=_POLL_S)
        except Timeout:
            raise RefusedError(busy or f"{path} is locked by another process; wait for it to end") from None
    try:
        yield
    finally:
        # Still held: whoever waits finds, once it has the lock, that its file has no name any more, and starts over.
        path.unlink(missing_ok=True)
        held.release()
