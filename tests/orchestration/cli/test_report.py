"""`nulls report`, and the pages of `nulls unlearn` and `nulls audit`."""

from __future__ import annotations

from pathlib import Path

from registry import ids
from tests.orchestration.cli.commands import answer, nulls, nulls_process
from tests.orchestration.conftest import Deployed
from tests.orchestration.corpus import NUM_ARTICLES, heldout_of, key, title


def stores(deployed: Deployed) -> dict[str, str]:
    """The environment that names a model's stores."""
    settings = deployed.settings
    named = {
        "NULLS_REGISTRY": settings.registry,
        "NULLS_CATALOG": settings.catalog,
        "MLFLOW_TRACKING_URI": settings.tracking,
    }
    return {name: value for name, value in named.items() if value}


def trained(weights: Path) -> list[int]:
    """Numbers of articles that were trained and share no text."""
    return [n for n in range(3, NUM_ARTICLES + 1) if ids.source_id(key(n)) not in heldout_of(weights)]


def test_unlearn_writes_the_page_and_report_gives_the_same(deployed: Deployed, weights: Path, tmp_path: Path) -> None:
    number = trained(weights)[0]
    words = ("unlearn", deployed.uri, title(number), "--reason", "asked", "--json", "--html", "out/page.html")
    done = nulls(*words, cwd=tmp_path, **stores(deployed))
    result = answer(done, code=done.code)
    assert done.code == (0 if result["evidence"]["verdict"] == "supported" else 1)
    page = (tmp_path / "out" / "page.html").read_text()
    assert "out/page.html" in done.stderr
    for text in (result["request_id"], title(number), "asked", result["model_uri"]):
        assert text in page

    again = nulls_process(
        "report", result["request_id"], "--json", "--html", "again.html", cwd=tmp_path, **stores(deployed)
    )
    report = answer(again)
    assert report["evidence"] == result["evidence"]
    assert report["request"]["state"] == result["state"]
    written = [
        (tmp_path / name).read_text().split("</h1>")[1].split("</p>", 1)[1] for name in ("out/page.html", "again.html")
    ]
    assert written[0] == written[1], "but for the time at which they were written"

    short = nulls("report", result["request_id"], cwd=tmp_path, **stores(deployed))
    assert short.code == 0
    assert result["request_id"] in short.stdout.splitlines()[0]
    assert "asked" in short.stdout


def test_an_unknown_request_exits_with_one(deployed: Deployed, tmp_path: Path) -> None:
    done = nulls("report", "0" * 16, "--html", "page.html", cwd=tmp_path, **stores(deployed))
    assert done.code == 1
    assert not (tmp_path / "page.html").exists()


def test_nothing_is_revoked_if_the_page_cannot_be_written(deployed: Deployed, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ("unlearn", deployed.uri, key(trained(weights)[0]), "--reason", "x")
    for more in (("--html", "file/page.html"), ("--html", "."), ("--html", "page.html", "--dry-run")):
        assert nulls(*words, *more, cwd=tmp_path, **stores(deployed)).code == 2
    assert answer(nulls("ledger", "--json", cwd=tmp_path, **stores(deployed))) == []


def test_audit_writes_a_page_and_prints_every_closure(deployed: Deployed, weights: Path, tmp_path: Path) -> None:
    number = trained(weights)[1]
    words = ("audit", deployed.uri, title(number), "--html", "audit.html")
    assert nulls(*words[:3], "--html", ".", cwd=tmp_path, **stores(deployed)).code == 2
    done = nulls(*words, cwd=tmp_path, **stores(deployed))
    assert done.code == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  closure")]
    assert len(line.split()) == 6
    page = (tmp_path / "audit.html").read_text()
    for text in (title(number), "in force", 'class="band"', deployed.uri):
        assert text in page
