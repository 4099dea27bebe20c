"""The `nulls` command, unlearning with its evidence, and jobs of a Ray cluster.

from orchestration import audit, unlearn
"""

from typing import TYPE_CHECKING

from registry._public import publish

if TYPE_CHECKING:
    from orchestration.unlearning.audit import audit
    from orchestration.unlearning.unlearn import unlearn

__all__ = ["audit", "unlearn"]

publish(__name__, {"audit": "orchestration.unlearning.audit", "unlearn": "orchestration.unlearning.unlearn"})
