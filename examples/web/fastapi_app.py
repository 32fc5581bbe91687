"""`EVERGRANT_…=… SESSION_SECRET=… granian --interface asgi examples.web.fastapi_app:app`"""

import os
from typing import Annotated

from evergrant import AsyncEvergrant, Lease
from evergrant.web import Offer
from evergrant.web.fastapi import consent_router
from fastapi import Depends, FastAPI, Form, Request
from fastapi.responses import HTMLResponse
from starlette.middleware.sessions import SessionMiddleware

BUTTON = '<form method="post" action="/evergrant/connect/crm"><button>Connect the CRM</button></form>'

app = FastAPI()
app.add_middleware(SessionMiddleware, secret_key=os.environ["SESSION_SECRET"])
evergrant = AsyncEvergrant()


def current_user(request: Request) -> str | None:
    return request.session.get("user")


app.include_router(
    consent_router(
        evergrant,
        subject=current_user,
        after="/",
        login="/login",
        offers=[Offer("crm", "The CRM", several=True)],
    ),
    prefix="/evergrant",
)


@app.post("/login")
def log_in(request: Request, user: Annotated[str, Form()]) -> str:
    request.session["user"] = user
    return user


@app.get("/", response_class=HTMLResponse)
async def home(user: Annotated[str | None, Depends(current_user)]) -> str:
    if user is None:
        return "log in"
    answer = await evergrant.lease("crm", user)
    return "connected" if isinstance(answer, Lease) else BUTTON
