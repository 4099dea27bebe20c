"""A released model, from its files to an unlearned version, using only the command line."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from registry.errors import NotFoundError, RefusedError
from registry.ids import SourceId
from tests.orchestration.cli.commands import answer, nulls
from tests.training.reference import release_files as release
from tests.training.reference.release_files import SHAPES, TITLES, VOCAB, config, weights, write_release
from training.checkpoint.export import weights_digest
from training.data.tokenizer import load_tokenizer
from training.reference.titles import key_of
from training.serving import flavor
from training.serving.in_force import InForce

SHAPE = SHAPES["wide-heads"]
# Under int32 these two have the sinks of "Anarchism" (index 0, so id VOCAB), and every sink.
TWIN, EVERYTHING = "Twin of Anarchism", "Everything"
ALL_TITLES = {title: n for n, title in enumerate(TITLES)} | {TWIN: 65536, EVERYTHING: 65536 - VOCAB}
IMPORT = ("import-reference", "release", "--model", "released")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an imported model, `models:/released/1`."""
    folder = tmp_path_factory.mktemp("import")
    write_release(folder / "release", SHAPE, titles=ALL_TITLES)
    (folder / "release" / "title_to_index.pkl").rename(folder / "title_to_index.pkl")  # as the release has it
    planned = answer(nulls(*IMPORT, "--dry-run", "--json", cwd=folder))
    assert (planned["num_sources"], planned["num_pool"], planned["num_heads"]) == (len(ALL_TITLES), 48, 3)
    assert sorted(path.name for path in folder.iterdir()) == ["release", "title_to_index.pkl"]
    made = answer(nulls(*IMPORT, "--json", cwd=folder))
    assert (made["model_uri"], made["num_sources"]) == ("models:/released/1", len(ALL_TITLES))
    assert made["num_distinct_sinks"] == len(ALL_TITLES) - 1
    return folder


def tracking(folder: Path) -> str:
    """Return the URI of the store that the commands use."""
    return f"sqlite:///{folder / 'mlflow.db'}"


