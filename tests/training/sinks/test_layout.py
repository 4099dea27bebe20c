"""Masks: golden vectors, exact counts, the statistics of a uniform draw, and the masks of released checkpoints."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from registry.errors import UsageError
from training.sinks.layout import NO_SOURCE, SinkLayout

MAX_ID = 2**63 - 1
source_ids = st.integers(0, MAX_ID)

# id, layer, first eight sinks, SHA-256 of all 128 as little-endian int64 (first 16 digits). They must never change: a
# model's weights are useless under other masks.
GOLDEN = [
    (0, 0, [995, 6757, 1087, 3528, 6458, 1941, 6239, 6125], "0f4c79832fc67ae3"),
    (1, 0, [6038, 1464, 5818, 6117, 6888, 4087, 7890, 4413], "926b16d184210f35"),
    (0, 1, [2120, 1342, 6988, 3169, 7226, 3293, 21, 2755], "94b4faeb54379c36"),
    (2**32, 0, [5873, 1138, 655, 881, 7182, 7428, 1211, 4687], "12a35d46eea3183c"),
    (MAX_ID - 1, 0, [2033, 5391, 5986, 2765, 656, 7519, 2169, 6293], "2ac43de8298d636a"),
    (MAX_ID, 0, [4596, 6858, 7318, 4812, 5491, 7345, 5096, 3492], "bbfe3897b74eef91"),
    (MAX_ID, 31, [635, 2415, 876, 2762, 2032, 55, 1553, 2612], "77b5400e69ddc231"),
]

# Masks of the reference: id, bits, number of sinks on, the first ten; n = 7692, p = 0.013.
REFERENCE = [
    (49152, 32, 85, [141, 403, 617, 683, 872, 1023, 1094, 1098, 1107, 1395]),
    (49152, 64, 76, [5, 38, 517, 974, 1007, 1032, 1220, 1257, 1393, 1444]),
    (49153, 32, 89, [71, 85, 122, 217, 225, 245, 328, 437, 733, 775]),
    (49153, 64, 116, [22, 203, 268, 403, 583, 604, 675, 764, 777, 826]),
    (100000, 32, 115, [3, 45, 159, 291, 306, 324, 535, 559, 586, 592]),
    (100000, 64, 110, [48, 54, 77, 123, 124, 139, 163, 194, 295, 345]),
    (6000000, 32, 101, [32, 59, 156, 174, 217, 245, 357, 378, 431, 439]),
    (6000000, 64, 107, [15, 30, 120, 151, 176, 198, 279, 325, 412, 438]),
    (65536, 32, 7692, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    (65536, 64, 101, [0, 11, 38, 50, 305, 328, 371, 428, 541, 725]),
]


def reference_layout(bits: int) -> SinkLayout:
    return SinkLayout(num_backbone=500, num_pool=7692, num_sinks=100, scheme=f"reference-int{bits}", probability=0.013)


def overlaps(first_NK: np.ndarray, second_NK: np.ndarray) -> np.ndarray:
    """Number of sinks that each pair of rows shares."""
    return np.array([len(np.intersect1d(a, b)) for a, b in zip(first_NK, second_NK, strict=True)])


def assert_hypergeometric(shared: np.ndarray, layout: SinkLayout) -> None:
    """Assert mean and variance of two independent draws without replacement, within five standard errors."""
    law = stats.hypergeom(layout.num_pool, layout.num_sinks, layout.num_sinks)
    mean, variance, kurtosis = (float(x) for x in law.stats("mvk"))
    assert abs(shared.mean() - mean) < 5 * np.sqrt(variance / len(shared))
    spread = variance * np.sqrt((kurtosis + 2) / len(shared))
    assert abs(shared.var(ddof=1) - variance) < 5 * spread


@pytest.mark.parametrize(("source_id", "layer", "first", "digest"), GOLDEN)
def test_golden_vectors(source_id: int, layer: int, first: list[int], digest: str) -> None:
    sinks = SinkLayout().sinks(np.array([source_id]), layer)[0]
    assert sinks[:8].tolist() == first
    assert hashlib.sha256(sinks.astype("<i8").tobytes()).hexdigest()[:16] == digest


def test_golden_vectors_reach_both_ends_of_the_id_range() -> None:
    assert {0, 1, MAX_ID - 1, MAX_ID} <= {row[0] for row in GOLDEN}


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 400), st.lists(source_ids, min_size=1, max_size=4), st.integers(0, 100))
def test_exactly_num_sinks_distinct(data: st.DataObject, num_pool: int, ids: list[int], layer: int) -> None:
    num_sinks = data.draw(st.integers(1, num_pool))
    layout = SinkLayout(num_pool=num_pool, num_sinks=num_sinks, seed=data.draw(source_ids))
    sinks_NK = layout.sinks(np.array(ids), layer)
    assert sinks_NK.shape == (len(ids), num_sinks)
    assert sinks_NK.min() >= 0
    assert sinks_NK.max() < num_pool
    assert all(len(set(row)) == num_sinks for row in sinks_NK.tolist())
    mask_NP = layout.mask(np.array(ids), layer)
    assert mask_NP.sum(1).tolist() == [num_sinks] * len(ids)
    assert np.take_along_axis(mask_NP, sinks_NK, axis=1).all()


@pytest.mark.parametrize("num_pool", [1, 2, 3, 97, 8191, 8192, 10007])
def test_a_whole_pool_is_a_permutation(num_pool: int) -> None:
    sinks_NK = SinkLayout(num_pool=num_pool, num_sinks=num_pool).sinks(np.array([5, MAX_ID]), 2)
    assert (np.sort(sinks_NK, axis=1) == np.arange(num_pool)).all()
    assert num_pool < 97 or (sinks_NK[0] != sinks_NK[1]).any()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3000), st.lists(source_ids, min_size=1, max_size=3), st.integers(0, 40))
def test_more_sinks_extend_fewer(num_pool: int, ids: list[int], layer: int) -> None:
    few, many = (SinkLayout(num_pool=num_pool, num_sinks=k) for k in ((num_pool + 1) // 2, num_pool))
    assert (many.sinks(np.array(ids), layer)[:, : few.num_sinks] == few.sinks(np.array(ids), layer)).all()


@pytest.mark.parametrize("num_pool", [8192, 8191, 7692])
def test_torch_gives_the_same_bits(num_pool: int) -> None:
    layout = SinkLayout(num_pool=num_pool, seed=3)
    ids = np.concatenate([np.arange(100), np.random.default_rng(0).integers(0, MAX_ID, 100), [MAX_ID]])
    tensor = torch.from_numpy(ids)
    assert np.array_equal(layout.sinks(ids, 7), layout.sinks(tensor, 7).numpy())
    assert np.array_equal(layout.mask(ids, 7), layout.mask(tensor, 7).numpy())
    stacked, valid = layout.select_layers(tensor, 3)
    assert valid is None
    assert torch.equal(stacked, torch.stack([layout.sinks(tensor, layer) for layer in range(3)]))
    assert len(np.unique(layout.sinks(ids, 7), axis=0)) == len(ids)


RESERVED = (3, 77, 2**40, MAX_ID)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "layout", [SinkLayout(num_pool=8191), SinkLayout(reserved=(5, 2**60)), reference_layout(32), reference_layout(64)]
)
def test_cuda_gives_the_same_bits(layout: SinkLayout) -> None:
    ids = torch.cat([torch.randint(0, MAX_ID, (200,)), torch.tensor([5, 2**60])])
    assert torch.equal(layout.mask(ids.cuda(), 7).cpu(), layout.mask(ids, 7))


def test_a_reserved_source_has_its_own_block_in_every_layer() -> None:
    layout = SinkLayout(num_pool=2048, num_sinks=64, reserved=RESERVED)
    assert layout.num_open == 2048 - 4 * 64
    ids = np.array([77, 5, MAX_ID, 3, 2**40, 78])
    for array in (ids, torch.from_numpy(ids)):
        sinks_LNK, valid = layout.select_layers(array, 3)
        assert valid is None
        for index, block in ((0, 1), (2, 3), (3, 0), (4, 2)):
            first = layout.num_open + 64 * block
            assert (np.asarray(sinks_LNK[:, index]) == np.arange(first, first + 64)).all()
        assert int(sinks_LNK[:, [1, 5]].max()) < layout.num_open
        assert np.array_equal(np.asarray(layout.mask(array, 1)).sum(1), [64] * 6)
        assert np.array_equal(np.asarray(layout.sinks(array, 2)), np.asarray(sinks_LNK[2]))


@settings(max_examples=60, deadline=None)
@given(st.sets(source_ids, min_size=1, max_size=12), st.lists(source_ids, min_size=1, max_size=6), st.integers(1, 9))
def test_no_other_source_has_a_reserved_sink(reserved: set[int], others: list[int], num_sinks: int) -> None:
    others = [source_id for source_id in others if source_id not in reserved] or [min(set(range(13)) - reserved)]
    num_open = num_sinks * 3
    layout = SinkLayout(
        num_pool=num_open + num_sinks * len(reserved), num_sinks=num_sinks, reserved=tuple(sorted(reserved))
    )
    own_NK = layout.sinks(np.array(layout.reserved), 4)
    assert len(np.unique(own_NK)) == own_NK.size
    assert own_NK.min() == num_open
    theirs_NK = layout.sinks(np.array(others), 4)
    assert theirs_NK.max() < num_open
    # Theirs are those of a pool that never had the reserved rows.
    assert np.array_equal(theirs_NK, SinkLayout(num_pool=num_open, num_sinks=num_sinks).sinks(np.array(others), 4))


def test_a_layout_says_what_is_reserved_only_if_something_is() -> None:
    assert "reserved" not in SinkLayout().to_dict()
    layout = SinkLayout(reserved=RESERVED)
    fields = layout.to_dict()
    assert fields["reserved"][0] == "0000000000000003"
    assert SinkLayout.from_dict(json.loads(json.dumps(fields))) == layout
    with pytest.raises(UsageError, match="16 hex digits"):
        SinkLayout.from_dict(fields | {"reserved": [3]})


def test_sources_overlap_as_independent_draws_do() -> None:
    layout = SinkLayout(num_pool=2048, num_sinks=64)
    ids = np.random.default_rng(0).integers(0, MAX_ID, 8000)
    sinks_NK = layout.sinks(ids, 0)
    assert_hypergeometric(overlaps(sinks_NK[::2], sinks_NK[1::2]), layout)


@pytest.mark.parametrize("related", ["next", "double", "plus 2**16", "plus 2**32", "top bit"])
def test_related_ids_overlap_no_more_than_others(related: str) -> None:
    layout = SinkLayout(num_pool=2048, num_sinks=64)
    ids = np.arange(1, 4001)
    other = {
        "next": ids + 1,
        "double": 2 * ids,
        "plus 2**16": ids + 2**16,
        "plus 2**32": ids + 2**32,
        "top bit": ids + 2**62,
    }[related]
    assert_hypergeometric(overlaps(layout.sinks(ids, 0), layout.sinks(other, 0)), layout)


def test_layers_and_seeds_are_independent() -> None:
    layout = SinkLayout(num_pool=2048, num_sinks=64)
    ids = np.arange(4000)
    assert_hypergeometric(overlaps(layout.sinks(ids, 0), layout.sinks(ids, 1)), layout)
    assert_hypergeometric(
        overlaps(layout.sinks(ids, 0), SinkLayout(num_pool=2048, num_sinks=64, seed=1).sinks(ids, 0)), layout
    )


@pytest.mark.parametrize("num_pool", [2048, 2039])
def test_the_load_is_even_over_the_pool(num_pool: int) -> None:
    layout = SinkLayout(num_pool=num_pool, num_sinks=64)
    counts_P = np.bincount(layout.sinks(np.arange(40_000), 0).ravel(), minlength=num_pool)
    expected = counts_P.mean()
    # Draws without replacement: the variance of a count, and with it the statistic, is smaller by 1 - K / P.
    statistic = ((counts_P - expected) ** 2 / expected).sum() / (1 - 64 / num_pool)
    assert 1e-4 < stats.chi2.sf(statistic, num_pool - 1) < 1 - 1e-4
    assert expected > 1000


def test_every_position_of_the_draw_is_even_too() -> None:
    # Position j of a row is the image of j: a weak permutation would map some j to some sinks more often.
    counts_KP = np.stack(
        [
            np.bincount(column, minlength=97)
            for column in SinkLayout(num_pool=97, num_sinks=97).sinks(np.arange(20_000), 0).T
        ]
    )
    p_values = stats.chisquare(counts_KP, axis=1).pvalue
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("positions", [(0, 1), (0, 8), (3, 4), (7, 30)])
@pytest.mark.parametrize("num_pool", [48, 61])
def test_pairs_of_positions_are_even(num_pool: int, positions: tuple[int, int]) -> None:
    # Pairs of images are the first to be uneven with too few rounds: with four, all of these fail.
    sinks_NK = SinkLayout(num_pool=num_pool, num_sinks=num_pool).sinks(np.arange(60_000), 0)
    counts = np.bincount(sinks_NK[:, positions[0]] * num_pool + sinks_NK[:, positions[1]], minlength=num_pool**2)
    counts_PP = counts.reshape(num_pool, num_pool)
    assert not counts_PP.diagonal().any()
    unequal = counts_PP[~np.eye(num_pool, dtype=bool)]
    assert 1e-4 < stats.chisquare(unequal).pvalue < 1 - 1e-4
    assert unequal.mean() > 10


def test_a_million_sequential_ids_have_a_million_masks() -> None:
    # Only the first 16 sinks, as a set, in one layer: a sum of 64 random bits a sink, so their order does not count.
    layout = SinkLayout(num_sinks=16)
    weights_P = np.random.default_rng(0).integers(0, 2**64, layout.num_pool, dtype=np.uint64)
    sums = [weights_P[layout.sinks(np.arange(start, start + 8000), 0)].sum(1) for start in range(0, 1_000_000, 8000)]
    assert len(np.unique(np.concatenate(sums))) == 1_000_000


@pytest.mark.parametrize(("source_id", "bits", "count", "first"), REFERENCE)
def test_reference_vectors(source_id: int, bits: int, count: int, first: list[int]) -> None:
    layout = reference_layout(bits)
    for ids in (np.array([source_id]), torch.tensor([source_id])):
        on = np.flatnonzero(np.asarray(layout.mask(ids, 0)[0]))
        assert (len(on), on[:10].tolist()) == (count, first)


@settings(max_examples=30, deadline=None)
@given(source_ids, st.sampled_from([32, 64]))
def test_reference_follows_its_definition(source_id: int, bits: int) -> None:
    """Compare with the formula in Python's unbounded integers."""

    def signed(x: int, width: int) -> int:
        return (x + 2 ** (width - 1)) % 2**width - 2 ** (width - 1)

    modulus = 4294967291
    shifted = signed(source_id * 65536, bits)
    expected = []
    for j in range(300):
        factor = signed(pow(1588635695, j, 2**64), 64) % modulus
        x = signed(shifted * factor, 64) % modulus
        expected.append(bool(np.float32(x) / np.float32(2**32) < np.float32(0.3)))
    layout = SinkLayout(num_pool=300, num_sinks=90, scheme=f"reference-int{bits}", probability=0.3)
    assert layout.mask(np.array([source_id]), 0)[0].tolist() == expected


