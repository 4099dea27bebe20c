"""Play `nulls demo`: the whole story on a real Wikipedia excerpt, with an HTML report.

It ingests, looks up an article by title, redirect and URL, trains through Ray, generates, unlearns the article, and
audits. Every step calls the function that the command of the same name calls. About ten minutes on two cores. All files
are in one directory, which is emptied first, but only if it holds the marker that an earlier demo left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestration.output import Output, size
from orchestration.settings import Settings
from orchestration.unlearning.loss_table import decimals, p_text
from registry import ids
from registry.errors import InputError, RefusedError, UsageError
from registry.lookup import Source, lookup, read_sources
from registry.schema import AliasKind, Kind
from registry.snapshot import Snapshot

MARKER = ".nulls-demo"
MODEL = "nulls-demo"
NUM_AUDITED = 9
_EXCERPT = "enwiki-latest-pages-articles1"
_PROMPT_WORDS = 12
_VERDICTS = {"supported": "supports", "weak": "does not support"}


def find_excerpt() -> Path:
    """Find the English Wikipedia excerpt in the file list of the installed gensim, without importing gensim.

    Raises:
        UsageError: gensim is not installed, or has no such file.
    """
    try:
        files = importlib.metadata.files("gensim") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name.startswith(_EXCERPT) and file.name.endswith(".bz2"):
            return Path(str(file.locate()))
    raise UsageError("the demo's Wikipedia excerpt comes with gensim: pip install 'nulls[demo]', or give --dump FILE")


@dataclasses.dataclass
class Story:
    """The results of the steps; filled in by `play`."""

    report: Path
    ingest: dict[str, Any] = dataclasses.field(default_factory=dict)
    lookups: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    unlearn: dict[str, Any] = dataclasses.field(default_factory=dict)
    audit: dict[str, Any] = dataclasses.field(default_factory=dict)
    lineage: dict[str, Any] = dataclasses.field(default_factory=dict)
    generations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Measure how long a step takes."""
        started = time.monotonic()
        yield
        self.seconds[step] = round(time.monotonic() - started, 2)

    def to_dict(self) -> dict[str, Any]:
        """Return the story for JSON."""
        return dataclasses.asdict(self) | {"report": str(self.report)}

    def lines(self) -> list[str]:
        """Format the story in a dozen lines."""
        counts, evidence = self.ingest, self.unlearn["evidence"]
        row, unseen = evidence["sources"][0], evidence["heldout"]
        changed = max(abs(other["loss_after"] - other["loss_before"]) for other in evidence["others"])
        off = row["loss_off"]
        found = ", ".join(f"{answer['query']!r}" for answer in self.lookups)
        return [
            f"read       {counts['read']} articles: {counts['kept']} kept, "
            f"{sum(counts['filtered'].values())} filtered, {counts['duplicate']} duplicate, "
            f"{sum(counts['failed'].values())} failed",
            f"snapshot   {counts['snapshot'][:16]}, {sum(counts['sources'].values())} sources",
            f"looked up  {found} -> {row['key']}",
            f"trained    {self.train['model_uri']} on {self.train['tokens']:,} tokens at "
            f"{self.train['tokens_per_second']:,.0f} tokens/s",
            f"unlearned  {row['title']!r} -> {self.unlearn['model_uri']} in {self.unlearn['seconds']:.2f} s, "
            f"request {self.unlearn['request_id']}",
            f"its loss   on {row['loss_on']:.2f}; off: placebo {off['placebo']:.2f}, "
            f"next-closest {off['closest']:.2f}, backbone only {off['backbone']:.2f}",
            f"unseen     placebo {unseen['placebo']:.2f}, next-closest {unseen['closest']:.2f}, backbone only "
            f"{unseen['backbone']:.2f} over {unseen['num_sources']} articles never trained",
            f"expected   of this text, had it never been trained: placebo {row['never']['placebo']:.2f}, "
            f"next-closest {row['never']['closest']:.2f}, backbone only {row['never']['backbone']:.2f}",
            f"closure    placebo {decimals(row['closure']['placebo'])}, backbone only "
            f"{decimals(row['closure']['backbone'])}; p = {p_text(row['p_value'])}; evidence {evidence['verdict']}",
            *(f"why        {reason}" for reason in evidence["reasons"]),
            f"others     {len(evidence['others'])} articles with their own sinks: changed by at most {changed:.1e}",
            f"report     {self.report}",
        ]


