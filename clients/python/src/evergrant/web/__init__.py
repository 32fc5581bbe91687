"""Two routes for a web app: one begins a consent, one confirms it in the session of the person who finished.

Owns the pieces for FastAPI, Flask and Django, one module each, and what they share (`session`). Imports a
framework only in its module. Owns no login and no page: both are the app's.

Each piece has `POST connect/{integration}`, which sends the browser to the connect link, and
`GET connected`, to which Evergrant sends it back: list that URL in the app's `return_to`. A browser without
a login goes to the page `login` first, with the way back in `next`. The browser ends at the page `after`,
with the outcome in its query: `evergrant=active`, or the state, reason or error code that came instead.
Where the app itself begins a consent for these routes, with `reauthorize` or other options of `connect`, it
gives `challenge_in(session)`.
"""

from evergrant.web.session import challenge_in

__all__ = ["challenge_in"]
