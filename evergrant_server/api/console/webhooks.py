"""`/console/webhooks`: who is told of events, what each receiver answers, and what is sent again."""

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.responses import Response

from evergrant_server.api.console.forms import Form, new_once, once_of, require_typed, slug_of
from evergrant_server.api.console.visit import ROWS, ConsoleVisit, VisitDep, chosen, console_page, pages_of
from evergrant_server.api.http.call import ApiCall, require_auditor, require_tenant_admin
from evergrant_server.api.pages.browser import redirect_response
from evergrant_server.api.webhooks import (
    RotateWebhookBody,
    WebhookBody,
    WebhookSecretView,
    delete_webhook,
    get_webhook,
    list_deliveries,
    list_webhooks,
    put_webhook,
    replay_delivery,
    replay_failed_deliveries,
    rotate_webhook_secret,
    send_ping,
)
from evergrant_server.core.access import Action
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.core.events import DEFAULT_EVENTS, EventType
from evergrant_server.core.webhooks import ANY_INTEGRATION, DeliveryStatus
from evergrant_server.policy import Target
from evergrant_server.problems import invalid_request

router = APIRouter(include_in_schema=False)

_WEBHOOKS, _NEW = "/console/webhooks", "/console/new/webhook"
_FIELDS = ("name", "url", "events", "integration", "disabled")
_EVENTS = [(event.value, event.value) for event in EventType if event is not EventType.PING]
_COUNTED = 200  # of each kind, for the question before a deletion
_NO_NEW_SECRET = "This form has made its secret, which was shown once. If it is lost, rotate it again."
DONE = {
    "changed": "The webhook is changed.",
    "test": "A test event is on its way: its delivery stands below.",
    "replayed": "It is sent again.",
    "all-replayed": "Every delivery that was given up is sent again.",
    "deleted": "The webhook is deleted, with its log.",
}


@router.get(_WEBHOOKS)
@console_page
async def show_webhooks(visit: VisitDep, cursor: str = "", done: str = "") -> Response:
    """Each webhook, with since when it fails and why."""
    call = await require_auditor(visit.call)
    webhooks = await list_webhooks(call, limit=ROWS, cursor=cursor or None)
    return visit.show(
        "webhooks.html",
        "Webhooks",
        webhooks=webhooks.items,
        administers=_administers(visit),
        said=DONE.get(done),
        **pages_of(_WEBHOOKS, cursor, webhooks.next_cursor),
    )


@router.get(f"{_WEBHOOKS}/{{name}}")
@console_page
async def show_webhook(
    visit: VisitDep, name: str, status: str = "", cursor: str = "", done: str = ""
) -> Response:
    """One webhook: the state of its endpoint, and what it was sent, with each answer."""
    call = await require_auditor(visit.call)
    wanted = chosen(DeliveryStatus, status, "status") if status else None
    deliveries = await list_deliveries(name, call, status=wanted, limit=ROWS, cursor=cursor or None)
    kept = {"status": status} if status else {}
    return visit.show(
        "webhook.html",
        name,
        webhook=await get_webhook(name, call),
        deliveries=deliveries.items,
        statuses=list(DeliveryStatus),
        wanted=status,
        administers=_administers(visit),
        said=DONE.get(done),
        **pages_of(f"{_WEBHOOKS}/{name}", cursor, deliveries.next_cursor, **kept),
    )


@router.get(_NEW)
@console_page
async def show_new_webhook(visit: VisitDep) -> Response:
    """The form of a new webhook."""
    await require_tenant_admin(visit.call)
    return _form_of(visit, Form({"events": " ".join(DEFAULT_EVENTS)}))


@router.post(_NEW)
@console_page
async def make_webhook(visit: VisitDep) -> Response:
    """Make a webhook, and show its signing secret once."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        name = slug_of(fields, "name")
        await _require_new(call, name)
        made = await put_webhook(name, _body(fields), Response(), call)
    except (Failure, ValidationError) as refusal:
        return _form_of(visit, Form.refused(fields, refusal, _FIELDS))
    return _show_secret(visit, made, "The webhook is made")


@router.get(f"{_WEBHOOKS}/{{name}}/edit")
@console_page
async def show_edit_webhook(visit: VisitDep, name: str) -> Response:
    """The form of a webhook, filled with what it is."""
    webhook = await get_webhook(name, await require_tenant_admin(visit.call))
    values = {
        "url": webhook.url,
        "events": " ".join(webhook.events),
        "integration": "" if webhook.integration == ANY_INTEGRATION else webhook.integration,
        "disabled": "yes" if webhook.disabled else "",
    }
    return _form_of(visit, Form(values), name)


@router.post(f"{_WEBHOOKS}/{{name}}/edit")
@console_page
async def change_webhook(visit: VisitDep, name: str) -> Response:
    """Change where a webhook's events go, and which."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    await get_webhook(name, call)  # the API's route would make one that isn't there
    try:
        await put_webhook(name, _body(fields), Response(), call)
    except (Failure, ValidationError) as refusal:
        return _form_of(visit, Form.refused(fields, refusal, _FIELDS), name)
    return _back_to(name, "changed")


@router.get(f"{_WEBHOOKS}/{{name}}/rotate-secret")
@console_page
async def show_rotate(visit: VisitDep, name: str) -> Response:
    """The form of a new signing secret."""
    return await _rotate_form(visit, name, Form())


