"""A training run: the driver, the worker loop, the Ray session, and the protocol between them."""
