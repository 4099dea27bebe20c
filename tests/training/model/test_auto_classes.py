"""transformers loads exported weights after `import training`, in either order of imports; nothing heavy before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.model.modeling_nulls import NullsConfig, NullsForCausalLM

ROOT = Path(__file__).parents[3]
CONFIG = {"vocab_size": 31, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_pool": 16}
LOADED = """
import json, sys
from training.model import auto_classes
watched = any(isinstance(finder, auto_classes._Finder) for finder in sys.meta_path)
print(json.dumps({"modules": sorted(sys.modules), "watched": watched}))
"""
CONFIG_FROM = (
    "from transformers import AutoConfig\nassert type(AutoConfig.from_pretrained(F)).__name__ == 'NullsConfig'"
)
MODEL_FROM = """
from transformers import AutoModelForCausalLM
assert type(AutoModelForCausalLM.from_pretrained(F)).__name__ == 'NullsForCausalLM'
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported weights of a tiny model."""
    path = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    NullsForCausalLM(NullsConfig(num_backbone=16, num_sinks=4, **CONFIG)).save_pretrained(path)
    return path


def after(*statements: str, folder: Path | None = None) -> tuple[set[str], bool]:
    """The modules that a new Python has loaded after `statements`, and whether imports are still watched."""
    program = "\n".join([f"F = {str(folder)!r}", *statements, LOADED])
    done = subprocess.run(
        [sys.executable, "-W", "error::ImportWarning", "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "cannot load models of type 'nulls'" not in done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    return set(loaded["modules"]), loaded["watched"]


def test_training_and_its_configuration_stay_light() -> None:
    modules, watched = after("import training", "import training.config", "training.TrainConfig.preset('demo')")
    assert "training.config" in modules
    assert modules.isdisjoint({"torch", "transformers", "tokenizers", "ray", "mlflow"})
    assert watched


@pytest.mark.parametrize(
    "statements",
    [
        ("import training", CONFIG_FROM),
        ("import training", MODEL_FROM),
        ("import transformers", "import training", MODEL_FROM),
        (MODEL_FROM.splitlines()[1], "import training", MODEL_FROM),
        # modeling_utils loads the Auto configurations before it is loaded itself, so no model can be imported then.
        ("import training", "import transformers.modeling_utils", CONFIG_FROM, MODEL_FROM),
        ("import training", "from transformers import LlamaForCausalLM", MODEL_FROM),
        ("import training.model.modeling_nulls", MODEL_FROM),
    ],
    ids=["config", "model", "transformers-first", "auto-classes-first", "modeling-utils", "llama", "modeling-nulls"],
)
def test_exported_weights_load_in_any_order_of_imports(statements: tuple[str, ...], folder: Path) -> None:
    modules, watched = after(*statements, folder=folder)
    assert "training.model.modeling_nulls" in modules
    assert not watched, "the finder stayed after the type was registered"


def test_without_the_auto_classes_nothing_is_registered() -> None:
    modules, watched = after("import training", "import transformers", "transformers.PreTrainedTokenizerFast")
    assert "transformers" in modules
    assert "training.model.modeling_nulls" not in modules
    assert watched


def test_modules_keep_their_own_loader_and_repeated_calls_one_finder() -> None:
    after(
        "import training",
        "training.register_when_used()",
        "import sys",
        "assert [type(finder).__name__ for finder in sys.meta_path].count('_Finder') == 1",
        "import transformers.utils.logging as logging, transformers.utils.generic as generic",
        "assert type(generic.__loader__).__name__ == type(generic.__spec__.loader).__name__ == 'SourceFileLoader'",
        "import inspect",
        "assert 'def get_logger' in inspect.getsource(logging)",
    )


@pytest.mark.parametrize("name", ["AutoConfig", "AutoModelForCausalLM"])
def test_threads_that_import_the_auto_classes_together_all_find_the_type(name: str, folder: Path) -> None:
    _, watched = after(
        "import threading, training, transformers",
        "from concurrent.futures import ThreadPoolExecutor",
        "start = threading.Barrier(4)",
        "def load(_):",
        "    start.wait()",
        f"    loaded = transformers.{name}.from_pretrained(F)",
        "    return getattr(loaded, 'config', loaded).model_type",
        "with ThreadPoolExecutor(4) as pool:",
        "    assert list(pool.map(load, range(4))) == ['nulls'] * 4",
        folder=folder,
    )
    assert not watched


def test_a_model_that_cannot_be_imported_does_not_break_transformers() -> None:
    program = (
        "import sys, training\n"
        "sys.modules['training.sinks.mlp'] = None  # importing it fails\n"
        "from transformers import AutoConfig\n"
        "assert AutoConfig.for_model('llama').model_type == 'llama'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "transformers cannot load models of type 'nulls': " in done.stderr
