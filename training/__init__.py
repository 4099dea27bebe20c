"""Train a model on a snapshot: sinks, the model, its optimizer, the run around them, and the version that is served.

Imports `registry`, never `pipelines` or `orchestration`. After this import transformers knows the model type `nulls`:
`AutoModelForCausalLM.from_pretrained(folder)` loads exported weights, and
refuses what is unlearned in them. Neither it nor torch is loaded by it.

    from training import TrainConfig, load, train
    train(TrainConfig.preset("demo"), registry_uri="nulls-registry", model_name="wiki", runs_dir=Path("nulls-runs"))
"""

from typing import TYPE_CHECKING

from registry._public import publish
from training.model.auto_classes import register_when_used

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.run.driver import train
    from training.serving.flavor import load

__all__ = ["TrainConfig", "load", "train"]

publish(__name__, {"TrainConfig": "training.config", "load": "training.serving.flavor", "train": "training.run.driver"})
register_when_used()
