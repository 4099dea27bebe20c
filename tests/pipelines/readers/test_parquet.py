"""Test the Parquet reader: columns, row offsets, and what damage to a row or a row group costs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.document import Document
from pipelines.readers.rows import parquet as reader
from pipelines.readers.wikipedia.articles import read_articles
from registry.errors import InputError
from tests.pipelines.readers.test_wikiextractor import ARTICLES, ENGLISH, documents, outcomes, parquet


def test_an_offset_in_parquet_is_a_row(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", ARTICLES)
    found = [item for item in read_articles(path, "a.parquet") if isinstance(item, Document)]
    for document in found:
        row = pq.read_table(path).slice(document.input_offset, 1).to_pylist()[0]
        assert row["title"] == document.title
        assert document.input_length == 0
    assert len(found) == len(ARTICLES)


def test_a_file_with_other_columns_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"], "url": ["x"], "title": [b"T"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet is Parquet, but has no title, text as text"):
        list(read_articles(tmp_path / "a.parquet", "a.parquet"))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string()])
def test_any_text_type_and_integer_ids_are_read(kind: pa.DataType, tmp_path: Path) -> None:
    url = ["https://en.wikipedia.org/wiki/A"]
    columns = {
        "id": pa.array([12]),
        **{n: pa.array(v).cast(kind) for n, v in (("url", url), ("title", ["A"]), ("text", ["b"]))},
    }
    pq.write_table(pa.table({**columns, "more": [1]}), tmp_path / "a.parquet")
    site, document = read_articles(tmp_path / "a.parquet", "a.parquet")
    assert site == ENGLISH
    assert isinstance(document, Document)
    assert (document.key, document.markup) == ("wiki:enwiki:12", "b")


def test_only_the_bad_row_is_lost(tmp_path: Path) -> None:
    text = pa.Array.from_buffers(
        pa.string(),
        4,
        [None, pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 2, 3, 4))), pa.py_buffer(b"a\xffcd")],
    )
    url = "https://en.wikipedia.org/wiki/A"
    columns = {"id": ["1", "2", "x", "4"], "url": [url] * 4, "title": ["A", "B", "C", "D"], "text": text}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    columns["text"] = pa.array(["a", None, "c", "d"])
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    for name in ("a.parquet", "b.parquet"):
        found = [item for item in read_articles(tmp_path / name, name) if isinstance(item, Document)]
        assert outcomes(found) == [("1", None), (None, "malformed-page"), (None, "malformed-page"), ("4", None)]
        assert [document.input_offset for document in found] == [0, 1, 2, 3]


def test_a_damaged_row_group_is_reported_and_the_next_is_read(tmp_path: Path) -> None:
    many = [(n, f"T{n}", random.Random(n).randbytes(300).hex()) for n in range(1, 7)]
    path = parquet(tmp_path / "a.parquet", many, compression="zstd", use_dictionary=False)
    column = pq.read_metadata(path).row_group(1).column(3)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size - 100] ^= 255  # its start has statistics
    found = documents(tmp_path, bytes(data))
    assert outcomes(found) == [("1", None), ("2", None), (None, "corrupt-rows"), ("5", None), ("6", None)]
    assert found[2].input_offset == 2
    assert "rows 2 to 3" in found[2].detail


@pytest.mark.parametrize("keep", [4, 5, 200])
def test_a_file_cut_off_is_one_failure(keep: int, tmp_path: Path) -> None:
    data = parquet(tmp_path / "a.parquet", ARTICLES).read_bytes()
    assert outcomes(documents(tmp_path, data[:keep])) == [(None, "corrupt-rows")]


def test_rows_are_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = parquet(tmp_path / "a.parquet", [(n, f"T{n}", "text") for n in range(1, 501)], row_group_size=500)
    sizes = []
    whole = pa.RecordBatch.from_arrays

    class Spy:
        @staticmethod
        def from_arrays(arrays: Any, names: Any) -> Any:
            sizes.append(len(arrays[0]))
            return whole(arrays, names)

    monkeypatch.setattr(reader.pa, "RecordBatch", Spy)
    assert sum(isinstance(item, Document) for item in read_articles(path, "a.parquet")) == 500
    assert len(sizes) > 5
    assert max(sizes) <= 64
