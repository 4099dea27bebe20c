"""The command line, for a person and for a program: JSON, exit codes, messages, and the modules that are loaded."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from registry import ids
from tests.orchestration.cli.commands import ROOT, answer, nulls, nulls_process, process_environment
from tests.orchestration.conftest import Deployed
from tests.orchestration.corpus import NUM_ARTICLES, heldout_of, key, title
from tests.pipelines.readers.dumps import Page, write_dump

PROSE = "The orchard by the river was planted in spring and gave its first harvest of apples in the third autumn. "


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a registry, made by `nulls ingest` from a small dump."""
    folder = tmp_path_factory.mktemp("cli")
    pages = [
        Page(f"Tree {n}", f"'''Tree {n}''' is a tree. " + PROSE + f"It is number {n} of its kind. " * 3)
        for n in range(6)
    ]
    pages += [
        Page("Pomme", redirect="Tree 1", text="#REDIRECT [[Tree 1]]"),
        Page("Nowhere", redirect="Not here", text="#REDIRECT [[Not here]]"),
        Page("Δέντρο", PROSE + "Greek in title, and words enough to be kept. "),
        Page("Short", "Too short."),
    ]
    write_dump(folder / "enwiki-test.xml.bz2", pages, compress="bz2")
    # In a process of its own: the workers are forked from a server that must not hold what the tests have loaded.
    ingested = answer(nulls_process("ingest", "--wikipedia", "enwiki-test.xml.bz2", "--json", cwd=folder))
    assert ingested["read"] == 8
    assert ingested["read"] == ingested["kept"] + sum(ingested["filtered"].values()) + ingested["duplicate"]
    return folder


def test_lookup_by_title_redirect_url_key_and_id(ingested: Path) -> None:
    wanted = "wiki:enwiki:2"
    queries = ["Tree 1", "tree_1", "Pomme", "https://en.m.wikipedia.org/wiki/Tree_1?x=1#y", wanted]
    queries.append(ids.format_id(ids.source_id(wanted)))
    found = answer(nulls("lookup", *queries, "--json", cwd=ingested))
    assert [row["query"] for row in found] == queries
    assert {row["matches"][0]["key"] for row in found} == {wanted}
    assert [row["matches"][0]["matched_by"] for row in found] == ["title", "title", "redirect", "url", "key", "id"]
    assert answer(nulls("lookup", "δέντρο", "--json", cwd=ingested))[0]["matches"][0]["title"] == "Δέντρο"


def test_a_lookup_that_finds_nothing_exits_with_one_and_helps(ingested: Path) -> None:
    (found,) = answer(nulls("lookup", "Nowhere", "--json", cwd=ingested), code=1)
    assert not found["found"]
    assert "Not here" in found["notes"][0]
    (found,) = answer(nulls("lookup", "Tree 10", "--json", cwd=ingested), code=1)
    assert "Tree 1" in found["suggestions"]


def test_lookup_loads_nothing_heavy(ingested: Path) -> None:
    code = (
        "import sys; sys.argv = ['nulls', 'lookup', 'Tree 1', '--json']\n"
        "from orchestration.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'duckdb', 'sqlalchemy', 'pandas', 'datatrove'} & set(sys.modules)))"
    )
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ingested, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_explain_of_kept_filtered_and_unknown_documents(ingested: Path) -> None:
    kept = answer(nulls("explain", "Tree 1", "--json", cwd=ingested))
    assert (kept["status"], kept["source"], kept["origin"]) == ("kept", "wiki:enwiki:2", "wiki:enwiki:2")
    assert kept["shard"] == "shards/part-00000.parquet"
    assert kept["input_file"] == "enwiki-test.xml.bz2"
    assert kept["input_offset"] > 0
    filtered = answer(nulls("explain", "https://en.wikipedia.org/wiki/Short", "--json", cwd=ingested))
    assert (filtered["status"], filtered["reason"]) == ("filtered", "short")
    by_id = answer(nulls("explain", kept["doc_id"], "--json", cwd=ingested))
    assert by_id == kept
    assert nulls("explain", "No such page", cwd=ingested).code == 1


def test_sources_snapshots_and_verify(ingested: Path) -> None:
    listed = answer(nulls("sources", "--kind", "wiki", "--match", "tree", "--limit", "3", "--json", cwd=ingested))
    assert len(listed) == 3
    (snapshot,) = answer(nulls("snapshots", "--json", cwd=ingested))
    assert snapshot["newest"]
    assert snapshot["created_at"]
    verified = answer(nulls("snapshots", "verify", "--json", cwd=ingested))
    assert verified["snapshot"] == snapshot["snapshot"]


