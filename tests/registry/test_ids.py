"""Ids are frozen: golden vectors, computed once with hashlib only and written here as literals."""

from __future__ import annotations

import hashlib
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import ids
from registry.errors import UsageError

SOURCES = [
    ("web:example.com", 5152451693565059710),
    ("web:alice.github.io", 8666520087986566653),
    ("web:xn--bcher-kva.example", 4263290786065543542),
    ("web:[2001:db8::1]", 724958940781104827),
    ("wiki:enwiki:12", 9013103395633317476),
    ("book:gutenberg:1342", 2720627264310279749),
    ("book:isbn:9780306406157", 2478211517866063087),
    ("wiki:dewiki:1é", 4485923719091641884),
    ("", 2399757153338423420),
]
DOCUMENTS = [
    ("web:example.com", "http://example.com/", 8737723870069156555),
    ("wiki:enwiki:12", "wiki:enwiki:12", 314011192178436640),
    ("web:example.com", "http://example.com/?q=caf%C3%A9", 6179509455596744083),
]
ALIASES = [("anarchism", 8862396891312295847), ("東京", 2323701160229910297), ("strasse", 5063667084957328866)]


@pytest.mark.parametrize(("key", "expected"), SOURCES)
def test_source_ids_are_frozen(key: str, expected: int) -> None:
    assert ids.source_id(key) == expected


@pytest.mark.parametrize(("key", "locator", "expected"), DOCUMENTS)
def test_doc_ids_are_frozen(key: str, locator: str, expected: int) -> None:
    assert ids.doc_id(key, locator) == expected


@pytest.mark.parametrize(("alias", "expected"), ALIASES)
def test_alias_hashes_are_frozen(alias: str, expected: int) -> None:
    assert ids.alias_hash(alias) == expected


def test_shared_keys_are_frozen() -> None:
    assert ids.shared_key([1, 2, 3]) == "shared:e15defbd542c492d"
    owners = [ids.source_id("web:a.example"), ids.source_id("web:b.example")]
    assert ids.shared_key(owners) == "shared:170443e46a69ce34"


@pytest.mark.parametrize("person", [b"nulls.src.v1", b"nulls.doc.v1", b"nulls.als.v1"])
def test_each_kind_of_id_has_its_own_blake2b_person(person: bytes) -> None:
    def expected(text: str) -> int:
        return int(hashlib.blake2b(text.encode(), digest_size=8, person=person).hexdigest(), 16) // 2

    function = {b"nulls.src.v1": ids.source_id, b"nulls.als.v1": ids.alias_hash}.get(person)
    assert (function("x\ny") if function else ids.doc_id("x", "y")) == expected("x\ny")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_ids_are_63_bits_and_parse_back(key: str) -> None:
    source_id = ids.source_id(key)
    assert 0 <= source_id < 2**63
    shown = ids.format_id(source_id)
    assert len(shown) == 16
    assert ids.parse_id(shown) == ids.parse_id(f" {shown.upper()}\n") == source_id


def test_ids_use_the_whole_range() -> None:
    source_ids = [ids.source_id(f"web:{i}.example") for i in range(2000)]
    assert len(set(source_ids)) == 2000
    assert min(source_ids) < 2**63 // 200
    assert max(source_ids) > 2**63 // 200 * 199


@pytest.mark.parametrize("text", ["", "12", "8" + "0" * 15, "f" * 16, "0" * 17, "0x" + "0" * 14, "१" * 16, "g" * 16])
def test_text_that_is_not_an_id_is_not_parsed(text: str) -> None:
    assert ids.parse_id(text) is None


@given(st.lists(st.integers(0, 2**63 - 1), min_size=2, max_size=6, unique=True), st.randoms(use_true_random=False))
def test_shared_key_ignores_order_and_repetition(owners: list[int], rng: random.Random) -> None:
    key = ids.shared_key(owners)
    again = owners + owners[:1]
    rng.shuffle(again)
    assert ids.shared_key(again) == key
    packed = b"".join(owner.to_bytes(8, "big") for owner in sorted(owners))
    assert key == "shared:" + hashlib.blake2b(packed, digest_size=8, person=b"nulls.own.v1").hexdigest()


def test_shared_key_differs_for_every_set_of_owners() -> None:
    sets = [c for size in (2, 3) for c in itertools.combinations(range(8), size)]
    assert len({ids.shared_key(owners) for owners in sets}) == len(sets) == 84


@pytest.mark.parametrize("owners", [[], [7], [7, 7]])
def test_a_shared_key_needs_two_owners(owners: list[int]) -> None:
    with pytest.raises(UsageError, match="at least two owners"):
        ids.shared_key(owners)
