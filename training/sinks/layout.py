"""Masks: the sink neurons that a source switches on, a pure function of its id, so there is nothing to store or lose.

`keyed-v1` draws exactly `num_sinks` distinct sinks for each source and layer, without replacement, by a keyed
permutation of the pool: sink j is the image of j. The permutation is a Feistel network over a grid of
`left * right >= num_pool` cells, and an image outside the pool is permuted again until it falls inside (cycle-walking;
at most a few cells in a thousand are outside). A larger `num_sinks` therefore adds to a source's sinks and keeps the
others. **Reserved** sources have sinks that no other source has: the last rows of the pool, `num_sinks` for each, the
same in every layer. All others draw from the rows before, so erasing a reserved source costs them nothing; without
reserved sources nothing changes. `reference-int32` and `reference-int64` reproduce the masks of the released NULLs
checkpoints bit for bit, with their flaws (variable counts, one mask for all layers, collisions in int32); they are only
for loading those.

The same code runs on NumPy arrays and on torch tensors (CPU, CUDA) and gives the same bits: every product stays under
2**63, so no result depends on how a platform overflows. torch is imported only when a tensor is given.

Cost: O(num_sinks) a source and layer, whatever the pool; in NumPy on one core 0.05 to 0.1 us a sink, and 0.5 ms for any
small call (16 sources of 128 sinks, one layer); torch on a CPU takes three times as long. Of R reserved sources one is
found in O(log R).
Run: ``SinkLayout(seed=1).sinks(np.array([7]), layer=0)``.

Shapes: N sources, L layers, K sinks of a source, P pool neurons, R reserved sources.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from registry import ids
from registry.errors import UsageError

Array: TypeAlias = Any
"""A NumPy array or a torch tensor; functions return the same kind, on the same device, as they are given."""

NO_SOURCE = -1
"""In place of a source id for a token that has no source; ids are non-negative."""

KEYED = "keyed-v1"
REFERENCE_BITS = {"reference-int32": 32, "reference-int64": 64}
"""Bits of the integers in which a reference scheme multiplies the id."""

# Of 2, 4, 6 and 8 rounds, the first two fail the tests of evenness over pairs; 8 leaves a margin.
_NUM_ROUNDS = 8
_LOW32 = 0xFFFFFFFF
# Both multipliers fit 31 bits, so that a product with 32 bits fits a signed 64-bit integer. _MIX is the usual
# constant for a 32-bit avalanche with two multiplications.
_MIX = 0x45D9F3B
_REFERENCE_BASE, _REFERENCE_MODULUS = 1588635695, 4294967291


def parse_reserved(texts: Iterable[object]) -> tuple[int, ...]:
    """Return the source ids that 16 hex digits each spell, ascending.

    Raises:
        UsageError: one is not 16 hex digits; YAML reads digits without quotes as a number.
    """
    found = []
    for text in texts:
        source_id = ids.parse_id(text) if isinstance(text, str) else None
        if source_id is None:
            raise UsageError(
                f"reserved source {text!r}: expected 16 hex digits in quotes, as `nulls lookup` prints ids"
            )
        found.append(int(source_id))
    return tuple(sorted(found))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SinkLayout:
    """Numbers of neurons in each MLP, and how the sinks of a source are drawn from the pool.

    Raises:
        UsageError: a size is out of range, or `probability` is given for a scheme that has none.
    """

    num_backbone: int = 512
    """Neurons that are always on."""
    num_pool: int = 8192
    """Sink neurons in each layer, shared by all sources in combination."""
    num_sinks: int = 128
    """Sinks of one source in one layer: exact for `keyed-v1`, expected for the reference schemes."""
    seed: int = 0
    """Part of the key: models with different seeds have unrelated masks."""
    scheme: str = KEYED
    """`keyed-v1`, `reference-int32` or `reference-int64`."""
    probability: float | None = None
    """Reference schemes only: the probability that a sink is on; by default `num_sinks / num_pool`."""
    reserved: tuple[int, ...] = ()
    """`keyed-v1` only: ids, ascending, of the sources that share no sink; source i of them has the i-th block of
    `num_sinks` rows after the first `num_open` of the pool, in every layer."""

    def __post_init__(self) -> None:
        if self.scheme != KEYED and self.scheme not in REFERENCE_BITS:
            raise UsageError(f"scheme: got {self.scheme!r}, expected one of {[KEYED, *REFERENCE_BITS]}")
        if self.num_backbone < 1:
            raise UsageError(f"num_backbone: got {self.num_backbone}, expected at least 1")
        if not 1 <= self.num_pool < 2**31:
            raise UsageError(f"num_pool: got {self.num_pool}, expected 1 to 2**31 - 1")
        if not 1 <= self.num_sinks <= self.num_pool:
            raise UsageError(f"num_sinks: got {self.num_sinks}, expected 1 to num_pool, {self.num_pool}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed: got {self.seed}, expected 0 to 2**63 - 1")
        if self.probability is not None and self.scheme == KEYED:
            raise UsageError(f"probability: got {self.probability}, but {KEYED} draws exactly num_sinks; leave it out")
        if self.probability is not None and not 0 < self.probability <= 1:
            raise UsageError(f"probability: got {self.probability}, expected more than 0 and at most 1")
        if self.reserved:
            self._check_reserved()

    def _check_reserved(self) -> None:
        if self.scheme != KEYED:
            raise UsageError(f"reserved: {self.scheme} draws all sources from one pool; only {KEYED} can reserve")
        in_range = min(self.reserved) >= 0 and max(self.reserved) < 2**63
        if not in_range or (np.diff(self._sorted_reserved) <= 0).any():
            raise UsageError("reserved: expected ids of 0 to 2**63 - 1, ascending, each once")
        if self.num_open < self.num_sinks:
            count, taken = len(self.reserved), len(self.reserved) * self.num_sinks
            raise UsageError(
                f"reserved: {count} sources of {self.num_sinks} sinks take {taken} of {self.num_pool} and leave fewer "
                f"than one other source needs; reserve fewer, or set num_pool to {taken + self.num_sinks} or more"
            )

    @property
    def num_open(self) -> int:
        """Rows of the pool, from the first, that sources without reserved sinks draw from."""
        return self.num_pool - len(self.reserved) * self.num_sinks

    @functools.cached_property
    def _sorted_reserved(self) -> npt.NDArray[np.int64]:
        return np.array(self.reserved, dtype=np.int64)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON; reserved ids as 16 hex digits, left out where there are none.

        A layout without reserved sources is described as it was before there were any, so that digests stay.
        """
        fields = dataclasses.asdict(self)
        reserved = [ids.format_id(source_id) for source_id in fields.pop("reserved")]
        return fields | ({"reserved": reserved} if reserved else {})

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> SinkLayout:
        """Return the layout that `to_dict` described.

        Raises:
            UsageError: a field is unknown (masks may depend on it), or a reserved id is not 16 hex digits.
        """
        unknown = fields.keys() - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise UsageError(f"sink layout: got unknown fields {sorted(unknown)}; was it written by a newer version?")
        return cls(**fields | {"reserved": parse_reserved(fields.get("reserved", ()))})

    def sinks(self, source_ids_N: Array, layer: int) -> Array:
        """Return the sinks of each source in one layer, in the order drawn; those of a reserved source ascend.

        Returns:
            int64 [N, num_sinks], distinct within a row.

        Raises:
            UsageError: the ids are not non-negative int64 [N], or the scheme has no fixed count (use `select`).
        """
        if self.scheme != KEYED:
            raise UsageError(f"sinks: {self.scheme} has no fixed number of sinks; call select() or mask()")
        return self._draw(_checked(source_ids_N), [_checked_layer(layer)])[0]

    def mask(self, source_ids_N: Array, layer: int) -> Array:
        """Return the mask of each source in one layer, True where a pool neuron is on: bool [N, P], any scheme."""
        ids_N = _checked(source_ids_N)
        if self.scheme != KEYED:
            return self._reference_mask(ids_N)
        mask_NP = _like(ids_N, np.zeros((len(ids_N), self.num_pool), dtype=np.bool_))
        rows_N1 = _like(ids_N, np.arange(len(ids_N))[:, None])
        mask_NP[rows_N1, self.sinks(ids_N, layer)] = True
        return mask_NP

    def select(self, source_ids_N: Array, layer: int) -> tuple[Array, Array | None]:
        """Return the sinks of each source in one layer, any scheme, padded to the largest count among these sources.

        Returns:
            int64 [N, K] and bool [N, K], False where a row is padded (with sink 0), or None where nothing is.
        """
        if self.scheme == KEYED:
            return self.sinks(source_ids_N, layer), None
        return _padded_rows(self._reference_mask(_checked(source_ids_N)))

    def select_layers(self, source_ids_N: Array, num_layers: int) -> tuple[Array, Array | None]:
        """Return what `select` gives for layers 0 to num_layers - 1, in one pass instead of num_layers.

        Returns:
            int64 [L, N, K] and bool [N, K] (the same in every layer) or None.
        """
        ids_N = _checked(source_ids_N)
        if self.scheme == KEYED:
            return self._draw(ids_N, range(num_layers)), None
        indices_NK, valid_NK = _padded_rows(self._reference_mask(ids_N))
        # A reference model has the same mask in every layer: a view, not copies.
        return _namespace(ids_N).broadcast_to(indices_NK, (num_layers, *indices_NK.shape)), valid_NK

    def _draw(self, ids_N: Array, layers: range | list[int]) -> Array:
        """Return the images of 0 .. num_sinks - 1 under the keyed permutations: int64 [L, N, num_sinks].

        They are permutations of the open rows; a reserved source has its own block instead.
        """
        left, right = _grid(self.num_open)
        words_LW = _like(ids_N, np.stack([_key_words(self.seed, layer) for layer in layers]))
        keys = _round_keys(ids_N, words_LW)
        sinks_LNK = _permute(_like(ids_N, np.arange(self.num_sinks)), keys, left, right)
        broadcast_to = _namespace(ids_N).broadcast_to
        while bool((outside := sinks_LNK >= self.num_open).any()):
            their_keys = [broadcast_to(key_LN1, sinks_LNK.shape)[outside] for key_LN1 in keys]
            sinks_LNK[outside] = _permute(sinks_LNK[outside], their_keys, left, right)
        if self.reserved:
            reserved_R = _like(ids_N, self._sorted_reserved)
            index_N = _namespace(ids_N).searchsorted(reserved_R, ids_N).clip(0, len(self.reserved) - 1)
            is_reserved_N = reserved_R[index_N] == ids_N
            first_N = self.num_open + index_N[is_reserved_N] * self.num_sinks
            sinks_LNK[:, is_reserved_N] = first_N[:, None] + _like(ids_N, np.arange(self.num_sinks))
        return sinks_LNK

    def _reference_mask(self, ids_N: Array) -> Array:
        """Return the reference's masks, bool [N, P]: sink j is on iff (t * c_j mod 2**64, signed) mod M < threshold."""
        factors_P = _like(ids_N, _reference_factors(self.num_pool))
        share = self.num_sinks / self.num_pool if self.probability is None else self.probability
        # t = id * 2**16, wrapped to the width, as its 16-bit digits 1, 2, 3; digit 0 is always zero.
        digit1_N1 = (ids_N & 0xFFFF)[:, None]
        if REFERENCE_BITS[self.scheme] == 64:
            digit2_N1, digit3_N1 = (ids_N >> 16 & 0xFFFF)[:, None], (ids_N >> 32 & 0xFFFF)[:, None]
        else:
            digit2_N1 = digit3_N1 = (digit1_N1 >> 15) * 0xFFFF
        product1_NP = digit1_N1 * factors_P
        low_NP = (product1_NP & 0xFFFF) << 16
        high_NP = (product1_NP >> 16) + digit2_N1 * factors_P + ((digit3_N1 * factors_P & 0xFFFF) << 16) & _LOW32
        # 2**32 = 5 and 2**64 = 25 modulo M; if the top bit is set, the signed product is 2**64 less.
        residue_NP = (high_NP * 5 + low_NP - 25 * (high_NP >> 31)) % _REFERENCE_MODULUS
        return residue_NP < _reference_threshold(share)


