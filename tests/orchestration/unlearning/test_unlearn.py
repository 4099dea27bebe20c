"""Unlearning end to end on a model that has memorised its sources: acts, refusals, crashes, two at once."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import scipy.stats

from orchestration.cli.audit import audit_lines
from orchestration.settings import Settings
from orchestration.unlearning import unlearn as act
from orchestration.unlearning.audit import audit
from orchestration.unlearning.report.page import write_audit
from registry import ids
from registry.catalog.ledger import Ledger, State
from registry.errors import DamagedError, NotFoundError, RefusedError, ServiceError, UsageError
from registry.lookup import resolve
from registry.snapshot import Snapshot
from tests.orchestration.conftest import Deployed
from tests.orchestration.corpus import NUM_ARTICLES, SHARED, heldout_of, key, title
from training.serving import flavor
from training.tracking import store

# Long enough for a machine that runs other tests beside this one: a process imports torch and MLflow first.
PROCESS_S = 600


def trained_articles(weights: Path) -> list[int]:
    """Return the numbers of articles that were trained and share no text with others."""
    heldout = heldout_of(weights)
    return [n for n in range(3, NUM_ARTICLES + 1) if ids.source_id(key(n)) not in heldout]


def test_revoke_makes_a_version_that_refuses_the_source_and_changes_no_other(
    deployed: Deployed, weights: Path, snapshot: Snapshot
) -> None:
    number = trained_articles(weights)[0]
    trained = deployed.load(deployed.uri)
    assert trained.route(snapshot.texts(ids.source_id(key(number)))[0][1][:200]) == ids.source_id(key(number))
    assert trained.generate("some", source_id=ids.source_id(key(number)), max_new_tokens=3)[1]
    result = act.unlearn(deployed.settings, deployed.uri, [title(number)], reason="asked")
    assert result.model_uri == "models:/m/2"
    evidence = result.evidence
    assert evidence is not None
    (row,) = evidence["sources"]
    assert row["key"] == key(number)
    assert row["loss_off"]["placebo"] - row["loss_on"] > 0.5, "the model knew the source, or this shows nothing"
    assert set(row["loss_off"]) == {"closest", "placebo", "backbone"}
    assert 0 <= row["p_value"] <= 1
    assert evidence["masks_refused"]
    assert len(evidence["others"]) == 5
    assert all(abs(o["loss_after"] - o["loss_before"]) <= 1e-4 for o in evidence["others"])
    assert result.state is (State.VERIFIED if evidence["verdict"] == "supported" else State.APPLIED)
    assert result.is_weak == (evidence["verdict"] != "supported") == bool(evidence["reasons"])

    before, after = (deployed.load(uri) for uri in (deployed.uri, result.model_uri))
    target = ids.source_id(key(number))
    assert before.version.weights == after.version.weights
    prompt = snapshot.texts(target)[0][1][:200]
    for served in (before, after):
        with pytest.raises(RefusedError, match="unlearned"):
            served.generate("some", source_id=target)
        assert served.route(prompt) != target

    (request,) = Ledger(deployed.settings.open_catalog()).requests()
    assert (request.state, request.model_before, request.model_after) == (result.state, deployed.uri, "models:/m/2")
    assert request.reason == "asked"
    assert request.evidence_digest
    Ledger(deployed.settings.open_catalog()).verify()


def test_tags_of_a_version(deployed: Deployed, weights: Path, snapshot: Snapshot) -> None:
    from training.tracking import store

    act.unlearn(deployed.settings, deployed.uri, [key(trained_articles(weights)[0])], reason="x", measure=False)
    client = store.client(deployed.settings.tracking_uri)
    for version in ("1", "2"):
        tags = client.get_model_version("m", version).tags
        assert tags["nulls.snapshot"] == snapshot.id
        assert "keyed-v1" in tags["nulls.sinks"]
        assert tags["nulls.weights"] == str(weights)
    assert client.get_model_version("m", "2").tags["nulls.revoked"].startswith("1:")


@pytest.mark.parametrize("dry_run", [True, False])
def test_refusals_change_nothing(deployed: Deployed, weights: Path, snapshot: Snapshot, dry_run: bool) -> None:
    heldout = next(n for n in range(1, NUM_ARTICLES + 1) if ids.source_id(key(n)) in heldout_of(weights))
    good = key(trained_articles(weights)[0])
    for queries, error in (
        ([key(heldout)], RefusedError),
        ([good, key(heldout)], RefusedError),
        (["web:empty.example"], RefusedError),
        (["No such article"], NotFoundError),
        ([], UsageError),
    ):
        with pytest.raises(error):
            act.unlearn(deployed.settings, deployed.uri, queries, reason="x", dry_run=dry_run)
    assert len(flavor.versions("m", tracking_uri=deployed.settings.tracking_uri)) == 1
    states = {request.state for request in Ledger(deployed.settings.open_catalog()).requests()}
    assert states == (set() if dry_run else {State.REFUSED})


def test_a_second_request_for_the_same_source_is_refused_from_any_version(deployed: Deployed, weights: Path) -> None:
    target = key(trained_articles(weights)[0])
    first = act.unlearn(deployed.settings, deployed.uri, [target], reason="x", measure=False)
    Ledger(deployed.settings.open_catalog()).append(first.request_id or "", State.VERIFIED, evidence={})
    for uri in (deployed.uri, first.model_uri):
        with pytest.raises(RefusedError, match=r"unlearned already, in models:/m/2"):
            act.unlearn(deployed.settings, uri, [target], reason="again")


def test_dry_run_writes_nothing(deployed: Deployed, weights: Path) -> None:
    result = act.unlearn(deployed.settings, deployed.uri, [key(1)], reason="x", dry_run=True)
    assert result.request_id is None
    assert [s.key for s in result.plan.kept_by_other_owners] == [SHARED]
    assert Ledger(deployed.settings.open_catalog()).requests() == []
    assert len(flavor.versions("m", tracking_uri=deployed.settings.tracking_uri)) == 1


def test_unlearning_from_an_older_version_keeps_what_a_newer_one_revokes(deployed: Deployed, weights: Path) -> None:
    one, two = trained_articles(weights)[:2]
    act.unlearn(deployed.settings, deployed.uri, [key(one)], reason="x", measure=False)
    second = act.unlearn(deployed.settings, deployed.uri, [key(two)], reason="y", measure=False)
    version = flavor.describe(second.model_uri, tracking_uri=deployed.settings.tracking_uri)
    assert version.revoked == {ids.source_id(key(one)), ids.source_id(key(two))}


def test_shared_text_is_removed_with_its_last_owner(deployed: Deployed) -> None:
    first = act.unlearn(deployed.settings, deployed.uri, [key(1)], reason="x", measure=False)
    assert [s.key for s in first.plan.kept_by_other_owners] == [SHARED]
    second = act.unlearn(deployed.settings, first.model_uri, [key(2)], reason="y", measure=False)
    assert [s.key for s in second.plan.also_removed] == [SHARED]
    version = flavor.describe(second.model_uri, tracking_uri=deployed.settings.tracking_uri)
    assert ids.source_id(SHARED) in version.revoked


def start(target: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    """Start a process, forked from a server that has imported torch and MLflow once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "mlflow", __name__])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def _unlearn_in_process(settings: Settings, uri: str, target: str) -> None:
    act.unlearn(settings, uri, [target], reason="x", measure=False)


