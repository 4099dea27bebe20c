"""One builder for small snapshots, one for small models; a test says only what it is about.

texts = {"wiki:enwiki:1": ["Anarchism is ..."], "web:a.example": ["one page", "another"]}
snapshot = commit_rows(registry, staging, **text_rows(texts))
model = small_model(num_sinks=16)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from registry import ids, schema
from registry.identity import fold_title
from registry.schema import Kind
from registry.snapshot import Registry, Snapshot, SnapshotWriter

if TYPE_CHECKING:
    from training.model.modeling_nulls import NullsForCausalLM

Row = dict[str, Any]
# key, title, kind, scope (None: no wiki), target of a redirect
Alias = tuple[str | None, str, str, str | None, str | None]


def commit_rows(
    registry: Registry,
    staging: Path,
    *,
    shards: Sequence[Sequence[Row]] = (),
    commit: Mapping[str, Any] | None = None,
    **tables: Iterable[Row],
) -> Snapshot:
    """Commit a snapshot of these rows; every table of the schema is written, sorted as the schema says.

    Args:
        registry: where to.
        staging: a directory for the writer.
        shards: the rows of each shard, in the order in which they are to stand.
        commit: arguments of `SnapshotWriter.commit`; by default no inputs and an empty configuration.
        tables: rows by table name; a table that is not named is empty.
    """
    assert tables.keys() <= schema.TABLES.keys(), tables.keys()
    writer = SnapshotWriter(registry, staging)
    for name, columns in schema.TABLES.items():
        rows = sorted(tables.get(name, ()), key=lambda row, name=name: row_order(row, name))  # type: ignore[misc]
        with writer.table(name) as file:
            file.write(pa.Table.from_pylist(rows, schema=columns))
    for number, rows in enumerate(shards):
        with writer.shard(number) as file:
            file.write(pa.Table.from_pylist(list(rows), schema=schema.SHARD))
    return writer.commit(**({"configuration": {}, "inputs": []} | dict(commit or {})))


def row_order(row: Row, table: str) -> list[tuple[bool, Any]]:
    """The sort key of a row: its sort columns, None last, as engines sort."""
    return [(row.get(name) is None, 0 if row.get(name) is None else row[name]) for name in schema.SORT_ORDER[table]]


def text_rows(
    texts: Mapping[str, Sequence[str]],
    *,
    titles: Mapping[str, str | None] | None = None,
    locator: Callable[[str, int], str] = "{}/{}".format,
) -> dict[str, Any]:
    """The `sources` and one shard of texts by key, as `commit_rows` takes them.

    Args:
        texts: source key -> its documents.
        titles: source key -> title.
        locator: of a document, from its source's key and its index.
    """
    shard: list[Row] = []
    sources: list[Row] = []
    for key in sorted(texts, key=ids.source_id):
        first = len(shard)
        documents = {ids.doc_id(key, locator(key, i)): text for i, text in enumerate(texts[key])}
        shard += [
            {"source_id": ids.source_id(key), "doc_id": doc_id, "text": documents[doc_id]}
            for doc_id in sorted(documents)
        ]
        placements = [{"shard": 0, "row_start": first, "row_end": len(shard)}] if documents else []
        sources.append(
            source_row(
                key,
                title=(titles or {}).get(key),
                num_documents=len(documents),
                num_bytes=sum(len(text.encode()) for text in documents.values()),
                placements=placements,
            )
        )
    return {"sources": sources, "shards": [shard]}


def source_row(key: str, **fields: Any) -> Row:
    """A row of `sources`; without text unless `fields` say otherwise."""
    return {
        "source_id": ids.source_id(key),
        "key": key,
        "kind": Kind(key.partition(":")[0]).value,
        "title": None,
        "num_documents": 0,
        "num_bytes": 0,
        "placements": [],
        **fields,
    }


def owner_rows(*owners: str) -> list[Row]:
    """The rows of `owners` for text that the sources with these keys published."""
    owner_ids = sorted(map(ids.source_id, owners))
    shared = ids.source_id(ids.shared_key(owner_ids))
    return [{"source_id": shared, "owner_id": owner_id} for owner_id in owner_ids]


def alias_rows(aliases: Iterable[Alias]) -> list[Row]:
    """The rows of `aliases`."""
    return [
        {
            "alias_hash": ids.alias_hash(fold_title(alias)),
            "alias": alias,
            "kind": kind,
            "source_id": None if key is None else ids.source_id(key),
            "scope": scope,
            "target": target,
        }
        for key, alias, kind, scope, target in aliases
    ]


def small_model(*, seed: int = 0, **fields: Any) -> NullsForCausalLM:
    """A model of two layers in evaluation mode, with weights drawn from `seed`; `fields` are of `NullsConfig`."""
    import torch

    from training.model.modeling_nulls import NullsConfig, NullsForCausalLM

    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_backbone": 24,
        "num_pool": 40,
        "num_sinks": 8,
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    return NullsForCausalLM(NullsConfig(**(shape | fields))).eval()
