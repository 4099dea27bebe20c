"""Remote copy of a run at s3://, with all that a resume needs, so that the run survives its machine and disk.

Checkpoints are written to the run's own folder first, as without a remote copy. Rank 0 then uploads each through
`registry.storage.s3` (with retries, compared after it is stored), in the background with the rest of the write. Its
`complete.json` is uploaded last and deleted first, so a checkpoint that has it is complete at any moment. `run.json`
and the tokenizer are copied too: a resume on an empty disk fetches the newest run and its newest complete checkpoint,
and builds the token cache again from the snapshot. The exported weights are uploaded before their model version is
registered, which then names this copy beside their path (`training/serving/weights.py`).

    s3://BUCKET/PREFIX/MODEL/run-001/{run.json,tokenizer/*,attempt-001/checkpoint-00000200/*,weights/*}

Cost: a HEAD and a PUT a file, 16 MiB in memory; a file that is there already and equal is not uploaded again.
Run: ``RemoteRuns.of("s3://bucket/runs", "model").of_run("run-001").put_checkpoint(directory)``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from registry.storage import copy_verified, sha256_of
from registry.storage.s3 import S3Path
from training.checkpoint import dcp, export

RUN_JSON, TOKENIZER = "run.json", "tokenizer"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteRuns:
    """Remote copies of all runs of a model, below one s3:// prefix."""

    root: S3Path

    @classmethod
    def of(cls, uri: str, model_name: str) -> RemoteRuns:
        """Return the remote copies of a model's runs below `uri`, `s3://BUCKET/PREFIX`.

        Raises:
            UsageError: the URI is not at s3://.
        """
        return cls(root=S3Path.parse(uri) / model_name)

    def run_names(self) -> list[str]:
        """Return the names of all remote runs, also of those whose preparation was cut short.

        Raises:
            ServiceError: S3 cannot be reached, or denies it.
        """
        return sorted(name for name in self.root.folders() if name.startswith("run-"))

    def of_run(self, name: str) -> RemoteRun:
        """Return the remote copy of one run."""
        return RemoteRun(root=self.root / name)

    def fetch_newest_run(self, folder: Path) -> Path | None:
        """Download the newest prepared run into `folder`, without its checkpoints; None if there is none."""
        for name in sorted(self.run_names(), key=lambda name: int(name.removeprefix("run-")), reverse=True):
            run = self.of_run(name)
            if (run.root / RUN_JSON).is_file():
                run.fetch_run(folder / name)
                return folder / name
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteRun:
    """Remote copy of one run; all methods raise a ServiceError where S3 or the disk cannot be used."""

    root: S3Path

    @classmethod
    def parse(cls, uri: str) -> RemoteRun:
        """Return the remote run whose root is `uri`."""
        return cls(root=S3Path.parse(uri))

    def put_run(self, run_dir: Path) -> None:
        """Upload the tokenizer and, last, `run.json`."""
        names = [f"{TOKENIZER}/{path.name}" for path in sorted((run_dir / TOKENIZER).iterdir())]
        for name in (*names, RUN_JSON):
            _send(run_dir / name, self.root / name)

    def fetch_run(self, run_dir: Path) -> None:
        """Download the tokenizer and, last, `run.json`."""
        names = [f"{TOKENIZER}/{path.name}" for path, _ in (self.root / TOKENIZER).walk()]
        _fetch(self.root, run_dir, (*names, RUN_JSON))

    def put_checkpoint(self, directory: Path) -> None:
        """Upload a complete checkpoint, `run_dir/ATTEMPT/NAME`."""
        checkpoint = self._path_of(directory)
        # The same step may be there already, if the run was resumed from an older one; it must not look complete now.
        (checkpoint / dcp.COMPLETE).delete()
        for path in sorted(directory.iterdir()):
            if path.name != dcp.COMPLETE:
                _send(path, checkpoint / path.name)
        _send(directory / dcp.COMPLETE, checkpoint / dcp.COMPLETE)

    def fetch_latest(self, run_dir: Path) -> Path | None:
        """Download the newest complete checkpoint and return it, unless the run's folder has one that is as new."""
        local = dcp.latest(run_dir)
        for checkpoint in self.complete_newest_first():
            if local is not None and local.name >= checkpoint.name:
                return None
            directory = run_dir / checkpoint.parts[-2] / checkpoint.name
            _fetch(checkpoint, directory, self._files_of(checkpoint))
            return directory
        return None

    def put_weights(self, weights_dir: Path) -> str:
        """Upload exported weights; return their s3:// prefix."""
        remote_dir = self.root / export.WEIGHTS
        for path in sorted(weights_dir.iterdir()):
            _send(path, remote_dir / path.name)
        return str(remote_dir)

    def prune(self, keep: int) -> None:
        """Delete all complete checkpoints except the newest `keep`."""
        for checkpoint in self.complete_newest_first()[keep:]:
            (checkpoint / dcp.COMPLETE).delete()
            for path, _ in list(checkpoint.walk()):
                path.delete()

    def complete_newest_first(self) -> list[S3Path]:
        """Return the complete checkpoints, newest step first."""
        sizes = {path.key: size for path, size in self.root.walk()}
        marked = [key.rpartition("/")[0] for key in sizes if key.endswith(f"/{dcp.COMPLETE}")]
        paths = [S3Path(self.root.bucket, key) for key in marked]
        complete = [path for path in paths if self._is_complete(path, sizes)]
        return sorted(complete, key=lambda path: (path.name, path.parts[-2]), reverse=True)

    def _is_complete(self, checkpoint: S3Path, sizes: dict[str, int]) -> bool:
        noted = json.loads((checkpoint / dcp.COMPLETE).read_bytes())["files"]
        return all(sizes.get((checkpoint / name).key) == size for name, size in noted.items())

    def _files_of(self, checkpoint: S3Path) -> list[str]:
        """Return the file names of a checkpoint, the marker last."""
        return [*json.loads((checkpoint / dcp.COMPLETE).read_bytes())["files"], dcp.COMPLETE]

    def _path_of(self, directory: Path) -> S3Path:
        return self.root / directory.parent.name / directory.name


def _send(source: Path, target: S3Path) -> None:
    target.upload(source, sha256_of(source))


def _fetch(source: S3Path, target: Path, names: Iterable[str]) -> None:
    """Download files of a prefix in the order named; each is there whole or not at all."""
    for name in names:
        copy_verified(source / name, target / name)
