"""What a worker of the per-file stage needs, imported by the process that workers are forked from.

Importing it takes a second, once and beside the hashing of the inputs, where each worker would take that second anew.
Only `pipelines.stage.fork_server` names this module; nothing else is to import it.
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

minhash.fingerprint("é", minhash.DedupConfig())  # makes the tables of Unicode