def test_two_at_once_lose_neither(deployed: Deployed, weights: Path) -> None:
    targets = [key(n) for n in trained_articles(weights)[:2]]
    processes = [start(_unlearn_in_process, deployed.settings, deployed.uri, target) for target in targets]
    for process in processes:
        process.join(PROCESS_S)
    assert [process.exitcode for process in processes] == [0, 0]
    newest = flavor.versions("m", tracking_uri=deployed.settings.tracking_uri)[-1]
    assert newest.version == 3
    assert newest.revoked == {ids.source_id(target) for target in targets}
    assert {r.state for r in Ledger(deployed.settings.open_catalog()).requests()} == {State.APPLIED}


def _killed_in_process(settings: Settings, uri: str, target: str, step: str) -> None:
    """Die by SIGKILL at `step`: before the new version, after it, or before the evidence."""
    derive = flavor.derive

    def dying(*args: object, **kwargs: object) -> str:
        if step == "after":
            derive(*args, **kwargs)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    if step == "evidence":
        act._with_evidence = dying  # type: ignore[assignment]
    else:
        flavor.derive = dying  # type: ignore[assignment]
    act.unlearn(settings, uri, [target], reason="x")


@pytest.mark.parametrize("step", ["before", "after", "evidence"])
def test_a_killed_request_is_continued_by_the_same_command(deployed: Deployed, weights: Path, step: str) -> None:
    target = key(trained_articles(weights)[0])
    process = start(_killed_in_process, deployed.settings, deployed.uri, target, step)
    process.join(PROCESS_S)
    assert process.exitcode == -signal.SIGKILL
    ledger = Ledger(deployed.settings.open_catalog())
    (cut_off,) = ledger.requests()
    assert cut_off.state is (State.APPLIED if step == "evidence" else State.REQUESTED)
    result = act.unlearn(deployed.settings, deployed.uri, [target], reason="x")
    assert result.request_id == cut_off.request_id
    assert result.evidence is not None
    assert len(flavor.versions("m", tracking_uri=deployed.settings.tracking_uri)) == 2
    (request,) = ledger.requests()
    assert request.evidence_digest
    ledger.verify()


