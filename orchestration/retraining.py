"""Compare the corpus of a `nulls train` with the ledger, before a run, a job or a dry run starts.

The driver compares again, since it is also called without a command line (`training.run.taken_out` says what counts).
Cost: a few milliseconds where nothing was ever unlearned.
"""

from __future__ import annotations

from orchestration.output import Output
from orchestration.settings import Settings
from orchestration.train_request import TrainRequest
from registry.errors import NotFoundError, ServiceError, UsageError


def refuse_unlearned(request: TrainRequest, settings: Settings, output: Output) -> None:
    """Raise an error if the snapshot holds sources that were unlearned; with `--allow-unlearned`, only say so.

    Raises:
        RefusedError: it does.
        ServiceError: the catalogue or MLflow cannot be reached.
    """
    from training.run.taken_out import message, refuse, taken_out

    try:
        snapshot = settings.open_snapshot()
        found = taken_out(settings.catalog_url(), snapshot, request.model, tracking_uri=settings.tracking_uri)
    except (UsageError, NotFoundError):
        return  # there is no snapshot here: a dry run can do without, and the run or the job says what is wrong
    except ServiceError as error:
        if request.ray_address is None:
            raise
        output.note(f"the job compares the corpus with the ledger, which is not done here: {error}")
        return
    if found and request.allow_unlearned:
        output.note(f"warning: snapshot {snapshot.id[:12]} holds {message(found)}; they are trained on again")
    elif request.dry_run or request.ray_address or not request.resume:  # else it may be done; the driver knows
        refuse(found, snapshot)
