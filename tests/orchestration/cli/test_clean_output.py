"""Commands on hostile data: titles with escapes, forged lines and bidi controls; passwords in URLs; a bulk request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestration.settings import Settings
from pipelines.ingest import IngestConfig, ingest
from registry.catalog.ledger import Ledger
from registry.catalog.ledger import State as RequestState
from tests.orchestration.cli.commands import Done, answer, nulls
from tests.registry.messages.test_shown import forbidden

TITLES = [
    "\x1b[2J\x1b[31mRED\x1b[0m title",
    "nice\u202egnp.exe",
    "line\nbreak 0000000000000000  web:fake.example  9 documents",
    "tab\ttitle",
    "\x1b]0;pwned\x07 osc",
    "a\0b",
    "title \u2066iso\u2069",
    "\x9b31mC1 csi",
    "zero\u200bwidth\ufeff",
    "[red]markup[/red]",
    "東京",
]
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "was",
    "for",
    "that",
    "with",
    "river",
    "stone",
    "garden",
    "light",
    "paper",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a registry of articles with such titles."""
    folder = tmp_path_factory.mktemp("hostile")
    with (folder / "wiki_00").open("w") as file:
        for number, title in enumerate(TITLES, 1):
            text = " ".join(WORDS[(number * n + n // 7) % len(WORDS)] for n in range(90))
            url = f"https://en.wikipedia.org/wiki?curid={number}"
            file.write(json.dumps({"id": str(number), "revid": "1", "url": url, "title": title, "text": text}) + "\n")
    report = ingest(IngestConfig(wikipedia=(str(folder / "wiki_00"),)), registry_uri=folder / "r", workers=1)
    assert report.snapshot
    return folder


def check(done: Done, num_lines: int | None = None) -> None:
    """Assert that what a command printed acts on no terminal, and has so many lines."""
    for text in (done.stdout, done.stderr):
        assert not forbidden(text.replace("\n", ""))
    assert num_lines is None or len(done.stdout.splitlines()) == num_lines


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_no_command_prints_a_title_raw(hostile: Path, as_json: tuple[str, ...]) -> None:
    environment = {"NULLS_REGISTRY": "r"}
    listing = nulls("sources", *as_json, cwd=hostile, **environment)
    check(listing, None if as_json else len(TITLES) + 1)
    assert "RED" in listing.stdout
    assert "東京" in listing.stdout
    if as_json:
        assert {row["title"] for row in json.loads(listing.stdout)} == set(TITLES)
    for title in TITLES:
        check(nulls("lookup", title, f"{title} s", *as_json, cwd=hostile, **environment))
        check(nulls("explain", title, *as_json, cwd=hostile, **environment))
        check(nulls("remove", f"{title}?", "--dry-run", *as_json, cwd=hostile, **environment))
        check(nulls("snapshots", "verify", title, *as_json, cwd=hostile, **environment))
        check(nulls("lookup", f"--{title}", *as_json, cwd=hostile, **environment))
        check(nulls("sources", "--kind", title, *as_json, cwd=hostile, **environment))
    for number in range(1, len(TITLES) + 1):
        check(nulls("explain", f"wiki:enwiki:{number}", *as_json, cwd=hostile, **environment), None if as_json else 13)


@pytest.mark.parametrize("option", ["--reason", "--requested-by"])
def test_a_reason_with_control_characters_is_refused(hostile: Path, option: str) -> None:
    forged = "legit\n0000000000000000  2026-01-01T00:00:00  verified"
    done = nulls("unlearn", "models:/m/1", "x", option, forged, "--registry", "r", cwd=hostile)
    assert done.code == 2
    assert done.stderr.startswith(f"error: {option} 'legit\\n0000")
    check(done)


def test_a_bulk_request_has_a_width(hostile: Path, tmp_path: Path) -> None:
    catalog = f"sqlite:///{tmp_path}/c.db"
    ledger = Ledger(Settings(registry=str(hostile / "r"), catalog=catalog).open_catalog())
    fields = {"action": "unlearn", "policy": "all-owners", "model_name": "m", "model_before": "models:/m/1"}
    sources = [f"wiki:enwiki:{n}" for n in range(8_901)]
    asked = ledger.open_request(requested_by="a\u200bb", reason="because " * 500, sources=sources, **fields)
    ledger.append(asked, RequestState.FAILED)
    listing = nulls("ledger", "--registry", "r", cwd=hostile, NULLS_CATALOG=catalog)
    check(listing, 2)
    assert max(map(len, listing.stdout.splitlines())) <= 240
    assert "wiki:enwiki:0, wiki:enwiki:1" in listing.stdout
    shown = nulls("ledger", asked, "--registry", "r", cwd=hostile, NULLS_CATALOG=catalog)
    check(shown)
    assert max(map(len, shown.stdout.splitlines())) <= 240
    assert shown.stdout.count("because") == 500
    data = answer(nulls("ledger", asked, "--json", "--registry", "r", cwd=hostile, NULLS_CATALOG=catalog))
    assert len(data["sources"]) == 8_901
    assert data["requested_by"] == "a\u200bb"


@pytest.mark.parametrize(
    ("variable", "url", "command"),
    [
        ("MLFLOW_TRACKING_URI", "http://bob:S3CRETpw@127.0.0.1:1", ("unlearn", "models:/m/1", "X", "--reason", "r")),
        ("NULLS_CATALOG", "postgresql+psycopg://127.0.0.1:1/db?user=bob&password=S3CRETpw", ("ledger",)),
        ("NULLS_CATALOG", "mysql://bob:S3/CRETpw@h/db", ("ledger",)),
        ("NULLS_CATALOG", "postgresql://bob:S3CRETpw@h:x/db", ("ledger",)),
        ("NULLS_REGISTRY", "http://bob:S3CRETpw@h/r", ("sources",)),
        ("RAY_ADDRESS", "http://bob:S3CRETpw@127.0.0.1:1", ("jobs", "list")),
        ("RAY_ADDRESS", "ftp://bob:S3CRETpw@127.0.0.1:1", ("jobs", "list")),
    ],
)
def test_no_password_is_printed(hostile: Path, variable: str, url: str, command: tuple[str, ...]) -> None:
    environment = {"NULLS_REGISTRY": "r", variable: url}
    done = nulls(*command, "--json", cwd=hostile, **environment)
    assert done.code in (1, 2)
    assert "CRETpw" not in done.stdout + done.stderr
    assert json.loads(done.stdout)["error"]["message"] in done.stderr
