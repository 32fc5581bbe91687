"""The commands, a module for each noun or a few. `evergrant.cli.main` loads the one that is used."""
