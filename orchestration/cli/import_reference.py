"""`nulls import-reference DIR --model NAME`: a released NULLs checkpoint becomes a model version like any other.

read the checkpoint's table of contents -> titles -> a snapshot of them -> weights as safetensors -> MLflow. The version
can be served, looked up, revoked and routed; its evidence is weak by necessity, since the text is not here.

The default scheme is `reference-int32`: the reference's own inference makes ids of that type, and only one of the two
is the one that a checkpoint was trained under. Where both can be had, the right one is that under which an article's
text costs less with its sinks on (`training.evaluate.losses.loss_of`). Run again, it returns the version that it made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestration.cli.options import (
    DEFAULT_RUNS,
    DryRunOption,
    JsonOption,
    ModelNameOption,
    NewVersionOption,
    RunsOption,
)
from orchestration.output import Output
from orchestration.settings import DEFAULT_REGISTRY, Settings
from registry.errors import ModelExistsError, UsageError
from registry.storage import sha256_of

if TYPE_CHECKING:
    from registry.snapshot import Registry, Snapshot
    from training.reference.release import ReferenceModel
    from training.reference.titles import Titles
    from training.sinks.mask_ids import MaskIds

TITLES_FILE = "title_to_index.pkl"
SCHEMES = ("reference-int32", "reference-int64")
EXPERIMENT = "nulls"


def import_reference(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="With lit_model.pth, model_config.yaml, tokenizer.")],
    model_name: ModelNameOption,
    scheme: Annotated[
        str,
        typer.Option("--scheme", metavar="|".join(SCHEMES), help="The type in which its training multiplied ids."),
    ] = SCHEMES[0],
    titles: Annotated[
        Path | None,
        typer.Option("--titles", metavar="FILE", help=f"By default {TITLES_FILE} in DIR or in the directory above."),
    ] = None,
    wiki: Annotated[str, typer.Option("--wiki", metavar="W", help="The wiki that the titles are of.")] = "enwiki",
    num_backbone: Annotated[
        int | None, typer.Option("--num-backbone", min=1, metavar="N", help="Instead of p_gen's share of the neurons.")
    ] = None,
    new_version: NewVersionOption = False,
    runs: RunsOption = DEFAULT_RUNS,
    registry: Annotated[
        str | None,
        typer.Option(
            "--registry",
            metavar="DIR",
            help=f"One of its own, for the titles; NULLS_REGISTRY, else {DEFAULT_REGISTRY}.",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Import a released NULLs checkpoint (litgpt's layout) as a model version whose sources can be unlearned."""
    if scheme not in SCHEMES:
        raise UsageError(f"--scheme {scheme}: expected {' or '.join(SCHEMES)}")
    output, settings = Output(as_json=as_json), Settings(registry=registry)
    from training.reference.release import inspect

    found = inspect(directory, num_backbone=num_backbone)
    for note in found.notes:
        output.note(f"note: {note}")
    task = _Import(settings, found, scheme, titles or _titles_beside(directory), wiki, runs / model_name, model_name)
    if dry_run:
        data = task.planned()
        output.result(data, lambda: [f"{name:<16} {value}" for name, value in data.items()])
        return
    with output.progress("import-reference") as update:
        data = task.execute(update, new_version=new_version)
    output.result(
        data,
        lambda: [
            f"model     {data['model_uri']}",
            f"weights   {data['weights']}, {data['num_parameters']:,} parameters",
            f"snapshot  {data['snapshot'][:16]}, {data['num_sources']:,} titles",
            f"sinks     {data['num_distinct_sinks']:,} different sets under {scheme}",
        ],
    )


def _titles_beside(directory: Path) -> Path:
    above = directory.absolute().parent / TITLES_FILE
    return above if above.is_file() and not (directory / TITLES_FILE).is_file() else directory / TITLES_FILE


