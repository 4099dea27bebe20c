"""Resolve `nulls train --reserve` into the configuration: sources that get sinks which no other source has.

Erasing such a source zeroes rows that only it uses, so it costs the others nothing. The price is paid at training: each
reserved source takes `num_sinks` of every layer's pool from all others.

Run: ``with_reserved(config, settings, ["https://a.example/"], None)``. Cost: 15 ms a query.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from registry.errors import NotFoundError, UsageError
from registry.ids import format_id
from registry.lookup import resolve
from registry.storage.parquet import int64_array

if TYPE_CHECKING:
    from orchestration.settings import Settings
    from registry.snapshot import Snapshot
    from training.config import TrainConfig

_MAX_NAMED = 20  # in an error message, and in the dry run


def with_reserved(
    config: TrainConfig, settings: Settings, queries: Sequence[str], listed_in: Path | None
) -> TrainConfig:
    """Return the configuration with these sources reserved too.

    Args:
        config: may have reserved sources already.
        settings: names the snapshot that the queries are resolved against; not opened without a query.
        queries: URLs, titles, ISBNs, keys or ids.
        listed_in: a file with one query a line; empty lines and those that begin with # are skipped.

    Raises:
        UsageError: the file cannot be read, or some queries name no source or several; all of these are named. Or the
            pool is too small for them.
    """
    wanted = [*queries, *(_lines(listed_in) if listed_in else ())]
    if not wanted:
        return config
    snapshot = settings.open_snapshot()
    found, wrong = [], []
    for query in wanted:
        try:
            found.append(format_id(resolve(snapshot, query).source_id))
        except (NotFoundError, UsageError) as error:
            wrong.append(str(error))
    if wrong:
        more = f"\nand {len(wrong) - _MAX_NAMED} more" if len(wrong) > _MAX_NAMED else ""
        raise UsageError("--reserve: " + "\n".join(wrong[:_MAX_NAMED]) + more)
    reserved = tuple(sorted({*config.model.reserved_sources, *found}))
    return dataclasses.replace(config, model=dataclasses.replace(config.model, reserved_sources=reserved))


def reservation(config: TrainConfig, snapshot: Snapshot | None) -> dict[str, Any] | None:
    """Return what the reserved sources take of the pool, for the dry run; None where there are none.

    Raises:
        UsageError: one is not in the snapshot, or has no text there.
    """
    from training.data.reserved import check_reserved

    layout = config.model.layout()
    if not layout.reserved:
        return None
    sources = check_reserved(snapshot, layout.reserved) if snapshot else []
    rows = layout.num_pool - layout.num_open
    return {
        "num_sources": len(layout.reserved),
        "keys": [source.key for source in sources[:_MAX_NAMED]],
        "sinks_per_layer": rows,
        "share_of_pool": rows / layout.num_pool,
        "num_shared_not_reserved": _num_shared_not_reserved(snapshot, layout.reserved) if snapshot else 0,
    }


def reservation_lines(found: dict[str, Any] | None) -> list[str]:
    """Format `reservation` for a terminal."""
    if found is None:
        return []
    text = [
        f"reserved    {found['num_sources']:,} sources have {found['sinks_per_layer']:,} sinks of each layer to "
        f"themselves, {found['share_of_pool']:.0%} of the pool: erasing them costs no other source anything"
    ]
    if count := found["num_shared_not_reserved"]:
        text.append(
            f"            {count:,} shared sources, whose text they published together with others, are not reserved: "
            "name them by their keys to reserve them too"
        )
    return text


def _num_shared_not_reserved(snapshot: Snapshot, reserved: Sequence[int]) -> int:
    """Count the shared sources that a reserved source owns text in, and that are not reserved themselves."""
    owners = snapshot.table("owners")
    owned = owners.filter(pc.is_in(owners["owner_id"], value_set=int64_array(reserved)))["source_id"]
    return len(set(owned.to_pylist()) - set(reserved))


def _lines(path: Path) -> list[str]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--reserve-from {path}: cannot be read as UTF-8 text: {error}") from error
    return [line for line in lines if line and not line.startswith("#")]
