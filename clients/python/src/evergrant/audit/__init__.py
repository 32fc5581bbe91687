"""Checks Evergrant's audit log offline: receipts, checkpoints, and a witness that anybody can run."""
