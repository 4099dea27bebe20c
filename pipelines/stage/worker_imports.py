"""The imports of a worker of the per-file stage, for the process that workers are forked from.

They take a second, once and while the inputs are hashed; without this module each worker would take that second.
Only `pipelines.stage.fork_server` names this module; nothing else should import it.
"""

from __future__ import annotations

import importlib

from pipelines.dedup import minhash

for _name in (
    "pipelines.stage.steps",
    "pipelines.readers.wikipedia.articles",
    "pipelines.readers.books.book",
    "pipelines.readers.wikipedia.wikiextractor",
    "pipelines.readers.rows.parquet",
    "pipelines.readers.web.archive",
    "resiliparse.extract.html2text",
    "resiliparse.parse.encoding",
    "resiliparse.parse.html",
    "resiliparse.parse.lang",
):
    importlib.import_module(_name)

minhash.fingerprint("é", minhash.DedupConfig())  # builds the Unicode tables