@dataclasses.dataclass(frozen=True)
class _Import:
    """One import: what was found, and where it goes."""

    settings: Settings
    found: ReferenceModel
    scheme: str
    titles_file: Path
    wiki: str
    folder: Path
    model_name: str

    def planned(self) -> dict[str, Any]:
        """What would be imported."""
        from training.reference.titles import read_titles

        titles = read_titles(self.titles_file)
        facts = {"model": self.model_name, "scheme": self.scheme, "num_sources": len(titles)}
        return {**facts, "registry": self.settings.registry_uri, **self.found.to_dict()}

    def execute(self, update: Any, *, new_version: bool) -> dict[str, Any]:
        """All of it; each step is found done where an earlier run did it."""
        from registry.snapshot import Registry
        from training.reference.titles import read_titles, refuse_other_corpus, write_snapshot

        started = time.monotonic()
        update("reading titles", None)
        titles = read_titles(self.titles_file)
        registry = Registry.open(self.settings.registry_uri, create=True)
        refuse_other_corpus(registry)
        weights = self._weights_folder()
        self._refuse_existing(weights, new_version=new_version)
        snapshot, mask_ids = write_snapshot(
            titles,
            path=self.titles_file,
            wiki=self.wiki,
            registry=registry,
            id_offset=self.found.id_offset,
            progress=update,
        )
        if not (weights / "nulls.json").is_file():
            self._convert(weights, registry, snapshot, titles, mask_ids, update)
        model_uri, run_id = self._registered(weights, snapshot)
        self._record(registry, snapshot, model_uri, run_id, weights)
        return {
            "model_uri": model_uri,
            "run_id": run_id,
            "snapshot": snapshot.id,
            "num_sources": len(titles),
            "scheme": self.scheme,
            "num_distinct_sinks": mask_ids.num_distinct(self.scheme),
            "weights": str(weights),
            "num_parameters": self.found.num_parameters,
            "notes": list(self.found.notes),
            "seconds": round(time.monotonic() - started, 3),
        }

    def _weights_folder(self) -> Path:
        """Named after all that goes into the weights, so that the same import finds its own."""
        from training.reference.release import CONFIG_FILE, WEIGHTS_FILE

        inputs = [self.found.directory / WEIGHTS_FILE, self.found.directory / CONFIG_FILE, self.titles_file]
        parts = [self.scheme, self.wiki, str(self.found.num_backbone), *map(sha256_of, inputs)]
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
        return (self.folder / f"imported-{name}" / "weights").absolute()

    def _refuse_existing(self, weights: Path, *, new_version: bool) -> None:
        from training.tracking import runs, store

        uri = self.settings.tracking_uri
        if (
            new_version
            or self._version_of(weights)
            or not runs.model_exists(store.client(uri), uri, self.model_name)
        ):
            return
        raise ModelExistsError(
            f"model {self.model_name!r} is registered already in {uri}: name another with --model, or add a version to "
            "it with --new-version"
        )

    def _version_of(self, weights: Path) -> Any:
        """The version that an earlier run of this import registered."""
        from training.serving import flavor

        for version in flavor.versions(self.model_name, tracking_uri=self.settings.tracking_uri):
            if version.weights == weights and not version.request_id:
                return version
        return None

    def _convert(
        self,
        weights: Path,
        registry: Registry,
        snapshot: Snapshot,
        titles: Titles,
        mask_ids: MaskIds,
        update: Any,
    ) -> None:
        from training.data.tokenizer import load_tokenizer
        from training.reference.convert import convert
        from training.serving.flavor import ROUTER_FILE
        from training.serving.router import Router

        def write_router(folder: Path) -> None:
            update("indexing titles, which prompts are routed by", None)
            source_ids = mask_ids.sources_of(titles.index_N + self.found.id_offset).tolist()
            Router.build(zip(source_ids, titles.titles.to_pylist(), strict=True)).save(folder / ROUTER_FILE)

        convert(
            self.found,
            self.scheme,
            weights,
            tokenizer=load_tokenizer(self.found.directory),
            mask_ids=mask_ids,
            nulls={
                "schema": 1,
                "snapshot": snapshot.id,
                "registry": str(registry.root),
                "layout": self.found.layout(self.scheme).to_dict(),
                "context_length": self.found.context_length,
                "heldout": [],
                "num_trained_sources": len(titles),
                "imported": self.found.to_dict(),
            },
            extra=write_router,
            progress=update,
        )

    def _registered(self, weights: Path, snapshot: Snapshot) -> tuple[str, str]:
        """The version's URI and its run's id."""
        from training.serving import flavor
        from training.tracking import runs, store

        known = self._version_of(weights)
        if known:
            return known.uri, str(known.run_id)
        uri = self.settings.tracking_uri
        client = store.client(uri)
        run_id = runs.start_run(
            client,
            uri,
            experiment=EXPERIMENT,
            name=f"{self.model_name}/import",
            parameters={"scheme": self.scheme, **self.found.to_dict()},
            snapshot=snapshot,
        )
        model_uri = flavor.register(weights, model_name=self.model_name, run_id=run_id, tracking_uri=uri)
        with store.translated(uri):
            client.set_terminated(run_id)
        return model_uri, run_id

    def _record(self, registry: Registry, snapshot: Snapshot, model_uri: str, run_id: str, weights: Path) -> None:
        catalog = self.settings.find_catalog(registry)
        if catalog is not None:
            catalog.record_snapshot(snapshot.id, registry=str(registry.root), parent=None)
            catalog.record_model(model_uri, snapshot_id=snapshot.id, weights=str(weights), run_id=run_id)