def test_damage_exits_with_three_and_names_the_file(ingested: Path, tmp_path: Path) -> None:
    shutil.copytree(ingested / "nulls-registry", tmp_path / "nulls-registry")
    (shard,) = tmp_path.glob("nulls-registry/snapshots/*/shards/part-00000.parquet")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 0xFF
    shard.write_bytes(data)
    done = nulls("snapshots", "verify", "--json", cwd=tmp_path)
    assert "shards/part-00000.parquet" in answer(done, code=3)["error"]["message"]


def test_ingesting_the_same_again_is_the_same_snapshot(ingested: Path) -> None:
    before = answer(nulls("snapshots", "--json", cwd=ingested))
    again = answer(nulls("ingest", "--wikipedia", "enwiki-test.xml.bz2", "--workers", "1", "--json", cwd=ingested))
    assert again["snapshot"] == before[0]["snapshot"]
    assert answer(nulls("snapshots", "--json", cwd=ingested)) == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["lookup"], 2, "QUERY"),
        (["lookup", "x", "--bogus"], 2, "--bogus"),
        (["nope"], 2, "nope"),
        (["lookup", "x", "--registry", "missing"], 2, "nulls ingest"),
        (["lookup", "x", "--snapshot", "ffff"], 1, "nulls snapshots"),
        (["ingest"], 2, "--wikipedia"),
        (["ingest", "--wikipedia", "missing.xml"], 2, "missing.xml"),
        (["ingest", "--wikipedia", "empty-folder"], 2, "empty-folder"),
        (["ingest", "--wikipedia", "not-xml.xml"], 2, "not-xml.xml"),
        (["train", "--model", "m", "--preset", "nope"], 2, "demo"),
        (["train", "--model", "m", "--set", "epochs"], 2, "FIELD=VALUE"),
        (["train", "--model", "m", "--set", "bogus=1"], 2, "bogus"),
        (["train", "--model", "m", "--preset", "demo", "--config", "run.yaml"], 2, "preset: demo"),
        (["train", "--model", "m", "--dry-run", "--gpu", "abacus", "--set", "min_heldout=1"], 2, "h100"),
        (["train", "--model", "m", "--workers", "4-1"], 2, "1-4"),
        (["train", "--model", "m", "--storage", "elsewhere"], 2, "s3://BUCKET"),
        (["generate", "models:/m/1", "x", "--source", "a", "--no-source"], 2, "exclude"),
    ],
)
def test_bad_usage_is_explained(ingested: Path, arguments: list[str], code: int, message: str) -> None:
    (ingested / "empty-folder").mkdir(exist_ok=True)
    (ingested / "not-xml.xml").write_text("Just words, no markup.")
    done = nulls(*arguments, cwd=ingested)
    assert done.code == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_errors_are_json_too(ingested: Path) -> None:
    done = nulls("lookup", "x", "--registry", "missing", "--json", cwd=ingested)
    assert answer(done, code=2)["error"]["kind"] == "UsageError"


DRY_RUN = ("train", "--model", "m", "--dry-run", "--set", "min_heldout=1", "--set", "model.num_pool=512")


def test_train_dry_run_prints_the_resolved_configuration(ingested: Path) -> None:
    estimated = answer(nulls_process(*DRY_RUN, "--workers", "1-2", "--gpu", "h200", "--json", cwd=ingested))
    assert estimated["workers"] == 2
    assert estimated["config"]["model"]["num_pool"] == 512
    assert not (ingested / "mlflow.db").exists()
    assert not (ingested / "nulls-runs").exists()
    estimate = estimated["estimate"]
    assert estimate["parameters"]["pool"] == 3 * 2 * 96 * 512
    assert estimate["memory"]["total"] == estimate["memory"]["ddp"]["total"] < estimate["memory"]["device_bytes"]
    assert not estimate["tokens"]["is_exact"]
    assert estimate["tokens"]["total"] == 7 * estimate["tokens"]["per_epoch"] > 1000
    expected = estimate["flops"]["total"] / (2 * 989e12 * 0.4) / 3600
    assert estimate["speed"]["hours"] == pytest.approx(expected)


def test_a_dry_run_can_be_fed_back(ingested: Path, tmp_path: Path) -> None:
    printed = nulls(*DRY_RUN, "--set", "optim.learning_rate=5e-4", cwd=ingested)
    assert printed.code == 0, printed.stderr
    for label in ("parameters", "memory", "activation_checkpointing", "tokens", "FLOPs", "disk", "MFU 40%"):
        assert label in printed.stdout
    file = tmp_path / "run.yaml"
    file.write_text(printed.stdout)
    again = nulls("train", "--model", "m", "--dry-run", "--config", str(file), cwd=ingested)
    assert again.stdout == printed.stdout
    assert "learning_rate: 0.0005" in printed.stdout
    file.write_text("preset: small\nepochs: 2\nmin_heldout: 1\n")
    asked = ("train", "--model", "m", "--dry-run", "--config", str(file), "--set", "model.num_sinks=64", "--json")
    changed = nulls(*asked, cwd=ingested)
    config = answer(changed)["config"]
    assert (config["epochs"], config["model"]["num_sinks"], config["model"]["hidden_size"]) == (2, 64, 768)


