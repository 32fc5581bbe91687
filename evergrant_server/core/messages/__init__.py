"""What crosses Temporal: names, inputs, signals, updates, results. No secrets.

Every message is a contract with histories and other versions (see CONTRIBUTING.md). Holds no
decision: those are in the packages beside it.
"""
