"""Checks of a definition by machine, before anybody approves it. Sends no secret and no code of anybody's.

What an endpoint answers to a request that can't succeed shows whether it is one: a token
endpoint refuses an unknown client in the words of RFC 6749 section 5.2, a web page doesn't.
"""

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

import httpx2

from evergrant_server.core.definition import HOSTS_CHECK, CheckLevel, CheckResult
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.egress import Egress
from providers.definition.schema import ProviderSpec
from providers.definition.schema_base import placeholders
from providers.definition.templates import checked_params, fill_template
from providers.definition.validation import problems_of
from providers.requests.client import STANDARD_HEADERS
from providers.responses.error_mapping import error_name, failure_of_reply, reply_fields
from providers.responses.raw_reply import RawReply

_DRY_RUN = {
    "grant_type": "authorization_code",
    "code": "evergrant-dry-run",
    "client_id": "evergrant-dry-run",
    "redirect_uri": "https://evergrant.invalid/",
}
_CATALOGUE_FIELDS = ("categories", "sources")  # how the catalogue is kept, nothing about a provider
_CREDENTIAL_FIELDS = (
    "token_endpoint",
    "refresh_endpoint",
    "refresh.url",
    "post_token_exchange.url",
    "request_token_endpoint",
    "oauth1.token_endpoint",
    "revocation_endpoint",
    "revocation.url",
    "introspection_endpoint",
    "device_authorization_endpoint",
    "pushed_authorization_request_endpoint",
    "api_base_url",  # where apps are told to send the tokens
)


async def check_definition(
    egress: Egress, spec: ProviderSpec, before: ProviderSpec | None
) -> list[CheckResult]:
    """What is found out about a definition; `before` is the one it would replace."""
    findings = [_usability_finding(spec), *_rule_findings(spec), *_host_findings(spec, before)]
    urls, unfilled = _endpoint_urls(spec)
    if unfilled:
        named = ", ".join(sorted(unfilled))
        findings.append(_warn("endpoints", f"not looked at, for want of parameters: {named}"))
    for name, url in urls.items():
        findings.append(await _probe_endpoint(egress, spec, name, url))
    return findings


def _usability_finding(spec: ProviderSpec) -> CheckResult:
    try:
        spec.require_any_flow()
    except Failure as failure:
        return _problem("schema", failure.detail)
    return _ok("schema", f"version {spec.version} says nothing that the flows can't honour")


def _rule_findings(spec: ProviderSpec) -> Iterable[CheckResult]:
    """What reads well and can't be meant; the catalogue has nothing of it."""
    for problem in problems_of(spec, spec.name):
        if problem.field.split(".")[0] not in _CATALOGUE_FIELDS:
            yield _warn("rules", f"{problem.field}: {problem.what}. {problem.repair}.")


def _host_findings(spec: ProviderSpec, before: ProviderSpec | None) -> Iterable[CheckResult]:
    """A replacement that sends secrets to a new host is for an admin to see."""
    if before is None:
        return
    new = _credential_hosts(spec) - _credential_hosts(before)
    if new:
        yield _warn(
            HOSTS_CHECK, f"tokens and client secrets would go to {', '.join(sorted(new))}, as they don't now"
        )
    else:
        yield _ok(HOSTS_CHECK, "tokens and client secrets go to no new host")


def _credential_hosts(spec: ProviderSpec) -> set[str]:
    """With defaults in place: another default is another host for whoever gave none."""
    urls, values = spec.credential_urls(), checked_params(spec, {})
    goes = [name for name in urls if name in _CREDENTIAL_FIELDS or name.startswith("post_auth.")]
    return {_host(urls[name], values) for name in goes}


def _host(template: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", value)
    return urlsplit(template).netloc


def _endpoint_urls(spec: ProviderSpec) -> tuple[dict[str, str], set[str]]:
    """The endpoints with default parameters in place, and those that need parameters nobody gave."""
    values = checked_params(spec, {})
    urls, unfilled = {}, set[str]()
    for name in ("authorization_endpoint", "token_endpoint", "refresh_endpoint"):
        template = spec.url_templates().get(name)
        if template is None:
            continue
        if placeholders(template) - set(values):
            unfilled.add(name)
        else:
            urls[name] = fill_template(template, values, spec)
    return urls, unfilled


async def _probe_endpoint(egress: Egress, spec: ProviderSpec, name: str, url: str) -> CheckResult:
    """One request through the guard: scheme, port, address, TLS, and what comes back."""
    try:
        async with egress.client(headers=STANDARD_HEADERS) as http:
            if name == "authorization_endpoint":
                return _authorization_page_finding(name, await http.get(url))
            return _token_endpoint_finding(spec, name, await http.post(url, data=_DRY_RUN))
    except Failure as failure:
        return _problem(name, failure.detail)
    except httpx2.TransportError as error:
        return _problem(name, f"{urlsplit(url).hostname} could not be reached ({type(error).__name__})")


def _authorization_page_finding(name: str, response: httpx2.Response) -> CheckResult:
    if response.status_code in (404, 405, 410):
        return _problem(name, f"there is no page: status {response.status_code}")
    if response.status_code >= 500:
        return _warn(name, f"it has trouble of its own: status {response.status_code}")
    return _ok(name, f"status {response.status_code}")


def _token_endpoint_finding(spec: ProviderSpec, name: str, response: httpx2.Response) -> CheckResult:
    reply = RawReply.of(response)
    try:
        error = error_name(spec, reply_fields(spec, reply))
    except Failure:
        error = None
    failure = failure_of_reply(spec, reply, error)
    if failure.code in (ErrorCode.GRANT_REJECTED, ErrorCode.CLIENT_REJECTED) and (
        error or reply.status == 401
    ):
        return _ok(name, f"refuses an unknown client as a token endpoint does: {failure.detail}")
    if failure.code in (ErrorCode.PROVIDER_RATE_LIMITED, ErrorCode.PROVIDER_ERROR) and reply.status != 400:
        return _warn(name, f"it has trouble of its own: {failure.detail}")
    if 400 <= reply.status < 500 and reply.status not in (404, 405, 410):
        return _warn(name, f"refuses in words of its own: {failure.detail}")
    return _problem(name, f"doesn't response as a token endpoint: {failure.detail}")


def _ok(check: str, detail: str) -> CheckResult:
    return CheckResult(check=check, level=CheckLevel.OK, detail=detail)


def _warn(check: str, detail: str) -> CheckResult:
    return CheckResult(check=check, level=CheckLevel.WARNING, detail=detail)


def _problem(check: str, detail: str) -> CheckResult:
    return CheckResult(check=check, level=CheckLevel.PROBLEM, detail=detail)
