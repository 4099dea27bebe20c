"""The per-file stage on this machine, on a Ray cluster of two nodes, and by Slurm's script."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from datatrove.pipeline.base import PipelineStep
from ray.cluster_utils import Cluster

from pipelines.ingest import IngestConfig, ingest
from pipelines.stage.executors import Execution, ExecutorKind, make_executor
from pipelines.stage.local_executor import LocalExecutor
from registry.errors import ServiceError, UsageError
from registry.snapshot import Registry
from tests.pipelines.readers.archives import by_record, page, record, response
from tests.pipelines.readers.dumps import write_dump
from tests.pipelines.stage.test_steps import Killed, pages


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes on this machine, each with a raylet of its own."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def inputs(tmp_path: Path) -> IngestConfig:
    """Dumps and archives, several files each."""
    (tmp_path / "in").mkdir()
    for name in ("one", "two", "three"):
        write_dump(tmp_path / "in" / f"{name}.xml.bz2", pages(name), compress="bz2")
        items = [record(f"http://{name}.example/{i}", response(page(f"{name} wrote {i} of these"))) for i in range(3)]
        (tmp_path / "in" / f"{name}.warc.gz").write_bytes(by_record(items))
    return IngestConfig(
        wikipedia=(str(tmp_path / "in" / "*.bz2"),),
        web=(str(tmp_path / "in" / "*.warc.gz"),),
    )


@pytest.mark.ray
def test_ray_gives_the_same_snapshot(inputs: IngestConfig, cluster: Cluster, tmp_path: Path) -> None:
    expected = ingest(inputs, registry_uri=tmp_path / "local").snapshot
    execution = Execution(kind=ExecutorKind.RAY, ray_address=cluster.address)
    assert ingest(inputs, registry_uri=tmp_path / "ray", workers=2, execution=execution).snapshot == expected
    assert Registry.open(tmp_path / "ray").snapshot().verify() > 0


class Where(PipelineStep):  # type: ignore[misc]
    """Writes down the node of each rank, and waits until all ranks have begun."""

    type, name = "Test", "where"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[None]:
        (self.folder / str(rank)).write_text(ray.get_runtime_context().get_node_id())
        while len(list(self.folder.iterdir())) < world_size:
            pass
        yield


@pytest.mark.ray
def test_ray_uses_all_nodes(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "nodes").mkdir()
    execution = Execution(kind=ExecutorKind.RAY, ray_address=cluster.address)
    executor = make_executor(execution, [Where(tmp_path / "nodes")], tasks=2, workers=2, logging_dir=tmp_path / "logs")
    assert sorted(executor.run()) == [0, 1]
    assert len({path.read_text() for path in (tmp_path / "nodes").iterdir()}) == 2


class KilledOnce(PipelineStep):  # type: ignore[misc]
    """A worker that the system kills the first time it runs."""

    type, name = "Test", "killed once"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[None]:
        if rank == 1 and not (self.folder / "died").exists():
            (self.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield


@pytest.mark.ray
def test_ray_repeats_the_task_of_a_lost_worker(cluster: Cluster, tmp_path: Path) -> None:
    execution = Execution(kind=ExecutorKind.RAY, ray_address=cluster.address)
    executor = make_executor(execution, [KilledOnce(tmp_path)], tasks=3, workers=2, logging_dir=tmp_path / "logs")
    assert sorted(executor.run()) == [0, 1, 2]
    assert (tmp_path / "died").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_up_on_a_task_that_kills_every_worker(cluster: Cluster, tmp_path: Path) -> None:
    execution = Execution(kind=ExecutorKind.RAY, ray_address=cluster.address)
    executor = make_executor(execution, [Killed()], tasks=2, workers=2, logging_dir=tmp_path / "logs")
    with pytest.raises(ServiceError, match="Ray lost a worker 4 times"):
        list(executor.run())


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "127.0.0.1:1", "localhost:99999"])
def test_a_missing_ray_cluster_is_an_error_at_once(tmp_path: Path, address: str) -> None:
    if ray.is_initialized():
        ray.shutdown()
    execution = Execution(kind=ExecutorKind.RAY, ray_address=address)
    executor = make_executor(execution, [Killed()], tasks=1, workers=1, logging_dir=tmp_path)
    with pytest.raises(ServiceError, match=f"no Ray cluster at {address}"):
        list(executor.run())


SBATCH = """#!{python}
# Runs a job array as Slurm does: one process a task, with its index in the environment.
import os, re, subprocess, sys
array = next(a for a in sys.argv if a.startswith("--array="))
export = next(a for a in sys.argv if a.startswith("--export="))
first, last = map(int, re.match(r"--array=(\\d+)-(\\d+)%\\d+", array).groups())
offset = export.rpartition("RUN_OFFSET=")[2]
for number in range(first, last + 1):
    env = {{**os.environ, "SLURM_ARRAY_TASK_ID": str(number), "RUN_OFFSET": offset}}
    subprocess.run(["bash", sys.argv[-1]], env=env, cwd={cwd!r})
