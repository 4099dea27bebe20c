"""The shingles of a block of documents in one file, for workers that share only storage.

A block is a row group of staged texts (8 MiB). Its file depends only on the rows and texts and is published by one
rename, so a worker may write it twice, or two at once, while others read it.

    count (int64) | rows (int64, ascending) | start of each, and the end (int64) | shingles (uint64)

Cost: 8 bytes a shingle, 1.3 times the text; reading maps the file, so only the rows asked for are read.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipelines.dedup.minhash import Int64Array, UInt64Array, shingles
from registry.errors import DamagedError
from registry.storage import translate_os_errors


def write_block(path: Path, rows: Int64Array, texts: Iterable[str], ngram: int) -> None:
    """Write the shingles of `texts`, the texts of `rows`, to `path`.

    Args:
        path: of the file; replaced if it exists.
        rows: ascending.
        texts: one for each row.
        ngram: words in a shingle.

    Raises:
        ServiceError: the file cannot be written.
    """
    with translate_os_errors(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                head = np.zeros(2 + 2 * rows.size, np.int64)
                head[0], head[1 : 1 + rows.size] = rows.size, rows
                file.seek(head.nbytes)
                for index, text in enumerate(texts):
                    found = shingles(text, ngram)
                    head[2 + rows.size + index] = head[1 + rows.size + index] + found.size
                    file.write(found.tobytes())
                file.seek(0)
                file.write(head.tobytes())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


class ShingleBlock:
    """A block's file, for reading.

    Raises:
        DamagedError: it is missing, or its size is not the one it states.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            data = np.memmap(path, np.int64, mode="r")
        except (OSError, ValueError) as error:
            raise DamagedError(f"{path}: shingles are missing ({error}); run the same command again") from error
        count = int(data[0])
        self._rows = np.asarray(data[1 : 1 + count])
        self._starts = np.asarray(data[1 + count : 2 + 2 * count])
        self._shingles = np.asarray(data[2 + 2 * count :]).view(np.uint64)
        if self._starts.size != count + 1 or self._shingles.size != self._starts[-1]:
            raise DamagedError(f"{path}: {data.nbytes} bytes, not the size that it states; run the same command again")

    def read(self, row: int) -> UInt64Array:
        """Return the shingles of a row: sorted, unique.

        Raises:
            DamagedError: the block does not hold it.
        """
        index = int(np.searchsorted(self._rows, row))
        if index == self._rows.size or self._rows[index] != row:
            raise DamagedError(f"{self._path}: no shingles of row {row}; a worker lost a candidate: run it again")
        return self._shingles[self._starts[index] : self._starts[index + 1]]
