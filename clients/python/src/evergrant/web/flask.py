"""The piece for Flask: `app.register_blueprint(consent_blueprint(...), url_prefix="/evergrant")`.

The verifier is kept in `flask.session`.
"""

from collections.abc import Callable

from flask import Blueprint, redirect, request, session, url_for
from flask.typing import ResponseReturnValue

from evergrant.errors import EvergrantError
from evergrant.sync_client import Evergrant
from evergrant.web.session import AppPages, ConsentReturn, challenge_in


def consent_blueprint(
    evergrant: Evergrant, *, subject: Callable[[], str | None], after: str, login: str
) -> Blueprint:
    """Routes that begin and confirm consents, as `evergrant.web` describes.

    `subject` is called in the request: the subject of the person who is logged in, None without a login.
    """
    blueprint, pages = Blueprint("evergrant", __name__), AppPages(after, login)

    @blueprint.post("/connect/<integration>")
    def connect(integration: str) -> ResponseReturnValue:
        if not (person := subject()):
            return redirect(pages.logging_in(pages.after), 303)
        return_to = url_for("evergrant.connected", _external=True)
        challenge = challenge_in(session)
        try:
            opened = evergrant.connect(integration, person, return_to=return_to, challenge=challenge)
        except EvergrantError as error:
            return redirect(pages.failed(error), 303)
        return redirect(opened.connect_url or pages.ended(opened), 303)

    @blueprint.get("/connected")
    def connected() -> ResponseReturnValue:
        if not (person := subject()):
            return redirect(pages.logging_in(request.full_path), 303)
        came = ConsentReturn.read(request.args, session)
        if came is None:
            return redirect(pages.ended_without_code(request.args), 303)
        try:
            connection = evergrant.confirm(came.connection_id, came.code, person, came.verifier)
        except EvergrantError as error:
            return redirect(pages.failed(error), 303)
        return redirect(connection.connect_url or pages.ended(connection), 303)

    return blueprint
