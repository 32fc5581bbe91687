"""The routes of a web app whose users connect their accounts, and the page where they see and end them.

Owns the pieces for FastAPI, Flask and Django, one module each, what they share (`session`), and what their
page shows (`settings_page`). Imports a framework only in its module. Owns no login and no page: both are the
app's. The page shows it with the element of clients/web, or with forms of its own.

Each piece has `POST connect/{integration}`, which sends the browser to the connect link, and
`GET connected`, to which Evergrant sends it back: list that URL in the app's `return_to`. A browser without
a login goes to the page `login` first, with the way back in `next`. The browser ends at the page `after`,
with the outcome in its query: `evergrant=active`, or the state, reason or error code that came instead.
Where the app itself begins a consent for these routes, with `reauthorize` or other options of `connect`, it
gives `challenge_in(session)`.

`GET connections` lists the person's accounts at the integrations of `offers`, and
`POST disconnect/{integration}` revokes one. `label` in the query names one of several. A POST of another
site's page is refused.
"""

from evergrant.web.session import challenge_in
from evergrant.web.settings_page import Offer

__all__ = ["Offer", "challenge_in"]
