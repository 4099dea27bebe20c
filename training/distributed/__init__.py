"""Data parallelism: DDP or FSDP2."""
