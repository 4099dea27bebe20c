"""A snapshot becomes a model: sinks, the model, its optimizer, the run around them, and the version that is served.

Imports `registry`, never `pipelines` or `orchestration`. With this import transformers knows the model type `nulls`:
`AutoModelForCausalLM.from_pretrained(folder)` loads exported weights.

    from training import TrainConfig, load, train
    train(TrainConfig.preset("demo"), registry_uri="nulls-registry", model_name="wiki", storage=Path("nulls-runs"))
"""

from typing import TYPE_CHECKING

from registry._public import publish

if TYPE_CHECKING:
    from training.config import TrainConfig
    from training.run.driver import train
    from training.serving.flavor import load

__all__ = ["TrainConfig", "load", "train"]

publish(__name__, {"TrainConfig": "training.config", "load": "training.serving.flavor", "train": "training.run.driver"})
