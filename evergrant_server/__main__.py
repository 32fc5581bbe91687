"""`python -m evergrant_server`: every operator command, from a checkout or in an image."""

from evergrant_server.cli.app import main

if __name__ == "__main__":
    main()
