"""The old import path of `training.serving.flavor`, for model versions that name it in their MLmodel file.

Versions registered before `training.serving` existed say `loader_module: training.flavor`, and MLflow's pyfunc imports
what a version says. Nothing else may import this module; new versions name `training.serving.flavor`.
"""

from training.serving.flavor import _load_pyfunc

__all__ = ["_load_pyfunc"]
