"""`evergrant import`: reads a file of grants, sends it in batches, and says what became of each line."""
