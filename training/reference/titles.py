"""Import the titles of a released model as a snapshot, with the mask ids that its sinks are drawn from.

`title_to_index.pkl` maps each raw title to its index; a source's mask id is that index plus the vocabulary. The file is
a pickle, which could run anything. It is read by an unpickler that makes containers, strings and integers only, and
refuses every class.

The snapshot holds a source of kind wiki for each title. It is found by title, by an article's URL, by key or by id. An
article's usual key has its page id (`wiki:enwiki:12`), which is not in a release. So the key is made from the title:
`wiki:<wiki>-title:<n>`, where n is 63 bits of BLAKE2b (person `nulls.ttl.v1`) over the title, modulo 10**18. A title
has the same key in every release, and no page id (`?curid=`) leads to it by chance. Each source has one document of no
bytes: it was trained on, but its text is not in the release.

Cost for 6.4 million titles on one core: read in 17 s, written in 68 s, 490 MB of Parquet, peak memory 1.7 GB; a title
is then found in 45 ms.

Run: ``write_snapshot(read_titles(path), path=path, wiki="enwiki", ...)``.

Shapes: N titles.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from registry import ids, schema
from registry.errors import DamagedError, InputError, RefusedError, UsageError
from registry.identity import fold_title
from registry.schema import AliasKind, Kind
from registry.snapshot import Registry, Snapshot, SnapshotWriter
from registry.storage import check_writable, file_lock, sha256_of
from training.sinks.mask_ids import MaskIds

IMPORTED = "nulls-reference"
_WIKI = re.compile(r"[a-z][a-z0-9_]*")
_ROWS = 65_536  # written in one batch
_MAX_INDEX = 2**47  # times 2**16, it is still a signed 64-bit integer

Progress = Callable[[str, float], None]


@dataclasses.dataclass(frozen=True)
class Titles:
    """The content of a title_to_index.pkl.

    Attributes:
        titles: Arrow strings [N], as in the file.
        index_N: int64, distinct.
    """

    titles: pa.Array
    index_N: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.titles)


def read_titles(path: Path) -> Titles:
    """Read a pickled dict of title -> index, and nothing else.

    Raises:
        InputError: the file is missing, or holds something else.
        DamagedError: it is cut short, or is not a pickle.
        RefusedError: it names a class or a function; none of it was run.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; name the release's title_to_index.pkl with --titles")
    content = _unpickled(path)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: got {type(content).__name__} of nothing, expected a dict of title -> index")
    for title, index in content.items():
        if type(title) is not str or type(index) is not int or not 0 <= index < _MAX_INDEX:
            raise InputError(f"{path}: got {title!r:.80}: {index!r:.80}, expected a title and its index")
    try:
        titles = pa.array(list(content), pa.string())
    except UnicodeEncodeError as error:
        raise DamagedError(f"{path}: a title is not valid Unicode ({error.reason}); fetch it again") from error
    index_N = np.fromiter(content.values(), np.int64, len(content))
    if len(np.unique(index_N)) != len(index_N):
        raise InputError(f"{path}: several titles have the same index, expected distinct ones; fetch it again")
    return Titles(titles, index_N)


def key_of(title: str, wiki: str) -> str:
    """Return the key of a source that a release knows only by its title."""
    digest = hashlib.blake2b(title.encode(), digest_size=8, person=b"nulls.ttl.v1").digest()
    return f"wiki:{wiki}-title:{(int.from_bytes(digest, 'big') >> 1) % 10**18}"


def write_snapshot(
    titles: Titles, *, path: Path, wiki: str, registry: Registry, id_offset: int, progress: Progress
) -> tuple[Snapshot, MaskIds]:
    """Commit the titles as a snapshot; return it with the mask id of each source.

    Args:
        titles: the titles in `path`, as `read_titles` returned them.
        path: the file; its content is part of the snapshot's identity.
        wiki: the database name of the titles' wiki.
        registry: the registry to write to; it holds no other corpus.
        id_offset: added to an index to get the mask id.
        progress: called with a message and the share that is done.

    Raises:
        UsageError: `wiki` is not a database name.
        InputError: two titles have the same source id.
        RefusedError: the registry holds another corpus.
        ServiceError: the registry cannot be written.
    """
    if not _WIKI.fullmatch(wiki):
        raise UsageError(f"--wiki {wiki}: expected a wiki's database name, such as enwiki")
    source_ids_N, alias_hashes_N = _hashes(titles, wiki, progress)
    by_id_N = np.argsort(source_ids_N)
    if (np.diff(source_ids_N[by_id_N]) == 0).any():
        raise InputError(f"{path}: two titles have the same source id; this release cannot be imported")
    progress("writing the snapshot", 1.0)
    check_writable(registry.work)
    with file_lock(registry.work / "import-reference.lock"):
        writer = SnapshotWriter(registry, registry.work / "import-reference")
        _write_sources(writer, titles, wiki, source_ids_N, by_id_N)
        _write_aliases(writer, titles, wiki, source_ids_N, alias_hashes_N)
        for name in ("owners", "documents", "bands"):
            with writer.table(name):
                pass
        snapshot = writer.commit(
            configuration={"imported": IMPORTED, "wiki": wiki},
            inputs=[{"name": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size, "kind": "titles"}],
            follows=None,
            counts={"sources": {Kind.WIKI.value: len(titles)}},
            wikis=[],
            removed=[],
            wipeouts=[],
        )
    return snapshot, MaskIds(source_ids_N[by_id_N], titles.index_N[by_id_N] + id_offset)


