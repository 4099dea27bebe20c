"""Erased rows: the union of the sources' sinks, and the share that each other source loses, against plain sets."""

from __future__ import annotations

import numpy as np
import pytest

from registry.errors import NotFoundError
from training.erasure import rows as module
from training.erasure.rows import erased_rows, shares
from training.sinks.layout import SinkLayout
from training.sinks.mask_ids import MaskIds

KEYED = SinkLayout(num_pool=97, num_sinks=12, seed=4)
REFERENCE = SinkLayout(num_pool=97, num_sinks=12, scheme="reference-int64", probability=0.1)


def sinks_of(layout: SinkLayout, source_id: int, layer: int) -> set[int]:
    return set(np.flatnonzero(layout.mask(np.array([source_id]), layer)[0]).tolist())


@pytest.mark.parametrize("layout", [KEYED, REFERENCE])
@pytest.mark.parametrize("at_once", [1, 10**6])
def test_the_union_of_sinks_and_what_others_lose(
    layout: SinkLayout, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SINKS_AT_ONCE", at_once)  # one source at a time, or all
    gone, others = [5, 2**40, 77], [1, 2, 5, 900, 2**62]
    rows = erased_rows(layout, None, gone, num_layers=3)
    union = [set().union(*(sinks_of(layout, source_id, layer) for source_id in gone)) for layer in range(3)]
    assert [set(np.flatnonzero(rows_P).tolist()) for rows_P in rows.rows_LP] == union
    assert rows.counts == [len(sinks) for sinks in union]
    found = shares(layout, None, np.array(others), rows)
    for source_id, share in zip(others, found.tolist(), strict=True):
        own = [sinks_of(layout, source_id, layer) for layer in range(3)]
        lost = sum(len(sinks & erased) for sinks, erased in zip(own, union, strict=True))
        assert share == pytest.approx(lost / sum(map(len, own)))
    assert found[2] == 1
    assert 0 < found[0] < 1


def test_reserved_sources_share_nothing() -> None:
    layout = SinkLayout(num_pool=97, num_sinks=12, reserved=(5, 77))
    rows = erased_rows(layout, None, [5, 77], num_layers=3)
    assert rows.counts == [24, 24, 24]
    assert not shares(layout, None, np.arange(6, 70), rows).any()


def test_an_imported_model_is_erased_by_mask_ids() -> None:
    table = MaskIds(np.array([5, 9], np.int64), np.array([300, 301], np.int64))
    rows = erased_rows(REFERENCE, table, [9], num_layers=2)
    assert set(np.flatnonzero(rows.rows_LP[1]).tolist()) == sinks_of(REFERENCE, 301, 1)
    assert shares(REFERENCE, table, np.array([9]), rows).tolist() == [1]
    with pytest.raises(NotFoundError, match="no mask id"):
        erased_rows(REFERENCE, table, [6], num_layers=2)


def test_tensors_are_known_by_their_names() -> None:
    rows = erased_rows(KEYED, None, [5], num_layers=2)
    for name in ("model.layers.1.mlp.sink_up", "optimizer.state.model.layers.1.mlp.sink_up.exp_avg_sq"):
        assert np.array_equal(rows.of_tensor(name), rows.rows_LP[1])  # type: ignore[arg-type]
    for name in ("model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"):
        assert rows.of_tensor(name) is None
