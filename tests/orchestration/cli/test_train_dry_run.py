"""The dry run: the resolved configuration, the estimate, and the lines that print it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestration.cli.train_dry_run import dry_run_lines, estimate, estimate_run
from orchestration.settings import Settings
from orchestration.train_request import TrainRequest, resolve_config
from registry.errors import UsageError
from tests.orchestration.corpus import NUM_ARTICLES, write_corpus
from training.config import PRESETS, TrainConfig
from training.estimate.token_count import TokenCount
from training.run.worker_range import Workers

RUNS = Path("nowhere")


def asked(*, workers: int = 1, **options: Any) -> TrainRequest:
    return TrainRequest(model="m", workers=Workers(least=1, most=workers), runs=RUNS, **options)


def estimated(config: TrainConfig, *, workers: int = 1, **options: Any) -> dict[str, Any]:
    return estimate_run(asked(workers=workers, **({"tokens": 10**9} | options)), Settings(), config)


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
def test_bad_overrides_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_config(None, overrides)


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("speed", [{}, {"gpu": "b200", "mfu": 0.5}, {"tokens_per_second": 1e4}])
def test_every_preset_prints_as_yaml_of_itself(name: str, speed: dict[str, Any]) -> None:
    config = TrainConfig.preset(name)
    for workers in (1, 8):
        text = dry_run_lines(estimated(config, workers=workers, **speed))
        assert TrainConfig.from_dict(yaml.safe_load("\n".join(text))) == config
        assert max(map(len, text)) < 160
        assert any("fsdp with 8" in line for line in text) == (workers == 8)
        assert any("on CPUs" in line for line in text) == ("tokens_per_second" in speed)


def test_hours_follow_from_flops_and_from_a_speed() -> None:
    config = TrainConfig.preset("paper-1b")
    found = estimated(config, workers=8, gpu="h200", mfu=0.5)["estimate"]
    per_token = config.model.flops_per_token(49152, 1024)
    assert found["flops"]["per_token"] == per_token
    assert found["flops"]["total"] == 7e9 * per_token
    assert found["speed"]["hours"] == pytest.approx(7e9 * per_token / (8 * 989e12 * 0.5) / 3600)
    assert found["flops"]["per_token_dense_equivalent"] == config.model.dense_flops_per_token(49152, 1024)
    stated = estimated(config, tokens_per_second=7e9 / 3600)["estimate"]
    assert stated["speed"]["hours"] == pytest.approx(1)
    assert stated["speed"]["mfu"] is None


def test_sinks_that_are_dropped_cost_nothing() -> None:
    with_all, without = (
        estimated(TrainConfig.preset("small", sink_dropout=share))["estimate"]["flops"]["per_token"]
        for share in (0, 0.5)
    )
    assert with_all - without == pytest.approx(6 * 28 * 3 * 768 * 128 / 2)


def test_a_run_that_does_not_fit_is_reported() -> None:
    large = TrainConfig.preset("paper-1b", micro_batch=64)
    too_large = estimated(large)
    assert too_large["estimate"]["memory"]["fits"] is False
    assert any("does not fit" in line for line in dry_run_lines(too_large))
    smaller = estimated(TrainConfig.preset("paper-1b", micro_batch=64, activation_checkpointing=True))
    assert smaller["estimate"]["memory"]["fits"] is True
    assert smaller["estimate"]["memory"]["total"] < too_large["estimate"]["memory"]["total"]
    assert not any("does not fit" in line for line in dry_run_lines(smaller))


def test_without_tokens_there_are_no_hours() -> None:
    found = estimated(TrainConfig.preset("small"), tokens=None)
    assert found["estimate"]["tokens"] is None
    assert "hours" not in found["estimate"]["speed"]
    assert any("--tokens N" in line for line in dry_run_lines(found))


@pytest.mark.parametrize(
    ("speed", "message"),
    [
        ({"gpu": "abacus"}, "h100"),
        ({"mfu": 40.0}, "--mfu 40"),
        ({"tokens_per_second": -1.0}, "--tokens-per-second -1"),
        ({"tokens": 0}, "--tokens 0"),
    ],
)
def test_impossible_speeds_are_refused(speed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        estimated(TrainConfig.preset("demo"), **speed)


def test_an_exact_count_is_not_called_about() -> None:
    config = TrainConfig.preset("small")
    count = TokenCount.stated(config, 10**6)
    found = {"workers": 1, "model": "m", "snapshot": "a" * 64, "config": config.to_dict()}
    for is_exact in (True, False):
        known = TokenCount(**{**count.__dict__, "is_exact": is_exact})
        text = dry_run_lines(found | {"estimate": estimate(config, known, asked())})
        assert any("about 1,000,000" in line for line in text) != is_exact
        assert any("1,000,000 an epoch" in line for line in text)


def test_the_number_of_sources_that_share_a_sink_is_reported_with_a_warning_if_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "registry")
    settings, num_sources = Settings(registry=str(tmp_path / "registry")), NUM_ARTICLES + 2

    def reported(num_pool: int, crowded: int = 40) -> tuple[float, str]:
        monkeypatch.setattr("orchestration.cli.train_dry_run.CROWDED", crowded)
        config = TrainConfig.preset("demo", model={"num_pool": num_pool}, min_heldout=2)
        data = estimate_run(asked(tokens=10**6), settings, config)
        assert data["estimate"]["sharing"]["num_sources"] == num_sources
        return data["estimate"]["sharing"]["sources_per_sink"], "\n".join(dry_run_lines(data))

    share, text = reported(4096)
    assert share == pytest.approx(num_sources * 160 / 4096)
    assert "1.0 of 26 sources share each" in text
    assert "num_pool costs" not in text
    share, text = reported(160, crowded=num_sources - 1)
    assert share == num_sources
    assert "num_pool costs" in text
    assert estimated(TrainConfig.preset("demo"))["estimate"]["sharing"] is None
