"""The queries of `pipelines.removal.remove`, in the order in which they run.

    gone          every document of a removed source
    affected      the documents to decide again: those that shared a text with a removed source, and those in a cluster
                  of near copies with one of its documents; with the columns of `pipelines.parent_snapshot`
    concerned     the ids of both
    neighbours    kept documents that share a band with one that may come back, and those of equal text
    decided_*     the engine's answer for `affected` and `neighbours` together
    heirs         old_id -> new_id: the new representative of a text that a removed document represented

Documents that are not affected stay unchanged, neighbours too: those are only compared with.
"""

from __future__ import annotations

from pipelines.dedup.decisions import EXACT, NEAR
from registry.schema import AliasKind, Kind, Status

AFFECTED = f"""
CREATE TABLE gone AS SELECT doc_id, status, survivor_id FROM carried WHERE origin_id IN (FROM removed);

CREATE TABLE split AS SELECT DISTINCT source_id FROM owners WHERE owner_id IN (FROM removed);

CREATE TABLE centres AS
SELECT doc_id FROM carried
WHERE status = '{Status.KEPT}'
  AND (origin_id IN (FROM removed) OR source_id IN (FROM split)
       OR doc_id IN (SELECT survivor_id FROM gone WHERE status = '{Status.DUPLICATE}'));

CREATE TABLE affected AS
-- Equals of a document that goes are settled too; other equals are not, so their representative stays the same.
SELECT *, status = '{Status.KEPT}' OR reason = '{EXACT}' AND survivor_id IN (SELECT doc_id FROM gone) AS is_settled
FROM carried
WHERE origin_id NOT IN (FROM removed)
  AND ((status = '{Status.KEPT}' AND doc_id IN (FROM centres))
       OR (status = '{Status.DUPLICATE}' AND survivor_id IN (FROM centres)));
"""

NEIGHBOURS = f"""
CREATE TABLE concerned AS SELECT doc_id FROM gone UNION SELECT doc_id FROM affected;

CREATE TABLE near_bands AS
SELECT band, hash FROM bands WHERE doc_id IN (SELECT text_id FROM affected WHERE reason = '{NEAR}');

CREATE TABLE neighbours AS
WITH beside AS (
    SELECT DISTINCT doc_id FROM bands SEMI JOIN near_bands USING (band, hash)
    WHERE doc_id NOT IN (SELECT doc_id FROM affected) AND doc_id NOT IN (SELECT doc_id FROM gone)
)
SELECT *, true AS is_settled
FROM carried
WHERE (status = '{Status.KEPT}' AND doc_id IN (FROM beside))
   OR (status = '{Status.DUPLICATE}' AND reason = '{EXACT}' AND survivor_id IN (FROM beside));

CREATE TABLE compared AS SELECT * FROM affected UNION ALL SELECT * FROM neighbours;
CREATE INDEX by_compared ON compared (text_id);
"""

# The shards that hold the kept texts of `compared`; all files of displaced texts are read.
TEXT_SHARDS = f"""
SELECT DISTINCT unnest(placements).shard AS shard FROM sources
WHERE source_id IN (
    SELECT source_id FROM carried WHERE status = '{Status.KEPT}' AND doc_id IN (SELECT text_id FROM compared)
)
ORDER BY shard
"""

DECISIONS = f"""
CREATE VIEW decided AS SELECT * FROM {{documents}} WHERE doc_id IN (SELECT doc_id FROM affected);

CREATE TABLE heirs AS
SELECT DISTINCT affected.text_id AS old_id, decided.doc_id AS new_id
FROM decided JOIN affected USING (doc_id)
WHERE decided.status = '{Status.KEPT}' AND affected.text_id IN (SELECT doc_id FROM gone);

CREATE TABLE clusters AS
SELECT doc_id, cluster_id FROM {{documents}}
WHERE status = '{Status.KEPT}' AND cluster_id IS NOT NULL AND doc_id IN (SELECT doc_id FROM neighbours);
"""