def refuse_other_corpus(registry: Registry) -> None:
    """Refuse a registry that holds a corpus: an import would replace its newest snapshot.

    Raises:
        RefusedError: it holds one.
    """
    newest = registry.newest_id()
    if newest and registry.snapshot(newest).manifest["configuration"].get("imported") != IMPORTED:
        raise RefusedError(
            f"registry {registry.root} holds a corpus, and its next ingest would continue from the imported titles; "
            "name another with --registry, e.g. --registry ./released-model"
        )


class _Unpickler(pickle.Unpickler):
    """An unpickler of containers, strings and numbers only: all that a pickle can make without naming a class."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise RefusedError(
            f"the pickle names {module_name}.{global_name}, which a dict of titles does not need; it was not run. "
            "Get the file from its publisher"
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise RefusedError(f"the pickle refers to {pid!r:.80} outside of itself; get the file from its publisher")


def _unpickled(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            return _Unpickler(file).load()
    except RefusedError as error:
        raise RefusedError(f"{path}: {error}") from error
    except (
        pickle.UnpicklingError,
        EOFError,
        AttributeError,
        TypeError,
        ValueError,
        LookupError,
        OverflowError,
        MemoryError,
    ) as error:
        # An unpickler raises any of these for damaged bytes.
        raise DamagedError(f"{path}: cannot be read as a pickle ({error}); fetch it again") from error


def _hashes(titles: Titles, wiki: str, progress: Progress) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return source ids and alias hashes: int64 [N] each."""
    source_ids_N, alias_hashes_N = np.empty(len(titles), np.int64), np.empty(len(titles), np.int64)
    for start in range(0, len(titles), _ROWS):
        texts = titles.titles.slice(start, _ROWS).to_pylist()
        end = start + len(texts)
        source_ids_N[start:end] = [ids.source_id(key_of(title, wiki)) for title in texts]
        alias_hashes_N[start:end] = [ids.alias_hash(fold_title(title)) for title in texts]
        progress("reading titles", end / len(titles))
    return source_ids_N, alias_hashes_N


def _write_sources(
    writer: SnapshotWriter,
    titles: Titles,
    wiki: str,
    source_ids_N: npt.NDArray[np.int64],
    order_N: npt.NDArray[np.int64],
) -> None:
    with writer.table("sources") as file:
        for start in range(0, len(order_N), _ROWS):
            chosen = order_N[start : start + _ROWS]
            names = titles.titles.take(pa.array(chosen))
            columns = [
                pa.array(source_ids_N[chosen]),
                pa.array([key_of(title, wiki) for title in names.to_pylist()]),
                pa.repeat(pa.scalar(Kind.WIKI.value), len(chosen)),
                names,
                pa.repeat(pa.scalar(1), len(chosen)),
                pa.repeat(pa.scalar(0), len(chosen)),
                pa.array([[]] * len(chosen), schema.SOURCES.field("placements").type),
            ]
            file.write(pa.Table.from_arrays(columns, schema=schema.SOURCES))


def _write_aliases(
    writer: SnapshotWriter,
    titles: Titles,
    wiki: str,
    source_ids_N: npt.NDArray[np.int64],
    alias_hashes_N: npt.NDArray[np.int64],
) -> None:
    whole = pa.table({"hash": alias_hashes_N, "alias": titles.titles, "source_id": source_ids_N})
    whole = whole.sort_by([("hash", "ascending"), ("alias", "ascending")])
    with writer.table("aliases") as file:
        for batch in whole.to_batches(max_chunksize=_ROWS):
            columns = [
                batch["hash"],
                batch["alias"],
                pa.repeat(pa.scalar(AliasKind.TITLE.value), len(batch)),
                batch["source_id"],
                pa.repeat(pa.scalar(wiki), len(batch)),
                pa.nulls(len(batch), pa.string()),
            ]
            file.write(pa.Table.from_arrays(columns, schema=schema.ALIASES))
