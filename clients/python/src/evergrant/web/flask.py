"""The piece for Flask: `app.register_blueprint(consent_blueprint(...), url_prefix="/evergrant")`.

The verifier is kept in `flask.session`.
"""

from collections.abc import Callable, Sequence

from flask import Blueprint, jsonify, redirect, request, session, url_for
from flask.typing import ResponseReturnValue

from evergrant.errors import EvergrantError
from evergrant.sync_client import Evergrant
from evergrant.web.session import AppPages, Asks, ConsentReturn, Reply, challenge_in, is_to_end
from evergrant.web.settings_page import REASON, Offer


def consent_blueprint(
    evergrant: Evergrant,
    *,
    subject: Callable[[], str | None],
    after: str,
    login: str,
    offers: Sequence[Offer] = (),
) -> Blueprint:
    """Routes that begin, confirm, list and end connections, as `evergrant.web` describes.

    `subject` is called in the request: the subject of the person who is logged in, None without a login.
    """
    blueprint, pages = Blueprint("evergrant", __name__), AppPages(after, login, offers)
    _add_consents(blueprint, evergrant, pages, subject)
    _add_accounts(blueprint, evergrant, pages, subject)
    return blueprint


def _add_consents(
    blueprint: Blueprint, evergrant: Evergrant, pages: AppPages, subject: Callable[[], str | None]
) -> None:
    """The routes that begin a consent and confirm it."""

    @blueprint.post("/connect/<integration>")
    def connect(integration: str) -> ResponseReturnValue:
        person = subject()
        if (refused := pages.refused(request.headers, person)) is not None:
            return _response(refused)
        return_to = url_for("evergrant.connected", _external=True)
        asks = Asks(label=_label(), return_to=return_to, challenge=challenge_in(session))
        try:
            opened = evergrant.connect(integration, str(person), **asks)
        except EvergrantError as error:
            return _response(pages.not_opened(error, integration, request.headers))
        return _response(pages.opened(opened, request.headers))

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


def _add_accounts(
    blueprint: Blueprint, evergrant: Evergrant, pages: AppPages, subject: Callable[[], str | None]
) -> None:
    """The routes that list a person's connections and end one."""

    @blueprint.get("/connections")
    def connections() -> ResponseReturnValue:
        person = subject()
        if (refused := pages.refused(request.headers, person)) is not None:
            return _response(refused)
        try:
            rows = list(evergrant.connections(subject=person, accounts=True))
        except EvergrantError as error:
            return _response(pages.trouble(error))
        return _response(pages.shown(rows, request.args))

    @blueprint.post("/disconnect/<integration>")
    def disconnect(integration: str) -> ResponseReturnValue:
        person = subject()
        if (refused := pages.refused(request.headers, person)) is not None:
            return _response(refused)
        try:
            for connection in evergrant.connections(integration=integration, subject=person):
                if is_to_end(connection, _label()):
                    evergrant.revoke(connection.id, REASON)
        except EvergrantError as error:
            return _response(pages.not_opened(error, integration, request.headers))
        return _response(pages.disconnected(request.headers))


def _label() -> str:
    return request.args.get("label", "default")


def _response(reply: Reply) -> ResponseReturnValue:
    if reply.location is not None:
        return redirect(reply.location, 303)
    if reply.body is None:
        return "", reply.status
    return jsonify(reply.body), reply.status, {"Cache-Control": "no-store"}