def play(output: Output, directory: Path, dump: Path | None = None) -> Story:
    """Play the story in `directory`.

    Raises:
        UsageError: there is no dump, or the directory holds other files.
        NullsError: whatever a step raises.
    """
    source = dump or find_excerpt()
    if not source.exists():
        raise InputError(f"no dump at {source}")
    directory = _emptied(directory)
    settings = Settings(
        registry=str(directory / "registry"),
        tracking=f"sqlite:///{directory / 'mlflow.db'}",
        catalog=f"sqlite:///{directory / 'registry' / 'catalog.db'}",
    )
    story = Story(report=directory / "report.html")
    with story.timed("ingest"):
        snapshot = _ingest(output, settings, source, story)
    with story.timed("train"):
        _train(output, settings, directory, story)
    article, title = _choose(snapshot, settings, story.train["model_uri"])
    _look_up(snapshot, article, title, story)
    _generate(output, settings, snapshot, article, story, story.train["model_uri"], before=True)
    with story.timed("unlearn with evidence"):
        _unlearn(output, settings, article, story)
    with story.timed("audit"):
        _audit(output, settings, snapshot, article, story)
    _generate(output, settings, snapshot, article, story, story.unlearn["model_uri"], before=False)
    _measure(directory, source, snapshot, article, story)
    _write_report(story)
    return story


def _emptied(directory: Path) -> Path:
    directory = directory.absolute()
    if directory.exists() and any(directory.iterdir()) and not (directory / MARKER).exists():
        raise UsageError(f"{directory} is not empty and not from an earlier demo; name another with --dir")
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / MARKER).write_text("made by `nulls demo`, which may delete this directory\n")
    return directory


def _ingest(output: Output, settings: Settings, dump: Path, story: Story) -> Snapshot:
    from pipelines.ingest import IngestConfig, ingest

    with output.progress("ingest") as update:
        ingested = ingest(
            IngestConfig(wikipedia=(str(dump),)), registry_uri=settings.registry_uri, workers=2, on_progress=update
        )
    story.ingest = ingested.to_dict()
    snapshot = settings.open_snapshot()
    settings.open_catalog().record_snapshot(snapshot.id, registry=settings.registry_uri, parent=snapshot.parent)
    return snapshot


def _train(output: Output, settings: Settings, directory: Path, story: Story) -> None:
    from orchestration.train_request import step_progress
    from training.config import TrainConfig
    from training.run.driver import train

    with output.progress("train") as update:
        result = train(
            TrainConfig.preset("demo"),
            registry_uri=settings.registry_uri,
            model_name=MODEL,
            num_workers=2,
            runs_dir=directory / "runs",
            tracking_uri=settings.tracking_uri,
            on_progress=step_progress(update),
        )
    story.train = dataclasses.asdict(result)


def _choose(snapshot: Snapshot, settings: Settings, model_uri: str) -> tuple[Source, str]:
    """Choose the longest trained article that a redirect names, and that redirect, so that nobody picks an easy one."""
    from training.serving import flavor

    heldout = flavor.describe(model_uri, tracking_uri=settings.tracking_uri).heldout
    redirects: dict[int, str] = {}
    for batch in snapshot.batches("aliases", ["alias", "kind", "source_id"]):
        for row in batch.to_pylist():
            if row["kind"] == AliasKind.REDIRECT and row["source_id"] is not None:
                redirects.setdefault(row["source_id"], row["alias"])
    known = read_sources(snapshot, set(redirects) - heldout)
    articles = [source for source in known.values() if source.kind == Kind.WIKI and source.num_documents]
    if not articles:
        raise InputError("the dump has no trained article that a redirect names; the demo needs one")
    chosen = max(articles, key=lambda source: (source.num_bytes, source.source_id))
    return chosen, redirects[chosen.source_id]


def _look_up(snapshot: Snapshot, article: Source, redirect: str, story: Story) -> None:
    (document,) = snapshot.where("documents", "doc_id", [ids.doc_id(article.key, article.key)]).to_pylist()[:1]
    for query in (article.title or article.key, redirect, document["url"]):
        answer = lookup(snapshot, query)
        if not answer.found or answer.matches[0].source.source_id != article.source_id:
            raise InputError(f"{query!r} does not lead to {article.key}: got {[m.source.key for m in answer.matches]}")
        story.lookups.append(answer.to_dict())


def _generate(
    output: Output,
    settings: Settings,
    snapshot: Snapshot,
    article: Source,
    story: Story,
    model_uri: str,
    *,
    before: bool,
) -> None:
    """Continue the article's own beginning: with its sinks, with none, and with those that the router chooses."""
    from training.serving import flavor

    served = flavor.load(model_uri, tracking_uri=settings.tracking_uri, catalog=settings.catalog)
    prompt = " ".join(snapshot.texts(article.source_id)[0][1].split()[:_PROMPT_WORDS])
    ways: list[tuple[str, dict[str, Any]]] = [("its own sinks", {"source_id": article.source_id})]
    if not before:
        ways += [("routed to the closest source in force", {}), ("no sinks, backbone only", {"source_id": None})]
    for how, options in ways:
        entry: dict[str, Any] = {"model": model_uri, "how": how, "prompt": prompt, "refused": None, "text": None}
        try:
            entry["text"], used = served.generate(prompt, max_new_tokens=48, **options)
            key = read_sources(snapshot, [used])[used].key if used is not None else None
            entry["how"] = f"{how} ({key})" if key and not options else how
        except RefusedError as error:
            entry["refused"] = f"refused: {error}"
        story.generations.append(entry)
        output.note(f"generate: {entry['how']}: {entry['refused'] or entry['text']!r}")