def test_a_run_is_estimated_before_there_is_a_registry(tmp_path: Path) -> None:
    arguments = ("train", "--model", "m", "--preset", "paper-1b", "--dry-run", "--workers", "8", "--json")
    estimated = answer(nulls(*arguments, cwd=tmp_path))
    assert estimated["snapshot"] is estimated["estimate"]["tokens"] is None
    assert "hours" not in estimated["estimate"]["speed"]
    stated = answer(nulls(*arguments, "--tokens", "4600000000", "--tokens-per-second", "1e6", cwd=tmp_path))
    assert stated["estimate"]["speed"]["hours"] == pytest.approx(7 * 4600 / 3600)
    assert stated["estimate"]["memory"]["device_bytes"] is None
    assert not list(tmp_path.iterdir())
    assert nulls(*arguments, "--registry", "missing", cwd=tmp_path).code == 2


def test_a_store_that_is_down_exits_with_two(ingested: Path) -> None:
    done = nulls("train", "--model", "m", cwd=ingested, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.code == 2
    assert "127.0.0.1:9" in done.stderr
    assert not list(ingested.glob("nulls-runs/m/run-*"))


def test_unlearn_and_ledger_from_the_command_line(deployed: Deployed, weights: Path, tmp_path: Path) -> None:
    heldout = heldout_of(weights)
    number = next(n for n in range(3, NUM_ARTICLES + 1) if ids.source_id(key(n)) not in heldout)
    unseen = next(n for n in range(1, NUM_ARTICLES + 1) if ids.source_id(key(n)) in heldout)
    environment = {
        "NULLS_REGISTRY": str(deployed.settings.registry),
        "NULLS_CATALOG": str(deployed.settings.catalog),
        "MLFLOW_TRACKING_URI": str(deployed.settings.tracking),
    }
    command = ("unlearn", deployed.uri, title(number), "--reason", "asked", "--json")
    plan = answer(nulls(*command, "--dry-run", cwd=tmp_path, **environment))
    assert (plan["sources"], plan["request_id"]) == ([key(number)], None)
    done = nulls_process(*command, cwd=tmp_path, **environment)
    result = json.loads(done.stdout)
    assert done.code == (0 if result["state"] == "verified" else 1)
    assert result["model_uri"] == "models:/m/2"
    (row,) = answer(nulls("ledger", "--json", cwd=tmp_path, **environment))
    assert (row["request_id"], row["state"]) == (result["request_id"], result["state"])
    assert nulls("ledger", "--verify", cwd=tmp_path, **environment).code == 0
    again = nulls(*command, cwd=tmp_path, **environment)
    assert "unlearned already" in answer(again, code=4)["error"]["message"]
    never = nulls("unlearn", deployed.uri, title(unseen), "--reason", "x", cwd=tmp_path, **environment)
    assert (never.code, "held out" in never.stderr) == (4, True)
    missing = nulls("unlearn", deployed.uri, "No such article", "--reason", "x", cwd=tmp_path, **environment)
    assert missing.code == 1
    refused = nulls("generate", "models:/m/2", "word", "--source", title(number), cwd=tmp_path, **environment)
    assert (refused.code, "unlearned" in refused.stderr) == (4, True)
    assert nulls("generate", "models:/m/2", "word", "--max-new-tokens", "2", cwd=tmp_path, **environment).code == 0


@pytest.mark.parametrize("module", ["orchestration.cli", "orchestration.cli.main"])
def test_each_entry_point_prints_the_version(module: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=process_environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"nulls {importlib.metadata.version('nulls')}\n"


@pytest.mark.parametrize(
    ("command", "headings"),
    [
        ("ingest", ["Inputs", "Text and filters", "Execution", "Duplicates"]),
        ("train", ["Model", "Configuration", "Ray", "Estimate (--dry-run)"]),
        ("unlearn", ["Request", "Erasing", "Order of work"]),
        ("import-reference", ["Checkpoint", "Model"]),
    ],
)
def test_help_groups_the_options_of_long_commands(command: str, headings: list[str], tmp_path: Path) -> None:
    done = nulls(command, "--help", cwd=tmp_path)
    found = [line[:-1] for line in done.stdout.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert sorted(found) == sorted([*headings, "Options", *(["Arguments"] if "Arguments" in found else [])])
    assert found[-1] == "Options"
    assert done.stdout.isascii(), "no boxes: the help is readable in a pipe and in any terminal"
    assert "nulls[train]" in done.stdout or command != "train", "the help is text, not markup"
