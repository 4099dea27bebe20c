"""The queries of the keyed stage, in the order in which they run; its tables are listed in `keyed_stage`.

Names of statuses and reasons come from where they are defined. No query depends on the order of its input.
"""

from __future__ import annotations

from pipelines.dedup.decisions import EXACT, NEAR, NEWER_CAPTURE
from pipelines.document import NO_CAPTURE
from registry.schema import Kind, Status

DOCS = """
CREATE TABLE docs AS
SELECT row, doc_id, origin_id, num_bytes, normal_hash, settled, status, reason FROM staged_documents
"""

# The condition of `dedup.competes`.
_COMPETES = f"status NOT IN ('{Status.FAILED}', '{Status.SUPERSEDED}') AND coalesce(reason, '') NOT IN {NO_CAPTURE}"
REPEATED = f"""
SELECT doc_id, row, captured, coalesce(text_sha256, ''), input_file, input_offset
FROM staged_documents
WHERE {_COMPETES} AND doc_id IN (SELECT doc_id FROM docs WHERE {_COMPETES} GROUP BY doc_id HAVING count(*) > 1)
ORDER BY doc_id
"""

WINNERS = f"""
CREATE TABLE winners AS
SELECT docs.* EXCLUDE (status, reason) FROM docs ANTI JOIN superseded USING (row) WHERE status = '{Status.KEPT}'
"""

EQUAL = """
SELECT normal_hash, row, doc_id, origin_id, num_bytes, settled
FROM winners
WHERE normal_hash IN (SELECT normal_hash FROM winners GROUP BY normal_hash HAVING count(*) > 1)
ORDER BY normal_hash
"""

# The order is that of `dedup.preference`; ranks are dense, so that pairs and edges are small integers.
REPS = """
CREATE TABLE reps AS
SELECT row, doc_id, num_bytes, coalesce(exact.source_id, winners.origin_id) AS source_id,
       row_number() OVER (ORDER BY settled DESC, coalesce(num_owners, 1) DESC, num_bytes DESC, doc_id) AS rank
FROM winners LEFT JOIN exact USING (row)
WHERE representative IS NULL OR representative = row
"""

PAIRS = """
CREATE TABLE repeated AS
SELECT hash FROM staged_bands GROUP BY hash HAVING count(*) > 1;

CREATE TABLE buckets AS
SELECT band, hash, rank, row_number() OVER (PARTITION BY band, hash ORDER BY rank) AS position
FROM (SELECT * FROM staged_bands SEMI JOIN repeated USING (hash)) JOIN reps USING (row);

CREATE TABLE pairs AS
SELECT DISTINCT first.rank AS a, second.rank AS b
FROM buckets AS first JOIN buckets AS second USING (band, hash)
WHERE first.position <= {bucket_limit} AND first.rank < second.rank;

DROP TABLE repeated;
DROP TABLE buckets;
"""

CANDIDATES = "SELECT row, rank FROM reps WHERE rank IN (SELECT a FROM pairs UNION ALL SELECT b FROM pairs)"
PAIRS_WITH_SPANS = """
SELECT a, b, x.first, x.count, y.first, y.count
FROM pairs JOIN spans AS x ON x.rank = a JOIN spans AS y ON y.rank = b
ORDER BY b, a
"""