print("4711;cluster")
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for sbatch, srun and squeue that run the script on this machine, unchanged."""
    scripts = {
        "sbatch": SBATCH.format(python=sys.executable, cwd=str(Path(__file__).parents[3])),
        "srun": '#!/bin/bash\nshift\nexec "$@"\n',
        "squeue": "#!/bin/bash\nexit 0\n",
    }
    (tmp_path / "bin").mkdir()
    for name, content in scripts.items():
        path = tmp_path / "bin" / name
        path.write_text(content)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "bin"


def test_slurm_gives_the_same_snapshot(inputs: IngestConfig, slurm: Path, tmp_path: Path) -> None:
    expected = ingest(inputs, registry_uri=tmp_path / "local").snapshot
    execution = Execution(kind=ExecutorKind.SLURM)
    assert ingest(inputs, registry_uri=tmp_path / "slurm", workers=2, execution=execution).snapshot == expected


def test_a_failed_task_and_a_refused_job_are_reported(inputs: IngestConfig, slurm: Path, tmp_path: Path) -> None:
    (slurm / "srun").write_text("#!/bin/bash\nexit 1\n")
    with pytest.raises(ServiceError, match="its task left no output"):
        ingest(inputs, registry_uri=tmp_path / "slurm", execution=Execution(kind=ExecutorKind.SLURM))
    (slurm / "sbatch").write_text("#!/bin/bash\necho 'invalid partition' >&2; exit 1\n")
    with pytest.raises(ServiceError, match="invalid partition"):
        ingest(inputs, registry_uri=tmp_path / "slurm", execution=Execution(kind=ExecutorKind.SLURM))


def test_the_slurm_script_has_the_options_and_writes_no_pickle(tmp_path: Path) -> None:
    execution = Execution(kind=ExecutorKind.SLURM, slurm_options=("partition=cpu", "mem-per-cpu=4G"))
    executor = make_executor(execution, [], tasks=2500, workers=7, logging_dir=tmp_path)
    script = executor.script()
    for line in ("#SBATCH --array=0-999%7", "#SBATCH --partition=cpu", "#SBATCH --mem-per-cpu=4G", "#SBATCH --requeue"):
        assert line in script.splitlines()
    assert not list(tmp_path.rglob("*.pickle"))


def test_a_dry_run_shows_the_script_and_writes_nothing(inputs: IngestConfig, tmp_path: Path) -> None:
    execution = Execution(kind=ExecutorKind.SLURM, slurm_options=("partition=cpu",))
    report = ingest(inputs, registry_uri=tmp_path / "new", workers=3, execution=execution, dry_run=True)
    assert "#SBATCH --partition=cpu" in report.script
    assert "#SBATCH --array=0-5%3" in report.lines()
    assert not (tmp_path / "new").exists()
    assert ingest(inputs, registry_uri=tmp_path / "new", dry_run=True).script == ""


def test_slurm_is_refused_where_there_is_no_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    executor = make_executor(Execution(kind=ExecutorKind.SLURM), [], tasks=1, workers=1, logging_dir=tmp_path)
    with pytest.raises(UsageError, match="sbatch is not on this machine"):
        list(executor.run())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"slurm_options": ("partition=cpu",)}, "is for --executor slurm"),
        ({"slurm_options": ("partition",), "kind": ExecutorKind.SLURM}, "NAME=VALUE"),
    ],
)
def test_wrong_slurm_options_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Execution(**wrong)


def test_a_killed_local_worker_is_an_error_and_not_a_wait(tmp_path: Path) -> None:
    executor = LocalExecutor([Killed()], tasks=3, workers=2, logging_dir=tmp_path)
    with pytest.raises(ServiceError, match="killed"):
        list(executor.run())