@router.post(f"{_WEBHOOKS}/{{name}}/rotate-secret")
@console_page
async def rotate(visit: VisitDep, name: str) -> Response:
    """Make a new signing secret, and show it once. The same form makes no second one."""
    fields = await visit.read_form()
    try:
        call = await once_of(await require_tenant_admin(visit.call), fields, _NO_NEW_SECRET)
        answer = await rotate_webhook_secret(name, call, RotateWebhookBody.model_validate(_overlap(fields)))
    except (Failure, ValidationError) as refusal:
        return await _rotate_form(visit, name, Form.refused(fields, refusal, ("overlap",)))
    made = WebhookSecretView.model_validate_json(bytes(answer.body))
    return _show_secret(visit, made, "The signing secret is replaced")


@router.post(f"{_WEBHOOKS}/{{name}}/test")
@console_page
async def send_test(visit: VisitDep, name: str) -> Response:
    """Send a test event."""
    await visit.read_form()
    await send_ping(name, await require_tenant_admin(visit.call))
    return _back_to(name, "test")


@router.post(f"{_WEBHOOKS}/{{name}}/deliveries/{{delivery_id}}/replay")
@console_page
async def replay(visit: VisitDep, name: str, delivery_id: str) -> Response:
    """Send one delivery again."""
    await visit.read_form()
    await replay_delivery(name, delivery_id, await require_tenant_admin(visit.call))
    return _back_to(name, "replayed")


@router.post(f"{_WEBHOOKS}/{{name}}/replay-failed")
@console_page
async def replay_failed(visit: VisitDep, name: str) -> Response:
    """Send every delivery again that was given up."""
    await visit.read_form()
    await replay_failed_deliveries(name, await require_tenant_admin(visit.call))
    return _back_to(name, "all-replayed")


@router.get(f"{_WEBHOOKS}/{{name}}/delete")
@console_page
async def show_delete_webhook(visit: VisitDep, name: str) -> Response:
    """What would end with the webhook."""
    return await _delete_form(visit, name, Form())


@router.post(f"{_WEBHOOKS}/{{name}}/delete")
@console_page
async def end_webhook(visit: VisitDep, name: str) -> Response:
    """Delete the webhook, if the form repeats its name."""
    fields = await visit.read_form()
    call = await require_tenant_admin(visit.call)
    try:
        require_typed(fields, name, "webhook")
        await delete_webhook(name, call)
    except Failure as refusal:
        return await _delete_form(visit, name, Form.refused(fields, refusal, ("confirm",)))
    return redirect_response(f"{_WEBHOOKS}?done=deleted")


def _administers(visit: ConsoleVisit) -> bool:
    return visit.call.allows(Action.ADMIN, Target())


def _body(fields: dict[str, str]) -> WebhookBody:
    return WebhookBody.model_validate(
        {
            "url": fields.get("url", ""),
            "events": fields.get("events", "").split(),
            "integration": fields.get("integration") or ANY_INTEGRATION,
            "disabled": "disabled" in fields,
        }
    )


def _overlap(fields: dict[str, str]) -> dict[str, int]:
    """The body's member, in seconds, for a field in hours. Absent: as the setting says."""
    hours = fields.get("overlap", "")
    if not hours:
        return {}
    if not (hours.isascii() and hours.isdigit() and len(hours) < 6):
        raise invalid_request(
            "overlap", "Use a number of hours, such as 24; 0 ends the previous one at once."
        )
    return {"overlap": int(hours) * 3600}


async def _require_new(call: ApiCall, name: str) -> None:
    """Raise Failure ALREADY_EXISTS for a name that the API's route would change the webhook of."""
    async with call.api.store.read() as tx:
        if await tx.webhooks.by_name_unchecked(call.tenant, name) is not None:
            raise Failure(ErrorCode.ALREADY_EXISTS, "There is a webhook of this name.", field="name")


def _form_of(visit: ConsoleVisit, form: Form, name: str | None = None) -> Response:
    title = "Make a webhook" if name is None else f"Change {name}"
    return visit.show_form("webhook_form.html", title, form, name=name, events=_EVENTS)


async def _rotate_form(visit: ConsoleVisit, name: str, form: Form) -> Response:
    call = await require_tenant_admin(visit.call)
    return visit.show_form(
        "webhook_rotate.html",
        f"Replace the signing secret of {name}",
        form,
        webhook=await get_webhook(name, call),
        once=new_once(),
        usual_hours=int(visit.api.settings.webhook_secret_overlap.total_seconds() // 3600),
    )


async def _delete_form(visit: ConsoleVisit, name: str, form: Form) -> Response:
    call = await require_tenant_admin(visit.call)
    webhook = await get_webhook(name, call)
    pending = await list_deliveries(name, call, status=DeliveryStatus.PENDING, limit=_COUNTED)
    failed = await list_deliveries(name, call, status=DeliveryStatus.FAILED, limit=_COUNTED)
    lost, sent = "its way, and would be dropped", "and could be sent again until then"
    counts = [
        (len(pending.items), *(f"{words} on {lost}" for words in ("delivery is", "deliveries are"))),
        (len(failed.items), *(f"{words} given up, {sent}" for words in ("delivery was", "deliveries were"))),
    ]
    uncounted = any(deliveries.next_cursor for deliveries in (pending, failed))
    return visit.show_form(
        "webhook_delete.html",
        f"Delete {name}",
        form,
        route=delete_webhook,
        webhook=webhook,
        counts=counts,
        uncounted=uncounted,
    )


def _show_secret(visit: ConsoleVisit, made: WebhookSecretView, title: str) -> Response:
    return visit.show("webhook_secret.html", title, webhook=made)


def _back_to(name: str, done: str) -> Response:
    return redirect_response(f"{_WEBHOOKS}/{name}?done={done}")
