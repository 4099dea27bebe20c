"""Undoing a mistake: the source answers again through every door, and what else was unlearned stays so."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestration.unlearning import reinstate as undo
from orchestration.unlearning import unlearn as act
from orchestration.unlearning.plan import Policy, split_shared
from orchestration.unlearning.reinstate import Taken, decide
from registry import ids
from registry.catalog.ledger import Ledger, Request
from registry.catalog.states import State
from registry.errors import NotFoundError, RefusedError, UsageError
from tests.orchestration.cli.commands import answer, nulls
from tests.orchestration.conftest import Deployed
from tests.orchestration.corpus import NUM_ARTICLES, SHARED, heldout_of, key
from training.serving import flavor
from training.serving.in_force import in_force
from training.tracking import store


@pytest.fixture
def articles(weights: Path) -> list[str]:
    """The keys of trained articles without shared text."""
    heldout = heldout_of(weights)
    return [key(n) for n in range(3, NUM_ARTICLES + 1) if ids.source_id(key(n)) not in heldout]


def unlearn(deployed: Deployed, *keys: str, uri: str = "models:/m/1", policy: Policy = Policy.ALL_OWNERS) -> act.Result:
    return act.unlearn(deployed.settings, uri, keys, reason="asked", policy=policy, measure=False)


def reinstate(deployed: Deployed, *keys: str, uri: str = "models:/m/1") -> undo.Result:
    return undo.reinstate(deployed.settings, uri, keys, reason="a slip")


def revoked(deployed: Deployed, uri: str = "models:/m/1") -> set[int]:
    version = flavor.describe(uri, tracking_uri=deployed.settings.tracking_uri)
    return set(in_force(version, catalog=deployed.settings.catalog).revoked)


def numbers(*keys: str) -> set[int]:
    return set(map(ids.source_id, keys))


def requests(deployed: Deployed) -> list[Request]:
    ledger = Ledger(deployed.settings.open_catalog())
    ledger.verify()
    return ledger.requests()


def test_a_reinstated_source_answers_again_and_the_others_do_not(deployed: Deployed, articles: list[str]) -> None:
    before, slip, after, later = articles[:4]
    for source in (before, slip, after):
        unlearn(deployed, source)
    with pytest.raises(RefusedError):
        deployed.load("models:/m/1").generate("some", source_id=ids.source_id(slip))
    client = store.client(deployed.settings.tracking_uri)
    client.copy_model_version("models:/m/4", "promoted")
    result = reinstate(deployed, slip)
    assert (result.state, result.model_uri, result.plan["sources"]) == (State.VERIFIED, "models:/m/5", [slip])
    for uri in ("models:/m/1", "models:/m/3", "models:/m/4", "models:/m/5", "models:/promoted/1"):
        assert revoked(deployed, uri) == numbers(before, after)
    served = deployed.load("models:/m/3")
    assert served.generate("some", source_id=ids.source_id(slip), max_new_tokens=2)[1] == ids.source_id(slip)
    for source in (before, after):
        with pytest.raises(RefusedError):
            served.generate("some", source_id=ids.source_id(source))
    unlearn(deployed, later)
    assert revoked(deployed) == numbers(before, after, later)
    version = flavor.describe("models:/m/5", tracking_uri=deployed.settings.tracking_uri)
    assert version.revoked == numbers(before, after)
    last = requests(deployed)[-2]
    assert (last.action, last.reason, last.state, last.sources) == ("reinstate", "a slip", State.VERIFIED, (slip,))
    assert last.detail["check"]["num_in_force"] == 2


def test_the_same_source_can_be_unlearned_and_reinstated_again_and_again(
    deployed: Deployed, articles: list[str]
) -> None:
    source = articles[0]
    made = []
    for _ in range(3):  # the same request each time, of which the first was never measured
        made.append(unlearn(deployed, source).request_id)
        assert revoked(deployed) == numbers(source)
        made.append(reinstate(deployed, source).request_id)
        assert revoked(deployed) == set()
    assert len(set(made)) == 6
    assert len(requests(deployed)) == 6


def test_what_was_undone_is_not_measured(deployed: Deployed, articles: list[str]) -> None:
    first = unlearn(deployed, *articles[:2])
    reinstate(deployed, articles[0])
    with pytest.raises(RefusedError, match=rf"{articles[0]} was reinstated"):
        act.resume(deployed.settings, first.request_id or "", measure=False)


def test_what_is_not_unlearned_cannot_be_reinstated(deployed: Deployed, articles: list[str]) -> None:
    unlearn(deployed, articles[0])
    with pytest.raises(RefusedError) as error:
        reinstate(deployed, articles[0], articles[1], articles[2])
    assert [(row["query"], row["kind"]) for row in error.value.facts["wrong"]] == [
        (articles[1], "in-force"),
        (articles[2], "in-force"),
    ]
    assert requests(deployed)[-1].state is State.REFUSED
    with pytest.raises(NotFoundError) as missing:
        reinstate(deployed, "No such page", articles[1])
    assert [row["kind"] for row in missing.value.facts["wrong"]] == ["not-found", "in-force"]
    with pytest.raises(UsageError):
        undo.reinstate(deployed.settings, deployed.uri, [articles[0]])
    assert revoked(deployed) == numbers(articles[0])
    assert len(flavor.versions("m", tracking_uri=deployed.settings.tracking_uri)) == 2


def test_an_erased_source_cannot_be_reinstated(deployed: Deployed, articles: list[str]) -> None:
    made = unlearn(deployed, articles[0])
    version = flavor.describe(made.model_uri, tracking_uri=deployed.settings.tracking_uri)
    version.pointer["erased"] = [ids.format_id(ids.source_id(articles[0]))]
    (source,) = made.plan.targets
    found = undo.refusals(
        version, [source], dict.fromkeys(version.revoked, "x"), undo.Decision(also=[], stay=[], refused=[])
    )
    assert [wrong.kind for wrong in found.values()] == ["erased"]


def test_shared_text_comes_back_with_an_owner(deployed: Deployed) -> None:
    unlearn(deployed, key(1), key(2))
    assert revoked(deployed) == numbers(key(1), key(2), SHARED)
    with pytest.raises(RefusedError, match="reinstate an owner"):
        reinstate(deployed, SHARED)
    assert reinstate(deployed, key(1)).plan["also_reinstated"] == [SHARED]
    assert revoked(deployed) == numbers(key(2))
    reinstate(deployed, key(2))
    assert revoked(deployed) == set()


def test_shared_text_stays_with_an_owner_that_took_it(deployed: Deployed) -> None:
    unlearn(deployed, key(1), policy=Policy.ANY_OWNER)
    unlearn(deployed, key(2))
    result = reinstate(deployed, key(2))
    assert result.plan["stays_revoked"] == [{"key": SHARED, "owners": [key(1), key(2)]}]
    assert revoked(deployed) == numbers(key(1), SHARED)
    assert reinstate(deployed, key(1)).plan["also_reinstated"] == [SHARED]


def test_shared_text_that_was_asked_for_itself_stays(deployed: Deployed) -> None:
    unlearn(deployed, key(1), SHARED)
    assert reinstate(deployed, key(1)).plan["also_reinstated"] == []
    assert revoked(deployed) == numbers(SHARED)
    reinstate(deployed, SHARED)
    assert revoked(deployed) == set()


@given(
    owners=st.dictionaries(st.integers(100, 103), st.sets(st.integers(1, 5), min_size=2), max_size=4),
    order=st.permutations(range(1, 6)),
    policies=st.lists(st.sampled_from(Policy), min_size=5, max_size=5),
    back=st.sets(st.integers(1, 5), min_size=1),
)
def test_what_is_left_is_what_the_other_unlearns_would_have_taken(
    owners: dict[int, set[int]], order: list[int], policies: list[Policy], back: set[int]
) -> None:
    """Unlearn five sources one after another, and take some back: the same as if those had never been unlearned."""

    def after(sources: list[int]) -> tuple[set[int], dict[int, Taken]]:
        gone: set[int] = set()
        taken: dict[int, Taken] = {}
        for source in sources:
            policy = policies[source - 1]
            touched = {shared: owned for shared, owned in owners.items() if source in owned}
            gone.add(source)
            removed, _ = split_shared(touched, gone=gone, policy=policy)
            gone |= set(removed)
            taken |= {source: Taken(policy=policy, asked=True)}
            taken |= {shared: Taken(policy=policy, asked=False) for shared in removed}
        return gone, taken

    gone, taken = after(order)
    touched = {shared: owned for shared, owned in owners.items() if owned & back}
    decision = decide(back, revoked=gone, owners=touched, taken=taken)
    expected, _ = after([source for source in order if source not in back])
    assert gone - back - set(decision.also) == expected


class CrashError(Exception):
    """The process dies here."""


@pytest.mark.parametrize("where", ["derive", "describe"])
def test_a_reinstatement_that_was_interrupted_is_resumed(
    deployed: Deployed, articles: list[str], monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    unlearn(deployed, articles[0])
    original: Callable[..., object] = getattr(flavor, where)
    calls = itertools.count(1)

    def dies(*arguments: object, **options: object) -> object:
        result = original(*arguments, **options)
        if where == "derive" or next(calls) == 2:  # the second description is of the new version
            raise CrashError
        return result

    with monkeypatch.context() as patch:
        patch.setattr(flavor, where, dies)
        with pytest.raises(CrashError):
            reinstate(deployed, articles[0])
    assert revoked(deployed) == numbers(articles[0])
    unlearn(deployed, articles[1])
    (request,) = [entry for entry in requests(deployed) if entry.action == "reinstate"]
    assert request.state is State.REQUESTED
    with pytest.raises(UsageError, match="nulls reinstate"):
        act.resume(deployed.settings, request.request_id)
    result = undo.resume(deployed.settings, request.request_id)
    assert (result.state, result.model_uri) == (State.VERIFIED, "models:/m/3")
    assert revoked(deployed) == revoked(deployed, "models:/m/3") == numbers(articles[1])
    with pytest.raises(RefusedError, match="has ended"):
        undo.resume(deployed.settings, request.request_id)


def test_reinstate_from_the_command_line(deployed: Deployed, articles: list[str], tmp_path: Path) -> None:
    environment = {
        "NULLS_REGISTRY": str(deployed.settings.registry),
        "NULLS_CATALOG": str(deployed.settings.catalog),
        "MLFLOW_TRACKING_URI": str(deployed.settings.tracking),
    }
    made = unlearn(deployed, *articles[:3])
    (tmp_path / "slips.csv").write_text(f"query,reason\n{articles[0]},mistyped\n{articles[1]},mistyped\n")
    command = ("reinstate", deployed.uri, "--from", "slips.csv")
    plan = answer(nulls(*command, "--dry-run", "--json", cwd=tmp_path, **environment))
    assert (plan["request_id"], plan["sources"]) == (None, articles[:2])
    assert len(requests(deployed)) == 1
    done = nulls(*command, cwd=tmp_path, **environment)
    assert done.code == 0
    assert done.stdout.startswith(f"reinstated {articles[0]}, {articles[1]}\nnew version models:/m/3 in ")
    assert revoked(deployed) == numbers(articles[2])
    assert [row["action"] for row in answer(nulls("ledger", "--json", cwd=tmp_path, **environment))] == [
        "revoke",
        "reinstate",
    ]
    again = nulls(*command, "--json", cwd=tmp_path, **environment)
    assert [row["line"] for row in answer(again, code=4)["wrong"]] == [2, 3]
    resumed = nulls("reinstate", deployed.uri, "--resume", made.request_id or "", cwd=tmp_path, **environment)
    assert (resumed.code, "nulls unlearn --resume" in resumed.stderr) == (2, True)
