"""Converters: what other systems can be made to give out, as lines that `evergrant import` takes.

Each is a pure function from one row to one item, so that it can be read, changed and tested.
They own shapes alone; they hold tokens, so they print nothing but their output.
"""
