"""Tests of the pipelines, and `dumps`: small real dumps for all tests that need one."""