VERDICTS = f"""
CREATE TABLE verdicts AS
WITH fates AS (
    SELECT reps.row AS representative, reps.doc_id AS representative_id, reps.source_id,
           survivors.doc_id AS survivor_id, survivors.source_id AS survivor_source, near.jaccard,
           reps.rank IN (SELECT survivor FROM near) AS has_near
    FROM reps
    LEFT JOIN near USING (rank)
    LEFT JOIN reps AS survivors ON survivors.rank = near.survivor
),
equals AS (
    SELECT row, coalesce(representative, row) AS representative, representative IS NOT NULL AS has_equal
    FROM winners LEFT JOIN exact USING (row)
)
SELECT row,
       CASE WHEN survivor_id IS NULL THEN source_id END AS source_id,
       CASE WHEN survivor_id IS NULL AND row = representative THEN '{Status.KEPT}' ELSE '{Status.DUPLICATE}' END
           AS status,
       CASE WHEN survivor_id IS NOT NULL THEN '{NEAR}' WHEN row <> representative THEN '{EXACT}' END AS reason,
       CASE WHEN survivor_id IS NOT NULL THEN survivor_id WHEN row <> representative THEN representative_id END
           AS survivor_id,
       CASE WHEN survivor_id IS NOT NULL THEN jaccard WHEN row <> representative THEN 1 END AS jaccard,
       CASE WHEN survivor_id IS NOT NULL THEN survivor_id WHEN has_near OR has_equal THEN representative_id END
           AS cluster_id,
       CASE WHEN row = representative AND source_id <> survivor_source THEN source_id END AS displaced_id
FROM equals JOIN fates USING (representative)
UNION ALL
SELECT row, NULL, '{Status.SUPERSEDED}', '{NEWER_CAPTURE}', doc_id, NULL, NULL, NULL
FROM docs SEMI JOIN superseded USING (row)
UNION ALL
SELECT row, NULL, status, reason, survivor_id, jaccard, cluster_id, NULL
FROM staged_documents ANTI JOIN superseded USING (row) WHERE status <> '{Status.KEPT}'
"""

PUBLISHED = f"""
CREATE TABLE published AS
SELECT origin_id AS source_id, key, kind FROM staged_documents WHERE origin_id IS NOT NULL
UNION
SELECT source_id, key, '{Kind.SHARED}' FROM exact WHERE key IS NOT NULL
"""

DOCUMENTS = """
SELECT doc_id, v.source_id, origin_id, url, title, num_bytes, text_sha256, normal_hash, language,
       nullif(captured, '') AS captured, v.status, v.reason, v.survivor_id, CAST(v.jaccard AS FLOAT) AS jaccard,
       v.cluster_id, input_file, input_offset, input_length, input_stored
FROM staged_documents AS s JOIN verdicts AS v USING (row)
ORDER BY doc_id, v.status, captured, input_file, input_offset, text_sha256, title, url, v.reason
"""

OWNERS = (
    "SELECT DISTINCT source_id, origin_id AS owner_id FROM exact WHERE key IS NOT NULL ORDER BY source_id, owner_id"
)

BANDS = f"""
SELECT band, hash, doc_id
FROM staged_bands JOIN reps USING (row) JOIN verdicts USING (row)
WHERE status = '{Status.KEPT}' OR displaced_id IS NOT NULL
ORDER BY band, hash, doc_id
"""

# The texts of shards/ and of displaced/; only representatives have one.
TEXTS = {
    "shards": f"""
        SELECT row, reps.source_id, doc_id, num_bytes FROM reps JOIN verdicts USING (row) WHERE status = '{Status.KEPT}'
    """,
    "displaced": """
        SELECT row, displaced_id AS source_id, doc_id, num_bytes FROM reps JOIN verdicts USING (row)
        WHERE displaced_id IS NOT NULL
    """,
}

SOURCES = f"""
WITH trained AS (
    SELECT source_id, count(*) AS num_documents, CAST(sum(num_bytes) AS BIGINT) AS num_bytes
    FROM ({{shards}}) GROUP BY source_id
),
placed AS (
    SELECT source_id,
           list(struct_pack(shard := shard, row_start := row_start, row_end := row_end) ORDER BY shard) AS placements
    FROM read_parquet({{placements}}) GROUP BY source_id
),
titles AS (
    SELECT origin_id AS source_id,
           max_by(title, (v.status <> '{Status.SUPERSEDED}', v.status <> '{Status.FAILED}', captured, title)) AS title
    FROM staged_documents JOIN verdicts AS v USING (row)
    WHERE title IS NOT NULL AND locator = key GROUP BY origin_id
)
SELECT source_id, key, kind, title, coalesce(num_documents, 0) AS num_documents, coalesce(num_bytes, 0) AS num_bytes,
       coalesce(placements, []) AS placements
FROM published LEFT JOIN trained USING (source_id) LEFT JOIN placed USING (source_id) LEFT JOIN titles USING (source_id)
ORDER BY source_id
"""
