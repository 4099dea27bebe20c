"""The whole journey from the command line: a dump, a snapshot, a model trained with Ray, an unlearn, an audit.

Most of its time is the start of Ray; the model is as small, and trained as briefly, as still memorises its sources.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.orchestration.cli.commands import answer, nulls
from tests.orchestration.corpus import text
from tests.pipelines.readers.dumps import Page, write_dump

NUM_ARTICLES = 40
pytestmark = pytest.mark.ray
SHAPE = {
    "model.hidden_size": 64,
    "model.num_layers": 2,
    "model.num_heads": 2,
    "model.num_kv_heads": 2,
    "model.num_backbone": 32,
    "model.num_pool": 2048,
    "model.num_sinks": 64,
    "epochs": 20,
    "context_length": 128,
    "rows_per_step": 8,
    "micro_batch": 8,
    "vocab_size": 300,
    "min_heldout_bytes": 100,
    "watch_every": 50,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a registry and, trained on it, `models:/orchard/1`."""
    made = tmp_path_factory.mktemp("journey")
    write_dump(made / "enwiki-test.xml.bz2", [Page(f"Tree {n}", text(n)) for n in range(NUM_ARTICLES)], compress="bz2")
    ingested = answer(nulls("ingest", "--wikipedia", "enwiki-test.xml.bz2", "--json", cwd=made))
    assert ingested["kept"] == NUM_ARTICLES
    options = [argument for name, value in SHAPE.items() for argument in ("--set", f"{name}={value}")]
    trained = answer(nulls("train", "--model", "orchard", *options, "--workers", "1", "--json", cwd=made))
    assert (trained["model_uri"], trained["snapshot"]) == ("models:/orchard/1", ingested["snapshot"])
    return made


@pytest.fixture(scope="module")
def unlearned(folder: Path) -> dict[str, Any]:
    """The JSON of `nulls unlearn` for an article that was trained, named by its URL."""
    command = ("unlearn", "models:/orchard/1", url(trained_article(folder)), "--reason", "asked", "--json")
    done = nulls(*command, cwd=folder)
    # The backbone of so small a model may keep a trace; the evidence reports it, and the exit code must agree.
    found: dict[str, Any] = answer(done, code=done.code)
    supported = found["evidence"]["verdict"] == "supported"
    assert (done.code, found["state"]) == ((0, "verified") if supported else (1, "applied"))
    return found


def url(number: int) -> str:
    """Return the URL of an article."""
    return f"https://en.wikipedia.org/wiki/Tree_{number}"


def trained_article(folder: Path) -> int:
    """Return the first article that was not held out: the first that a dry run does not refuse to unlearn."""
    for number in range(NUM_ARTICLES):
        command = ("unlearn", "models:/orchard/1", url(number), "--reason", "asked", "--dry-run")
        if nulls(*command, cwd=folder).code == 0:
            return number
    raise AssertionError("every article was held out")


def test_an_unlearned_article_is_as_if_never_seen(unlearned: dict[str, Any]) -> None:
    (source,) = unlearned["evidence"]["sources"]
    assert unlearned["model_uri"] == "models:/orchard/2"
    assert source["closure"]["placebo"] > 0.9
    assert source["never"]["placebo"] > source["loss_on"] + 1


def test_the_new_version_refuses_it_and_answers_for_others(folder: Path, unlearned: dict[str, Any]) -> None:
    (key,) = unlearned["sources"]
    refused = nulls("generate", "models:/orchard/2", "word", "--source", key, cwd=folder)
    assert (refused.code, "unlearned" in refused.stderr) == (4, True)
    assert nulls("generate", "models:/orchard/2", "word", "--max-new-tokens", "2", cwd=folder).code == 0


def test_an_audit_of_the_new_version_and_the_ledger_agree_with_it(folder: Path, unlearned: dict[str, Any]) -> None:
    (key,) = unlearned["sources"]
    audited = answer(
        nulls("audit", "models:/orchard/2", key, "--json", cwd=folder), code=int(unlearned["state"] != "verified")
    )
    (row,) = answer(nulls("ledger", "--json", cwd=folder))
    (source,) = audited["sources"]
    (evidence,) = unlearned["evidence"]["sources"]
    assert source["revoked"]
    assert source["loss_off"] == evidence["loss_off"]
    assert source["loss_off"]["placebo"] > source["loss_on"] + 0.3
    assert (row["request_id"], row["state"]) == (unlearned["request_id"], unlearned["state"])
    assert nulls("ledger", "--verify", cwd=folder).code == 0