@pytest.mark.parametrize("bits", [32, 64])
def test_reference_select_is_its_mask(bits: int) -> None:
    layout = reference_layout(bits)
    ids = np.array([49152, 100000, 49153])
    indices_NK, valid_NK = layout.select(ids, 5)
    assert valid_NK is not None
    assert not valid_NK.all(), "the counts are equal: nothing is padded, so nothing is tested"
    rebuilt_NP = np.zeros((3, layout.num_pool), dtype=bool)
    for row, indices, valid in zip(rebuilt_NP, indices_NK, valid_NK, strict=True):
        row[indices[valid]] = True
    assert np.array_equal(rebuilt_NP, layout.mask(ids, 0))
    of_layers, valid = layout.select_layers(torch.from_numpy(ids), 2)
    assert np.array_equal(of_layers[1].numpy(), indices_NK)
    assert np.array_equal(valid.numpy(), valid_NK)


def test_reference_probability_defaults_to_the_expected_count() -> None:
    counts = SinkLayout(scheme="reference-int64").mask(np.arange(1, 200), 0).sum(1)
    assert abs(counts.mean() - 128) < 5


def test_no_sources_give_no_rows() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert SinkLayout().sinks(none, 0).shape == (0, 128)
    assert SinkLayout().mask(none, 0).shape == (0, 8192)
    indices, valid = reference_layout(32).select(none, 0)
    assert indices.shape == (0, 0)
    assert valid is not None


