"""`nulls train --reserve`: queries become ids of the configuration, and the dry run says what they take of the pool."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestration.cli.train_dry_run import dry_run_lines, estimate_run
from orchestration.reservation import reservation, with_reserved
from orchestration.settings import Settings
from orchestration.train_request import TrainRequest
from registry import ids
from registry.errors import UsageError
from registry.snapshot import Snapshot
from tests.orchestration.cli.commands import nulls
from tests.orchestration.corpus import SHARED, key
from training.config import TrainConfig
from training.run.worker_range import Workers

CONFIG = TrainConfig.preset("demo", min_heldout=2)


@pytest.fixture
def settings(corpus_root: Path) -> Settings:
    """The corpus, and no other store."""
    return Settings(registry=str(corpus_root))


def formatted(*keys: str) -> tuple[str, ...]:
    return tuple(sorted(ids.format_id(ids.source_id(one)) for one in keys))


def test_queries_of_every_form_and_lines_of_a_file_become_ids(settings: Settings, tmp_path: Path) -> None:
    listed = tmp_path / "reserve.txt"
    listed.write_text(f"# by contract\n\nArticle 7\n  {key(8)}  \n")
    config = with_reserved(CONFIG, settings, ["Article 3", ids.format_id(ids.source_id(key(7)))], listed)
    assert config.model.reserved_sources == formatted(key(3), key(7), key(8))
    more = with_reserved(config, settings, ["http://a.example/"], None)
    assert more.model.reserved_sources == formatted(key(3), key(7), key(8), "web:a.example")
    assert with_reserved(CONFIG, Settings(registry="nowhere"), [], None) is CONFIG


def test_all_queries_that_name_no_source_are_named_at_once(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)--reserve: .*'Article 999'.*'Article 998'"):
        with_reserved(CONFIG, settings, ["Article 3", "Article 999", "Article 998"], None)
    with pytest.raises(UsageError, match="cannot be read"):
        with_reserved(CONFIG, settings, [], tmp_path / "nowhere.txt")
    small = TrainConfig.preset("demo", model={"num_pool": 400})
    with pytest.raises(UsageError, match="set num_pool to"):
        with_reserved(small, settings, [key(3), key(7)], None)


def test_the_dry_run_says_what_they_take(settings: Settings) -> None:
    config = with_reserved(CONFIG, settings, [key(1), key(3)], None)
    request = TrainRequest(model="m", workers=Workers(least=1, most=1), tokens=10**6)
    data = estimate_run(request, settings, config)
    found = data["estimate"]["reserved"]
    assert found["num_sources"] == 2
    assert sorted(found["keys"]) == [key(1), key(3)]
    assert found["sinks_per_layer"] == 2 * 160
    assert found["share_of_pool"] == 320 / 4096
    assert found["num_shared_not_reserved"] == 1
    assert data["estimate"]["sharing"]["sources_per_sink"] == pytest.approx(24 * 160 / (4096 - 320))
    text = "\n".join(dry_run_lines(data))
    assert "2 sources have 320 sinks of each layer to themselves, 8% of the pool" in text
    assert "1 shared sources" in text
    assert "160 of 3,776 a source" in text
    both = estimate_run(request, settings, with_reserved(config, settings, [SHARED], None))
    assert both["estimate"]["reserved"]["num_shared_not_reserved"] == 0
    assert estimate_run(request, settings, CONFIG)["estimate"]["reserved"] is None


def test_a_source_without_text_cannot_be_reserved(settings: Settings, snapshot: Snapshot) -> None:
    config = with_reserved(CONFIG, settings, ["web:b.example"], None)
    with pytest.raises(UsageError, match=r"web:b\.example have no text"):
        reservation(config, snapshot)


def test_from_the_command_line(corpus_root: Path, tmp_path: Path) -> None:
    reserve = ["--reserve", "Article 3", "--reserve", key(7), "--set", "min_heldout=2", "--dry-run", "--json"]
    done = nulls("train", "--model", "m", "--registry", str(corpus_root), *reserve, cwd=tmp_path)
    data = json.loads(done.stdout)
    assert data["config"]["model"]["reserved_sources"] == list(formatted(key(3), key(7)))
    assert data["estimate"]["reserved"]["num_sources"] == 2
