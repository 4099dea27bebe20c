"""The main journey from the command line: a dump, a snapshot, a model trained with Ray, an unlearn, an audit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.orchestration.cli.commands import answer, nulls
from tests.orchestration.corpus import text
from tests.pipelines.readers.dumps import Page, write_dump

NUM_ARTICLES = 40
SHAPE = {
    "model.hidden_size": 64,
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.num_kv_heads": 2,
    "model.num_backbone": 32,
    "model.num_pool": 2048,
    "model.num_sinks": 64,
    "epochs": 30,
    "context_length": 128,
    "rows_per_step": 8,
    "micro_batch": 8,
    "vocab_size": 300,
    "min_heldout_bytes": 100,
    "watch_every": 50,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a registry and, trained on it, `models:/orchard/1`."""
    folder = tmp_path_factory.mktemp("journey")
    write_dump(
        folder / "enwiki-test.xml.bz2", [Page(f"Tree {n}", text(n)) for n in range(NUM_ARTICLES)], compress="bz2"
    )
    report = answer(nulls("ingest", "--wikipedia", "enwiki-test.xml.bz2", "--json", cwd=folder))
    assert report["kept"] == NUM_ARTICLES
    options = [word for name, value in SHAPE.items() for word in ("--set", f"{name}={value}")]
    trained = answer(nulls("train", "--model", "orchard", *options, "--workers", "1", "--json", cwd=folder))
    assert (trained["model_uri"], trained["snapshot"]) == ("models:/orchard/1", report["snapshot"])
    return folder


@pytest.fixture(scope="module")
def unlearned(place: Path) -> dict[str, Any]:
    """What `nulls unlearn` says of an article that was trained, named by its URL."""
    asked = ("unlearn", "models:/orchard/1", url(trained_article(place)), "--reason", "asked", "--json")
    done = nulls(*asked, cwd=place)
    # Whether so small a model's backbone kept nothing is for the evidence to say; it and the exit code must agree.
    found: dict[str, Any] = answer(done, code=done.code)
    supported = found["evidence"]["verdict"] == "supported"
    assert (done.code, found["state"]) == ((0, "verified") if supported else (1, "applied"))
    return found


def url(number: int) -> str:
    """Where an article stands."""
    return f"https://en.wikipedia.org/wiki/Tree_{number}"


def trained_article(place: Path) -> int:
    """The first article that was not held out, by what an unlearn of it would do."""
    for number in range(NUM_ARTICLES):
        asked = ("unlearn", "models:/orchard/1", url(number), "--reason", "asked", "--dry-run")
        if nulls(*asked, cwd=place).code == 0:
            return number
    raise AssertionError("every article was held out")


def test_an_unlearned_article_is_as_if_never_seen(unlearned: dict[str, Any]) -> None:
    (source,) = unlearned["evidence"]["sources"]
    assert unlearned["model_uri"] == "models:/orchard/2"
    assert source["closure"]["placebo"] > 0.9
    assert source["never"]["placebo"] > source["loss_on"] + 1


def test_the_new_version_refuses_it_and_answers_for_others(place: Path, unlearned: dict[str, Any]) -> None:
    (key,) = unlearned["sources"]
    refused = nulls("generate", "models:/orchard/2", "word", "--source", key, cwd=place)
    assert (refused.code, "unlearned" in refused.stderr) == (4, True)
    assert nulls("generate", "models:/orchard/2", "word", "--max-new-tokens", "2", cwd=place).code == 0


def test_an_audit_of_the_new_version_and_the_ledger_tell_the_same(place: Path, unlearned: dict[str, Any]) -> None:
    (key,) = unlearned["sources"]
    audited = answer(
        nulls("audit", "models:/orchard/2", key, "--json", cwd=place), code=int(unlearned["state"] != "verified")
    )
    (row,) = answer(nulls("ledger", "--json", cwd=place))
    (source,) = audited["sources"]
    (evidence,) = unlearned["evidence"]["sources"]
    assert source["revoked"]
    assert source["loss_off"] == evidence["loss_off"]
    assert source["loss_off"]["placebo"] > source["loss_on"] + 0.3
    assert (row["request_id"], row["state"]) == (unlearned["request_id"], unlearned["state"])
    assert nulls("ledger", "--verify", cwd=place).code == 0
