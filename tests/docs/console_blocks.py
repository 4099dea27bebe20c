"""The blocks of commands in README.md, CONTRIBUTING.md and docs/, and what each says that it needs."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEEDS = {
    "a Flink cluster",
    "a Ray cluster",
    "a released checkpoint",
    "a trained model",
    "about ten minutes",
    "an S3 bucket",
    "minutes to hours of training",
    "the demo",
}
# Pages whose commands run, in this order, in one folder; the last one takes a source out of the corpus.
ORDER = ("README.md", "docs/how-to/lookup.md", "docs/how-to/train.md", "docs/how-to/ingest.md")
_BLOCK = re.compile(r"(?:<!-- needs: (?P<needs>[^>]+?) -->\n)?^```console\n(?P<text>.*?)^```", re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Block:
    """One ```console block.

    Attributes:
        page: its file, relative to the repository.
        needs: what it needs, as named in `NEEDS`; empty if it can run anywhere.
        lines: its commands, without comments.
    """

    page: str
    needs: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def nulls_arguments(self) -> list[list[str]]:
        """The arguments of each `nulls` command."""
        return [shlex.split(line)[1:] for line in self.lines if line.startswith("nulls ")]


def pages() -> list[str]:
    """Every page that may hold commands; LOG.md is history, and not run."""
    docs = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "CONTRIBUTING.md", *(page for page in docs if page != "docs/LOG.md")]


def blocks(page: str) -> list[Block]:
    """The blocks of a page, in order."""
    found = []
    for match in _BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
        needs = tuple(part.strip() for part in (match["needs"] or "").split(", ") if part)
        lines = (line.split(" # ")[0].strip() for line in match["text"].splitlines())
        found.append(Block(page, needs, tuple(line for line in lines if line and not line.startswith("#"))))
    return found


def all_blocks() -> list[Block]:
    """The blocks of every page."""
    return [block for page in pages() for block in blocks(page)]
