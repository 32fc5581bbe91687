"""`doctor`: checks of everything that an installation needs, each with the command that repairs it.

Owns the checks (`host`, `database`, `temporal`), the table of them and their output (`report`). A
check changes nothing. Doesn't repair anything itself.
"""
