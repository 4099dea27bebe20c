"""The versions of the code that measures and decides, to be kept with evidence.

Run: ``code_versions()["nulls"]``. Cost: a few file reads, and one call of git in a checkout.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("nulls", "torch", "transformers", "mlflow", "numpy", "scipy")
_ROOT = Path(__file__).resolve().parents[2]


def code_versions() -> dict[str, str | None]:
    """Return the version of each package, of Python, and the commit of this code; None where it is not known."""
    found: dict[str, str | None] = {name: _version(name) for name in _PACKAGES}
    found["commit"] = commit()
    found["python"] = platform.python_version()
    found["machine"] = f"{platform.system()} {platform.machine()}"
    return found


def commit(root: Path = _ROOT) -> str | None:
    """Return the commit that this code is from, with `-dirty` if files differ from it; None if it is not known.

    A checkout is asked; an installation from a Git URL has the commit in its metadata (PEP 610).

    Args:
        root: the folder that holds the packages.
    """
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() or None
    try:
        origin = importlib.metadata.distribution("nulls").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    vcs = json.loads(origin).get("vcs_info", {}) if origin else {}
    return vcs.get("commit_id")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
