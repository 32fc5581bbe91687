"""Commands that work on files: configuration in a folder, and tokens that are kept in one."""
