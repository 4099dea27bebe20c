"""No module of orchestration imports one that imports it back, inside functions and under TYPE_CHECKING included."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(source: str, module: str, modules: set[str]) -> set[str]:
    """Return the other modules of `modules` that a module imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & modules - {module}


def reachable(start: str, edges: dict[str, set[str]]) -> set[str]:
    found: set[str] = set()
    todo = [start]
    while todo:
        new = edges[todo.pop()] - found
        found |= new
        todo += new
    return found


def circular(edges: dict[str, set[str]]) -> list[str]:
    return sorted(module for module in edges if module in reachable(module, edges))


def test_no_module_imports_one_that_imports_it_back() -> None:
    paths = {module_name(path): path for path in (ROOT / "orchestration").rglob("*.py")}
    assert len(paths) > 30
    edges = {name: imports_of(path.read_text(), name, set(paths)) for name, path in paths.items()}
    assert "orchestration.cli.main" in edges["orchestration.jobs.entrypoint"], "a lazy import, seen"
    assert circular(edges) == []


def test_a_circle_is_found() -> None:
    assert circular({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c"]
