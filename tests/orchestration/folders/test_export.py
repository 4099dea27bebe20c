"""An exported folder needs nothing of ours but the package, and refuses what was in force; a backbone needs nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestration.cli.main import app
from orchestration.unlearning.unlearn import unlearn
from registry import ids
from registry.errors import DamagedError, RefusedError, ServiceError, UsageError
from registry.snapshot import Snapshot
from tests.orchestration.conftest import Deployed
from tests.orchestration.corpus import heldout_of, key, title
from tests.training.checkpoint.full_disk import small_disk
from training.model.modeling_nulls import NullsForCausalLM
from training.serving import flavor
from training.serving.export import model_card
from training.serving.export.folder import export_version
from training.serving.in_force import in_force
from training.serving.registration import register_folder
from training.serving.version import weights_digest

IDS_BT = torch.tensor([[1, 2, 3, 4]])
BACKBONE_ELSEWHERE = """
import sys
for name in ("registry", "training", "orchestration", "pipelines"):
    sys.modules[name] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
assert type(model).__name__ == "LlamaForCausalLM"
assert AutoTokenizer.from_pretrained(sys.argv[1]).eos_token == "<|endoftext|>"
with torch.no_grad():
    torch.save(model(torch.tensor([[1, 2, 3, 4]])).logits, sys.argv[2])
"""
KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from orchestration.cli.main import main
copy, copied = shutil.copyfile, []
def killed_at_the_second(source, target):
    copied.append(copy(source, target))
    if len(copied) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
shutil.copyfile = killed_at_the_second
sys.argv = ["nulls", "export", *sys.argv[1:]]
main()
"""


def source(number: int) -> int:
    return ids.source_id(key(number))


@pytest.fixture
def trained(weights: Path) -> list[int]:
    """Numbers of articles that were trained."""
    return [number for number in range(3, 20) if source(number) not in heldout_of(weights)]


@pytest.fixture
def revoked_uri(deployed: Deployed, trained: list[int], monkeypatch: pytest.MonkeyPatch) -> str:
    """A version in which the first trained article is unlearned."""
    return unlearn(deployed.settings, deployed.uri, [key(trained[0])], reason="test", measure=False).model_uri


def exported(deployed: Deployed, uri: str, directory: Path) -> Path:
    """Export a version as the command does."""
    version = flavor.describe(uri, tracking_uri=deployed.settings.tracking_uri)
    found = in_force(version, catalog=deployed.settings.catalog)
    export_version(version, found, directory)
    return directory


@pytest.fixture
def folder(deployed: Deployed, revoked_uri: str, tmp_path: Path) -> Path:
    """The exported folder of the version before: it answered with the article when it was made."""
    return exported(deployed, deployed.uri, tmp_path / "out" / "exported")


