"""HTTP/1.1 as the gateway takes it: one reading of each request, or 400 and the connection is closed."""
