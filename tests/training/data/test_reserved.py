"""A reserved source must be in the snapshot and have text; otherwise its sinks would be taken and never trained."""

from __future__ import annotations

import pytest

from registry import ids
from registry.errors import UsageError
from registry.snapshot import Snapshot
from training.data.reserved import check_reserved

ARTICLE, SITE, EMPTY = (ids.source_id(key) for key in ("wiki:tinywiki:3", "web:example.org", "web:empty.example"))


def test_reserved_sources_of_the_snapshot_are_returned_in_the_order_of_their_ids(snapshot: Snapshot) -> None:
    assert [source.source_id for source in check_reserved(snapshot, [SITE, ARTICLE])] == sorted([ARTICLE, SITE])
    assert check_reserved(snapshot, []) == []


def test_a_reserved_source_without_text_is_an_error_that_names_it(snapshot: Snapshot) -> None:
    with pytest.raises(UsageError, match=r"web:empty\.example have no text"):
        check_reserved(snapshot, [ARTICLE, EMPTY])
    with pytest.raises(UsageError, match=r"0000000000000007.* and 2 more are not in"):
        check_reserved(snapshot, [ARTICLE, *range(1, 11)])
