"""The mistakes of a first week, made one after another against `dev`: is the repair on the first screen?

    python -m tests.e2e.mistakes [WORD…]

Prints what the first screen said to each, and exits with 0 when at least 24 of them have named their repair.
With words, only the mistakes with one of them in their names. tests/e2e/platform/test_mistakes.py has the
short form.
"""
