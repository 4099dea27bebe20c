"""What is revoked in a model version now: the one question that every door asks before it opens.

A revocation belongs to weights. In force is the union of what the catalogue has for the weights (and for those that
they were made from), what the version's pointer says, and what any other version of the same weights in the store says.
A source that was reinstated answers again, whatever older pointers say: the catalogue has the last word. Where the
catalogue cannot be asked the answer is a refusal, unless the caller says that the pointer is enough (`offline`).

Run: ``in_force(version, catalog=None).revoked``. Cost: three queries and a small file; some milliseconds.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from registry.errors import RefusedError, ServiceError, UsageError
from registry.ids import SourceId
from training.serving import versions
from training.serving.version import ModelVersion

if TYPE_CHECKING:
    import sqlalchemy as sa

    from registry.catalog.database import Catalog
    from registry.catalog.revocations import Known

OFFLINE = "NULLS_OFFLINE"


@dataclasses.dataclass(frozen=True, kw_only=True)
class InForce:
    """What is revoked in a version.

    Attributes:
        revoked: source id -> where it was revoked: a model version, if known.
        checked: False if the version's own pointer is all that was asked.
    """

    revoked: Mapping[SourceId, str]
    checked: bool


def in_force(version: ModelVersion, *, catalog: str | None = None, offline: bool = False) -> InForce:
    """Return what is revoked in a version now.

    Args:
        version: the version.
        catalog: the catalogue's URL; by default NULLS_CATALOG, else the SQLite file in the version's registry.
        offline: whether the version's pointer is enough. Also set by NULLS_OFFLINE=1.

    Raises:
        RefusedError: the catalogue cannot be asked.
        DamagedError: the catalogue was altered.
    """
    if offline or os.environ.get(OFFLINE) == "1":
        return InForce(revoked=dict.fromkeys(version.revoked, version.uri), checked=False)
    found = open_catalog(version, catalog)
    try:
        with found.read() as connection:
            return within(connection, version)
    except ServiceError as error:
        raise _cannot_ask(version, str(error)) from error
    finally:
        found.engine.dispose()


def within(connection: sa.Connection, version: ModelVersion) -> InForce:
    """Return the same in an open transaction of the catalogue."""
    known = _known(connection, version)
    others = versions.revoked_by_others(version, known.revoked.keys()) if version.tracking_uri else frozenset()
    said = version.revoked | others
    elsewhere = dict.fromkeys(said - known.reinstated, version.uri)
    return InForce(revoked=elsewhere | dict(known.revoked), checked=True)


def open_catalog(version: ModelVersion, catalog: str | None) -> Catalog:
    """Open the catalogue that knows a version, which must exist.

    Raises:
        RefusedError: there is none, or it cannot be reached.
    """
    from registry.catalog.database import Catalog, catalog_url
    from registry.storage import open_root

    try:
        url = catalog_url(open_root(version.registry), catalog)
        if url is None:
            raise _cannot_ask(version, f"registry {version.registry} is at s3://, which holds none")
        return Catalog(url, must_exist=True)
    except (ServiceError, UsageError) as error:
        raise _cannot_ask(version, str(error)) from error


def _known(connection: sa.Connection, version: ModelVersion) -> Known:
    from registry.catalog import revocations

    # The same tensors under another scheme (two imports of one checkpoint): refused under both, since a configuration
    # that was edited looks the same.
    others = revocations.other_configurations(connection, version.weights_id, version.weights_digest)
    scopes = [version.weights_id, *version.lineage, *others, revocations.name_scope(version.name)]
    return revocations.read(connection, scopes)


def _cannot_ask(version: ModelVersion, why: str) -> RefusedError:
    return RefusedError(
        f"{version.uri}: the catalogue cannot be asked what is revoked in it: {why}. Set NULLS_CATALOG, or accept what "
        f"the version itself says (--offline, {OFFLINE}=1)"
    )
