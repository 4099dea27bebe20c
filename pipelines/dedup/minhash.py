"""Fingerprint a text to find near-duplicates: words, shingles, a MinHash signature, band hashes.

Two texts whose shingle sets (word 5-grams) have Jaccard similarity s agree in one of `num_bands` bands with probability
1 - (1 - s^rows)^bands: with 14 x 8, 0.01 at s = 0.4, 0.75 at 0.75, 0.97 at 0.85. Candidates are then verified
(`pipelines.dedup.verified_edges`), so a pair too many costs time and changes no result.

Why not datatrove's or datasketch's: both hash shingle by shingle in Python (tens to hundreds of documents a second).
Here a text is one array of code points, and words, shingles and permutations are array operations: 3,200 documents of
4 kB per second and core, signature included; memory is 1 MiB besides the text's own arrays.

Words are runs of letters, marks, digits and symbols after NFKC and case folding; scripts written without spaces (Han,
kana, Thai, Lao, Khmer, Myanmar) count each character as a word. Everything is a pure function of the text, the
configuration and the Unicode tables (`WORDS_SCHEME`); `tests/pipelines/dedup/test_minhash.py` has golden vectors.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import sys
import unicodedata
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from registry.errors import UsageError

UInt32Array: TypeAlias = npt.NDArray[np.uint32]
UInt64Array: TypeAlias = npt.NDArray[np.uint64]
Int64Array: TypeAlias = npt.NDArray[np.int64]

SIGNATURE_SCHEME = "multiply-32-v1"  # raise it if the bands of any text change
WORDS_SCHEME = f"nfkc-casefold-v1/unicode-{unicodedata.unidata_version}"

_WORD, _SEPARATOR, _SOLO, _IGNORED = range(4)
# Scripts without spaces between words: Unicode blocks, first and last code point.
_SOLO_RANGES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # Han radicals
    (0x3005, 0x3007),  # ideographic iteration mark, closing mark, zero
    (0x3041, 0x30FF),  # Hiragana, Katakana
    (0x3100, 0x312F),  # Bopomofo
    (0x31A0, 0x31FF),  # Bopomofo and Katakana extensions
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xAA60, 0xAA7F),  # Myanmar
    (0xF900, 0xFAFF),  # Han
    (0x20000, 0x3FFFF),
)
_ASSIGNED_PLANES = (0, 1, 2, 3, 14)  # Unicode planes; in the others nothing is assigned, or only for private use
_BLOCK = 1024  # shingles permuted at once: 112 x 1024 x 8 bytes stay in a core's cache
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64; the golden ratio, as in splitmix64
_INVERSE = pow(_BASE, -1, 1 << 64)
_START = np.uint32(1 << 31)
_BMP = 1 << 16  # code points of the basic multilingual plane
_CONTEXT = np.iinfo(np.uint32).max


@dataclasses.dataclass(frozen=True, kw_only=True)
class DedupConfig:
    """The definition of a near-duplicate, and how many candidates are compared.

    Attributes:
        num_bands: bands of a signature; more find more, at the cost of more candidates to verify.
        rows_per_band: hashes in a band; more make a band more selective.
        ngram: words in a shingle.
        threshold: the least Jaccard similarity of the shingle sets of near copies, in (0, 1].
        bucket_limit: each document of a band bucket is compared with at most this many others, the preferred ones;
            bounds the work for boilerplate on 10^5 pages (all pairs would be 5 x 10^9) to bucket_limit per page.
    """

    num_bands: int = 14
    rows_per_band: int = 8
    ngram: int = 5
    threshold: float = 0.75
    bucket_limit: int = 64

    def __post_init__(self) -> None:
        for name in ("num_bands", "rows_per_band", "ngram", "bucket_limit"):
            if getattr(self, name) < 1:
                raise UsageError(f"dedup {name}: got {getattr(self, name)}, expected at least 1")
        if self.num_bands > 1000:
            raise UsageError(f"dedup num_bands: got {self.num_bands}, expected at most 1000")
        if not 0 < self.threshold <= 1:
            raise UsageError(f"dedup threshold: got {self.threshold}, expected a Jaccard similarity in (0, 1]")

    @property
    def num_permutations(self) -> int:
        """The number of hashes in a signature."""
        return self.num_bands * self.rows_per_band


@dataclasses.dataclass(frozen=True, slots=True)
class Fingerprint:
    """The normal hash and the bands of a text.

    Attributes:
        normal_hash: 16 bytes; equal if and only if the texts' words are equal.
        bands: one hash per band; empty for a text shorter than a shingle.
    """

    normal_hash: bytes
    bands: Int64Array


def fingerprint(text: str, config: DedupConfig) -> Fingerprint:
    """Fingerprint a text; cheaper than `normal_hash` and `bands` apart, since it is normalised once."""
    words = _Words(text)
    hashes = words.shingles(config.ngram)
    return Fingerprint(words.normal_hash(), bands(signature(hashes, config), config))


def normal_hash(text: str) -> bytes:
    """Return 16 bytes (BLAKE2b), the same for texts that differ only in NFKC, case, white space and punctuation.

    A text without any word is hashed unchanged, so that "?" and "!" stay two texts.
    """
    return _Words(text).normal_hash()


def num_words(text: str) -> int:
    """Return the number of words of `text` after normalisation."""
    return _Words(text).num_words


def shingles(text: str, ngram: int = DedupConfig.ngram) -> UInt64Array:
    """Return the hashes of the word n-grams: sorted, unique; empty for a text of fewer than `ngram` words."""
    return _Words(text).shingles(ngram)


def jaccard(a: UInt64Array, b: UInt64Array) -> float:
    """Return |a and b| / |a or b| of two shingle sets; 0 if both are empty."""
    common = np.intersect1d(a, b, assume_unique=True).size
    union = a.size + b.size - common
    return common / union if union else 0.0


def signature(hashes: UInt64Array, config: DedupConfig) -> UInt32Array:
    """Return the minimum of each permuted hash: [num_permutations] uint32; empty for an empty set.

    Only the upper half of each hash is permuted: processors multiply and compare eight numbers of 32 bits at once, and
    the chance that two of a million shingles have the same upper half is 1 in 4,000.
    """
    if not hashes.size:
        return np.empty(0, np.uint32)
    factors = _permutations(config.num_permutations)
    smallest = np.full(config.num_permutations, np.iinfo(np.uint32).max, np.uint32)
    scratch = np.empty((config.num_permutations, min(_BLOCK, hashes.size)), np.uint32)
    upper = (hashes >> np.uint64(32)).astype(np.uint32)
    for start in range(0, hashes.size, _BLOCK):
        block = upper[start : start + _BLOCK]
        permuted = scratch[:, : block.size]
        np.multiply(factors, block, out=permuted)
        np.minimum(smallest, permuted.min(axis=1), out=smallest)
    return smallest


def bands(values: UInt32Array, config: DedupConfig) -> Int64Array:
    """Return one hash per band: [num_bands] int64; of several signatures [..., num_bands]; empty for an empty one."""
    if not values.size:
        return np.empty(0, np.int64)
    by_band = values.reshape(*values.shape[:-1], config.num_bands, config.rows_per_band)
    weighted = by_band * _powers(_BASE, config.rows_per_band)
    return _mix(weighted.sum(axis=-1, dtype=np.uint64)).view(np.int64)


class _Words:
    """A text as an array of code points, cut into words."""

    def __init__(self, text: str) -> None:
        self._text = text
        points = _code_points(text)
        classes = _classes().take(points, mode="clip")
        if classes.tobytes().find(_IGNORED) >= 0:
            seen = classes != _IGNORED
            points, classes = points[seen], classes[seen]
        plain, inside = classes == _WORD, classes != _SEPARATOR
        starts = inside.copy()
        starts[1:] &= ~(plain[1:] & plain[:-1])  # continues its left neighbour's word
        self._points, self._starts = np.compress(inside, points), np.compress(inside, starts)
        self.num_words = int(np.count_nonzero(self._starts))

    def normal_hash(self) -> bytes:
        if not self.num_words:
            return hashlib.blake2b(self._text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        marked = (self._points | (self._starts * _START)).astype("<u4", copy=False)
        return hashlib.blake2b(marked.tobytes(), digest_size=16, person=b"nulls.txt.v1").digest()

    def hashes(self) -> UInt64Array:
        """Return one hash per word, in order: a polynomial in its code points, wherever it is in the text."""
        starts = np.flatnonzero(self._starts)
        sums = np.add.reduceat(self._points * _powers(_BASE, self._points.size), starts)
        return _mix(sums * _powers(_INVERSE, self._points.size).take(starts))

    def shingles(self, ngram: int) -> UInt64Array:
        count = self.num_words - ngram + 1
        if count < 1:
            return np.empty(0, np.uint64)
        words = self.hashes()
        combined = np.zeros(count, np.uint64)
        for offset in range(ngram):
            combined = combined * np.uint64(_BASE) + words[offset : offset + count]
        hashes = _mix(combined)
        hashes.sort()
        new = np.ones(count, np.bool_)
        np.not_equal(hashes[1:], hashes[:-1], out=new[1:])
        return hashes[new]


def _code_points(text: str) -> UInt32Array:
    if text.isascii():
        return np.frombuffer(text.lower().encode("ascii"), np.uint8).astype(np.uint32)
    points = _utf32(text)
    if points.max() < _BMP:
        folded = _folds().take(points, mode="clip")
        if folded.max() != _CONTEXT:
            return folded
    return _utf32(_folded(text))


def _utf32(text: str) -> UInt32Array:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint32, copy=False)


def _folded(text: str) -> str:
    folded = unicodedata.normalize("NFKC", text).casefold()
    return unicodedata.normalize("NFKC", folded)  # case folding can undo the composition


@functools.cache
def _folds() -> UInt32Array:
    """Map each code point below `_BMP` to its folded form, or to `_CONTEXT` if that depends on its neighbours.

    Marks do (they are reordered, and combine with what is before them), and the parts of Hangul syllables; so do code
    points that fold to several characters. 0.2 s, once per process.
    """
    points = range(_BMP)
    after = set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))  # vowels and final consonants of Hangul
    for point in points:
        decomposition = unicodedata.decomposition(chr(point)).split()
        if len(decomposition) == 2 and not decomposition[0].startswith("<"):
            after.add(int(decomposition[1], 16))
    table = np.full(_BMP, _CONTEXT, np.uint32)
    for point in points:
        folded = _folded(chr(point))
        if len(folded) == 1 and not any(ord(c) in after or unicodedata.combining(c) for c in (chr(point), folded)):
            table[point] = ord(folded)
    return table


@functools.cache
def _classes() -> npt.NDArray[np.uint8]:
    """Map each code point to its class: word, separator, a word by itself, ignored. 1.1 MB; 0.1 s once per process."""
    kinds = collections.defaultdict(lambda: _WORD, Cc=_SEPARATOR, Cf=_IGNORED)  # Cc: tabs, line ends; Cf: invisible
    kinds.update(dict.fromkeys(("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Zs", "Zl", "Zp"), _SEPARATOR))
    table = np.full(sys.maxunicode + 1, _WORD, np.uint8)
    for plane in _ASSIGNED_PLANES:
        points = range(plane << 16, (plane + 1) << 16)
        table[points.start : points.stop] = [kinds[unicodedata.category(c)] for c in map(chr, points)]
    for first, last in _SOLO_RANGES:
        part = table[first : last + 1]
        part[part == _WORD] = _SOLO
    return table


@functools.cache
def _power_table(base: int, size: int) -> UInt64Array:
    powers = np.full(size, base, np.uint64)
    powers[0] = 1
    return np.multiply.accumulate(powers, dtype=np.uint64)


def _powers(base: int, size: int) -> UInt64Array:
    """Return 1, base, base^2, ... modulo 2^64; tables grow by doubling, so few are ever made."""
    return _power_table(base, max(1 << 12, 1 << (size - 1).bit_length()))[:size]


def _mix(values: UInt64Array) -> UInt64Array:
    """Apply splitmix64's finaliser: a bijection after which every bit depends on every bit."""
    mixed = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


@functools.cache
def _permutations(count: int) -> UInt32Array:
    """Return `count` odd factors, [count, 1] uint32, by splitmix64 over a counter.

    Multiplication by an odd factor permutes the 32-bit numbers; that is random enough for minima, since shingle hashes
    are mixed.
    """
    factors = _mix((np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(_BASE)) >> np.uint64(32)
    return (factors.astype(np.uint32) | np.uint32(1))[:, None]
