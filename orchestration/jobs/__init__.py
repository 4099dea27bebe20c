"""Jobs of a Ray cluster: package a training run, submit it, follow it, stop it."""
