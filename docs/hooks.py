"""mkdocs hook: the parts of the reference that are generated from code, and the pages that lie outside docs/.

A page asks for a generated part with `<!-- generated: NAME -->`; the names are in `_GENERATED`. The command line comes
from Typer's own documentation generator, the schemas from `registry.schema`, the configuration from the source text
(griffe), so that a build imports neither torch, ray nor duckdb. `<!-- needs: X -->` before a block of commands, which
`tests/test_docs.py` reads, is shown to readers as a line.

    make docs
"""

from __future__ import annotations

import importlib
import posixpath
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# Pages made from files that GitHub shows at the top of the repository or beside what they measure.
PAGES = {
    "explanation/measurements.md": "benchmarks/RESULTS.md",
    "explanation/isolation.png": "benchmarks/isolation.png",
    "development/contributing.md": "CONTRIBUTING.md",
    "development/releasing.md": "RELEASING.md",
    "development/security.md": "SECURITY.md",
    "development/changelog.md": "CHANGELOG.md",
}
CONFIGURATIONS = (
    ("training.config", "TrainConfig"),
    ("training.config", "ModelConfig"),
    ("training.config", "OptimConfig"),
    ("pipelines.ingest", "IngestConfig"),
    ("pipelines.filters.rules", "FilterConfig"),
    ("pipelines.dedup.minhash", "DedupConfig"),
)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?://|#)([^)#\s]+)(#[^)]*)?\)")
_MARKER = re.compile(r"<!-- generated: ([\w-]+) -->")
_NEEDS = re.compile(r"<!-- needs: (.+?) -->\n(?=```console)")
# The default is the number of cores of the machine that builds the site.
_CORES = re.compile(r"(`--workers <int range>`.*?)\[default: \d+; x>=1\]")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that lie outside docs/."""
    for page, source in PAGES.items():
        path = ROOT / source
        if path.suffix == ".md":
            files.append(File.generated(config, page, content=path.read_text(encoding="utf-8")))
        else:
            files.append(File.generated(config, page, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the generated parts of a page, lead its links to pages of the site, and show what its commands need."""
    markdown = _with_site_links(markdown, page.file.src_uri)
    markdown = _MARKER.sub(lambda found: _GENERATED[found.group(1)](), markdown)
    return _NEEDS.sub(r"*Needs \1.*\n\n", markdown)


def command_line() -> str:
    """Return every command of `nulls` with its arguments and options, as Markdown."""
    sys.path.insert(0, str(ROOT))
    import typer.cli
    import typer.main

    app = importlib.import_module("orchestration.cli.main").app
    command = typer.main.get_command(app)
    text = typer.cli.get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="nulls"), name="nulls")
    _, _, below_title = text.partition("\n")
    return _CORES.sub(r"\1[default: the number of cores; x>=1]", below_title)


def configurations() -> str:
    """Return one table for each configuration class: field, type, default, what it is."""
    return "\n\n".join(_configuration(module, name) for module, name in CONFIGURATIONS)


def schemas() -> str:
    """Return one table for each file of a snapshot: column, type, what it is."""
    sys.path.insert(0, str(ROOT))
    schema = importlib.import_module("registry.schema")
    comments = _column_comments((ROOT / "registry/schema.py").read_text(encoding="utf-8"))
    parts = [f"Schema version {schema.SCHEMA_VERSION}."]
    tables = {**schema.TABLES, "shards": schema.SHARD, "displaced": schema.SHARD}
    for name, columns in tables.items():
        constant = "SHARD" if name in ("shards", "displaced") else name.upper()
        above, by_column = comments.get(constant, ("", {}))
        order = ", ".join(f"`{column}`" for column in schema.SORT_ORDER[name])
        lines = [f"## `{name}`", "", *([above, ""] if above else []), f"Sorted by {order}.", ""]
        lines += ["| column | type | null | |", "|---|---|---|---|"]
        lines += [
            f"| `{field.name}` | {_code(str(field.type))} | {'yes' if field.nullable else 'no'} | "
            f"{_cell(by_column.get(field.name, ''))} |"
            for field in columns
        ]
        parts.append("\n".join(lines))
    for enumeration in (schema.Kind, schema.Status, schema.AliasKind):
        lines = [f"## {enumeration.__name__}", "", enumeration.__doc__ or "", ""]
        parts.append("\n".join(lines + [f"- `{member.value}`" for member in enumeration]))
    return "\n\n".join(parts)


_GENERATED: dict[str, Callable[[], str]] = {
    "command-line": command_line,
    "configurations": configurations,
    "schemas": schemas,
}


def _configuration(module: str, name: str) -> str:
    loaded = griffe.load(module, search_paths=[str(ROOT)], allow_inspection=False)
    config = loaded[name]
    sections = config.docstring.parse("google", warnings=False) if config.docstring else []
    described: dict[str, str] = {}
    intro = ""
    for section in sections:
        if section.kind is griffe.DocstringSectionKind.attributes:
            described |= {item.name: item.description for item in section.value}
        elif section.kind is griffe.DocstringSectionKind.text and not intro:
            intro = section.value
    lines = [f"## {name}", "", f"`{module}.{name}`. {intro}", "", "| field | type | default | |", "|---|---|---|---|"]
    for attribute in config.attributes.values():
        if attribute.annotation is None or attribute.name.startswith("_") or "property" in attribute.labels:
            continue
        text = attribute.docstring.value if attribute.docstring else described.get(attribute.name, "")
        lines.append(
            f"| `{attribute.name}` | {_code(str(attribute.annotation))} | {_default(attribute)} | {_cell(text)} |"
        )
    return "\n".join(lines)


def _default(attribute: Any) -> str:
    value = str(attribute.value) if attribute.value is not None else ""
    factory = re.search(r"default_factory=(\w+)", value)
    if factory:
        return f"`{factory.group(1)}()`"
    return _code(value) if value else "required"


def _column_comments(source: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Return, for each schema constant, the comment above it and the comments beside its columns."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    above: list[str] = []
    constant = ""
    for line in source.splitlines():
        if start := re.match(r"([A-Z]+) = pa\.schema\(", line):
            constant = start.group(1)
            found[constant] = (" ".join(above), {})
        elif column := re.match(r'\s+pa\.field\("(\w+)".*?\),\s*(?:# (.*))?$', line):
            if constant:
                found[constant][1][column.group(1)] = column.group(2) or ""
        elif line.startswith(")"):
            constant = ""
        if line.startswith("# "):
            above.append(line.removeprefix("# "))
        elif not line.startswith((" ", ")")):
            above = []
    return found


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{' '.join(text.split())}`"  # a table's cell needs no escape of | within code


def _with_site_links(markdown: str, uri: str) -> str:
    """Lead links between files of the repository to pages of the site; a file without a page becomes plain words."""
    page_of = {source: page for page, source in PAGES.items()}
    folder = posixpath.dirname(PAGES.get(uri, f"docs/{uri}"))

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found.groups(default="")
        path = posixpath.normpath(posixpath.join(folder, target))
        page = path.removeprefix("docs/") if path.startswith("docs/") else page_of.get(path)
        return f"[{text}]({posixpath.relpath(page, posixpath.dirname(uri) or '.')}{anchor})" if page else text

    return _LINK.sub(link, markdown)
