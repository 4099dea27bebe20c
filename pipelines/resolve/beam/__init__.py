"""The keyed stage as an Apache Beam pipeline. Only this package imports Beam, and only through `job.load_module`."""
