"""Commands that work on files: configuration in a folder."""