_DECIDED = f"'{Status.KEPT}', '{Status.DUPLICATE}'"
DOCUMENTS = f"""
WITH parent AS (
    SELECT d.* REPLACE (
        coalesce(survivor.new_id, d.survivor_id) AS survivor_id,
        coalesce(cluster.new_id, clusters.cluster_id, d.cluster_id) AS cluster_id
    )
    FROM documents AS d
    LEFT JOIN heirs AS survivor ON d.status = '{Status.DUPLICATE}' AND survivor.old_id = d.survivor_id
    LEFT JOIN heirs AS cluster ON d.status = '{Status.DUPLICATE}' AND cluster.old_id = d.cluster_id
    LEFT JOIN clusters ON d.status = '{Status.KEPT}' AND clusters.doc_id = d.doc_id
    WHERE coalesce(d.origin_id NOT IN (FROM removed), true)
      AND NOT (d.status IN ({_DECIDED}) AND d.doc_id IN (SELECT doc_id FROM decided))
)
FROM (FROM parent UNION ALL BY NAME FROM decided)
ORDER BY doc_id, status, captured, input_file, input_offset, text_sha256, title, url, reason
"""

# With the owners of displaced texts: without them, an equal of one would lose its text when that comes back.
OWNERS = """
SELECT source_id, owner_id FROM owners WHERE source_id NOT IN (FROM split)
UNION
SELECT source_id, owner_id FROM {owners}
ORDER BY source_id, owner_id
"""

BANDS = """
SELECT band, hash, doc_id FROM bands
WHERE doc_id NOT IN (SELECT doc_id FROM gone) AND doc_id NOT IN (SELECT doc_id FROM affected)
UNION ALL
SELECT band, hash, doc_id FROM {bands} WHERE doc_id IN (SELECT doc_id FROM affected)
ORDER BY band, hash, doc_id
"""

# A redirect to a removed source keeps its target and has no source, unless it leads to another source as well.
ALIASES = f"""
WITH remaining AS (
    SELECT * REPLACE (CASE WHEN source_id IN (FROM removed) THEN NULL ELSE source_id END AS source_id),
           coalesce(source_id IN (FROM removed), false) AS is_lost
    FROM {{aliases}}
    WHERE kind = '{AliasKind.REDIRECT}' OR source_id NOT IN (FROM removed)
)
SELECT DISTINCT alias_hash, alias, kind, source_id, scope, target
FROM remaining
WHERE NOT is_lost OR NOT EXISTS (
    FROM remaining AS other
    WHERE other.alias = remaining.alias AND other.kind = remaining.kind AND other.source_id IS NOT NULL
      AND other.scope IS NOT DISTINCT FROM remaining.scope AND other.target IS NOT DISTINCT FROM remaining.target
)
ORDER BY alias_hash, alias, kind, scope, source_id, target
"""

SOURCES = f"""
WITH published AS (
    SELECT source_id, key, kind, title FROM sources
    WHERE source_id NOT IN (FROM removed)
      AND (kind <> '{Kind.SHARED}' OR source_id IN (SELECT source_id FROM {{owners}}))
    UNION ALL
    SELECT source_id, key, '{Kind.SHARED}', NULL FROM new_shared
),
trained AS (
    SELECT source_id, count(*) AS num_documents, CAST(sum(num_bytes) AS BIGINT) AS num_bytes
    FROM {{documents}} WHERE status = '{Status.KEPT}' GROUP BY source_id
),
placed AS (
    SELECT source_id,
           list(struct_pack(shard := shard, row_start := row_start, row_end := row_end) ORDER BY shard) AS placements
    FROM (
        SELECT source_id, unnest(placements, recursive := true) FROM sources
    ) WHERE shard NOT IN (FROM rewritten) GROUP BY source_id
),
again AS (
    SELECT source_id,
           list(struct_pack(shard := shard, row_start := row_start, row_end := row_end) ORDER BY shard) AS placements
    FROM {{placements}} GROUP BY source_id
)
SELECT source_id, key, kind, title, coalesce(num_documents, 0) AS num_documents, coalesce(num_bytes, 0) AS num_bytes,
       list_sort(list_concat(coalesce(placed.placements, []), coalesce(again.placements, []))) AS placements
FROM published LEFT JOIN trained USING (source_id) LEFT JOIN placed USING (source_id) LEFT JOIN again USING (source_id)
ORDER BY source_id
"""
