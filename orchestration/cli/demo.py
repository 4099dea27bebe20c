"""`nulls demo`: the whole story on a real dump (`orchestration/demo.py`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from orchestration.cli.parameters.options import JsonOption
from orchestration.output import Output
from orchestration.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoRequest:
    """The parameters of `nulls demo`."""

    directory: Annotated[Path, typer.Option("--dir", help="Where it keeps everything.")] = Path("demo")
    dump: Annotated[
        Path | None, typer.Option("--dump", help="A Wikipedia dump; by default the excerpt that gensim carries.")
    ] = None
    as_json: JsonOption = False


def run(request: DemoRequest, settings: Settings, output: Output) -> None:
    """Run the whole story on a real dump: ingest, look up, train, unlearn, audit, and an HTML report."""
    from orchestration.demo import play

    story = play(output, request.directory, request.dump)
    output.result(story.to_dict(), story.lines)
