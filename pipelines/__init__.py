"""Make a snapshot of dumps: read, extract, filter, fingerprint, resolve, write. Start at `pipelines/ingest.py`.

from pipelines import IngestConfig, ingest
ingest(IngestConfig(wikipedia=("enwiki.xml.bz2",)), registry_uri="nulls-registry", workers=2)
"""

from typing import TYPE_CHECKING

from registry._public import publish

if TYPE_CHECKING:
    from pipelines.ingest import IngestConfig, ingest
    from pipelines.removal.remove import remove

__all__ = ["IngestConfig", "ingest", "remove"]

publish(
    __name__,
    {"IngestConfig": "pipelines.ingest", "ingest": "pipelines.ingest", "remove": "pipelines.removal.remove"},
)
