"""The first hour: where the server is, and everything that a first lease needs in one command."""