def _namespace(array: Array) -> Any:
    """Return NumPy or torch, whichever `array` belongs to."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def _like(ids_N: Array, constant: npt.NDArray[Any]) -> Array:
    """Convert a constant to the same kind of array, on the same device, as the ids."""
    if isinstance(ids_N, np.ndarray):
        return constant
    return _namespace(ids_N).as_tensor(constant, device=ids_N.device)


def _checked(source_ids_N: Array) -> Array:
    dtype = str(getattr(source_ids_N, "dtype", type(source_ids_N).__name__)).removeprefix("torch.")
    if dtype != "int64" or source_ids_N.ndim != 1:
        shape = tuple(getattr(source_ids_N, "shape", ()))
        raise UsageError(f"source_ids: got {dtype} of shape {shape}, expected an int64 array or tensor of shape [N]")
    if len(source_ids_N) and int(source_ids_N.min()) < 0:
        raise UsageError(f"source_ids: got {int(source_ids_N.min())}, expected ids from 0; leave NO_SOURCE out")
    return source_ids_N


def _checked_layer(layer: int) -> int:
    if layer < 0:
        raise UsageError(f"layer: got {layer}, expected 0 or more")
    return layer


@functools.lru_cache(maxsize=64)
def _grid(num_pool: int) -> tuple[int, int]:
    """Return the sides of the smallest grid of at least `num_pool` cells, at most a factor of about 4 apart."""
    root = math.isqrt(num_pool - 1) + 1
    # A search over half the root is quick for any pool that fits on a GPU, and cached.
    left = min(range((root + 1) // 2, root + 1), key=lambda side: (side * -(-num_pool // side), -side))
    return left, -(-num_pool // left)


@functools.lru_cache(maxsize=1024)
def _key_words(seed: int, layer: int) -> npt.NDArray[np.int64]:
    """Return sixteen 32-bit words for a seed and a layer, from a cryptographic hash: layers and seeds are unrelated."""
    digest = hashlib.blake2b(f"{seed}:{layer}".encode(), digest_size=64, person=b"nulls.sinks.v1").digest()
    return np.frombuffer(digest, dtype="<u4").astype(np.int64)


def _mix32(x: Array) -> Array:
    """Apply a bijection of 32-bit values in which every input bit changes about half of the output bits."""
    x = x ^ x >> 16  # a copy, so the rest can be in place
    for _ in range(2):
        x *= _MIX
        x &= _LOW32
        x ^= x >> 16
    return x


def _round_keys(ids_N: Array, words_LW: Array) -> list[Array]:
    """Return one 32-bit key a round, each [L, N, 1], from all 63 bits of the id and the layer's words [L, 16]."""
    words = [words_LW[:, i, None] for i in range(words_LW.shape[1])]
    high, low = (ids_N >> 32)[None], (ids_N & _LOW32)[None]
    # Four Feistel rounds are a bijection: two ids never share both halves of the key.
    for word in words[:4]:
        high, low = low, high ^ _mix32(low + word & _LOW32)
    return [_mix32(_mix32(high + word & _LOW32) + low & _LOW32)[..., None] for word in words[4 : 4 + _NUM_ROUNDS]]


