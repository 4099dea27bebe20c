"""Locate the registry, its snapshot, the catalogue and the MLflow store; options override the environment."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING

from registry.errors import UsageError
from registry.snapshot import Registry, Snapshot

if TYPE_CHECKING:
    from registry.catalog.database import Catalog

DEFAULT_REGISTRY = "./nulls-registry"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The stores that a command works on.

    Attributes:
        registry: `--registry`, else NULLS_REGISTRY, else ./nulls-registry.
        snapshot: `--snapshot`: an id or a prefix of one; None for the newest.
        catalog: an SQLAlchemy URL; None for NULLS_CATALOG, else SQLite inside the registry if that is local.
        tracking: an MLflow tracking URI; None for MLFLOW_TRACKING_URI, else sqlite:///mlflow.db.
    """

    registry: str | None = None
    snapshot: str | None = None
    catalog: str | None = None
    tracking: str | None = None

    @property
    def registry_uri(self) -> str:
        """The path or URI of the registry."""
        return self.registry or os.environ.get("NULLS_REGISTRY") or DEFAULT_REGISTRY

    @property
    def tracking_uri(self) -> str:
        """The URI of the MLflow store, absolute."""
        from training.tracking.store import tracking_uri

        return tracking_uri(self.tracking)

    def open_registry(self) -> Registry:
        """Open the registry, which must exist."""
        return Registry.open(self.registry_uri)

    def open_snapshot(self) -> Snapshot:
        """Open the snapshot that `--snapshot` names, else the newest."""
        return self.open_registry().snapshot(self.snapshot)

    def open_catalog(self) -> Catalog:
        """Open the catalogue; create it if there is none.

        Raises:
            UsageError: the registry is at s3://, where SQLite cannot be, and NULLS_CATALOG is not set.
        """
        from registry.catalog.database import Catalog

        if configured := self.catalog or os.environ.get("NULLS_CATALOG"):
            return Catalog(configured)  # the ledger can be read where the registry cannot be reached any more
        catalog = self.find_catalog(self.open_registry())
        if catalog is None:
            raise UsageError(
                f"registry {self.registry_uri} holds no catalogue, which this command needs; set NULLS_CATALOG to a "
                "database, e.g. postgresql+psycopg://USER@HOST/DATABASE or sqlite:////absolute/catalog.db"
            )
        return catalog

    def find_catalog(self, registry: Registry) -> Catalog | None:
        """Open the catalogue, created if there is none; None for a registry at s3:// without NULLS_CATALOG."""
        from registry.catalog.database import Catalog, catalog_url

        url = catalog_url(registry.root, self.catalog)
        return Catalog(url) if url else None

    def catalog_url(self) -> str | None:
        """Return the URL of the catalogue, or None where the registry is not here or has none."""
        from registry.catalog.database import catalog_url

        try:
            return catalog_url(self.open_registry().root, self.catalog)
        except UsageError:
            return self.catalog
