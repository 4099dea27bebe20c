"""Reports of requests and audits."""
