"""The command that the judge runs for a scenario: it hands the scenario to the running `driver`, and exits
with 1 if Evergrant refused the server. Only what starts fast is imported."""

import http.client
import json
import os
import sys


def main() -> int:
    told = {
        "url": sys.argv[2],
        "scenario": os.environ["MCP_CONFORMANCE_SCENARIO"],
        "version": os.environ["MCP_CONFORMANCE_PROTOCOL_VERSION"],
        "context": json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}")),
    }
    driver = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
    driver.request("POST", "/", json.dumps(told), {"Content-Type": "application/json"})
    answer = json.loads(driver.getresponse().read())
    print(answer["said"])
    return 0 if answer["ended"] else 1


if __name__ == "__main__":
    sys.exit(main())
