"""Pages hold any title safely, need no network, and show all that is measured."""

from __future__ import annotations

import html.parser
import re
from pathlib import Path
from typing import Any

import pytest

from orchestration.unlearning.report.page import check_writable, write_audit, write_report
from registry.errors import UsageError
from tests.orchestration.unlearning.report.measured import heldout, source

TITLES = [
    '<script>alert("x")</script>',
    "<img src=x onerror=alert(1)>",
    "</title></style></svg><b>",
    "abc\u202edcba\u202c",
    "$\\frac{a}{b}$ $x^2$",
    "{{ 7 * 7 }} {% raw %}",
    "日本語 한국어 مقالة",
    "a\nb\x1b[31m\x00",
    "x" * 5000,
    "' onmouseover='alert(1)",
]


class Parsed(html.parser.HTMLParser):
    """The elements, attributes and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[tuple[str, str]] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {(name, value or "") for name, value in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def audited(rows: list[dict[str, Any]], *, revoked: bool = True) -> dict[str, Any]:
    """An audit as `nulls audit` returns it."""
    return {
        "model_uri": "models:/m/2",
        "weights_sha256": "ab" * 32,
        "snapshot": "cd" * 32,
        "oracle_uri": None,
        "sources": [row | {"heldout": heldout(), "revoked": revoked} for row in rows],
        "summary": {
            "closure": 1.0,
            "closure_by_state": {"closest": 1.01, "placebo": 1.02, "backbone": 0.83},
            "unseen_loss": heldout(),
            "num_sources": len(rows),
            "weaknesses": [why for row in rows for why in row["weaknesses"]],
        },
        "code": {"nulls": "0.1.0", "commit": None},
    }


def page_of(tmp_path: Path, rows: list[dict[str, Any]], **options: bool) -> str:
    """The audit page of these sources."""
    write_audit(tmp_path / "audit.html", audited(rows, **options))
    return (tmp_path / "audit.html").read_text(encoding="utf-8")


def test_no_title_becomes_markup_or_hides_anything(tmp_path: Path) -> None:
    plain = Parsed(page_of(tmp_path, [source("A", key="web:a.example") for _ in TITLES]))
    text = page_of(tmp_path, [source(title, key=f"web:{title}") for title in TITLES])
    found = Parsed(text)
    assert found.elements == plain.elements
    assert {name for name, _ in found.attributes} == {name for name, _ in plain.attributes}
    assert not set("\u202e\u202c\x1b\x00") & set(text)
    for shown in (TITLES[0], TITLES[1], TITLES[4], TITLES[5], TITLES[6], "abc\\u202edcba\\u202c", "a\\nb\\x1b[31m"):
        assert shown in found.text
    assert "x" * 121 not in text
    assert "…" in found.text


def test_a_page_needs_no_network_and_runs_nothing(tmp_path: Path) -> None:
    text = page_of(tmp_path, [source("A")])
    found = Parsed(text)
    assert not found.elements & {"script", "link", "img", "iframe", "object", "a", "form"}
    assert not re.search(r"https?://|url\(|@import", text)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in found.attributes


def test_titles_keep_their_direction_to_themselves(tmp_path: Path) -> None:
    text = page_of(tmp_path, [source("مقالة (x)", key="web:a.example")])
    assert '<bdi dir="auto">مقالة (x)</bdi>' in text


def test_every_state_is_shown_with_its_band_its_closure_and_its_p(tmp_path: Path) -> None:
    row = source("A", backbone=3.9)
    text = page_of(tmp_path, [row])
    assert text.count('class="band"') == 3
    lanes = {match[0] for match in re.findall(r'class="band" x="([\d.]+)" y="5" width="([\d.]+)"', text)}
    assert len(lanes) == 3
    shown = Parsed(text).text
    for state in ("closest", "placebo", "backbone"):
        assert f"{row['closure'][state]:.2f}" in shown
    assert row["p_values"]["backbone"] < 0.001
    assert "<0.0001" in shown
    assert "p of the three together: <0.0001" in " ".join(shown.split())
    assert " 0.00\n" not in shown
    assert "lower than expected" in shown
    assert "closest 1.01, placebo 1.02, backbone 0.83" in shown


@pytest.mark.parametrize(("revoked", "weak"), [(True, False), (True, True), (False, False)])
def test_an_audit_says_its_verdict(tmp_path: Path, revoked: bool, weak: bool) -> None:
    row = source("A") | {"weaknesses": ["closure under 0.7"] if weak else []}
    text = Parsed(page_of(tmp_path, [row], revoked=revoked)).text
    assert ("do not fully support" in text) == weak
    assert ("None of these sources is unlearned" in text) == (not revoked)
    assert ("as hard to predict as text that was never trained" in text) == (revoked and not weak)
    assert ("closure under 0.7" in text) == weak
    for name in ("models:/m/2", "ab" * 32, "cd" * 32, "not known"):
        assert name in text


def test_with_an_oracle_the_expectation_is_its_loss(tmp_path: Path) -> None:
    losses = {"closest": 5.5, "placebo": 5.6, "backbone": 5.7}
    text = Parsed(page_of(tmp_path, [source("A") | {"oracle": losses, "never": losses}])).text
    assert "the tick is the loss of a retrained model" in text
    assert "5.70" in text
    assert "retrained model" not in Parsed(page_of(tmp_path, [source("A")])).text.replace(
        "retrained model (oracle)none", ""
    )


def test_many_sources_are_cut_and_counted(tmp_path: Path) -> None:
    text = page_of(tmp_path, [source(f"Title {n}") for n in range(60)])
    assert "Title 39" in text
    assert "Title 40" not in text
    assert "20 more sources were measured" in text


def test_a_story_shows_its_figures_texts_and_facts(tmp_path: Path) -> None:
    written = {"model": "models:/m/1", "how": "its own sinks", "prompt": "Ayn", "refused": None, "text": " <b>Rand"}
    write_report(
        tmp_path / "story.html",
        title="A, unlearned",
        subtitle="models:/m/2",
        sources=[source("A")],
        heldout=heldout(),
        verdict={"outcome": "supported", "headline": "It is", "reasons": []},
        others=[{"key": "web:b.example", "loss_before": 3.5, "loss_after": 3.5}],
        figures=[("to revoke", "0.2 s")],
        generations=[written, written | {"text": None, "refused": "refused: unlearned"}],
        facts=[("Seconds", [("train", 5.25)])],
    )
    shown = Parsed((tmp_path / "story.html").read_text()).text
    for text in ("0.2 s", "<b>Rand", "refused: unlearned", "web:b.example", "5.25"):
        assert text in shown


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    check_writable(None)
    check_writable(tmp_path / "new" / "page.html")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "page.html", Path("/proc/page.html")):
        with pytest.raises(UsageError, match="--html"):
            check_writable(path)
