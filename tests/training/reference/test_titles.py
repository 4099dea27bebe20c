"""A release's titles: read without running anything, found like any source, each with the mask id of its sinks."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import ids
from registry.errors import DamagedError, InputError, NotFoundError, NullsError, RefusedError, UsageError
from registry.identity import canonical_key
from registry.lookup import lookup, resolve
from registry.snapshot import Registry, Snapshot
from tests.training.conftest import corpus
from tests.training.conftest import write_snapshot as write_corpus
from training.reference.titles import key_of, read_titles, refuse_other_corpus, write_snapshot
from training.sinks.layout import SinkLayout
from training.sinks.mask_ids import MaskIds

OFFSET = 49152
TITLES = ["Anarchism", "Autism (film)", "Åland", "IPhone", "AC/DC", "Anarchism in Spain", "anarchism", "Δέντρο"]


class Evil:
    """An object that creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def imported(folder: Path, titles: dict[str, int]) -> tuple[Snapshot, MaskIds]:
    """Import titles as a snapshot in a registry of their own."""
    path = folder / "title_to_index.pkl"
    path.write_bytes(pickle.dumps(titles))
    registry = Registry.open(folder / "registry", create=True)
    return write_snapshot(
        read_titles(path),
        path=path,
        wiki="enwiki",
        registry=registry,
        id_offset=OFFSET,
        progress=lambda _message, _share: None,
    )


def test_titles_urls_keys_and_ids_lead_to_the_mask_id_of_the_release(tmp_path: Path) -> None:
    snapshot, mask_ids = imported(tmp_path, {title: n for n, title in enumerate(TITLES)})
    for index, title in enumerate(TITLES):
        source = resolve(snapshot, key_of(title, "enwiki"))
        assert (source.title, source.kind, source.num_documents, source.num_bytes) == (title, "wiki", 1, 0)
        assert mask_ids.of(source.source_id) == index + OFFSET
        assert resolve(snapshot, ids.format_id(source.source_id)) == source
    for query, title in (
        ("Autism (film)", "Autism (film)"),
        ("autism_(film)", "Autism (film)"),
        ("https://en.wikipedia.org/wiki/AC/DC", "AC/DC"),
        ("https://en.m.wikipedia.org/wiki/%C3%85land#History", "Åland"),
        ("iPhone", "IPhone"),
        ("δέντρο", "Δέντρο"),
    ):
        assert resolve(snapshot, query).title == title, query
    # MediaWiki takes "anarchism" for "Anarchism". The release has both, so the lookup is refused as ambiguous.
    with pytest.raises(UsageError, match="ambiguous"):
        resolve(snapshot, "Anarchism")
    assert lookup(snapshot, "https://de.wikipedia.org/wiki/AC/DC").found is False
    assert snapshot.verify() > 0
    assert snapshot.texts(resolve(snapshot, "Åland").source_id) == []


def test_no_page_id_leads_to_a_title(tmp_path: Path) -> None:
    titles = {f"Title {n}": n for n in range(3000)}
    snapshot, _ = imported(tmp_path, titles)
    for page in (0, 1, 12, 49152, 49153, 50000):
        assert not lookup(snapshot, f"https://en.wikipedia.org/?curid={page}").found
        assert not lookup(snapshot, f"wiki:enwiki:{page}").found
    with pytest.raises(NotFoundError, match="did you mean: Title 3"):
        resolve(snapshot, "Title 300x")


@given(st.text(max_size=40).filter(lambda text: text.isprintable()))
def test_a_key_is_canonical_and_belongs_to_one_title(title: str) -> None:
    key = key_of(title, "enwiki")
    assert canonical_key(key) == key == canonical_key(key.upper())
    assert key_of(title + "x", "enwiki") != key != key_of(title, "dewiki")


def test_the_snapshot_depends_on_the_titles_only(tmp_path: Path) -> None:
    titles = {title: n for n, title in enumerate(TITLES)}
    for name in "abc":
        (tmp_path / name).mkdir()
    first, _ = imported(tmp_path / "a", titles)
    again, _ = imported(tmp_path / "a", titles)
    elsewhere, _ = imported(tmp_path / "b", titles)
    other, _ = imported(tmp_path / "c", titles | {"One more": 99})
    assert first.id == again.id == elsewhere.id != other.id


