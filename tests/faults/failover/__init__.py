"""Proves the fail-over of the database: real servers that replicate, real processes, callers that go on."""
