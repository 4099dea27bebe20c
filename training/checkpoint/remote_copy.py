"""A second place for what a run needs to go on: s3://, so that it survives the machine and its disk.

Checkpoints are written to the run's own folder first, as without a mirror; rank 0 then sends each through the one door
to storage (`registry.storage.s3`: retried, compared after it is stored), in the background with the rest of the write. Their
`complete.json` is sent last and deleted first, so what has it is whole, at any moment. `run.json` and the tokenizer are
there too: a resume on an empty disk takes the newest run and its newest whole checkpoint from the mirror, and makes the
token cache again from the snapshot. The exported weights are sent before their version is registered, which then names
this copy beside their path (`weights.py`).

    s3://BUCKET/PREFIX/MODEL/run-001/{run.json,tokenizer/*,attempt-001/checkpoint-00000200/*,weights/*}

Run: ``Mirror.of("s3://bucket/runs", "model").of_run("run-001").put_checkpoint(directory)``. Cost: a HEAD and a PUT a
file, 16 MiB in memory; what is there already and equal is not sent again.
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
class Mirror:
    """Where the runs of a model are mirrored."""

    root: S3Path

    @classmethod
    def of(cls, uri: str, model_name: str) -> Mirror:
        """The mirror below `uri`, `s3://BUCKET/PREFIX`.

        Raises:
            UsageError: it is not at s3://.
        """
        return cls(root=S3Path.parse(uri) / model_name)

    def run_names(self) -> list[str]:
        """Runs that are there, also those that were never prepared to their end.

        Raises:
            ServiceError: S3 cannot be reached, or denies it.
        """
        return sorted(name for name in self.root.folders() if name.startswith("run-"))

    def of_run(self, name: str) -> RunMirror:
        """The mirror of one run."""
        return RunMirror(root=self.root / name)

    def fetch_newest_run(self, folder: Path) -> Path | None:
        """Brings the newest prepared run into `folder`, without its checkpoints; None if there is none."""
        for name in sorted(self.run_names(), key=lambda name: int(name.removeprefix("run-")), reverse=True):
            run = self.of_run(name)
            if (run.root / RUN_JSON).is_file():
                run.fetch_run(folder / name)
                return folder / name
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunMirror:
    """Where one run is mirrored; its methods raise a ServiceError where S3 or the disk cannot be used."""

    root: S3Path

    @classmethod
    def parse(cls, uri: str) -> RunMirror:
        """The inverse of `str(mirror.root)`."""
        return cls(root=S3Path.parse(uri))

    def put_run(self, run_dir: Path) -> None:
        """Sends the tokenizer and, last, `run.json`."""
        names = [f"{TOKENIZER}/{path.name}" for path in sorted((run_dir / TOKENIZER).iterdir())]
        for name in (*names, RUN_JSON):
            _send(run_dir / name, self.root / name)

    def fetch_run(self, run_dir: Path) -> None:
        """Brings the tokenizer and, last, `run.json`."""
        names = [f"{TOKENIZER}/{path.name}" for path, _ in (self.root / TOKENIZER).walk()]
        _fetch(self.root, run_dir, (*names, RUN_JSON))

    def put_checkpoint(self, directory: Path) -> None:
        """Sends a whole checkpoint, `run_dir/ATTEMPT/NAME`."""
        place = self._place_of(directory)
        # One of that name may be there, of a run that went on from an older one: till this one is whole, there is none.
        (place / dcp.COMPLETE).delete()
        for path in sorted(directory.iterdir()):
            if path.name != dcp.COMPLETE:
                _send(path, place / path.name)
        _send(directory / dcp.COMPLETE, place / dcp.COMPLETE)

    def fetch_latest(self, run_dir: Path) -> Path | None:
        """Brings the newest whole checkpoint and returns it, unless the run's folder has one that is as new."""
        local = dcp.latest(run_dir)
        for place in self.complete_newest_first():
            if local is not None and local.name >= place.name:
                return None
            directory = run_dir / place.parts[-2] / place.name
            _fetch(place, directory, self._files_of(place))
            return directory
        return None

    def put_weights(self, weights_dir: Path) -> str:
        """Sends exported weights; returns where they are, an s3:// prefix."""
        place = self.root / export.WEIGHTS
        for path in sorted(weights_dir.iterdir()):
            _send(path, place / path.name)
        return str(place)

    def prune(self, keep: int) -> None:
        """Deletes the whole checkpoints but the newest `keep`."""
        for place in self.complete_newest_first()[keep:]:
            (place / dcp.COMPLETE).delete()
            for path, _ in list(place.walk()):
                path.delete()

    def complete_newest_first(self) -> list[S3Path]:
        """The whole checkpoints, newest step first."""
        sizes = {path.key: size for path, size in self.root.walk()}
        marked = [key.rpartition("/")[0] for key in sizes if key.endswith(f"/{dcp.COMPLETE}")]
        places = [S3Path(self.root.bucket, key) for key in marked]
        whole = [place for place in places if self._is_whole(place, sizes)]
        return sorted(whole, key=lambda place: (place.name, place.parts[-2]), reverse=True)

    def _is_whole(self, place: S3Path, sizes: dict[str, int]) -> bool:
        noted = json.loads((place / dcp.COMPLETE).read_bytes())["files"]
        return all(sizes.get((place / name).key) == size for name, size in noted.items())

    def _files_of(self, place: S3Path) -> list[str]:
        """Its files, the marker last."""
        return [*json.loads((place / dcp.COMPLETE).read_bytes())["files"], dcp.COMPLETE]

    def _place_of(self, directory: Path) -> S3Path:
        return self.root / directory.parent.name / directory.name


def _send(source: Path, target: S3Path) -> None:
    target.upload(source, sha256_of(source))


def _fetch(source: S3Path, target: Path, names: Iterable[str]) -> None:
    """Download files of a prefix in the order named; each is there whole or not at all."""
    for name in names:
        copy_verified(source / name, target / name)