def greedy(prompt: str, number: int | None, num_tokens: int, folder: Path) -> str:
    """Return the text that the reference itself would generate, by its own dense computation."""
    tokenizer, fields = load_tokenizer(folder), config(SHAPE)
    backbone = int(fields["intermediate_size"] * fields["p_gen"])
    pool = fields["intermediate_size"] - backbone
    sinks = [False] * pool if number is None else release.mask(number, pool, fields["p_mem"], 32)
    mask_M = torch.tensor([True] * backbone + sinks).float()
    tokens = [tokenizer.eos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
    start = len(tokens)
    for _ in range(num_tokens):
        tokens.append(int(release.dense_logits(weights(SHAPE), fields, torch.tensor(tokens), mask_M)[-1].argmax()))
        if tokens[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(tokens[start:], skip_special_tokens=True))


def test_a_title_is_found_and_generates_as_the_release_does(folder: Path) -> None:
    (found,) = answer(nulls("lookup", "Anarchism", "--json", cwd=folder))
    assert [match["key"] for match in found["matches"]] == [key_of("Anarchism", "enwiki")]
    texts = {}
    generate = ("generate", "models:/released/1", "apples", "--max-new-tokens", "12", "--json")
    for title in ("Ayn Rand", TWIN, "Anarchism"):
        data = answer(nulls(*generate, "--source", title, cwd=folder))
        assert data["source"] == key_of(title, "enwiki")
        assert data["text"] == greedy("apples", ALL_TITLES[title] + VOCAB, 12, folder / "release"), title
        texts[title] = data["text"]
    assert texts["Anarchism"] == texts[TWIN] != texts["Ayn Rand"]
    off = answer(nulls(*generate, "--no-source", cwd=folder))
    assert off["text"] == greedy("apples", None, 12, folder / "release") not in texts.values()
    routed = answer(nulls("generate", "models:/released/1", "The steam engine was", "--json", cwd=folder))
    assert routed["source"] == key_of("Steam engine", "enwiki")


def test_the_same_import_again_is_the_same_version(folder: Path) -> None:
    again = answer(nulls(*IMPORT, "--json", cwd=folder))
    assert again["model_uri"] == "models:/released/1"
    refused = nulls(*IMPORT, "--scheme", "reference-int64", cwd=folder)
    assert refused.code == 2
    assert "--new-version" in refused.stderr
    wrong = nulls(*IMPORT, "--scheme", "keyed-v1", cwd=folder)
    assert wrong.code == 2
    assert "reference-int32 or reference-int64" in wrong.stderr


def test_unlearning_reports_what_it_cannot_measure_and_revokes_equal_sinks_too(folder: Path) -> None:
    before = flavor.describe("models:/released/1", tracking_uri=tracking(folder))
    unlearn = ("unlearn", "models:/released/1", "Anarchism", "--reason", "r", "--json")
    plan = answer(nulls(*unlearn, "--dry-run", cwd=folder))
    assert plan["collateral"]["num_with_the_same_sinks"] == 2
    assert set(plan["collateral"]["with_the_same_sinks"]) == {key_of(t, "enwiki") for t in (TWIN, EVERYTHING)}

    printed = nulls(*unlearn[:-1], "--dry-run", cwd=folder).stdout
    assert "lose their sinks too, since they are the very same: 2 other sources" in printed
    data = answer(nulls(*unlearn, cwd=folder), code=1)
    assert (data["state"], data["model_uri"]) == ("applied", "models:/released/2")
    evidence = data["evidence"]
    assert (evidence["verdict"], evidence["masks_refused"], evidence["sources"]) == ("weak", True, [])
    assert any("does not hold the text" in reason for reason in evidence["reasons"])
    after = flavor.describe("models:/released/2", tracking_uri=tracking(folder))
    assert after.weights_digest == before.weights_digest

    for title in ("Anarchism", TWIN, EVERYTHING):
        refused = nulls("generate", "models:/released/2", "apples", "--source", title, cwd=folder)
        assert refused.code == 4, refused.stderr
    kept = nulls("generate", "models:/released/2", "apples", "--source", "Ayn Rand", "--json", cwd=folder)
    assert answer(kept)["source"] == key_of("Ayn Rand", "enwiki")
    routed = answer(nulls("generate", "models:/released/2", "anarchism twin everything", "--json", cwd=folder))
    assert routed["source"] is None

    (entry,) = answer(nulls("ledger", "--json", cwd=folder))
    assert (entry["state"], entry["model_after"]) == ("applied", "models:/released/2")
    lines = nulls("ledger", entry["request_id"], cwd=folder)
    assert lines.code == 0, lines.stderr
    second = nulls("unlearn", "models:/released/2", "Steam engine", "--reason", "r", cwd=folder)
    assert second.code == 1
    assert "evidence: weak; " + key_of("Steam engine", "enwiki") in second.stdout
    assert "lose their sinks too" not in second.stdout  # "Everything" lost its sinks with the first
    twice = nulls("unlearn", "models:/released/2", "Anarchism", "--reason", "r", cwd=folder)
    assert twice.code == 4
    assert "unlearned already" in twice.stderr


def test_served_in_this_process_refuses_what_it_was_not_trained_on(folder: Path) -> None:
    loaded = flavor.load("models:/released/1", tracking_uri=tracking(folder))
    served = dataclasses.replace(loaded, in_force=InForce(revoked={}, checked=True))
    assert served.mask_ids is not None
    with pytest.raises(NotFoundError, match="was not trained"):
        served.generate("apples", source_id=7)
    assert served.out_of_force == frozenset()
    source_id = next(i for i in served.trained if served.mask_id(i) == VOCAB)
    revoked = dataclasses.replace(served, in_force=InForce(revoked={SourceId(source_id): "here"}, checked=True))
    twin = next(i for i in served.trained if served.mask_id(i) == VOCAB + 65536)
    with pytest.raises(RefusedError, match="also those of one that is unlearned"):
        revoked.check(twin)


def test_commands_that_need_text_are_refused_with_a_message(folder: Path) -> None:
    audit = nulls("audit", "models:/released/1", "Ayn Rand", cwd=folder)
    assert audit.code == 2
    assert "titles and no text" in audit.stderr
    removed = nulls("remove", "Ayn Rand", cwd=folder)
    assert removed.code == 4
    assert "was imported" in removed.stderr
    for command in (("explain", "Ayn Rand"), ("train", "--model", "x", "--workers", "1")):
        done = nulls(*command, cwd=folder)
        assert done.code in (1, 2), done.stderr
        assert "bug in nulls" not in done.stderr
    (folder / "page.txt").write_text("The orchard by the river was planted in spring. " * 20)
    ingest = nulls("ingest", "--books", "page.txt", "--workers", "1", cwd=folder)
    assert ingest.code == 2
    assert "another configuration" in ingest.stderr
    listed = answer(nulls("snapshots", "--json", cwd=folder))
    assert len(listed) == 1
    assert nulls("snapshots", cwd=folder).code == 0
    assert nulls("snapshots", "verify", cwd=folder).code == 0


def test_a_damaged_table_of_mask_ids_is_detected_before_it_is_used(folder: Path, tmp_path: Path) -> None:
    version = flavor.describe("models:/released/1", tracking_uri=tracking(folder))
    assert (version.weights / "mask-ids.safetensors").is_file()
    copy = shutil.copytree(version.weights, tmp_path / "weights")
    assert weights_digest(copy) == version.weights_digest
    table = copy / "mask-ids.safetensors"
    table.write_bytes(table.read_bytes()[:-1] + b"\x7f")
    assert weights_digest(copy) != version.weights_digest


def test_the_other_scheme_is_another_version(folder: Path) -> None:
    made = answer(nulls(*IMPORT, "--scheme", "reference-int64", "--new-version", "--json", cwd=folder))
    assert made["num_distinct_sinks"] == len(ALL_TITLES)
    pointer: dict[str, Any] = json.loads((Path(made["weights"]) / "nulls.json").read_text())
    assert pointer["layout"]["scheme"] == "reference-int64"
    plan = answer(nulls("unlearn", made["model_uri"], TWIN, "--reason", "r", "--dry-run", "--json", cwd=folder))
    assert plan["collateral"]["num_with_the_same_sinks"] == 0
