"""The keyed stage as an Apache Beam pipeline; only this package imports Beam, and only `pipelines.resolve.beam.engine` it."""
