"""The dry run without a process: what the command line resolves, what an estimate says, and how it is worded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestration.cli.train_dry_run import Speed, dry_run, estimate, lines
from orchestration.settings import Settings
from orchestration.train_request import resolve_config
from registry.errors import UsageError
from tests.orchestration.corpus import NUM_ARTICLES, write_corpus
from training.config import PRESETS, TrainConfig
from training.estimate.token_count import TokenCount

RUNS = Path("nowhere")


def planned(config: TrainConfig, *, workers: int = 1, **speed: Any) -> dict[str, Any]:
    known = Speed(**{"tokens": 10**9} | speed)
    return dry_run(config, Settings(), model_name="m", workers=workers, runs=RUNS, speed=known)


@pytest.fixture(autouse=True)
def _no_registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NULLS_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)


def test_preset_file_and_overrides(tmp_path: Path) -> None:
    assert resolve_config(None, []) == TrainConfig.preset("demo")
    assert resolve_config("small", ["model.num_sinks=64", "seed=3"]) == TrainConfig.preset(
        "small", seed=3, model={"num_sinks": 64}
    )
    file = tmp_path / "run.yaml"
    file.write_text("preset: paper-1b\nmodel: {num_sinks: 250}\n")
    expected = TrainConfig.preset("paper-1b", model={"num_sinks": 250}, epochs=1)
    assert resolve_config(None, ["epochs=1"], file) == expected == resolve_config(str(file), ["epochs=1"])
    assert resolve_config(None, ["preset=small"], file).model.num_sinks == 250


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["epochs"], "FIELD=VALUE"),
        (["epochs=[1"], "--set epochs"),
        (["model=3", "model.num_pool=9"], "model was set to 3"),
        (["model.pool=9"], r"model\.pool"),
        (["sink_dropout=lots"], "sink_dropout='lots'"),
    ],
)
def test_overrides_that_are_none(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_config(None, overrides)


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("speed", [{}, {"gpu": "b200", "mfu": 0.5}, {"tokens_per_second": 1e4}])
def test_every_preset_prints_as_yaml_of_itself(name: str, speed: dict[str, Any]) -> None:
    config = TrainConfig.preset(name)
    for workers in (1, 8):
        text = lines(planned(config, workers=workers, **speed))
        assert TrainConfig.from_dict(yaml.safe_load("\n".join(text))) == config
        assert max(map(len, text)) < 160
        assert any("fsdp with 8" in line for line in text) == (workers == 8)
        assert any("on CPUs" in line for line in text) == ("tokens_per_second" in speed)


def test_hours_follow_from_flops_and_from_a_speed() -> None:
    config = TrainConfig.preset("paper-1b")
    found = planned(config, workers=8, gpu="h200", mfu=0.5)["estimate"]
    per_token = config.model.flops_per_token(49152, 1024)
    assert found["flops"]["per_token"] == per_token
    assert found["flops"]["total"] == 7e9 * per_token
    assert found["speed"]["hours"] == pytest.approx(7e9 * per_token / (8 * 989e12 * 0.5) / 3600)
    assert found["flops"]["per_token_dense_equivalent"] == config.model.dense_flops_per_token(49152, 1024)
    stated = planned(config, tokens_per_second=7e9 / 3600)["estimate"]
    assert stated["speed"]["hours"] == pytest.approx(1)
    assert stated["speed"]["mfu"] is None


def test_sinks_that_are_dropped_cost_nothing() -> None:
    with_all, without = (
        planned(TrainConfig.preset("small", sink_dropout=share))["estimate"]["flops"]["per_token"] for share in (0, 0.5)
    )
    assert with_all - without == pytest.approx(6 * 28 * 3 * 768 * 128 / 2)


def test_what_does_not_fit_is_said() -> None:
    large = TrainConfig.preset("paper-1b", micro_batch=64)
    said = planned(large)
    assert said["estimate"]["memory"]["fits"] is False
    assert any("does not fit" in line for line in lines(said))
    smaller = planned(TrainConfig.preset("paper-1b", micro_batch=64, activation_checkpointing=True))
    assert smaller["estimate"]["memory"]["fits"] is True
    assert smaller["estimate"]["memory"]["total"] < said["estimate"]["memory"]["total"]
    assert not any("does not fit" in line for line in lines(smaller))


def test_without_tokens_there_are_no_hours() -> None:
    found = planned(TrainConfig.preset("small"), tokens=None)
    assert found["estimate"]["tokens"] is None
    assert "hours" not in found["estimate"]["speed"]
    assert any("--tokens N" in line for line in lines(found))


@pytest.mark.parametrize(
    ("speed", "message"),
    [
        ({"gpu": "abacus"}, "h100"),
        ({"mfu": 40.0}, "--mfu 40"),
        ({"tokens_per_second": -1.0}, "--tokens-per-second -1"),
        ({"tokens": 0}, "--tokens 0"),
    ],
)
def test_speeds_that_are_none(speed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        planned(TrainConfig.preset("demo"), **speed)


def test_an_exact_count_is_not_called_about() -> None:
    config = TrainConfig.preset("small")
    count = TokenCount.stated(config, 10**6)
    found = {"workers": 1, "model": "m", "snapshot": "a" * 64, "config": config.to_dict()}
    for is_exact in (True, False):
        known = TokenCount(**{**count.__dict__, "is_exact": is_exact})
        text = lines(found | {"estimate": estimate(config, known, workers=1, speed=Speed())})
        assert any("about 1,000,000" in line for line in text) != is_exact
        assert any("1,000,000 an epoch" in line for line in text)


def test_how_many_sources_share_a_sink_is_told_and_crowds_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "registry")
    settings, num_sources = Settings(registry=str(tmp_path / "registry")), NUM_ARTICLES + 2

    def told(num_pool: int, crowded: int = 40) -> tuple[float, str]:
        monkeypatch.setattr("orchestration.cli.train_dry_run.CROWDED", crowded)
        config = TrainConfig.preset("demo", model={"num_pool": num_pool}, min_heldout=2)
        data = dry_run(config, settings, model_name="m", workers=1, runs=RUNS, speed=Speed(tokens=10**6))
        assert data["estimate"]["sharing"]["num_sources"] == num_sources
        return data["estimate"]["sharing"]["sources_per_sink"], "\n".join(lines(data))

    share, text = told(4096)
    assert share == pytest.approx(num_sources * 160 / 4096)
    assert "1.0 of 26 sources share each" in text
    assert "num_pool costs" not in text
    share, text = told(160, crowded=num_sources - 1)
    assert share == num_sources
    assert "num_pool costs" in text
    assert planned(TrainConfig.preset("demo"))["estimate"]["sharing"] is None
