"""Rules for each platform's tokens, with the claims that its documentation shows.

GitHub: docs.github.com/actions/reference/security/oidc. Kubernetes:
kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin. AWS: the IAM user guide's
id_roles_providers_outbound_token_claims and the STS reference's API_GetWebIdentityToken. Azure:
learn.microsoft.com/entra/identity-platform/access-token-claims-reference. Google:
cloud.google.com/compute/docs/instances/verifying-instance-identity.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from evergrant_server.core.ids import Tenant, TrustedIssuerId, new_id
from evergrant_server.core.workloads.issuer import IssuerKind, TrustedIssuer, kind_problem
from evergrant_server.core.workloads.rules import (
    WorkloadRule,
    lifetime_problem,
    mismatches,
    rule_problem,
    token_problem,
)

NOW = datetime.fromtimestamp(1_729_602_000, UTC)
OURS = "https://evergrant.example"
TIMES = {"iat": 1_729_601_640, "nbf": 1_729_601_640, "exp": 1_729_605_240}
RS256 = {"alg": "RS256", "kid": "one"}

GITHUB = {
    "jti": "example-id",
    "sub": "repo:octo-org/octo-repo:environment:prod",
    "environment": "prod",
    "aud": OURS,
    "ref": "refs/heads/main",
    "repository": "octo-org/octo-repo",
    "repository_owner": "octo-org",
    "repository_id": "74",
    "repository_owner_id": "65",
    "job_workflow_ref": "octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main",
    "iss": "https://token.actions.githubusercontent.com",
    **TIMES,
}
KUBERNETES = {
    "aud": [OURS],
    "iss": "https://my-cluster.example.com",
    "jti": "aed34954-b33a-4142-b1ec-389d6bbb4936",
    "kubernetes.io": {
        "namespace": "my-namespace",
        "pod": {"name": "my-pod", "uid": "5e0bd49b-f040-43b0-99b7-22765a53f7f3"},
        "serviceaccount": {"name": "my-serviceaccount", "uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"},
    },
    "sub": "system:serviceaccount:my-namespace:my-serviceaccount",
    **TIMES,
}
GCP = {
    "iss": "https://accounts.google.com",
    "aud": OURS,
    "sub": "107517467455664443766",
    "azp": "107517467455664443766",
    "email": "deploy@my-project.iam.gserviceaccount.com",
    "email_verified": True,
    **TIMES,
}
TID, OID = "aaaabbbb-0000-cccc-1111-dddd2222eeee", "11112222-bbbb-3333-cccc-4444dddd5555"
APP = "00001111-aaaa-2222-bbbb-3333cccc4444"
AZURE = {
    "aud": APP,
    "iss": f"https://login.microsoftonline.com/{TID}/v2.0",
    "azp": "22223333-cccc-4444-dddd-5555eeee6666",
    "oid": OID,
    "sub": OID,
    "tid": TID,
    "ver": "2.0",
    **TIMES,
}
ROLE = "arn:aws:iam::123456789012:role/DataProcessingRole"
STS = "https://sts.amazonaws.com/"
AWS = {
    "iss": "https://abc123-def456-ghi789-jkl012.tokens.sts.global.api.aws",
    "aud": OURS,
    "sub": ROLE,
    "jti": "xyz123-def456-ghi789-jkl012",
    STS: {"aws_account": "123456789012", "org_id": "o-abc1234567", "principal_id": ROLE},
    **TIMES,
}
SVID_ID = "spiffe://example.org/ns/apps/sa/api"
SVID = {"aud": [OURS], "sub": SVID_ID, "exp": TIMES["exp"]}  # neither iss nor jti
OTHER_ISSUER = {"iss": "https://issuer.example/t", "aud": OURS, "sub": "project:7", **TIMES}

K = IssuerKind
GOOD: dict[IssuerKind, tuple[dict[str, Any], dict[str, str]]] = {
    K.GITHUB_ACTIONS: (GITHUB, {"repository_id": "74", "repository_owner_id": "65", "environment": "prod"}),
    K.KUBERNETES: (KUBERNETES, {"sub": KUBERNETES["sub"]}),
    K.GCP: (GCP, {"sub": GCP["sub"]}),
    K.AZURE: (AZURE, {"tid": TID, "oid": OID}),
    K.AWS: (AWS, {"sub": ROLE}),
    K.SPIFFE: (SVID, {"sub": SVID_ID}),
    K.OIDC: (OTHER_ISSUER, {"sub": "project:7"}),
}


def an_issuer(kind: IssuerKind) -> TrustedIssuer:
    url = "spiffe://example.org" if kind is K.SPIFFE else GOOD[kind][0]["iss"]
    id, tenant = TrustedIssuerId(new_id("iss")), Tenant("acme")
    values: dict[str, Any] = {"tenant": tenant, "id": id, "created_at": NOW, "changed_at": NOW}
    return TrustedIssuer(name="theirs", kind=kind, issuer=url, **values)


def a_rule(kind: IssuerKind, claims: dict[str, str]) -> WorkloadRule:
    audience = APP if kind is K.AZURE else None
    return WorkloadRule(issuer_id=TrustedIssuerId(new_id("iss")), claims=claims, audience=audience)


def accepted(kind: IssuerKind, token: dict[str, Any], claims: dict[str, str], alg: str = "RS256") -> bool:
    problem = token_problem(an_issuer(kind), {"alg": alg, "kid": "one"}, token) or lifetime_problem(
        token, NOW
    )
    return problem is None and not mismatches(a_rule(kind, claims), token, OURS)


@pytest.mark.parametrize("kind", IssuerKind)
def test_the_documented_token_of_each_platform_is_its_workloads(kind: IssuerKind) -> None:
    token, claims = GOOD[kind]
    issuer = an_issuer(kind)
    assert kind_problem(kind, issuer.issuer) is None
    assert rule_problem(issuer, a_rule(kind, claims)) is None
    assert accepted(kind, token, claims)


@pytest.mark.parametrize("kind", IssuerKind)
def test_each_claim_of_a_rule_is_required_exactly_and_so_is_the_audience(kind: IssuerKind) -> None:
    token, claims = GOOD[kind]
    for name in claims:
        for other in (token[name] + "x", token[name][:-1], None, [token[name]]):
            assert not accepted(kind, {**token, name: other}, claims), (name, other)
        assert not accepted(kind, {it: value for it, value in token.items() if it != name}, claims)
    ours = token["aud"] if isinstance(token["aud"], str) else token["aud"][0]
    for other in (
        f"{ours}/",
        [ours, "https://elsewhere.example"],
        f"{OURS}/oauth/token",
        [],
        None,
        {ours: 1},
    ):
        assert not accepted(kind, {**token, "aud": other}, claims), other


@pytest.mark.parametrize("kind", IssuerKind)
def test_a_token_has_an_end_and_its_issuers_name(kind: IssuerKind) -> None:
    token, claims = GOOD[kind]
    without_end = {name: value for name, value in token.items() if name != "exp"}
    assert not accepted(kind, without_end, claims)
    over = (NOW - timedelta(minutes=2)).timestamp()
    for end in (over, True, "1729605240", float("inf"), float("nan"), 10**400, -1, None):
        assert not accepted(kind, {**token, "exp": end}, claims), end
    for begin in ("nbf", "iat"):
        assert not accepted(kind, {**token, begin: NOW.timestamp() + 120}, claims)
        assert not accepted(kind, {**token, begin: None}, claims)
    if kind is not K.SPIFFE:
        assert not accepted(kind, {**token, "iss": f"{token['iss']}/"}, claims)


@pytest.mark.parametrize(
    ("kind", "claims", "field"),
    [
        (K.GITHUB_ACTIONS, {"sub": "repo:octo-org/octo-repo:ref:refs/heads/main"}, "claims.repository_id"),
        (K.GITHUB_ACTIONS, {"repository_id": "74", "environment": "prod"}, "claims.repository_owner_id"),
        (
            K.GITHUB_ACTIONS,
            {"repository_id": "octo-repo", "repository_owner_id": "65"},
            "claims.repository_id",
        ),
        (K.GITHUB_ACTIONS, {"repository_id": "74", "repository_owner_id": "65"}, "claims"),
        (
            K.GITHUB_ACTIONS,
            {"repository_id": "74", "repository_owner_id": "65", "ref": "refs/*"},
            "claims.ref",
        ),
        (K.KUBERNETES, {"/kubernetes.io/namespace": "my-namespace"}, "claims.sub"),
        (K.KUBERNETES, {"sub": "system:serviceaccount:my-namespace"}, "claims.sub"),
        (K.GCP, {"sub": "deploy@my-project.iam.gserviceaccount.com"}, "claims.sub"),
        (K.GCP, {"email": "deploy@my-project.iam.gserviceaccount.com"}, "claims.sub"),
        (K.AZURE, {"oid": OID}, "claims.tid"),
        (K.AWS, {"sub": "arn:aws:sts::123456789012:assumed-role/Role/session"}, "claims.sub"),
        (K.SPIFFE, {"sub": "spiffe://example.com/ns/apps/sa/api"}, "claims.sub"),
        (K.SPIFFE, {"sub": "spiffe://example.org"}, "claims.sub"),
        (K.SPIFFE, {"sub": "spiffe://example.org/ns/../admin"}, "claims.sub"),
        (K.OIDC, {"sub": ""}, "claims.sub"),
        (K.OIDC, {"aud": "https://elsewhere.example"}, "claims.aud"),
    ],
)
def test_a_rule_that_would_let_others_in_is_refused(
    kind: IssuerKind, claims: dict[str, str], field: str
) -> None:
    problem = rule_problem(an_issuer(kind), a_rule(kind, claims))
    assert problem is not None
    assert problem[0] == field


def test_an_audience_of_its_own_is_azures_alone() -> None:
    for kind, (_, claims) in GOOD.items():
        rule = a_rule(kind, claims)
        other = rule.model_copy(update={"audience": None if kind is K.AZURE else APP})
        problem = rule_problem(an_issuer(kind), other)
        assert problem is not None
        assert problem[0] == "audience"


def test_a_recreated_service_account_is_another_one_by_its_uid() -> None:
    uid = {"/kubernetes.io/serviceaccount/uid": "14ee3fa4-a7e2-420f-9f9a-dbc4507c3798"}
    claims = {"sub": KUBERNETES["sub"], **uid}
    assert accepted(K.KUBERNETES, KUBERNETES, claims)
    again = {"name": "my-serviceaccount", "uid": "9a0bd49b-f040-43b0-99b7-22765a53f7f3"}
    recreated = {**KUBERNETES, "kubernetes.io": {**KUBERNETES["kubernetes.io"], "serviceaccount": again}}
    assert not accepted(K.KUBERNETES, recreated, claims)
    assert not accepted(K.KUBERNETES, {**KUBERNETES, "kubernetes.io": {"serviceaccount": "text"}}, claims)


def test_an_aws_session_cannot_name_the_role_of_whom_it_acts_for() -> None:
    """With SubjectMode OriginIdentity `sub` comes from outside, and `principal_id` is who asked."""
    asked = {**AWS, STS: {**AWS[STS], "principal_id": "arn:aws:iam::123456789012:role/Intern"}}
    assert not accepted(K.AWS, asked, GOOD[K.AWS][1])
    assert not accepted(K.AWS, {**AWS, STS: {}}, GOOD[K.AWS][1])
    assert accepted(K.AWS, AWS, GOOD[K.AWS][1], "ES384")
    assert not accepted(K.AWS, AWS, GOOD[K.AWS][1], "ES256")


@pytest.mark.parametrize(
    ("kind", "issuer"),
    [
        (K.OIDC, "https://token.actions.githubusercontent.com"),
        (K.OIDC, "https://TOKEN.actions.githubusercontent.com/octo"),
        (K.OIDC, "https://accounts.google.com"),
        (K.KUBERNETES, f"https://sts.windows.net/{TID}/"),
        (K.OIDC, AWS["iss"]),
        (K.AWS, "https://tokens.sts.global.api.aws.example"),
        (K.GCP, "https://accounts.google.com.example"),
        (K.SPIFFE, "https://example.org"),
        (K.SPIFFE, "spiffe://example.org/"),
        (K.SPIFFE, "spiffe://Example.org"),
        (K.SPIFFE, "spiffe://"),
    ],
)
def test_no_platform_is_taken_for_one_with_weaker_rules(kind: IssuerKind, issuer: str) -> None:
    assert kind_problem(kind, issuer) is not None


def test_the_last_good_keys_serve_for_a_day_and_a_token_causes_one_reading_in_five_minutes() -> None:
    key = ({"kty": "EC", "kid": "one"},)
    issuer = an_issuer(K.OIDC)
    assert (issuer.usable_keys(NOW), issuer.keys_next_at) == (None, None)
    for said, cached in ((None, 3600), (10, 300), (1e6, 43_200), (900, 900)):
        age = None if said is None else timedelta(seconds=said)
        read = issuer.with_keys(key, NOW, age)
        assert read.keys_next_at == NOW + timedelta(seconds=cached)
    failed = issuer.with_keys(key, NOW, None).with_problem("status 500", NOW + timedelta(hours=1))
    assert failed.usable_keys(NOW + timedelta(hours=23, minutes=59)) == key
    assert failed.usable_keys(NOW + timedelta(hours=24)) is None
    asked = issuer.model_copy(update={"keys_requested_at": NOW})
    assert (asked.is_being_read(NOW), asked.with_problem("status 500", NOW).is_being_read(NOW)) == (
        True,
        False,
    )
    assert not asked.may_request_keys(NOW + timedelta(minutes=4, seconds=59))
    assert asked.may_request_keys(NOW + timedelta(minutes=5))
