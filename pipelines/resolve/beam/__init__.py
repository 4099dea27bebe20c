"""The keyed stage as an Apache Beam pipeline. Only this package imports Beam, when a job runs (`job.load_module`)."""
