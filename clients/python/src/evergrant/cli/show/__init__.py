"""How results are shown: tables for people, JSON and YAML for programs.

Owns formats, columns, colours and times. Knows nothing of commands.
"""
