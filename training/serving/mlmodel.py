"""The files of a model version for MLflow: MLmodel with a signature, an input example, and the environment.

    MLmodel                                          loader, signature, digest of the pointer
    input_example.json, serving_input_example.json   one prompt, as a DataFrame and as the body of a request
    requirements.txt, conda.yaml, python_env.yaml    what `mlflow models serve` installs

Without a signature MLflow 3 drops the parameters of a request in silence. The versions of the packages that matter are
pinned to those of the process that registers. The requirement of `nulls` itself is where this process has it from: an
index, a repository or a folder.

Run: ``write(folder, pointer, model_id, run_id)``. Cost: some milliseconds, 4 kB.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from training.serving.request import DEFAULTS
from training.serving.version import POINTER, pointer_digest

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

LOADER = "training.serving.flavor"
EXAMPLE_PROMPT = "The history of"
_PINNED = ("mlflow", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "scikit-learn", "pyarrow")
_TYPES = {int: "long", float: "double", str: "string"}


def write(folder: Path, pointer: dict[str, Any], model_id: str, run_id: str | None) -> None:
    """Write the pointer of a version and all files that MLflow expects to `folder`."""
    from mlflow import pyfunc
    from mlflow.models import Model

    (folder / POINTER).write_text(json.dumps(pointer, indent=1))
    _write_environment(folder)
    model = Model(run_id=run_id, model_id=model_id, signature=signature())
    model.saved_input_example_info = _write_example(folder)
    pyfunc.add_to_model(model, loader_module=LOADER, conda_env="conda.yaml", python_env="python_env.yaml")
    digest = pointer_digest(pointer)
    model.add_flavor("nulls", weights=pointer["weights"], snapshot=pointer["snapshot"], pointer=digest)
    model.save(str(folder / "MLmodel"))


def signature() -> ModelSignature:
    """Return the signature: a prompt and optionally its source; the parameters of a request; a text and its source."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    inputs = [ColSpec("string", "prompt"), ColSpec("string", "source", required=False)]
    outputs = [ColSpec("string", "text"), ColSpec("string", "source", required=False), ColSpec("string", "model_uri")]
    params = [
        ParamSpec(name, "string", default, shape=(-1,))
        if isinstance(default, list)
        else ParamSpec(name, _TYPES[type(default)], default)
        for name, default in DEFAULTS.items()
    ]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs), params=ParamSchema(params))


def requirements() -> list[str]:
    """Return the requirements of serving, pinned to what is installed here."""
    found = []
    for name in _PINNED:
        version = importlib.metadata.version(name)
        found.append(f"{name}=={version.partition('+')[0]}")  # +cpu and +cu128 are not on the index
    return [_nulls(), *found]


def _nulls() -> str:
    """Return the requirement of this package: the address that it was installed from (PEP 610), else its version."""
    distribution = importlib.metadata.distribution("nulls")
    recorded = json.loads(distribution.read_text("direct_url.json") or "{}")
    if "url" not in recorded:
        return f"nulls[train]=={distribution.version}"
    vcs = recorded.get("vcs_info")
    return (
        f"nulls[train] @ {vcs['vcs']}+{recorded['url']}@{vcs['commit_id']}"
        if vcs
        else f"nulls[train] @ {recorded['url']}"
    )


def _write_environment(folder: Path) -> None:
    needed, python = requirements(), platform.python_version()
    (folder / "requirements.txt").write_text("\n".join(needed) + "\n")
    environment = {"python": python, "build_dependencies": ["pip"], "dependencies": ["-r requirements.txt"]}
    (folder / "python_env.yaml").write_text(yaml.safe_dump(environment, sort_keys=False))
    dependencies = [f"python={python}", "pip", {"pip": needed}]
    conda = {"name": "nulls", "channels": ["conda-forge"], "dependencies": dependencies}
    (folder / "conda.yaml").write_text(yaml.safe_dump(conda, sort_keys=False))


def _write_example(folder: Path) -> dict[str, str]:
    """Write the example of an input in MLflow's two forms; return what MLmodel says of it."""
    table = {"columns": ["prompt"], "data": [[EXAMPLE_PROMPT]]}
    (folder / "input_example.json").write_text(json.dumps(table))
    (folder / "serving_input_example.json").write_text(json.dumps({"dataframe_split": table}))
    return {
        "artifact_path": "input_example.json",
        "serving_input_path": "serving_input_example.json",
        "type": "dataframe",
        "pandas_orient": "split",
    }
