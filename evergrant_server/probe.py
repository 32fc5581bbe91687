"""Whether a process is ready, for health checks of containers: `python -m evergrant_server.probe URL`.

Exits 0 for an answer of 200. A module of its own: the commands take ten times as long to import.
"""

import sys
from http.client import HTTPConnection
from urllib.parse import urlsplit

_LIMIT_S = 3


def main(url: str) -> int:
    """0 if the page answers 200 in time, else 1 with the reason on standard error."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=_LIMIT_S)  # not urllib: no proxy is on the way here
    try:
        connection.request("GET", parts.path)
        status = connection.getresponse().status
    except OSError as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    if status != 200:
        print(f"{url}: {status}", file=sys.stderr)
    return int(status != 200)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