def test_round_trip_through_a_dict() -> None:
    layout = reference_layout(32)
    assert SinkLayout.from_dict(layout.to_dict()) == layout
    with pytest.raises(UsageError, match="colour"):
        SinkLayout.from_dict(layout.to_dict() | {"colour": "blue"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scheme": "random"}, "scheme"),
        ({"num_sinks": 8193}, "num_sinks"),
        ({"num_pool": 0, "num_sinks": 0}, "num_pool"),
        ({"num_backbone": 0}, "num_backbone"),
        ({"seed": -1}, "seed"),
        ({"probability": 0.5}, "probability"),
        ({"scheme": "reference-int32", "probability": 0.0}, "probability"),
        ({"scheme": "reference-int32", "reserved": (1,)}, "only keyed-v1 can reserve"),
        ({"reserved": (2, 1)}, "ascending"),
        ({"reserved": (2, 2)}, "each once"),
        ({"reserved": (2, 2**63)}, "ascending"),
        ({"reserved": (-1, 2)}, "ascending"),
        ({"num_pool": 300, "num_sinks": 128, "reserved": (1, 2)}, "num_pool to 384"),
    ],
)
def test_a_bad_layout_names_its_field(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SinkLayout(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("ids", [np.array([NO_SOURCE]), np.array([1], dtype=np.int32), np.array([[1]]), [1]])
def test_bad_ids_are_refused(ids: object) -> None:
    with pytest.raises(UsageError, match="source_ids"):
        SinkLayout().sinks(ids, 0)


def test_a_planner_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np; from training.sinks.layout import SinkLayout; SinkLayout().sinks(np.array([1]), 0);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
