"""`/v1/offboarding-rule`: how people of the tenant's issuer are matched to subjects, and what follows."""

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Response
from pydantic import Field, model_validator

from evergrant_server.access.approvals import dangerous, use_approval
from evergrant_server.access.person_ends import sponsor_named
from evergrant_server.api.http.call import AdminCall, AuditorCall
from evergrant_server.api.http.models import Body, Label, Slug, StorableText, Subject, View
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.errors import Failure
from evergrant_server.core.ids import OffboardingRuleId, new_id
from evergrant_server.core.people.leavers import OffboardingRule, PersonAttribute
from evergrant_server.problems import invalid_request, require_found
from evergrant_server.store import Transaction

router = APIRouter(tags=["people"])

Seconds = Annotated[float, Field(ge=0, le=90 * 86_400)]


class OffboardingRuleBody(Body):
    """What is known of people who leave. `subject_from`: the attribute of the directory that apps use as
    subject; `sub_from`: the one that is `sub` at `issuer`, the tenant's own. Null: none is.

    `grace` in seconds. Connections with one of `team_labels` are the team's: they are handed over to the
    subject `team_owner`. `sponsor`: the app that answers for agents of people who have left. `dry_run`: what
    SCIM and security events would begin is recorded as `offboarding.planned`, and nothing is begun.
    """

    subject_from: PersonAttribute | None = None
    sub_from: PersonAttribute | None = None
    issuer: Annotated[StorableText | None, Field(max_length=2000)] = None
    grace: Seconds | None = None
    sponsor: Slug | None = None
    team_labels: Annotated[tuple[Label, ...], Field(max_length=100)] = ()
    team_owner: Subject | None = None
    dry_run: bool = False

    @model_validator(mode="after")
    def _whole(self) -> "OffboardingRuleBody":
        if bool(self.team_labels) is not (self.team_owner is not None):
            raise ValueError("team_labels and team_owner go together")
        if self.sub_from is not None and self.issuer is None:
            raise ValueError("sub_from needs the issuer whose sub it is")
        return self


class OffboardingRuleView(View):
    subject_from: PersonAttribute | None
    sub_from: PersonAttribute | None
    issuer: str | None
    grace: float | None
    sponsor: str | None
    team_labels: tuple[str, ...]
    team_owner: str | None
    dry_run: bool
    changed_at: datetime


@router.get("/v1/offboarding-rule")
async def get_offboarding_rule(call: AuditorCall) -> OffboardingRuleView:
    """What the tenant has said about people who leave."""
    async with call.api.store.read() as tx:
        rule = require_found(await tx.offboarding_rules.of_tenant(call.tenant))
    return OffboardingRuleView.of(rule, grace=rule.grace_s)


@router.put("/v1/offboarding-rule")
@dangerous("a new rule, and each change: of which subjects a person's end stops")
async def put_offboarding_rule(
    body: OffboardingRuleBody, response: Response, call: AdminCall
) -> OffboardingRuleView:
    """Say how people are matched to subjects, and what becomes of what is theirs."""

    async def write(tx: Transaction) -> tuple[bool, OffboardingRule]:
        before = await tx.offboarding_rules.to_replace(call.tenant)
        try:
            await sponsor_named(tx, call.tenant, body.sponsor)
        except Failure as failure:
            raise invalid_request("sponsor", failure.detail) from None
        members = {name: value for name, value in body if name != "grace"}
        id = OffboardingRuleId(new_id("ofr"))
        made = OffboardingRule(tenant=call.tenant, id=id, changed_at=call.now, grace_s=body.grace, **members)
        if before is not None and _is_same(before, made):
            return False, before
        approved = await use_approval(tx, call, body)
        rule = await tx.offboarding_rules.put(made, before)
        owner = None if body.team_owner is None else tx.ring.subject_hash(call.tenant, body.team_owner)
        detail = {**body.model_dump(mode="json"), "team_owner": owner, **approved}
        await call.record(tx, AuditAction.OFFBOARDING_RULE_PUT, rule.id, **detail)
        return before is None, rule

    is_new, rule = await call.write(write)
    response.status_code = 201 if is_new else 200
    return OffboardingRuleView.of(rule, grace=rule.grace_s)


@router.delete("/v1/offboarding-rule", status_code=204)
@dangerous("always: nobody who leaves is matched any more")
async def delete_offboarding_rule(call: AdminCall) -> Response:
    """Have no rule about people who leave: SCIM and events match nobody to a subject."""

    async def drop(tx: Transaction) -> None:
        rule = require_found(await tx.offboarding_rules.to_replace(call.tenant))
        approved = await use_approval(tx, call, None, {"rule": rule.id})
        await tx.offboarding_rules.delete(rule)
        await call.record(tx, AuditAction.OFFBOARDING_RULE_DELETED, rule.id, **approved)

    await call.write(drop)
    return Response(status_code=204)


def _is_same(before: OffboardingRule, rule: OffboardingRule) -> bool:
    """Whether the rule of before says the same: then a put changes nothing."""
    unsaid = {"id", "revision", "changed_at"}
    return before.model_dump(exclude=unsaid) == rule.model_dump(exclude=unsaid)
