"""Unlearning a list: everything wrong is said at once, and `partial` goes ahead with what is right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestration.unlearning import unlearn as act
from orchestration.unlearning.request.lines import Line, read_lines
from registry import ids
from registry.catalog.ledger import Ledger, Request
from registry.catalog.states import State
from registry.errors import InputError, NotFoundError, NullsError, RefusedError
from tests.orchestration.cli.commands import answer, nulls
from tests.orchestration.conftest import Deployed
from tests.orchestration.corpus import NUM_ARTICLES, heldout_of, key, title
from training.serving import flavor


def articles(weights: Path) -> tuple[list[int], int]:
    """Return the numbers of trained articles without shared text, and one that was held out."""
    heldout = heldout_of(weights)
    trained = [n for n in range(3, NUM_ARTICLES + 1) if ids.source_id(key(n)) not in heldout]
    return trained, next(n for n in range(3, NUM_ARTICLES + 1) if n not in trained)


def environment_of(deployed: Deployed) -> dict[str, str]:
    return {
        "NULLS_REGISTRY": str(deployed.settings.registry),
        "NULLS_CATALOG": str(deployed.settings.catalog),
        "MLFLOW_TRACKING_URI": str(deployed.settings.tracking),
    }


def requests(deployed: Deployed) -> list[Request]:
    ledger = Ledger(deployed.settings.open_catalog())
    ledger.verify()
    return ledger.requests()


def num_versions(deployed: Deployed) -> int:
    return len(flavor.versions("m", tracking_uri=deployed.settings.tracking_uri))


def unlearn(deployed: Deployed, lines: Sequence[Line], *, partial: bool = False) -> act.Result:
    return act.unlearn(deployed.settings, deployed.uri, [], reason="list", lines=lines, partial=partial, measure=False)


def mixed(deployed: Deployed, weights: Path) -> tuple[list[Line], dict[int, str], list[int]]:
    """Return lines of which some are wrong, what is wrong with each of those, and the right articles."""
    trained, unseen = articles(weights)
    act.unlearn(deployed.settings, deployed.uri, [key(trained[0])], reason="before", measure=False)
    right = trained[1:4]
    text = "\n".join(
        [
            key(right[0]),
            "Artcle 7x",
            title(right[1]),
            key(unseen),
            key(trained[0]),
            key(right[0]),
            "web:empty.example",
            f"https://test.wikipedia.org/wiki/{title(right[2]).replace(' ', '_')}",
        ]
    )
    lines = [*read_lines(text.encode()), Line(query="", number=9, fault="not JSON")]
    wrong = {2: "not-found", 4: "held-out", 5: "gone", 7: "never-trained", 9: "bad-line"}
    return lines, wrong, right


def test_everything_wrong_is_said_at_once_and_nothing_is_done(deployed: Deployed, weights: Path) -> None:
    lines, wrong, _ = mixed(deployed, weights)
    with pytest.raises(InputError) as error:
        unlearn(deployed, lines)
    rows = error.value.facts["wrong"]
    assert {row["line"]: row["kind"] for row in rows} == wrong
    assert rows[0]["query"] == "Artcle 7x"
    assert rows[0]["suggestions"]
    assert "models:/m/2" in next(row["message"] for row in rows if row["kind"] == "gone")
    assert "5 of 9" in str(error.value)
    assert num_versions(deployed) == 2
    assert [request.reason for request in requests(deployed)] == ["before"]


@pytest.mark.parametrize(
    ("numbers", "kind"), [((2, 4), NotFoundError), ((4, 5, 7), RefusedError), ((9, 2, 4), InputError)]
)
def test_the_first_kind_decides_the_error(
    deployed: Deployed, weights: Path, numbers: tuple[int, ...], kind: type[NullsError]
) -> None:
    lines, _, _ = mixed(deployed, weights)
    with pytest.raises(NullsError) as error:
        unlearn(deployed, [line for line in lines if line.number in (1, *numbers)])
    assert isinstance(error.value, kind)
    assert {row["line"] for row in error.value.facts["wrong"]} == set(numbers)


def test_a_refusal_is_on_record_with_its_lines(deployed: Deployed, weights: Path) -> None:
    lines, _, _ = mixed(deployed, weights)
    with pytest.raises(RefusedError):
        unlearn(deployed, [line for line in lines if line.number in (1, 4, 5)])
    request = requests(deployed)[-1]
    assert request.state is State.REFUSED
    assert [(row["line"], row["kind"]) for row in request.detail["wrong"]] == [(4, "held-out"), (5, "gone")]


def test_partial_goes_ahead_with_what_is_right(deployed: Deployed, weights: Path) -> None:
    lines, wrong, right = mixed(deployed, weights)
    result = unlearn(deployed, lines, partial=True)
    assert {row["line"]: row["kind"] for row in result.wrong} == wrong
    assert num_versions(deployed) == 3
    version = flavor.describe(result.model_uri, tracking_uri=deployed.settings.tracking_uri)
    assert {ids.source_id(key(n)) for n in right} <= version.revoked
    assert len(version.revoked) == len(right) + 1
    _, refused, done = requests(deployed)
    assert (done.state, refused.state) == (State.APPLIED, State.REFUSED)
    assert done.sources == tuple(sorted(map(key, right)))
    assert [line["line"] for line in done.detail["lines"]] == [1, 3, 6, 8]
    assert done.detail["left_out"] == refused.request_id
    assert list(refused.detail["wrong"]) == list(result.wrong)
    assert act.resume(deployed.settings, done.request_id, measure=False).wrong == result.wrong


def test_a_partial_request_continues_instead_of_finding_its_own_work_gone(deployed: Deployed, weights: Path) -> None:
    lines, _, _ = mixed(deployed, weights)
    first = unlearn(deployed, lines, partial=True)
    again = unlearn(deployed, lines, partial=True)
    assert (again.request_id, again.model_uri, again.wrong) == (first.request_id, first.model_uri, first.wrong)
    assert num_versions(deployed) == 3
    assert len(requests(deployed)) == 3


def test_partial_without_anything_right_is_an_error_on_record(deployed: Deployed, weights: Path) -> None:
    lines, wrong, _ = mixed(deployed, weights)
    with pytest.raises(InputError):
        unlearn(deployed, [line for line in lines if line.number in wrong], partial=True)
    assert num_versions(deployed) == 2
    last = requests(deployed)[-1]
    assert (last.state, len(last.detail["wrong"])) == (State.REFUSED, len(wrong))


def test_partial_dry_run_writes_nothing(deployed: Deployed, weights: Path) -> None:
    lines, wrong, right = mixed(deployed, weights)
    result = act.unlearn(deployed.settings, deployed.uri, [], reason="list", lines=lines, partial=True, dry_run=True)
    assert ({row["line"] for row in result.wrong}, len(result.plan.targets)) == (set(wrong), len(right))
    assert len(requests(deployed)) == 1


def test_lists_from_the_command_line(deployed: Deployed, weights: Path, tmp_path: Path) -> None:
    trained, unseen = articles(weights)
    environment = environment_of(deployed)
    (tmp_path / "list").write_text(
        f"query,reason,reference\n{title(trained[0])},copyright,T-1\nNo such page,privacy,T-2\n{key(unseen)},privacy,\n"
    )
    command = ("unlearn", deployed.uri, "--from", "list", "--no-evidence")
    plain = nulls(*command, cwd=tmp_path, **environment)
    assert plain.code == 1
    assert ["not-found" in plain.stderr, "held-out" in plain.stderr, "--partial" in plain.stderr] == [True] * 3
    document = answer(nulls(*command, "--json", cwd=tmp_path, **environment), code=1)
    assert [row["line"] for row in document["wrong"]] == [3, 4]
    assert document["error"]["kind"] == "NotFoundError"
    done = answer(nulls(*command, "--partial", "--json", cwd=tmp_path, **environment), code=1)
    assert done["sources"] == [key(trained[0])]
    assert [row["line"] for row in done["wrong"]] == [3, 4]
    refused, applied = answer(nulls("ledger", "--json", cwd=tmp_path, **environment))
    assert (refused["state"], applied["state"]) == ("refused", "applied")
    assert (refused["reason"], applied["detail"]["lines"][0]["reference"]) == ("privacy; copyright", "T-1")
    shown = nulls("ledger", refused["request_id"], cwd=tmp_path, **environment)
    assert "held-out" in shown.stdout


@pytest.mark.parametrize("name", ["", "m", "models:/m/1", "0123456789abcdef"])
def test_what_does_not_exist_is_never_begun_by_resume(
    deployed: Deployed, weights: Path, tmp_path: Path, name: str
) -> None:
    environment = environment_of(deployed)
    for command in ("unlearn", "reinstate"):
        done = nulls(command, deployed.uri, "--reason", "x", "--resume", name, cwd=tmp_path, **environment)
        assert (done.code, "no request" in done.stderr) == (1, True)
    assert (num_versions(deployed), requests(deployed)) == (1, [])


def test_a_request_is_resumed_only_for_its_model(deployed: Deployed, weights: Path, tmp_path: Path) -> None:
    trained, _ = articles(weights)
    made = act.unlearn(deployed.settings, deployed.uri, [key(trained[0])], reason="x", measure=False)
    environment = environment_of(deployed)
    done = nulls("unlearn", "models:/other/1", "--resume", made.request_id or "", cwd=tmp_path, **environment)
    assert (done.code, "models:/m/1" in done.stderr) == (2, True)
