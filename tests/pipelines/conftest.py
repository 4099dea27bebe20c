"""Fixtures of the tests of pipelines."""

from tests.s3 import bucket, fresh_client, proxy, s3_proxy, s3_server  # noqa: F401 - fixtures
