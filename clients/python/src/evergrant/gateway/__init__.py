"""HTTP clients to connections' APIs through Evergrant's gateway. Owns no call of Evergrant's own API."""
