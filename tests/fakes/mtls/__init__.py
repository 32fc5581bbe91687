"""Apps with client certificates, and the proxies that hand these on."""
