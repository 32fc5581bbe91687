"""`EVERGRANT_…=… SESSION_SECRET=… flask --app examples.web.flask_app run`"""

import os

from evergrant import Evergrant, Lease
from evergrant.web import Offer
from evergrant.web.flask import consent_blueprint
from flask import Flask, request, session

BUTTON = '<form method="post" action="/evergrant/connect/crm"><button>Connect the CRM</button></form>'

app = Flask(__name__)
app.secret_key = os.environ["SESSION_SECRET"]
evergrant = Evergrant()


def current_user() -> str | None:
    return session.get("user")


app.register_blueprint(
    consent_blueprint(
        evergrant,
        subject=current_user,
        after="/",
        login="/login",
        offers=[Offer("crm", "The CRM", several=True)],
    ),
    url_prefix="/evergrant",
)


@app.post("/login")
def log_in() -> str:
    session["user"] = request.form["user"]
    return session["user"]


@app.get("/")
def home() -> str:
    if (user := current_user()) is None:
        return "log in"
    return "connected" if isinstance(evergrant.lease("crm", user), Lease) else BUTTON
