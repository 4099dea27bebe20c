"""Deduplication of real articles in three versions, against true similarities computed by other code."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import quality
from pipelines.dedup.minhash import shingles

UNUSUAL_TEXTS = [
    "a b c d e",
    "a b c d",
    "Straße Ⅷ ﬁne co\u00adop don't x\u200dy \U0001f600 a_b 5°",
    "東京は日本の首都である。 ㄌㄨㄢ สวัสดีชาวโลก ສະບາຍດີ ខ្មែរ မြန်မာ",
    "e\u0301 é É İstanbul ΣΊΣΥΦΟΣ ǆ 한국어 각",
]


@pytest.mark.parametrize("text", UNUSUAL_TEXTS)
def test_both_implementations_find_the_same_words(text: str) -> None:
    assert len(quality.shingles(text)) == shingles(text).size


def test_the_measure_counts_missed_pairs_and_false_merges() -> None:
    words = [f"w{n}" for n in range(100)]
    texts = [words, [*words[:-1], "x"], words[50:] + words[:50], ["other", *words[1:5], *"abcdefgh"]]
    articles = {
        (number, "sha"): quality.Article(f"v{number}wiki", "title", quality.shingles(" ".join(text)))
        for number, text in enumerate(texts, start=1)
    }
    survivors = {1: None, 2: None, 3: None, 4: 1}
    rows = [
        {"doc_id": n, "text_sha256": "sha", "survivor_id": survivor, "reason": "near", "jaccard": 0.9}
        for n, survivor in survivors.items()
    ]
    found = quality.measure(rows, articles)
    assert found["all_that_share_a_shingle"]["pairs"] == 3
    assert found["all_that_share_a_shingle"]["found"] == 0
    assert (found["removed"], found["false_merges"], found["within_threshold_of_survivor"]) == (1, 1, 0)
    assert found["largest_error_of_jaccard_on_record"] == pytest.approx(0.9)


@pytest.mark.slow
def test_real_articles_in_three_versions(data_dir: Path) -> None:
    found = quality.main(str(data_dir))
    assert len(found["articles_compared"]) == 3
    assert found["equal_title_across_versions"]["pairs"] >= 30
    assert found["equal_title_across_versions"]["recall"] >= 0.95
    assert found["all_that_share_a_shingle"]["recall"] >= 0.95
    assert (
        found["all_that_share_a_shingle"]["by_jaccard"]["0.50 to 0.75"]["pairs"] > 100
    )  # easily mistaken for near copies
    assert found["false_merges"] == 0
    assert found["within_threshold_of_survivor"] == found["removed"] > 30
    assert found["largest_error_of_jaccard_on_record"] < 1e-6
