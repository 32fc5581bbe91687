"""Prints each event once: `WEBHOOK_SECRET=whsec_… python -m examples.webhook_receiver PORT`."""

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from evergrant.webhooks import WebhookRefused, verify

SECRETS = os.environ["WEBHOOK_SECRET"].split()  # two while one is being rotated
seen: set[str] = set()  # in production: a table with a unique key


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(min(int(self.headers.get("content-length", 0)), 65536))
        try:
            event = verify(body, dict(self.headers), SECRETS)
        except WebhookRefused:
            return self.send_error(400)
        if event.id not in seen:  # an event may arrive twice
            seen.add(event.id)
            print(event.type, event.data.get("connection_id"), flush=True)
        self.send_response(204)
        self.end_headers()


ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