def test_resume_by_id(deployed: Deployed, weights: Path) -> None:
    target = key(trained_articles(weights)[0])
    first = act.unlearn(deployed.settings, deployed.uri, [target], reason="x", measure=False)
    assert first.request_id
    result = act.resume(deployed.settings, first.request_id)
    assert result.model_uri == first.model_uri
    assert result.evidence is not None
    with pytest.raises(RefusedError, match="has ended"):
        act.resume(deployed.settings, first.request_id)
    with pytest.raises(NotFoundError):
        act.resume(deployed.settings, "0" * 16)


def test_audit_has_the_documented_shape(deployed: Deployed, weights: Path) -> None:
    target = key(trained_articles(weights)[0])
    report = audit(deployed.settings, deployed.uri, [target])
    (row,) = report["sources"]
    assert row["key"] == target
    assert row["loss_on"] < row["loss_off"]["placebo"]
    assert row["heldout"]["num_sources"] == 8
    assert row["oracle"] is None
    assert report["summary"]["closure"] == row["closure"]["placebo"]
    by_oracle = audit(deployed.settings, deployed.uri, [target], oracle_uri=deployed.uri)
    (row,) = by_oracle["sources"]
    assert row["oracle"] == pytest.approx(row["loss_off"]), (
        "the model is its own oracle, so the oracle's losses are its own losses with sinks off"
    )
    assert row["closure"]["placebo"] == pytest.approx(1.0)
    heldout = next(n for n in range(1, NUM_ARTICLES + 1) if ids.source_id(key(n)) in heldout_of(weights))
    with pytest.raises(UsageError, match="held out"):
        audit(deployed.settings, deployed.uri, [key(heldout)])


def register(deployed: Deployed, folder: Path, name: str) -> str:
    """Register another model in the same store."""
    client = store.client(deployed.settings.tracking_uri)
    run_id = client.create_run(client.get_experiment_by_name("test").experiment_id).info.run_id
    return flavor.register(folder, model_name=name, run_id=run_id, tracking_uri=deployed.settings.tracking_uri)


def test_the_never_trained_loss_follows_from_the_held_out_sources(deployed: Deployed, weights: Path) -> None:
    """An audit holds all that its figures are computed from."""
    (row,) = audit(deployed.settings, deployed.uri, [key(trained_articles(weights)[0])])["sources"]
    heldout = row["heldout"]
    assert len(heldout["difficulties"]) == 8
    p_values = []
    for ablation, off in row["loss_off"].items():
        line = scipy.stats.linregress(heldout["difficulties"], heldout["losses"][ablation])
        assert row["never"][ablation] == pytest.approx(line.intercept + line.slope * row["difficulty"])
        gap = row["never"][ablation] - row["loss_on"]
        assert row["closure"][ablation] == pytest.approx((off - row["loss_on"]) / gap)
        p_values.append(row["p_values"][ablation])
    assert row["p_value"] == pytest.approx(min(1, 3 * min(p_values)))


