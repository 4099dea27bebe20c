"""Words, shingles and signatures against golden vectors, true Jaccard, datasketch, and the theory of bands."""

from __future__ import annotations

import random
import sys
import unicodedata
from pathlib import Path

import datasketch
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.dedup import minhash
from pipelines.dedup.minhash import (
    DedupConfig,
    bands,
    fingerprint,
    jaccard,
    normal_hash,
    num_words,
    shingles,
    signature,
)
from registry.errors import UsageError

CONFIG = DedupConfig()
TEXT = "The quick brown fox jumps over the lazy dog, twice a day; nobody knows why."


def random_sets(similarity: float, seed: int, size: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of 64-bit hashes of about the given Jaccard similarity."""
    common = round(2 * size * similarity / (1 + similarity))
    values = np.random.default_rng(seed).integers(0, 2**64, 2 * size - common, dtype=np.uint64)
    return np.sort(values[:size]), np.sort(values[size - common :])


def words_of(seed: int, count: int) -> list[str]:
    chooser = random.Random(seed)
    return ["".join(chooser.choices("abcdefghijklmnopqrstuvwxyz", k=chooser.randint(2, 9))) for _ in range(count)]


def naive_jaccard(a: str, b: str, ngram: int = 5) -> float:
    """The Jaccard similarity of sets of strings."""
    one, two = ({tuple(w[i : i + ngram]) for i in range(len(w) - ngram + 1)} for w in (a.split(), b.split()))
    return len(one & two) / len(one | two)


def test_hashes_equal_the_golden_vectors_that_stored_snapshots_rely_on() -> None:
    found = fingerprint(TEXT, CONFIG)
    assert found.normal_hash.hex() == "ac77a87345fbd4053a81b75a48919ef3"
    assert found.bands[:3].tolist() == [-115528758486742185, -6127144526188906914, -1733670757976898145]
    assert int(shingles(TEXT)[0]) == 188961494492623888


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Don't stop, now!", "don t STOP now"),
        ("ﬁne caﬀè", "FINE CAFFÈ"),
        ("a  b\n\tc", "A—B…c"),
        ("straße", "STRASSE"),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
        ("東京都に\n行く。", "東京都に行く"),
        ("soft\u00adhyphen", "softhyphen"),
    ],
)
def test_texts_equal_up_to_form_case_space_and_punctuation_are_equal(one: str, other: str) -> None:
    assert normal_hash(one) == normal_hash(other)
    assert shingles(one, 1).tolist() == shingles(other, 1).tolist()


@pytest.mark.parametrize(
    ("one", "other"),
    [("ab c", "a bc"), ("5 €", "5 $"), ("?", "!"), ("", "?"), ("हिन्दी", "हनद"), ("listen", "silent"), ("a b", "b a")],
)
def test_different_words_are_different_texts(one: str, other: str) -> None:
    assert normal_hash(one) != normal_hash(other)


def test_words_of_scripts_with_and_without_spaces() -> None:
    assert num_words("日本語のテキスト") == 8
    assert num_words("สวัสดี") == 6
    assert num_words("हिन्दी में लिखा") == 3
    assert num_words("한국어 문장") == 2
    assert num_words("C++ and R2-D2") == 4
    assert num_words(" -- ") == 0


def test_a_short_text_has_a_normal_hash_and_no_bands() -> None:
    found = fingerprint("only four words here", CONFIG)
    assert found.normal_hash == normal_hash("Only four words, here!")
    assert found.bands.size == 0
    assert shingles("only four words here").size == 0
    assert jaccard(shingles(""), shingles("")) == 0.0


BASIC = st.characters(max_codepoint=0xFFFF, exclude_categories=("Cs",))


@given(st.lists(st.one_of(st.text(max_size=4), BASIC, st.sampled_from("e\u0301\u0323 각가\u11a8ΣςİßﬃÅ")), max_size=20))
@settings(max_examples=500)
def test_folding_by_table_is_nfkc_and_case_folding(parts: list[str]) -> None:
    text = "".join(parts)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    found = minhash._code_points(text)
    assert found.tobytes().decode("utf-32-le", "surrogatepass") == folded


@given(st.text(max_size=300), st.integers(1, 6))
@settings(max_examples=200, deadline=None)
def test_shingles_are_sorted_unique_and_at_most_one_a_word(text: str, ngram: int) -> None:
    found = shingles(text, ngram)
    assert found.size <= max(0, num_words(text) - ngram + 1)
    assert (found[1:] > found[:-1]).all()


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=80), st.lists(st.sampled_from("abcdefg"), max_size=80))
@settings(max_examples=200, deadline=None)
def test_jaccard_equals_that_of_the_true_sets(a: list[str], b: list[str]) -> None:
    one, two = ({tuple(w[i : i + 2]) for i in range(len(w) - 1)} for w in (a, b))
    expected = len(one & two) / len(one | two) if one | two else 0.0
    assert jaccard(shingles(" ".join(a), 2), shingles(" ".join(b), 2)) == pytest.approx(expected)


@pytest.mark.parametrize("similarity", [0.1, 0.3, 0.5, 0.75, 0.95])
def test_the_estimator_is_unbiased_with_the_error_of_112_independent_hashes(similarity: float) -> None:
    errors = []
    for seed in range(150):
        a, b = random_sets(similarity, seed)
        errors.append((signature(a, CONFIG) == signature(b, CONFIG)).mean() - jaccard(a, b))
    deviation = np.sqrt(similarity * (1 - similarity) / CONFIG.num_permutations)
    assert abs(np.mean(errors)) < 3 * deviation / np.sqrt(len(errors)) + 0.002
    assert np.std(errors) < 1.3 * deviation


def test_estimates_agree_with_datasketch() -> None:
    ours, theirs = [], []
    for seed, share in enumerate(np.linspace(0.05, 0.95, 30)):
        words = words_of(seed, 300)
        other = [w if random.Random(i).random() < share**0.3 else w + "x" for i, w in enumerate(words)]
        sketches = [datasketch.MinHash(num_perm=112, seed=1) for _ in range(2)]
        for sketch, text in zip(sketches, (words, other), strict=True):
            sketch.update_batch([" ".join(text[i : i + 5]).encode() for i in range(len(text) - 4)])
        true = naive_jaccard(" ".join(words), " ".join(other))
        a, b = (signature(shingles(" ".join(text)), CONFIG) for text in (words, other))
        assert jaccard(shingles(" ".join(words)), shingles(" ".join(other))) == pytest.approx(true)
        ours.append((a == b).mean() - true)
        theirs.append(sketches[0].jaccard(sketches[1]) - true)
    assert np.std(ours) < 1.5 * np.std(theirs)


@pytest.mark.parametrize("similarity", [0.4, 0.6, 0.75, 0.85])
def test_bands_find_candidates_with_the_expected_probability(similarity: float) -> None:
    hits, expected, trials = 0, 0.0, 300
    for seed in range(trials):
        a, b = random_sets(similarity, 1000 + seed)
        hits += bool((bands(signature(a, CONFIG), CONFIG) == bands(signature(b, CONFIG), CONFIG)).any())
        expected += 1 - (1 - jaccard(a, b) ** CONFIG.rows_per_band) ** CONFIG.num_bands
    spread = np.sqrt(expected * (1 - expected / trials))
    assert abs(hits - expected) < 4 * spread + 1


def test_a_text_larger_than_a_block_is_permuted_completely() -> None:
    hashes = shingles(" ".join(words_of(1, 5000)))
    assert hashes.size > 4000
    parts = np.minimum.reduce([signature(part, CONFIG) for part in np.array_split(hashes, 7)])
    assert (signature(hashes, CONFIG) == parts).all()


@pytest.mark.parametrize("size", [100, 1000])
def test_exactly_the_planted_pairs_of_the_tutorial_set_are_found(size: int, data_dir: Path) -> None:
    folder = data_dir / "dedup" / "minhash-tutorial"
    texts = dict(line.split(" ", 1) for line in (folder / f"articles_{size}.train").read_text().splitlines())
    truth = {frozenset(line.split()) for line in (folder / f"articles_{size}.truth").read_text().splitlines()}
    hashes = {name: shingles(text) for name, text in texts.items()}
    buckets: dict[tuple[int, int], list[str]] = {}
    for name, found in hashes.items():
        for band in enumerate(bands(signature(found, CONFIG), CONFIG).tolist()):
            buckets.setdefault(band, []).append(name)
    pairs = {frozenset((a, b)) for names in buckets.values() for a in names for b in names if a != b}
    near = {pair for pair in pairs if jaccard(*(hashes[name] for name in pair)) >= CONFIG.threshold}
    assert len(texts) == size
    assert near == truth


@pytest.mark.parametrize(
    "wrong", [{"num_bands": 0}, {"rows_per_band": -1}, {"threshold": 0.0}, {"threshold": 1.1}, {"num_bands": 5000}]
)
def test_a_configuration_out_of_range_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        DedupConfig(**wrong)


def test_classes_of_code_points_follow_unicode_on_every_plane() -> None:
    table = minhash._classes()
    solo = {point for first, last in minhash._SOLO_RANGES for point in range(first, last + 1)}
    for point in range(0, sys.maxunicode + 1, 7):
        category = unicodedata.category(chr(point))
        separates, ignored = category == "Cc" or category[0] in "PZ", category == "Cf"
        word = minhash._SOLO if point in solo else minhash._WORD
        assert table[point] == (minhash._SEPARATOR if separates else minhash._IGNORED if ignored else word), hex(point)
