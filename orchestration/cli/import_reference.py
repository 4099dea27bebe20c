"""`nulls import-reference DIR --model NAME`: make a released NULLs checkpoint a model version like any other.

Steps: read the checkpoint's table of contents, read the titles, write a snapshot of them, write the weights as
safetensors, register with MLflow. The version can be served, looked up, revoked and routed; the evidence for it is
always weak, since the registry holds no text of it.

The default scheme is `reference-int32`: the reference's own inference makes ids of that type, and a checkpoint was
trained under only one of the two. Where both can be tried, the right one is the scheme under which an article's text
has a lower loss with its sinks on (`training.evaluate.losses.loss_of`). The same import again returns the version that
it made.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestration.cli.parameters.options import (
    DEFAULT_RUNS,
    DryRunOption,
    JsonOption,
    ModelNameOption,
    NewVersionOption,
    RunsOption,
)
from orchestration.output import Output, ProgressUpdate
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
_CHECKPOINT = "Checkpoint"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """The parameters of `nulls import-reference`."""

    directory: Annotated[Path, typer.Argument(metavar="DIR", help="With lit_model.pth, model_config.yaml, tokenizer.")]
    model: ModelNameOption
    scheme: Annotated[
        str,
        typer.Option(
            "--scheme",
            metavar="|".join(SCHEMES),
            help="The integer type in which its training multiplied ids.",
            rich_help_panel=_CHECKPOINT,
        ),
    ] = SCHEMES[0]
    titles: Annotated[
        Path | None,
        typer.Option(
            "--titles",
            metavar="FILE",
            help=f"By default {TITLES_FILE} in DIR or in the directory above.",
            rich_help_panel=_CHECKPOINT,
        ),
    ] = None
    wiki: Annotated[
        str,
        typer.Option("--wiki", metavar="W", help="The wiki that the titles belong to.", rich_help_panel=_CHECKPOINT),
    ] = "enwiki"
    num_backbone: Annotated[
        int | None,
        typer.Option(
            "--num-backbone",
            min=1,
            metavar="N",
            help="Backbone neurons, instead of p_gen's share of all neurons.",
            rich_help_panel=_CHECKPOINT,
        ),
    ] = None
    new_version: NewVersionOption = False
    runs: RunsOption = DEFAULT_RUNS
    registry: Annotated[
        str | None,
        typer.Option(
            "--registry",
            metavar="DIR",
            help=f"A registry only for these titles; NULLS_REGISTRY, else {DEFAULT_REGISTRY}.",
        ),
    ] = None
    dry_run: DryRunOption = False
    as_json: JsonOption = False


def run(request: ImportRequest, settings: Settings, output: Output) -> None:
    """Import a released NULLs checkpoint (litgpt's layout) as a model version whose sources can be unlearned."""
    if request.scheme not in SCHEMES:
        raise UsageError(f"--scheme {request.scheme}: expected {' or '.join(SCHEMES)}")
    from training.reference.release import inspect

    found = inspect(request.directory, num_backbone=request.num_backbone)
    for note in found.notes:
        output.note(f"note: {note}")
    task = _Import(request, settings, found)
    if request.dry_run:
        preview = task.preview()
        output.result(preview, lambda: [f"{name:<16} {value}" for name, value in preview.items()])
        return
    with output.progress("import-reference") as update:
        data = task.execute(update)
    output.result(
        data,
        lambda: [
            f"model     {data['model_uri']}",
            f"weights   {data['weights']}, {data['num_parameters']:,} parameters",
            f"snapshot  {data['snapshot'][:16]}, {data['num_sources']:,} titles",
            f"sinks     {data['num_distinct_sinks']:,} different sets under {request.scheme}",
        ],
    )


@dataclasses.dataclass(frozen=True)
class _Import:
    """One import: its request, and the checkpoint that was found."""

    request: ImportRequest
    settings: Settings
    found: ReferenceModel

    @property
    def titles_file(self) -> Path:
        """`--titles`, else the file in DIR, else the one in the directory above."""
        beside = self.request.directory / TITLES_FILE
        above = self.request.directory.absolute().parent / TITLES_FILE
        return self.request.titles or (above if above.is_file() and not beside.is_file() else beside)

    def preview(self) -> dict[str, Any]:
        """Return what would be imported, for `--dry-run`."""
        from training.reference.titles import read_titles

        titles = read_titles(self.titles_file)
        facts = {"model": self.request.model, "scheme": self.request.scheme, "num_sources": len(titles)}
        return {**facts, "registry": self.settings.registry_uri, **self.found.to_dict()}

    def execute(self, update: ProgressUpdate) -> dict[str, Any]:
        """Import the model; a step that an earlier run completed is not repeated."""
        from registry.snapshot import Registry
        from training.reference.titles import read_titles, refuse_other_corpus, write_snapshot

        started = time.monotonic()
        update("reading titles", None)
        titles = read_titles(self.titles_file)
        registry = Registry.open(self.settings.registry_uri, create=True)
        refuse_other_corpus(registry)
        weights = self._weights_folder()
        self._refuse_existing(weights)
        snapshot, mask_ids = write_snapshot(
            titles,
            path=self.titles_file,
            wiki=self.request.wiki,
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
            "scheme": self.request.scheme,
            "num_distinct_sinks": mask_ids.num_distinct(self.request.scheme),
            "weights": str(weights),
            "num_parameters": self.found.num_parameters,
            "notes": list(self.found.notes),
            "seconds": round(time.monotonic() - started, 3),
        }

    def _weights_folder(self) -> Path:
        """Return a folder named after all that determines the weights, so that the same import finds it again."""
        from training.reference.release import CONFIG_FILE, WEIGHTS_FILE

        inputs = [self.found.directory / WEIGHTS_FILE, self.found.directory / CONFIG_FILE, self.titles_file]
        parts = [self.request.scheme, self.request.wiki, str(self.found.num_backbone), *map(sha256_of, inputs)]
        name = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
        return (self.request.runs / self.request.model / f"imported-{name}" / "weights").absolute()

    def _refuse_existing(self, weights: Path) -> None:
        from training.tracking import runs, store

        uri = self.settings.tracking_uri
        if (
            self.request.new_version
            or self._version_of(weights)
            or not runs.model_exists(store.client(uri), uri, self.request.model)
        ):
            return
        raise ModelExistsError(
            f"model {self.request.model!r} is registered already in {uri}: name another with --model, or add a version "
            "to it with --new-version"
        )

    def _version_of(self, weights: Path) -> Any:
        """Return the version that an earlier run of this import registered, or None."""
        from training.serving import flavor

        for version in flavor.versions(self.request.model, tracking_uri=self.settings.tracking_uri):
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
        update: ProgressUpdate,
    ) -> None:
        from training.data.tokenizer import load_tokenizer
        from training.reference.convert import convert
        from training.serving.flavor import ROUTER_FILE
        from training.serving.router import Router

        def write_router(folder: Path) -> None:
            update("indexing titles for routing prompts", None)
            source_ids = mask_ids.sources_of(titles.index_N + self.found.id_offset).tolist()
            Router.build(zip(source_ids, titles.titles.to_pylist(), strict=True)).save(folder / ROUTER_FILE)

        convert(
            self.found,
            self.request.scheme,
            weights,
            tokenizer=load_tokenizer(self.found.directory),
            mask_ids=mask_ids,
            nulls={
                "schema": 1,
                "snapshot": snapshot.id,
                "registry": str(registry.root),
                "layout": self.found.layout(self.request.scheme).to_dict(),
                "context_length": self.found.context_length,
                "heldout": [],
                "num_trained_sources": len(titles),
                "imported": self.found.to_dict(),
            },
            extra=write_router,
            progress=update,
        )

    def _registered(self, weights: Path, snapshot: Snapshot) -> tuple[str, str]:
        """Register the weights, unless they are, and return the version's URI and the id of its run."""
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
            name=f"{self.request.model}/import",
            parameters={"scheme": self.request.scheme, **self.found.to_dict()},
            snapshot=snapshot,
        )
        model_uri = flavor.register(weights, model_name=self.request.model, run_id=run_id, tracking_uri=uri)
        with store.translated(uri):
            client.set_terminated(run_id)
        return model_uri, run_id

    def _record(self, registry: Registry, snapshot: Snapshot, model_uri: str, run_id: str, weights: Path) -> None:
        catalog = self.settings.find_catalog(registry)
        if catalog is not None:
            catalog.record_snapshot(snapshot.id, registry=str(registry.root), parent=None)
            catalog.record_model(model_uri, snapshot_id=snapshot.id, weights=str(weights), run_id=run_id)
