"""Durable life stories, deterministic and thin: they ask `core` what to do and have it done.

Owns the order of things in time. Parses no reply, knows no provider, holds no secret;
side effects are reached through `calls` alone.

Nothing is imported here: the sandbox runs this file and a workflow's own anew for each instance.
"""
