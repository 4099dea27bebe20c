"""The alias table: every name under which a source can be looked up, from titles and redirects of all files.

A redirect may be in one file of a dump and its target in another, so names are joined here, by wiki. A target is
matched on its canonical title first, else without regard to case if only one title fits; through other redirects up to
`MAX_HOPS` times (MediaWiki itself follows one), which also ends cycles. A redirect that leads nowhere keeps its target
and has no source. Where dumps disagree, every answer is kept, and a lookup returns each.
"""

from __future__ import annotations

from pipelines.resolve.duckdb.tables import Tables
from registry.schema import AliasKind, Kind

MAX_HOPS = 16

# Every title that any capture of a document had; filtered and failed ones count, so that they can be looked up. The
# title of a web page does not name its site: "Home" would name a million of them.
_TITLES = f"""
CREATE TABLE titles AS
SELECT DISTINCT scope, canonical, alias_hash, title AS alias, origin_id AS source_id
FROM staged_documents WHERE title IS NOT NULL AND origin_id IS NOT NULL AND kind <> '{Kind.WEB}'
"""

_REDIRECTS = """
CREATE TABLE redirects AS
SELECT *, row_number() OVER (ORDER BY scope, alias, target) AS link FROM (SELECT DISTINCT * FROM staged_redirects)
"""

# link -> the title that its target means: the one as written, else the only one that differs from it only in case.
_HOPS = """
CREATE TABLE hops AS
WITH names AS (
    SELECT scope, canonical, alias_hash FROM titles WHERE scope IS NOT NULL
    UNION
    SELECT scope, canonical, alias_hash FROM redirects
),
unambiguous AS (
    SELECT scope, alias_hash, min(canonical) AS canonical FROM names GROUP BY scope, alias_hash HAVING count(*) = 1
)
SELECT link, r.scope, r.canonical, coalesce(names.canonical, unambiguous.canonical) AS target
FROM redirects AS r
LEFT JOIN names ON names.scope = r.scope AND names.canonical = r.target_canonical
LEFT JOIN unambiguous ON unambiguous.scope = r.scope AND unambiguous.alias_hash = r.target_hash
WHERE coalesce(names.canonical, unambiguous.canonical) IS NOT NULL
"""

_REACHED = f"""
CREATE TABLE reached AS
WITH RECURSIVE walk AS (
    SELECT link, scope, target, 1 AS num_hops FROM hops
    UNION
    SELECT walk.link, walk.scope, hops.target, num_hops + 1
    FROM walk JOIN hops ON hops.scope = walk.scope AND hops.canonical = walk.target
    WHERE num_hops < {MAX_HOPS}
      AND NOT EXISTS (FROM titles WHERE titles.scope = walk.scope AND titles.canonical = walk.target)
)
SELECT DISTINCT link, source_id
FROM walk JOIN titles ON titles.scope = walk.scope AND titles.canonical = walk.target
"""

ALIASES = f"""
SELECT DISTINCT alias_hash, alias, '{AliasKind.TITLE}' AS kind, source_id, scope, NULL AS target FROM titles
UNION
SELECT alias_hash, alias, kind, source_id, NULL, NULL FROM staged_names
UNION ALL
SELECT DISTINCT alias_hash, alias, '{AliasKind.REDIRECT}', source_id, scope, target
FROM redirects LEFT JOIN reached USING (link)
ORDER BY alias_hash, alias, kind, scope, source_id, target
"""

# Replaces `_HOPS` and `_REACHED` where an engine has followed the redirects by itself.
_FOLLOWED = """
CREATE TABLE reached AS
SELECT DISTINCT link, source_id FROM redirects JOIN {followed} USING (scope, alias, target)
"""


def create_tables(tables: Tables, followed: str | None = None) -> None:
    """Make the tables that `ALIASES` reads, from the views `staged_documents` and `staged_redirects`.

    Args:
        tables: the database.
        followed: a table of (scope, alias, target, source_id), the redirects that reach a source, if an engine has
            found them; None follows them here.
    """
    reached = (_HOPS, _REACHED) if followed is None else (_FOLLOWED.format(followed=followed),)
    for query in (_TITLES, _REDIRECTS, *reached):
        tables.execute(query)
