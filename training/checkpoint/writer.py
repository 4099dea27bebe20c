"""Checkpoint writer: copies the state between two steps, and writes the copy in a thread while training continues.

At most one write is pending. The next save waits for it, so the copy is the only extra memory (12 bytes a parameter of
this rank, on the host), and raises its error, on every rank; so does `wait`. Ray and the tracking server learn of a
checkpoint once its `complete.json` is there.

A write has a process group of its own (gloo, between hosts): collectives of two threads in one group would mix.

Cost, 2.5M parameters, one busy core: a step waits 25 ms for the copy, instead of 200 ms for the disk.
Run: ``writer.save(model, optimizer, state)`` after a step; ``writer.wait()`` and ``writer.close()`` at the end.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from training.checkpoint import dcp
from training.checkpoint.dcp import Content, RunState
from training.checkpoint.remote_copy import RemoteRun
from training.data.prefetch import device_thread
from training.distributed.process_group import on_rank_0

_CPU = torch.device("cpu")
# How long a rank waits for another to write its part; the default would abort a long write to a slow disk.
_WRITE_TIMEOUT = datetime.timedelta(hours=2)


class CheckpointWriter:
    """Writer of the checkpoints of one attempt into a folder of its run; all ranks have one and make the same calls.

    Args:
        run_dir: directory of the run, for pruning.
        folder: the folder in it for new checkpoints.
        keep: number of newest complete checkpoints to keep, over all folders of the run.
        in_background: whether `save` returns as soon as the copy is taken.
        remote_run: remote copy of the run, to which complete checkpoints are sent, and pruned in the same way.
        device: device of the model.
        on_complete: called on rank 0 with a complete checkpoint and its step; by the writing thread, if there is one.
    """

    def __init__(
        self,
        run_dir: Path,
        folder: Path,
        *,
        keep: int,
        in_background: bool,
        on_complete: Callable[[Path, int], None],
        remote_run: RemoteRun | None = None,
        device: torch.device = _CPU,
    ) -> None:
        self._run_dir, self._folder, self._keep, self._remote_run = run_dir, folder, keep, remote_run
        self._on_complete = on_complete
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._group = dist.new_group(backend="gloo", timeout=_WRITE_TIMEOUT) if dist.is_initialized() else None
        self._pending: Future[Path] | None = None
        self._thread = device_thread("nulls-checkpoint", device) if in_background else None
        self._stager = _stager(on_cuda=device.type == "cuda") if in_background else None

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: RunState) -> tuple[Path, Future[Path]]:
        """Save a checkpoint; return its directory, and a future that is done once the checkpoint is complete.

        Raises:
            ServiceError: the one before could not be written (or this one, if not in the background).
        """
        self.wait()
        directory = dcp.directory_of(self._folder, state.step)
        content = dcp.capture(model, optimizer, state)
        if self._thread is None or self._stager is None:
            done: Future[Path] = Future()
            done.set_result(self._write(directory, content))
            return directory, done
        copied = self._stager.stage(content.tensors)
        assert isinstance(copied, dict)
        self._pending = self._thread.submit(self._write, directory, Content(tensors=copied, state=content.state))
        return directory, self._pending

    def wait(self) -> None:
        """Wait until no write is pending.

        Raises:
            ServiceError: the pending checkpoint could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """End the thread after its pending write; errors of writes are not raised, so this is safe after any error."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        if self._stager is not None:
            self._stager.close()

    def _write(self, directory: Path, content: Content) -> Path:
        dcp.write(directory, content, self._group)
        if self._remote_run is not None:
            remote_run = self._remote_run
            on_rank_0(directory, lambda: remote_run.put_checkpoint(directory), self._group)
            on_rank_0(directory, lambda: remote_run.prune(self._keep), self._group)
        if self._rank == 0:
            self._on_complete(directory, int(content.state["step"]))
            dcp.prune(self._run_dir, self._keep)
        return directory


def report_to_ray(step: int, directory: Path, written: Future[Path]) -> None:
    """Report a checkpoint to Ray once it is complete; all ranks call it at the same step."""
    import ray.train
    from ray.train import Checkpoint, CheckpointUploadMode

    def wait(checkpoint: Checkpoint, _: str) -> Checkpoint:
        # The checkpoint is in its final directory, so there is nothing to upload. An error ends this worker at once,
        # and the run continues from the checkpoint before.
        written.result()
        return checkpoint

    ray.train.report(
        {"step": step},
        checkpoint=Checkpoint.from_directory(str(directory)),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=wait,
        delete_local_checkpoint_after_upload=False,  # Ray's default for ASYNC would delete the checkpoint
    )


def _stager(*, on_cuda: bool) -> DefaultStager:
    """Return a stager that copies to host memory; from a GPU to pinned memory, which is kept for the next copy."""
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=on_cuda, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=on_cuda
        )
    )
