"""`evergrant plan` and `apply` against a real API: what they send, what they refuse, and what people read."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from evergrant.cli import main

from evergrant_server.api.apps.keys import bootstrap_admin
from evergrant_server.core.access import Action
from evergrant_server.core.audit import AuditAction
from tests.fakes.api import TENANT, Api, running_api
from tests.fakes.http_server import served
from tests.unit.client.conftest import Ended

Run = Callable[..., Awaitable[Ended]]
CRM = "integrations:\n  crm: {provider: github, client_id: a, client_secret: {env: CRM_SECRET}}\n"
APPS = "apps:\n  sync:\n    permits:\n      crm:\n        integration: crm\n        actions: [token]\n"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    (tmp_path / "server").mkdir()
    async with running_api(tmp_path / "server") as api:
        yield api


@pytest.fixture
async def admin(api: Api) -> str:
    return await bootstrap_admin(api.store, api.clock, TENANT, api.parts.settings.api_key_lifetime)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "configuration"
    path.mkdir()
    (path / "owner.yaml").write_text("owner: platform-team\n")
    (path / "crm.yaml").write_text(CRM)
    (path / "apps.yaml").write_text(APPS)
    return path


@pytest.fixture
async def run(
    api: Api, admin: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> AsyncIterator[Run]:
    monkeypatch.setenv("EVERGRANT_API_KEY", admin)
    monkeypatch.setenv("CRM_SECRET", "canary-1")
    async with served(api.app) as url:
        monkeypatch.setenv("EVERGRANT_URL", url)

        async def run(*words: str, of: str = "") -> Ended:
            with pytest.raises(SystemExit) as ended:
                await asyncio.to_thread(main, [*words, "-f", str(folder / of)])
            printed = capfd.readouterr()
            assert "canary" not in printed.out + printed.err
            return Ended(int(ended.value.code or 0), printed.out, printed.err)

        yield run


async def test_a_plan_changes_nothing_and_an_apply_all_of_it_once(api: Api, run: Run):
    before = await api.records()
    planned = await run("plan")
    assert planned.status == 2, planned.err
    assert "+ integration crm\n    provider: github\n    client_id: a\n" in planned.out
    assert planned.out.endswith("3 to create, 0 to change, 0 to prune, 0 unchanged\n")
    assert await api.records() == before
    applied = await run("apply")
    assert applied.status == 0, applied.err
    assert "created permit sync/crm\n" in applied.out
    records = await api.records()
    for command in ("plan", "apply"):
        again = await run(command)
        assert (again.status, again.err) == (0, "")
        assert again.out.endswith("3 unchanged\n")
    assert await api.records() == records


async def test_a_changed_secret_is_noticed_and_rotated(api: Api, run: Run, monkeypatch: pytest.MonkeyPatch):
    await run("apply")
    monkeypatch.setenv("CRM_SECRET", "canary-2")
    assert "    client_secret: another secret\n" in (await run("plan")).out
    assert (
        await run("apply")
    ).out == "changed integration crm\n0 created, 1 changed, 0 pruned, 2 unchanged\n"
    assert len(await api.records(AuditAction.SECRET_ROTATED)) == 1
    assert (await run("plan")).status == 0
    monkeypatch.delenv("CRM_SECRET")
    planned = await run("plan")
    assert "not compared: client_secret of integration crm (CRM_SECRET isn't set)" in planned.out
    refused = await run("apply")
    assert (refused.status, refused.out) == (1, "")
    assert "crm.yaml:2: integrations.crm.client_secret: the variable CRM_SECRET isn't set" in refused.err


async def test_a_change_shows_the_members_before_and_after(run: Run, folder: Path):
    await run("apply")
    (folder / "apps.yaml").write_text(APPS.replace("[token]", "[token, connect]"))
    planned = await run("plan")
    assert '~ permit sync/crm\n    actions: ["token"] → ["token", "connect"]\n' in planned.out
    value = json.loads((await run("plan", "-o", "json")).out)
    assert value["change"] == 1
    (changed,) = value["objects"]
    assert changed["members"]["actions"] == {"before": ["token"], "after": ["token", "connect"]}


async def test_pruning_deletes_what_this_owners_applies_made_alone(
    api: Api, admin: str, run: Run, folder: Path
):
    await run("apply")
    await api.call("PUT", "/v1/apps/by-hand", admin, json={})
    by_hand = {"integration": "crm", "actions": ["connect"]}
    await api.call("PUT", "/v1/apps/sync/permits/by-hand", admin, json=by_hand)
    other = {"params": {"managed_by": "other-team"}}
    await api.call("PUT", "/v1/apps/of-others", admin, json={}, **other)
    (folder / "apps.yaml").write_text("apps:\n  sync:\n")
    assert (await run("plan")).status == 0  # without --prune nothing is missing
    assert (
        await run("plan", "--prune")
    ).out == "- permit sync/crm\n0 to create, 0 to change, 1 to prune, 2 unchanged\n"
    assert (await run("apply", "--prune")).out.startswith("pruned permit sync/crm\n")
    names = [permit["name"] for permit in (await api.get("/v1/apps/sync/permits", admin)).json()["items"]]
    assert names == ["by-hand"]
    (folder / "apps.yaml").unlink()
    (folder / "crm.yaml").write_text(CRM.replace("crm:", "crm-2:"))
    pruned = await run("apply", "--prune")
    lines = pruned.out.splitlines()
    assert lines[0] == "created integration crm-2"
    assert lines[1].startswith("    redirect URI: https://evergrant.test/oauth/callback/int_")
    assert lines[2:4] == ["pruned app sync", "pruned integration crm"]
    apps = {app["name"] for app in (await api.get("/v1/apps", admin)).json()["items"]}
    assert {"by-hand", "of-others"} <= apps
    assert "sync" not in apps


async def test_an_object_that_was_made_again_by_hand_stays(api: Api, admin: str, run: Run, folder: Path):
    await run("apply")
    await api.call("DELETE", "/v1/apps/sync", admin)
    await api.call("PUT", "/v1/apps/sync", admin, json={})
    (folder / "apps.yaml").unlink()
    assert (await run("plan", "--prune")).status == 0


async def test_pruning_needs_the_whole_folder(run: Run, folder: Path):
    await run("apply")
    (folder / "apps.yaml").write_text("owner: platform-team\n")
    refused = await run("apply", "--prune", of="apps.yaml")
    assert (refused.status, refused.out) == (1, "")
    assert "-f names one file" in refused.err


async def test_pruning_needs_an_owner_and_objects(run: Run, folder: Path):
    (folder / "owner.yaml").unlink()
    assert "the folder names no owner" in (await run("apply", "--prune")).err
    for name in ("crm", "apps"):
        (folder / f"{name}.yaml").unlink()
    (folder / "owner.yaml").write_text("owner: platform-team\n")
    assert "everything that it made would be pruned" in (await run("apply", "--prune")).err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("integratons:\n  crm: {}\n", "1: integratons: there is no such section; there are owner, issuers"),
        ("apps:\n  sync:\n    disabld: true\n", "3: apps.sync.disabld: there is no such member"),
        ("apps:\n  sync:\n    disabled: maybe\n", "3: app sync: disabled: must be true or false"),
        ("apps:\n  sync:\n  sync:\n", "3: apps.sync: stands here a second time"),
        ("apps: [\n", "2: isn't YAML"),
        ("apps: {}\nowner: Platform Team\n", "2: owner: must be a name of lower-case letters"),
        ("apps:\n  sync:\n    return_to: https://a.example\n", "3: apps.sync.return_to: must be a list"),
        ("webhooks:\n  a: {events: [x]}\n", "2: webhooks.a: url is missing"),
        ("webhooks:\n  a:\n    url: https://a.example/?k=1\n", "3: webhooks.a.url: the query of a URL"),
        (CRM.replace("{env: CRM_SECRET}", "shh"), "2: integrations.crm.client_secret: a secret never stands"),
        (CRM.replace("env: CRM_SECRET", "file: no"), "2: integrations.crm.client_secret: "),
        (CRM.replace("crm:", "two_words:"), "2: integration two_words"),
        (
            CRM.replace("client_id: a", "client_id: a, refresh: {grace: 3}"),
            "2: integration crm: refresh.grace",
        ),
        ("apps:\n  a:\n    agent: {purpose: p, ends_at: 2020-01-01T00:00:00Z}\n", "in the future"),
    ],
)
async def test_a_mistake_is_told_with_its_line_before_anything_is_changed(
    api: Api, run: Run, folder: Path, text: str, complaint: str
):
    for name in ("crm", "apps"):
        (folder / f"{name}.yaml").unlink()
    (folder / "wrong.yaml").write_text(text)
    before = await api.records()
    ended = await run("apply")
    assert ended.status == 1
    assert complaint in ended.err
    assert str(folder / "wrong.yaml") in ended.err or "in the future" in complaint
    assert await api.records() == before


async def test_an_object_stands_once_in_a_folder(run: Run, folder: Path):
    (folder / "more.yaml").write_text("apps:\n  sync:\n")
    assert f"apps.sync: app sync stands in {folder / 'apps.yaml'}:2 already" in (await run("plan")).err


async def test_an_app_that_was_stopped_isnt_started_again(api: Api, admin: str, run: Run, folder: Path):
    await run("apply")
    await api.call("PUT", "/v1/apps/sync", admin, json={"disabled": True})
    assert (await run("apply")).status == 0
    assert (await api.get("/v1/apps/sync", admin)).json()["disabled"]
    (folder / "apps.yaml").write_text("apps:\n  sync:\n    disabled: false\n")
    assert "disabled: true → false" in (await run("plan")).out


async def test_a_second_admins_turn_is_told_and_a_rerun_goes_on(api: Api, run: Run):
    api.parts.settings.four_eyes = True
    second = await api.app_with("second", Action.ADMIN)
    assert "+ integration crm (a second admin has to approve it)" in (await run("plan")).out
    waiting = await run("apply")
    assert waiting.status == 1
    assert "created app sync\nwaits   permit sync/crm: integration crm comes first\n" in waiting.out
    for _ in range(2):  # the permit's approval is for the integration that is there by then
        (approval,) = (await api.get("/v1/approvals", second)).json()["items"]
        assert f"another admin runs: evergrant approvals give {approval['id']}" in waiting.out
        assert "Run it again once they are approved" in waiting.err
        await api.post(f"/v1/approvals/{approval['id']}", second)
        waiting = await run("apply")
    assert (waiting.status, waiting.err) == (0, "")
    assert (await run("plan")).status == 0


async def test_a_refused_change_ends_the_run_and_says_what_is_done(
    api: Api, admin: str, run: Run, folder: Path
):
    await run("apply")
    connection = await api.connection(await integration_of(api, "crm"))
    assert connection
    (folder / "crm.yaml").write_text(CRM.replace("crm:", "other:"))
    ended = await run("apply", "--prune")
    assert ended.status == 1
    assert "created integration other\n" in ended.out
    assert "integration crm: " in ended.err
    assert "Then run it again: what is done stays done." in ended.err


async def integration_of(api: Api, name: str):
    async with api.worker.read() as tx:
        integration = await tx.integrations.by_name(TENANT, name)
    assert integration is not None
    return integration


async def test_an_auditor_plans_without_secrets_and_applies_nothing(
    api: Api, run: Run, monkeypatch: pytest.MonkeyPatch
):
    await run("apply")
    monkeypatch.setenv("EVERGRANT_API_KEY", await api.app_with("ci", Action.AUDIT))
    assert "needs the action admin" in (await run("plan")).err
    monkeypatch.delenv("CRM_SECRET")
    planned = await run("plan")
    assert (planned.status, planned.err) == (0, "")


async def test_misuse_isnt_taken_for_a_change(run: Run):
    assert (await run("plan", "--no-such-option")).status == 1
