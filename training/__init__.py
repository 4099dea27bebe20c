"""A snapshot becomes a model: masks, sinks, the model, its optimizer, and the loop around them.

Reading order: `masks.py` (which sinks a source has), `sinks.py` (how they are computed), `model.py` (a Llama that has
them), `optim.py` (how they are trained). Imports `registry`, never `pipelines` or `orchestration`.
"""
