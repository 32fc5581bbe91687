"""The login of the binding `oidc` is pinned to the issuer with which it was put (ADR 0067)."""

from evergrant_server.core.secret import Secret
from tests.fakes.api import Api
from tests.fakes.providers.login_issuer import LoginIssuer
from tests.security.pages.test_callback import assert_refused
from tests.security.pages.test_login import issuer, sent_to_log_in

__all__ = ["issuer"]


async def test_an_issuer_that_was_moved_names_no_subjects(api: Api, issuer: LoginIssuer):
    """Who administers the integration staff alone could otherwise be every subject of the bound one."""
    async with LoginIssuer(api.clock.now) as evil:
        it = await sent_to_log_in(api, issuer)
        back = await it.back_at()
        async with api.worker.write() as tx:
            there = await tx.integrations.by_name(api.parts.settings.tenant, "staff")
            assert there is not None
            moved = there.model_copy(update={"issuer": evil.issuer, "endpoints": evil.endpoints})
            await tx.integrations.put(moved, Secret(evil.client_secret), expected=there.revision)
        await assert_refused(answer := await it.visitor.go_on(it.link), "client_rejected", 424)
        assert "put the login again" in answer.text
        await assert_refused(await it.log_in(back), "callback_invalid")
        assert (await it.consent()).confirmed_at is None
        assert (evil.count("token"), it.at_provider) == (0, False)


async def test_the_worker_compares_the_issuer_with_the_pinned_one(api: Api, issuer: LoginIssuer):
    it = await sent_to_log_in(api, issuer)
    async with api.worker.write() as tx:
        bound = await tx.integrations.by_name(api.parts.settings.tenant, "crm")
        assert bound is not None
        assert bound.login is not None
        login = bound.login.model_copy(update={"issuer": "https://login.example"})
        await tx.integrations.put(bound.model_copy(update={"login": login}), None, expected=bound.revision)
    await assert_refused(await it.log_in(), "client_rejected", 424)
    assert (issuer.count("token"), (await it.consent()).confirmed_at) == (0, None)
