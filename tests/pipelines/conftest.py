"""What the tests of pipelines share."""

from tests.s3 import bucket, proxy, s3_server  # noqa: F401 - fixtures
