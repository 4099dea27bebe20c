"""The keyed stage as an Apache Beam pipeline. Only this package imports Beam; `engine` and `job` do it when they run."""