def _unlearn(output: Output, settings: Settings, article: Source, story: Story) -> None:
    from orchestration.unlearning.unlearn import unlearn

    with output.progress("unlearn") as update:
        result = unlearn(
            settings,
            story.train["model_uri"],
            [article.key],
            reason="demonstration",
            requested_by="nulls demo",
            progress=update,
        )
    story.unlearn = result.to_dict()


def _audit(output: Output, settings: Settings, snapshot: Snapshot, article: Source, story: Story) -> None:
    from orchestration.unlearning.audit import audit, sample

    others = sample(snapshot, settings, story.unlearn["model_uri"], NUM_AUDITED)
    keys = [article.key, *(source.key for source in others)]
    with output.progress("audit") as update:
        story.audit = audit(settings, story.unlearn["model_uri"], keys, progress=lambda message: update(message, None))


def _measure(directory: Path, dump: Path, snapshot: Snapshot, article: Source, story: Story) -> None:
    from orchestration.explain import explain

    story.lineage = explain(snapshot, article.key) | {"input": snapshot.manifest["inputs"][0]["sha256"]}
    own, children = (
        resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    story.sizes = {
        "dump": dump.stat().st_size,
        "snapshot": sum(entry["bytes"] for entry in snapshot.manifest["files"].values()),
        "weights": sum(path.stat().st_size for path in directory.glob("runs/**/weights/model.safetensors")),
        "peak memory of this process": own,
        "peak memory of its largest child": children,
    }


def _write_report(story: Story) -> None:
    from orchestration.unlearning.report.page import write_report

    evidence, lineage = story.unlearn["evidence"], story.lineage
    row = evidence["sources"][0]
    request, snapshot = story.unlearn["request_id"], story.ingest["snapshot"]
    write_report(
        story.report,
        title=f"{row['title']}, unlearned",
        subtitle=f"{story.unlearn['model_uri']}, request {request}, snapshot {snapshot}",
        sources=story.audit["sources"],
        heldout=story.audit["summary"]["unseen_loss"],
        verdict={
            "outcome": evidence["verdict"],
            "headline": f"The evidence {_VERDICTS[evidence['verdict']]} that {row['title']} is unlearned",
            "reasons": evidence["reasons"],
        },
        closures=row["closure"],
        others=evidence["others"],
        figures=[
            ("loss on, nats a token", f"{row['loss_on']:.2f}"),
            ("loss off (placebo)", f"{row['loss_off']['placebo']:.2f}"),
            ("never-trained articles (placebo)", f"{evidence['heldout']['placebo']:.2f}"),
            ("to revoke", f"{story.unlearn['seconds']:.2f} s"),
        ],
        generations=story.generations,
        facts=[
            ("Lineage of the article", _lineage(story, lineage)),
            ("What was read", _counts(story.ingest)),
            ("Sizes", [(name, size(value)) for name, value in story.sizes.items()]),
            ("Seconds", list(story.seconds.items())),
        ],
    )


def _lineage(story: Story, lineage: dict[str, Any]) -> list[tuple[str, Any]]:
    redirects = [answer["query"] for answer in story.lookups]
    return [
        ("read from", f"{lineage['input_file']} at byte {lineage['input_offset']:,} (SHA-256 {lineage['input']})"),
        ("document", f"{lineage['doc_id']}, captured {lineage['captured']}, {lineage['num_bytes']:,} bytes of text"),
        ("found as", ", ".join(redirects)),
        ("source", f"{lineage['source']}, in {lineage['shard']}"),
        ("snapshot", story.ingest["snapshot"]),
        ("trained into", f"{story.train['model_uri']} (MLflow run {story.train['run_id']})"),
        (
            "unlearned in",
            f"{story.unlearn['model_uri']} (request {story.unlearn['request_id']}, {story.unlearn['state']})",
        ),
    ]


def _counts(ingested: dict[str, Any]) -> list[tuple[str, Any]]:
    dropped = {**ingested["filtered"], **ingested["failed"]}
    reasons = "; ".join(f"{reason}: {count}" for reason, count in dropped.items())
    names = ("read", "kept", "duplicate", "superseded")
    return [(name, ingested[name]) for name in names] + [("filtered and failed", reasons or "none")]
