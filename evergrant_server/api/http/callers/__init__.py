"""Who sends a request, and the authority behind a delegation's token. Doesn't own how one is issued."""