@pytest.fixture
def command(deployed: Deployed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command on the stores of `deployed`, and return its JSON."""
    monkeypatch.setenv("NULLS_REGISTRY", str(deployed.settings.registry))
    monkeypatch.setenv("NULLS_CATALOG", str(deployed.settings.catalog))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(deployed.settings.tracking))

    def run(*arguments: object) -> Any:
        capsys.readouterr()
        app([*map(str, arguments), "--json"], standalone_mode=False)
        return json.loads(capsys.readouterr().out)

    return run


def refused(model: Any, number: int) -> None:
    with pytest.raises(RefusedError, match=ids.format_id(source(number))):
        model.generate(IDS_BT, source_ids=torch.tensor([source(number)]), max_new_tokens=2)


def test_an_exported_folder_stands_alone_and_refuses_what_was_in_force(
    deployed: Deployed, folder: Path, weights: Path, trained: list[int], tmp_path: Path
) -> None:
    assert [path.name for path in folder.parent.iterdir()] == ["exported"]
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder, elsewhere)
    Path(str(deployed.settings.catalog).removeprefix("sqlite:///")).unlink()
    assert weights_digest(elsewhere) == weights_digest(weights)
    model = AutoModelForCausalLM.from_pretrained(elsewhere).eval()
    free = NullsForCausalLM.from_checked_folder(weights).eval()
    refused(model, trained[0])
    for source_ids in (None, torch.tensor([source(trained[1])])):
        assert torch.equal(model(IDS_BT, source_ids=source_ids).logits, free(IDS_BT, source_ids=source_ids).logits)
    assert AutoTokenizer.from_pretrained(elsewhere).eos_token == "<|endoftext|>"
    assert (elsewhere / "router.npz").is_file()
    texts = {path.name: path.read_text() for path in elsewhere.iterdir() if path.suffix in (".json", ".md")}
    assert not [name for name, text in texts.items() if str(tmp_path) in text or str(weights) in text]
    assert "auto_map" not in texts["config.json"]


def test_the_card_says_what_is_revoked_and_what_that_means(
    folder: Path, deployed: Deployed, trained: list[int], snapshot: Snapshot, revoked_uri: str
) -> None:
    card = (folder / "README.md").read_text()
    version = flavor.describe(deployed.uri, tracking_uri=deployed.settings.tracking_uri)
    assert card.startswith("---\nlibrary_name: transformers\n")
    for text in (snapshot.id, version.weights_id, version.weights_digest, ids.format_id(source(trained[0]))):
        assert f"`{text}`" in card
    assert model_card.escaped(key(trained[0])) in card
    assert title(trained[0]) in card
    assert "1 when this folder was exported" in card
    assert "erases nothing" in card
    assert f"torch.tensor([{source(trained[0])}])" in card


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("A|B", r"A\|B"),
        ("<script>x</script>", r"\<script\>x\<\/script\>"),
        ("[x](javascript:1)\n# Head", r"\[x\]\(javascript\:1\)\\n\# Head"),
        ("a\u202eb\x1b[31m", r"a\\u202eb\\x1b\[31m"),
        ("x" * 500, "x" * 159 + "…"),
    ],
)
def test_titles_are_plain_text_in_the_card(text: str, shown: str) -> None:
    from markdown_it import MarkdownIt

    assert model_card.escaped(text) == shown
    html = MarkdownIt("commonmark").enable("table").render(f"| a | b |\n|---|---|\n| {shown} | end |")
    assert html.count("<td>") == 2
    assert "<script" not in html
    assert "<a " not in html


@pytest.mark.parametrize("name", ["config.json", "nulls.json"])
@pytest.mark.parametrize("field", ["revoked", "lineage", "weights_id", "seed"])
def test_an_altered_list_is_damage(folder: Path, name: str, field: str) -> None:
    path = folder / name
    content = json.loads(path.read_text())
    if field == "seed":
        (content["layout"] if name == "nulls.json" else content)["seed" if name == "nulls.json" else "sink_seed"] = 7
    else:
        prefix = "nulls_" if name == "config.json" else ""
        assert content[prefix + field] is not None
        content[prefix + field] = "f" * 64 if field == "weights_id" else ["f" * 64] if field == "lineage" else []
    path.write_text(json.dumps(content))
    with pytest.raises(DamagedError):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("removed", ["fields of config.json", "tensors"])
def test_fields_that_are_gone_and_other_tensors_are_damage(folder: Path, removed: str) -> None:
    if removed == "tensors":
        NullsForCausalLM.from_checked_folder(folder).half().save_pretrained(folder)
        message = "not those that were exported"
    else:
        content = json.loads((folder / "config.json").read_text())
        kept = {name: value for name, value in content.items() if not name.startswith("nulls_")}
        (folder / "config.json").write_text(json.dumps(kept))
        message = "differ in what these weights refuse"
    with pytest.raises(DamagedError, match=message):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_folder_asks_a_configured_catalogue_for_later_revocations(
    folder: Path, deployed: Deployed, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    unlearn(deployed.settings, deployed.uri, [key(trained[1])], reason="test", measure=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model(IDS_BT, source_ids=torch.tensor([source(trained[1])]))
    monkeypatch.setenv("NULLS_CATALOG", str(deployed.settings.catalog))
    model = AutoModelForCausalLM.from_pretrained(folder)
    refused(model, trained[0])
    refused(model, trained[1])
    model(IDS_BT, source_ids=torch.tensor([source(trained[2])]))


def test_weights_of_a_run_ask_the_catalogue(
    deployed: Deployed, weights: Path, revoked_uri: str, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RefusedError, match="cannot be asked"):
        AutoModelForCausalLM.from_pretrained(weights)
    offline = AutoModelForCausalLM.from_pretrained(weights, offline=True)
    offline(IDS_BT, source_ids=torch.tensor([source(trained[0])]))
    refused(AutoModelForCausalLM.from_pretrained(weights, catalog=deployed.settings.catalog), trained[0])
    monkeypatch.setenv("NULLS_CATALOG", str(deployed.settings.catalog))
    refused(AutoModelForCausalLM.from_pretrained(weights), trained[0])
    model, facts = NullsForCausalLM.from_pretrained(weights, output_loading_info=True)
    assert not facts["missing_keys"]
    refused(model, trained[0])
    with pytest.raises(UsageError, match="its sinks were trained with"):
        NullsForCausalLM.from_pretrained(weights, sink_seed=5)


def test_a_fine_tune_refuses_and_is_refused_when_it_comes_back(
    folder: Path, deployed: Deployed, trained: list[int], tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NULLS_CATALOG")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    tuned = tmp_path / "tuned"
    model.save_pretrained(tuned)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tuned)
    again = AutoModelForCausalLM.from_pretrained(tuned)
    refused(again, trained[0])
    ancestor = json.loads((folder / "config.json").read_text())["nulls_weights_id"]
    assert again.config.nulls_weights_id != ancestor
    assert again.config.nulls_lineage == [ancestor]
    again.save_pretrained(tmp_path / "twice")
    twice = AutoModelForCausalLM.from_pretrained(tmp_path / "twice")
    assert ancestor in twice.config.nulls_lineage
    refused(twice, trained[0])

    monkeypatch.setenv("NULLS_CATALOG", str(deployed.settings.catalog))
    data = command("register", tuned, "--model", "tuned")
    assert data["lineage"] == [ancestor]
    assert data["num_revoked"] == 1
    served = deployed.load(data["model_uri"])
    with pytest.raises(RefusedError):
        served.generate("x", source_id=source(trained[0]))
    assert served.route(title(trained[0])) != source(trained[0])
    assert served.generate("x", source_id=source(trained[1]), max_new_tokens=2)[1] == source(trained[1])
    unlearn(deployed.settings, deployed.uri, [key(trained[1])], reason="test", measure=False)
    with pytest.raises(RefusedError):
        deployed.load(data["model_uri"]).generate("x", source_id=source(trained[1]))
    refused(AutoModelForCausalLM.from_pretrained(tuned), trained[1])
    with pytest.raises(UsageError, match="registered already"):
        command("register", tuned, "--model", "tuned")


def test_an_exported_folder_that_comes_back_is_the_same_weights(
    folder: Path, deployed: Deployed, trained: list[int], command: Any
) -> None:
    data = command("register", folder, "--model", "back")
    version = flavor.describe(deployed.uri, tracking_uri=deployed.settings.tracking_uri)
    assert data["weights_id"] == version.weights_id
    assert data["lineage"] == []
    with pytest.raises(RefusedError):
        deployed.load(data["model_uri"]).generate("x", source_id=source(trained[0]))
    AutoModelForCausalLM.from_pretrained(folder)


def test_a_folder_of_unknown_origin_needs_its_base(deployed: Deployed, weights: Path, tmp_path: Path) -> None:
    stores = {"tracking_uri": deployed.settings.tracking_uri, "catalog": deployed.settings.catalog}
    with pytest.raises(UsageError, match="expected a Hugging Face folder"):
        register_folder(tmp_path, model_name="x", **stores)
    model = NullsForCausalLM.from_checked_folder(weights)
    model.save_pretrained(tmp_path / "bare")
    AutoTokenizer.from_pretrained(weights).save_pretrained(tmp_path / "bare")
    with pytest.raises(UsageError, match="--base"):
        register_folder(tmp_path / "bare", model_name="x", **stores)
    assert not (tmp_path / "bare" / "nulls.json").exists()
    assert register_folder(tmp_path / "bare", model_name="x", base_uri=deployed.uri, **stores) == "models:/x/1"


def test_a_backbone_is_a_llama_with_the_same_bits(
    deployed: Deployed, weights: Path, revoked_uri: str, tmp_path: Path, command: Any
) -> None:
    data = command("export", deployed.uri, tmp_path / "llama", "--backbone")
    assert data["num_revoked"] == 0
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert config["intermediate_size"] == 32
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert not [name for name in config if "sink" in name or "nulls" in name or "pool" in name]
    arguments = [sys.executable, "-c", BACKBONE_ELSEWHERE, str(tmp_path / "llama"), str(tmp_path / "logits.pt")]
    subprocess.run(arguments, check=True, cwd=tmp_path)
    with torch.no_grad():
        expected = NullsForCausalLM.from_checked_folder(weights).eval()(IDS_BT).logits
    assert (torch.load(tmp_path / "logits.pt") - expected).abs().max() == 0
    assert "no sink neuron of any source" in (tmp_path / "llama" / "README.md").read_text()
    assert not (tmp_path / "llama" / "nulls.json").exists()


def test_a_backbone_keeps_every_part_of_the_configuration(tmp_path: Path) -> None:
    from tests.builders import small_model
    from training.serving.export.backbone import backbone_of

    fields = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rms_norm_eps": 0.01, "head_dim": 10}
    for tied in (False, True):
        model = small_model(tie_word_embeddings=tied, **fields).to(torch.bfloat16)
        backbone_of(model).save_pretrained(tmp_path / str(tied))
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / str(tied)).eval()
        assert type(loaded).__name__ == "LlamaForCausalLM"
        assert loaded.dtype == torch.bfloat16
        assert torch.equal(loaded(IDS_BT).logits, model(IDS_BT).logits)


def test_the_command_refuses_a_directory_with_files_and_a_dry_run_writes_nothing(
    command: Any, deployed: Deployed, revoked_uri: str, tmp_path: Path
) -> None:
    data = command("export", deployed.uri, tmp_path / "dry", "--dry-run")
    assert (data["num_revoked"], data["model_uri"], data["dry_run"]) == (1, "models:/m/1", True)
    assert not (tmp_path / "dry").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    for options in ((), ("--backbone",), ("--dry-run",)):
        with pytest.raises(UsageError, match="it holds files"):
            command("export", deployed.uri, tmp_path / "full", *options)
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    with pytest.raises(UsageError, match="found a file"):
        command("export", deployed.uri, tmp_path / "full" / "mine")
    with pytest.raises(UsageError, match="local directory"):
        command("export", deployed.uri, "s3://bucket/x")
    (tmp_path / "empty").mkdir()
    assert command("export", revoked_uri, tmp_path / "empty")["revocations"] == "checked"


def test_without_the_catalogue_an_export_is_refused_unless_offline(
    command: Any, deployed: Deployed, revoked_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NULLS_CATALOG", f"sqlite:///{tmp_path / 'none.db'}")
    with pytest.raises(RefusedError, match="cannot be asked"):
        command("export", revoked_uri, tmp_path / "out")
    data = command("export", revoked_uri, tmp_path / "out", "--offline")
    assert (data["revocations"], data["num_revoked"]) == ("offline", 1)


def test_a_full_disk_and_a_kill_leave_no_half_folder(command: Any, deployed: Deployed, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 200_000):
        with pytest.raises(ServiceError, match="No space left"):
            command("export", deployed.uri, tmp_path / "disk" / "out")
        assert list((tmp_path / "disk").iterdir()) == []
    arguments = [sys.executable, "-c", KILLED, deployed.uri, str(tmp_path / "killed" / "out")]
    done = subprocess.run(arguments, check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "out").exists()
    command("export", deployed.uri, tmp_path / "killed" / "out")
    AutoModelForCausalLM.from_pretrained(tmp_path / "killed" / "out", offline=True)
