"""Evidence: each control of a framework, with live counts, their queries, and what can't be shown."""

import re

import pytest

from evergrant_server.core.access import Action
from evergrant_server.core.questions.evidence import CONTROLS, Framework, Topic
from tests.fakes.api import OTHER, Api
from tests.security.isolation.routes import routes

PATH = "/v1/audit/evidence"


@pytest.mark.parametrize("framework", list(Framework))
async def test_each_control_is_shown_by_queries_that_there_are(api: Api, framework: Framework):
    auditor = await api.app_with("auditor", Action.AUDIT)
    answer = await api.get(PATH, auditor, params={"framework": framework.value})
    assert answer.status_code == 200, answer.text
    controls = answer.json()["controls"]
    assert [control["control"] for control in controls] == [control.id for control in CONTROLS[framework]]
    known = set(routes(api.app))
    for control in controls:
        assert control["shown_by"], control
        for shown in control["shown_by"]:
            for query in re.split(r", ", shown["query"]):
                assert query.partition("?")[0] in known, query
            assert shown["command"].startswith("evergrant ")
            assert shown["answer"]


def test_every_topic_is_of_a_control_and_no_control_is_there_twice():
    assert {topic for of in CONTROLS.values() for control in of for topic in control.topics} == set(Topic)
    for controls in CONTROLS.values():
        ids = [control.id for control in controls]
        assert len(ids) == len(set(ids))


async def test_what_cant_be_shown_goes_when_it_is_repaired(api: Api):
    admin = await api.app_with("boss", Action.ADMIN)

    async def lacks(control: str) -> str:
        answer = (await api.get(PATH, admin, params={"framework": "soc2"})).json()
        (found,) = [each for each in answer["controls"] if each["control"] == control]
        return " ".join(found["lacks"])

    assert "no webhook gets detection.raised" in await lacks("CC7.2")
    hook = {"url": "https://hooks.example/in"}
    assert (await api.call("PUT", "/v1/webhooks/hooks", admin, json=hook)).is_success
    assert "no webhook" not in await lacks("CC7.2")
    integration = await api.integration(binding="none")
    await api.active(integration)
    assert "1 integrations bind no consent" in await lacks("CC6.6")
    assert "have a grant" not in await lacks("CC6.1")
    api.clock.advance(100 * 86_400)
    assert "have a grant" in await lacks("CC6.1")


async def test_the_counts_are_those_of_the_tenant_alone(api: Api):
    auditor = await api.app_with("auditor", Action.AUDIT)
    await api.app_with("shop", Action.TOKEN)
    await api.app_with("other", Action.TOKEN, tenant=OTHER)
    answer = (await api.get(PATH, auditor, params={"framework": "soc2"})).json()
    access = answer["controls"][0]["shown_by"][0]
    assert (access["query"], access["answer"]["apps"], access["answer"]["permits"]) == (
        "GET /v1/access",
        2,
        2,
    )


@pytest.mark.parametrize("params", [{}, {"framework": "hipaa"}, {"framework": "soc2", "format": "pdf"}])
async def test_another_framework_is_refused(api: Api, admin: str, params: dict[str, str]):
    answer = await api.get(PATH, admin, params=params)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
