"""Ends a family of tokens, for one of the reasons of FamilyEnd; raises the alarm where a token was stolen."""

from datetime import datetime

from evergrant_server.access.transactions import record
from evergrant_server.core.audit import AuditAction
from evergrant_server.core.messages.base import RequestContext
from evergrant_server.core.oauth.authorizations import FamilyEnd, TokenFamily
from evergrant_server.store import Transaction

ALARMS = (FamilyEnd.CODE_REPLAYED, FamilyEnd.TOKEN_REPLAYED)


async def end_family(
    tx: Transaction, family: TokenFamily, why: FamilyEnd, context: RequestContext, at: datetime
) -> int:
    """End it with its access tokens, whose next use is refused in every process; returns how many.

    The app's revision moves: its callers are read anew, and calls that are being decided are decided again.
    """
    ended = family.__replace__(ended_at=at, end=why)
    valid = await tx.oauth_tokens.count_valid(family.tenant, family.id, at)
    await tx.token_families.replace(ended, expected=family.revision)
    await tx.access.bump(family.tenant, family.app_id)
    action = AuditAction.TOKEN_FAMILY_REPLAYED if why in ALARMS else AuditAction.TOKEN_FAMILY_ENDED
    said = {**family.named, "app": family.app_id, "reason": why.value, "access_tokens": valid}
    await record(tx, family.tenant, action, family.id, context, at, **said)
    return valid
