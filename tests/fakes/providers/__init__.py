"""Authorization servers for tests: scripted ones on loopback, and real ones in processes of their own."""
