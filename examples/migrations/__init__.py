"""Converters from other systems' exports to lines for `evergrant import`.

Each is a pure function from one row to its items, to be read, changed and tested. They own only
formats. Rows hold tokens, so a converter prints only its output.
"""
