"""What a person or a cluster touches: the `nulls` command, unlearning and its evidence, Ray jobs.

from orchestration import audit, unlearn
"""

from typing import TYPE_CHECKING

from registry._public import publish

if TYPE_CHECKING:
    from orchestration.unlearning.audit import audit
    from orchestration.unlearning.unlearn import unlearn

__all__ = ["audit", "unlearn"]

publish(__name__, {"audit": "orchestration.unlearning.audit", "unlearn": "orchestration.unlearning.unlearn"})
