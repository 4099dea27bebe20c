"""Say for a terminal where else unlearned sources were in force, which aliases moved, and what the corpus holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestration.unlearning.aliases import planned_moves

_MOST_LINES = 10


def elsewhere_lines(data: Mapping[str, Any], dry_run: bool) -> list[str]:
    """Return the lines for `elsewhere` and `corpus_holds` of a result of `nulls unlearn`."""
    ending = "refuses too then" if dry_run else "refuses now too"
    text = [_place_line(place, ending) for place in data["elsewhere"][:_MOST_LINES]]
    if len(data["elsewhere"]) > _MOST_LINES:
        text.append(f"and {len(data['elsewhere']) - _MOST_LINES} more versions (--json, or `nulls where`)")
    if held := data["corpus_holds"]:
        keys = " ".join(_shortened(held["keys"]))
        text.append(f"the corpus still holds it, and a new model would read it again: nulls remove {keys}")
    return text


def alias_lines(data: Mapping[str, Any], dry_run: bool, move_aliases: bool) -> list[str]:
    """Return the lines for the aliases of earlier versions: moved, to be moved, or left."""
    moved = [f"alias {m['model']}@{m['alias']}: {m['from']} -> {m['to']}" for m in data["aliases_moved"]]
    staying = planned_moves(data["elsewhere"])
    if not staying or moved:
        return moved
    if move_aliases:
        return [f"would move aliases: {', '.join(staying)}"] if dry_run else []
    verb = "would still point" if dry_run else "still point"
    return [f"aliases that {verb} to an earlier version: {', '.join(staying)} (--move-aliases takes them along)"]


def _place_line(place: Mapping[str, Any], ending: str) -> str:
    aliases = f" ({', '.join(place['aliases'])})" if place["aliases"] else ""
    state = "STILL ANSWERS; unlearn it there too" if place["still_answers"] else ending
    return f"was in force in {place['model_uri']}{aliases}, {place['relation']}: {state}"


def _shortened(keys: Sequence[str]) -> list[str]:
    return [*keys[:_MOST_LINES], *(["..."] if len(keys) > _MOST_LINES else [])]