def test_a_registry_with_a_corpus_is_left_alone(tmp_path: Path) -> None:
    write_corpus(tmp_path / "registry", corpus())
    newest = Registry.open(tmp_path / "registry").newest_id()
    with pytest.raises(RefusedError, match="holds a corpus"):
        refuse_other_corpus(Registry.open(tmp_path / "registry"))
    with pytest.raises(RefusedError):
        imported(tmp_path, {"A": 1})
    assert Registry.open(tmp_path / "registry").newest_id() == newest
    refuse_other_corpus(Registry.open(tmp_path / "empty", create=True))
    imported(tmp_path / "empty", {"A": 1})
    refuse_other_corpus(Registry.open(tmp_path / "empty" / "registry"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "title_to_index.pkl"
    content = {"Tree": 2, "Åland": 0, "x" * 300: 70_000, "2": 2**33}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    titles = read_titles(path)
    assert dict(zip(titles.titles.to_pylist(), titles.index_N.tolist(), strict=True)) == content


def test_a_pickle_that_names_anything_is_refused_and_not_run(tmp_path: Path) -> None:
    path, trace = tmp_path / "title_to_index.pkl", tmp_path / "ran"
    by_hand = [
        b"cos\nsystem\n(S'touch " + bytes(trace) + b"'\ntR.",
        b"(S'touch " + bytes(trace) + b"'\nios\nsystem\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x05touch\x85R.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02U\x03pidQ.",  # a persistent id
    ]
    whole = [pickle.dumps(value) for value in ({"A": Evil(trace)}, {Evil(trace): 1}, collections.OrderedDict(A=1))]
    for content in (*whole, *by_hand):
        path.write_bytes(content)
        with pytest.raises(NullsError) as caught:
            read_titles(path)
        assert isinstance(caught.value, (RefusedError, DamagedError))
        assert "title_to_index.pkl" in str(caught.value)
    assert not trace.exists()
    pickle.loads(whole[0])
    assert trace.exists()


def test_anything_but_a_dict_of_titles_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "title_to_index.pkl"
    for content in (
        [1],
        {},
        {"A": "1"},
        {"A": True},
        {1: 1},
        {"A": -1},
        {"A": 2**50},
        {"A": 1, "B": 1},
        {b"A": 1},
        "A",
    ):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(InputError, match=r"title_to_index\.pkl"):
            read_titles(path)
    with pytest.raises(InputError, match="missing"):
        read_titles(tmp_path / "none.pkl")


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_cut_short_or_changed_is_damaged(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "title_to_index.pkl"
    whole = pickle.dumps({title: n for n, title in enumerate(TITLES)}, protocol=protocol)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError, match="fetch it again"):
            read_titles(path)
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x5A]) + whole[position + 1 :])
        try:
            read_titles(path)
        except NullsError:
            continue  # a change that leaves a valid dict cannot be detected; any other raises one of our errors


def test_a_wiki_is_named_by_its_database(tmp_path: Path) -> None:
    path = tmp_path / "title_to_index.pkl"
    path.write_bytes(pickle.dumps({"A": 1}))
    registry = Registry.open(tmp_path / "registry", create=True)
    for wiki in ("EN Wiki", "en:wiki", ""):
        with pytest.raises(UsageError, match="database name"):
            write_snapshot(
                read_titles(path), path=path, wiki=wiki, registry=registry, id_offset=0, progress=lambda _w, _s: None
            )


@pytest.mark.parametrize("scheme", ["reference-int32", "reference-int64"])
def test_covering_sources_are_those_whose_masks_hold_the_other(scheme: str) -> None:
    layout = SinkLayout(num_backbone=1, num_pool=400, num_sinks=20, scheme=scheme, probability=0.05)
    mask_ids = np.array([49152, 49153, 65536, 65537, 49152 + 65536, 131072, 3 * 65536 + 49153, 6_000_000])
    table = MaskIds(np.arange(10, 90, 10), mask_ids)
    masks = layout.mask(mask_ids, 0)
    expected = {
        int(source): {
            int(other)
            for row, other in enumerate(table.source_ids_N)
            if other != source and bool((masks[row] >= masks[index]).all())
        }
        for index, source in enumerate(table.source_ids_N)
    }
    for source, others in expected.items():
        assert set(table.covering([source], scheme).tolist()) == others
    assert table.num_distinct(scheme) == len({tuple(row) for row in masks.tolist()})
    assert any(expected.values()) == (scheme == "reference-int32")
    assert table.covering([], scheme).tolist() == []


def test_a_table_of_mask_ids_is_saved_and_damage_detected(tmp_path: Path) -> None:
    table = MaskIds(np.array([3, 2**62]), np.array([49152, 6_000_000]))
    assert MaskIds.load(tmp_path) is None
    table.save(tmp_path)
    loaded = MaskIds.load(tmp_path)
    assert loaded is not None
    assert (loaded.of(3), loaded.of(2**62)) == (49152, 6_000_000)
    assert loaded.sources_of(np.array([6_000_000, 49152, 6_000_000])).tolist() == [2**62, 3, 2**62]
    for absent in (2, 4, 2**62 + 1):
        with pytest.raises(NotFoundError):
            loaded.of(absent)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="import again"):
        MaskIds.load(tmp_path)
    with pytest.raises(UsageError, match="ascend"):
        MaskIds(np.array([3, 3]), np.array([1, 2]))
    with pytest.raises(UsageError, match="int64"):
        MaskIds(np.array([3, 4]), np.array([1]))
