"""The per-file stage: one task for each input file, run locally, on Ray or on Slurm."""
