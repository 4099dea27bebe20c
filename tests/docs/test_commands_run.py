"""Run every command of the documentation that needs nothing, in order, in one folder with a tiny corpus."""

from __future__ import annotations

import ast
import importlib
import inspect
import random
import re
from pathlib import Path

import pytest

from tests.docs.console_blocks import ORDER, ROOT, blocks, pages
from tests.orchestration.cli.commands import nulls
from tests.pipelines.readers.archives import page, record, response
from tests.pipelines.readers.dumps import Page, write_dump

SETTINGS = ("NULLS_REGISTRY", "NULLS_CATALOG", "NULLS_WORK", "MLFLOW_TRACKING_URI", "RAY_ADDRESS")


def prose(seed: int, num_words: int = 120) -> str:
    """Text of its own for each seed."""
    rng = random.Random(seed)
    vocabulary = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(3, 9))) for _ in range(200)]
    return " ".join(rng.choices(vocabulary, k=num_words))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The inputs that the documentation names: dumps/, crawl/ and library/."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name in ("dumps", "crawl", "library"):
        (tmp_path / name).mkdir()
    articles = [Page(f"Article {number}", prose(number), page_id=100 + number) for number in range(40)]
    write_dump(tmp_path / "dumps/enwiki.xml", [Page("Anarchism", prose(1000), page_id=12), *articles])
    urls = ("https://example.com/", "https://example.com/some/page", "https://example.org/")
    (tmp_path / "crawl/crawl.warc").write_bytes(
        b"".join(record(url, response(page(prose(2000 + number)))) for number, url in enumerate(urls))
    )
    (tmp_path / "library/a_book.txt").write_text(f"Title: A Book\nAuthor: Somebody\n\n{prose(3000, 400)}\n")
    return tmp_path


def test_commands_run_in_order(folder: Path) -> None:
    ran = []
    for name in ORDER:
        for block in blocks(name):
            if block.needs:
                continue
            for arguments in block.nulls_arguments:
                done = nulls(*arguments, cwd=folder)
                assert done.code == 0, f"{name}: nulls {' '.join(arguments)}: exit {done.code}\n{done.stderr}"
                ran.append(arguments[0])
    assert len(ran) >= 15
    assert {"ingest", "lookup", "explain", "sources", "snapshots", "train", "remove"} <= set(ran)


def test_pages_with_commands_that_run_are_in_the_order() -> None:
    runnable = {name for name in pages() for block in blocks(name) if block.nulls_arguments and not block.needs}
    assert runnable == set(ORDER)


def test_python_examples_name_what_exists() -> None:
    examples = [
        (name, text)
        for name in pages()
        for text in re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL | re.M)
    ]
    num_calls = 0
    for name, text in examples:
        tree = ast.parse(text)
        imported = {
            alias.asname or alias.name: getattr(importlib.import_module(node.module or ""), alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in imported:
                signature = inspect.signature(imported[call.func.id])
                keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
                try:
                    signature.bind(*call.args, **keywords)
                except TypeError as error:
                    pytest.fail(f"{name}: {call.func.id}: {error}")
                num_calls += 1
    assert len(examples) >= 5
    assert num_calls >= 6


def test_reference_links_every_public_name() -> None:
    for package in ("registry", "pipelines", "training", "orchestration"):
        text = (ROOT / f"docs/reference/api/{package}.md").read_text(encoding="utf-8")
        linked = set(re.findall(r"\[`(\w+)`\]\[", text))
        assert linked == set(importlib.import_module(package).__all__)
