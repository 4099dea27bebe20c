"""Ray jobs: package a training run, submit it to a cluster, follow it, stop it."""
