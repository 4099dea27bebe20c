"""Checkpoints while training goes on: a copy is taken between two steps, and written by a thread of its own.

At most one is on its way. The next save waits for the last, so the copy is the only extra memory (12 bytes a parameter
of this rank, on the host), and raises what went wrong with it, on every rank; so does `close`. A checkpoint counts, for
Ray and for the tracking server too, once its `complete.json` is there.

The ranks talk about a write over a process group of its own (gloo, between hosts): collectives of two threads in one
group would meet each other.

Cost, 2.5M parameters, one busy core: a step waits 25 ms for the copy, instead of 200 ms for the disk.
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
from training.checkpoint.remote_copy import RunMirror
from training.data.prefetch import device_thread
from training.distributed.process_group import on_rank_0

_CPU = torch.device("cpu")
# Of a rank that waits for another to have written its part; the default would end a long write to a slow disk.
_WRITE_TIMEOUT = datetime.timedelta(hours=2)


class CheckpointWriter:
    """Writes the checkpoints of one driver into a folder of its run; all ranks have one and call it alike.

    Args:
        run_dir: of the run, for pruning.
        folder: in it, where checkpoints go.
        keep: newest whole checkpoints to keep, over all folders of the run.
        in_background: whether `save` returns as soon as the copy is taken.
        mirror: where whole checkpoints are sent too, and pruned alike.
        device: where the model is.
        on_complete: called on rank 0 with a checkpoint that is whole; in the background, by the thread that wrote it.
    """

    def __init__(
        self,
        run_dir: Path,
        folder: Path,
        *,
        keep: int,
        in_background: bool,
        on_complete: Callable[[Path, int], None],
        mirror: RunMirror | None = None,
        device: torch.device = _CPU,
    ) -> None:
        self._run_dir, self._folder, self._keep, self._mirror = run_dir, folder, keep, mirror
        self._on_complete = on_complete
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._group = dist.new_group(backend="gloo", timeout=_WRITE_TIMEOUT) if dist.is_initialized() else None
        self._pending: Future[Path] | None = None
        self._thread = device_thread("nulls-checkpoint", device) if in_background else None
        self._stager = _stager(on_cuda=device.type == "cuda") if in_background else None

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: RunState) -> tuple[Path, Future[Path]]:
        """Takes a checkpoint: where it will be, and what says when it is there.

        Raises:
            ServiceError: the one before could not be written (or this one, where nothing is done in the background).
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
        """Returns once nothing is on its way.

        Raises:
            ServiceError: what was on its way could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Ends the thread, after what it is writing; for the way out, also through an error, it raises none."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        if self._stager is not None:
            self._stager.close()

    def _write(self, directory: Path, content: Content) -> Path:
        dcp.write(directory, content, self._group)
        if self._mirror is not None:
            mirror = self._mirror
            on_rank_0(directory, lambda: mirror.put_checkpoint(directory), self._group)
            on_rank_0(directory, lambda: mirror.prune(self._keep), self._group)
        if self._rank == 0:
            self._on_complete(directory, int(content.state["step"]))
            dcp.prune(self._run_dir, self._keep)
        return directory


def report_to_ray(step: int, directory: Path, written: Future[Path]) -> None:
    """Tells Ray of a checkpoint once it is whole; all ranks call it at the same step."""

    import ray.train
    from ray.train import Checkpoint, CheckpointUploadMode

    def wait(checkpoint: Checkpoint, _: str) -> Checkpoint:
        # It is written where it belongs: there is nothing to upload. What goes wrong ends this worker at once, and the
        # run goes on from the checkpoint before.
        written.result()
        return checkpoint

    ray.train.report(
        {"step": step},
        checkpoint=Checkpoint.from_directory(str(directory)),
        checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        checkpoint_upload_fn=wait,
        delete_local_checkpoint_after_upload=False,  # Ray's default for ASYNC: it would delete what it was told of
    )


def _stager(*, on_cuda: bool) -> DefaultStager:
    """Copies to host memory; from a GPU through pinned memory, which is kept for the next time."""
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=on_cuda, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=on_cuda
        )
    )
