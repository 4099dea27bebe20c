"""What a worker of the per-file stage needs, imported by the process that workers are forked from.

Importing it takes a second, once and beside the hashing of the inputs, where each worker would take that second anew.
Only `pipelines.forking` names this module; nothing else is to import it.
"""

from __future__ import annotations

import importlib

from pipelines import minhash

for _name in (
    "pipelines.stage",
    "pipelines.readers.articles",
    "pipelines.readers.books",
    "pipelines.readers.extracted",
    "pipelines.readers.rows",
    "pipelines.readers.warc",
    "resiliparse.extract.html2text",
    "resiliparse.parse.encoding",
    "resiliparse.parse.html",
    "resiliparse.parse.lang",
):
    importlib.import_module(_name)

minhash.fingerprint("é", minhash.DedupConfig())  # makes the tables of Unicode