def _permute(cells: Array, keys: list[Array], left_size: int, right_size: int) -> Array:
    """Permute the cells of a grid by a key: alternately, each coordinate is shifted by a hash of the other."""
    left, right = cells // right_size, cells % right_size
    for left_key, right_key in zip(keys[::2], keys[1::2], strict=True):
        # A 32-bit hash times a side under 2**31, shifted down, is uniform over the side and cheaper than a remainder.
        left = _wrapped(left + (_mix32(right ^ left_key) * left_size >> 32), left_size)
        right = _wrapped(right + (_mix32(left ^ right_key) * right_size >> 32), right_size)
    return left * right_size + right


def _wrapped(x: Array, size: int) -> Array:
    """Return x mod size, for x under twice the size."""
    return x - (x >= size) * size


def _padded_rows(mask_NP: Array) -> tuple[Array, Array]:
    """Return the true columns of each row, in order: int64 [N, K], and bool [N, K], False where padded."""
    xp = _namespace(mask_NP)
    counts_N = mask_NP.sum(1)
    num_columns = int(counts_N.max()) if len(counts_N) else 0
    slots_K = _like(mask_NP, np.arange(num_columns))
    valid_NK = slots_K[None] < counts_N[:, None]
    indices_NK = _like(mask_NP, np.zeros((len(counts_N), num_columns), dtype=np.int64))
    # Both sides are in row order, and from left to right within a row.
    indices_NK[valid_NK] = xp.where(mask_NP)[1]
    return indices_NK, valid_NK


@functools.lru_cache(maxsize=8)
def _reference_factors(num_pool: int) -> npt.NDArray[np.int64]:
    """Return c_j = (a**j wrapped to a signed 64-bit integer) mod M, for j = 0 .. num_pool - 1."""
    factors = np.empty(num_pool, dtype=np.int64)
    power = 1
    for j in range(num_pool):
        signed = power - 2**64 if power >= 2**63 else power
        factors[j] = signed % _REFERENCE_MODULUS
        power = power * _REFERENCE_BASE % 2**64
    return factors


@functools.lru_cache(maxsize=8)
def _reference_threshold(probability: float) -> int:
    """Return the least x with float32(x) / 2**32 >= float32(probability), so that comparing integers is exact."""
    limit = np.float32(probability)
    return bisect.bisect_left(range(2**32 + 1), True, key=lambda x: bool(np.float32(x) / np.float32(2**32) >= limit))