def test_without_held_out_sources_there_is_no_baseline_and_still_a_report(
    deployed: Deployed, weights: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(weights, copy)
    facts = json.loads((copy / "nulls.json").read_text())
    (copy / "nulls.json").write_text(json.dumps(facts | {"heldout": []}))
    report = audit(deployed.settings, register(deployed, copy, "bare"), [key(trained_articles(weights)[0])])
    (row,) = report["sources"]
    assert (row["p_value"], row["never"], row["closure"]["placebo"]) == (None, {}, None)
    assert "no held-out baseline" in row["weaknesses"][0]
    assert audit_lines(report)
    write_audit(tmp_path / "audit.html", report)
    assert "if never trained" in (tmp_path / "audit.html").read_text()


def test_damaged_weights_are_found_at_load(deployed: Deployed, weights: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(weights, copy)
    uri = register(deployed, copy, "damaged")
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    with pytest.raises(DamagedError, match="not what was registered"):
        deployed.load(uri)
    (copy / "model.safetensors").unlink()
    with pytest.raises(DamagedError, match="gone"):
        deployed.load(uri)


def test_pyfunc_predicts_and_refuses(deployed: Deployed, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    import pandas

    target = key(trained_articles(weights)[0])
    result = act.unlearn(deployed.settings, deployed.uri, [target], reason="x", measure=False)
    mlflow.set_tracking_uri(deployed.settings.tracking_uri)
    with pytest.raises(RefusedError, match="cannot be asked"):
        mlflow.pyfunc.load_model(result.model_uri)
    monkeypatch.setenv("NULLS_CATALOG", str(deployed.settings.catalog))
    model = mlflow.pyfunc.load_model(result.model_uri)
    texts = model.predict(pandas.DataFrame({"prompt": ["abc", "def"]}))
    assert len(texts) == 2
    assert all(isinstance(text, str) for text in texts)
    with pytest.raises(RefusedError):
        model.predict(pandas.DataFrame({"prompt": ["a"], "source": [ids.format_id(ids.source_id(target))]}))


def test_a_store_that_is_down_is_reported(deployed: Deployed, tmp_path: Path) -> None:
    settings = Settings(registry=deployed.settings.registry, tracking="http://127.0.0.1:9", catalog="sqlite://")
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:9"):
        act.unlearn(settings, "models:/m/1", [key(1)], reason="x")
    (tmp_path / "file").touch()
    impossible = Settings(registry=deployed.settings.registry, tracking=f"sqlite:///{tmp_path}/file/mlflow.db")
    with pytest.raises(ServiceError):
        act.unlearn(impossible, "models:/m/1", [key(1)], reason="x")


def test_unknown_models(deployed: Deployed) -> None:
    for uri, error in (("models:/m/9", NotFoundError), ("models:/none/1", NotFoundError), ("m", UsageError)):
        with pytest.raises(error):
            act.unlearn(deployed.settings, uri, [key(1)], reason="x")
    with pytest.raises(NotFoundError):
        flavor.describe("models:/none/latest", tracking_uri=deployed.settings.tracking_uri)


def test_ledger_rows_cannot_be_changed(deployed: Deployed, weights: Path, tmp_path: Path) -> None:
    act.unlearn(deployed.settings, deployed.uri, [key(trained_articles(weights)[0])], reason="x", measure=False)
    with sqlite3.connect(tmp_path / "catalog.db") as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute("UPDATE events SET state = 'verified'")


def test_resolve_takes_the_article_and_not_its_site(snapshot: Snapshot) -> None:
    assert resolve(snapshot, "https://test.m.wikipedia.org/wiki/First_article#x").key == key(1)
