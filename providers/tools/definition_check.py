"""Checks a proposed definition before an admin decides about it. Sends no secret.

A request of an unknown client shows whether a URL is a token endpoint: only a token endpoint refuses
it as RFC 6749 section 5.2 describes.
"""

from collections.abc import Iterable
from functools import partial
from urllib.parse import urlsplit

import httpx2

from evergrant_server.core.definition import HOSTS_CHECK, CheckLevel, CheckResult
from evergrant_server.core.errors import ErrorCode, Failure
from evergrant_server.egress import Egress, why_unreachable
from providers.definition.schema import ProviderSpec
from providers.definition.schema_base import placeholders
from providers.definition.templates import checked_params, fill_template
from providers.definition.validation import problems_of
from providers.requests.request_format import STANDARD_HEADERS
from providers.responses.error_mapping import error_name, failure_of_reply
from providers.responses.raw_reply import RawReply

_DRY_RUN = {
    "grant_type": "authorization_code",
    "code": "evergrant-dry-run",
    "client_id": "evergrant-dry-run",
    "redirect_uri": "https://evergrant.invalid/",
}
_CATALOGUE_FIELDS = ("categories", "sources")  # about the catalogue, not the provider
# URLs that get no secret; apps send tokens to `api_base_url`
_NO_CREDENTIAL_FIELDS = {
    "authorization_endpoint",
    "oauth1.authorization_endpoint",
    "registration_endpoint",
    "issuer",
}


async def check_definition(
    egress: Egress, spec: ProviderSpec, before: ProviderSpec | None
) -> list[CheckResult]:
    """The findings about a definition; `before` is the one that it would replace."""
    findings = [_usability_finding(spec), *_rule_findings(spec), *_host_findings(spec, before)]
    urls, unfilled = _endpoint_urls(spec)
    if unfilled:
        named = ", ".join(sorted(unfilled))
        findings.append(_warn("endpoints", f"not checked, since parameters are missing: {named}"))
    for name, url in urls.items():
        findings.append(await _probe_endpoint(egress, spec, name, url))
    return findings


def _usability_finding(spec: ProviderSpec) -> CheckResult:
    try:
        spec.require_any_flow()
    except Failure as failure:
        return _problem("schema", failure.detail)
    return _ok("schema", f"version {spec.version} has only supported fields")


def _rule_findings(spec: ProviderSpec) -> Iterable[CheckResult]:
    for problem in problems_of(spec, spec.name):
        if problem.field.split(".")[0] not in _CATALOGUE_FIELDS:
            yield _warn("rules", f"{problem.field}: {problem.what}. {problem.repair}.")


def _host_findings(spec: ProviderSpec, before: ProviderSpec | None) -> Iterable[CheckResult]:
    """A warning about new hosts of secrets, for the admin who decides."""
    if before is None:
        return
    new = _credential_hosts(spec) - _credential_hosts(before)
    if new:
        yield _warn(HOSTS_CHECK, f"tokens and client secrets would go to new hosts: {', '.join(sorted(new))}")
    else:
        yield _ok(HOSTS_CHECK, "tokens and client secrets go to no new host")


def _credential_hosts(spec: ProviderSpec) -> set[str]:
    """The hosts that get secrets, with the defaults of template parameters filled in."""
    urls, values = spec.credential_urls(), checked_params(spec, {})
    hosts: set[str] = set()
    for field in urls.keys() - _NO_CREDENTIAL_FIELDS:
        url = urls[field]
        for name, value in values.items():
            url = url.replace(f"{{{name}}}", value)
        hosts.add(urlsplit(url).netloc)
    return hosts


def _endpoint_urls(spec: ProviderSpec) -> tuple[dict[str, str], set[str]]:
    """The endpoints with default parameters filled in, and those whose parameters have no default."""
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
    """Send one request, through the egress policy, and judge the reply."""
    try:
        async with egress.client(headers=STANDARD_HEADERS) as http:
            if name == "authorization_endpoint":
                return _authorization_page_finding(name, await http.get(url))
            return _token_endpoint_finding(spec, name, await http.post(url, data=_DRY_RUN))
    except Failure as failure:
        return _problem(name, failure.detail)
    except httpx2.TransportError as error:
        return _problem(name, why_unreachable(error))


def _authorization_page_finding(name: str, response: httpx2.Response) -> CheckResult:
    if response.status_code in (404, 405, 410):
        return _problem(name, f"no page: status {response.status_code}")
    if response.status_code >= 500:
        return _warn(name, f"the server fails: status {response.status_code}")
    return _ok(name, f"status {response.status_code}")


def _token_endpoint_finding(spec: ProviderSpec, name: str, response: httpx2.Response) -> CheckResult:
    reply = RawReply.of(response)
    error = error_name(spec, reply)
    failure = failure_of_reply(spec, reply, error)
    if failure.code in (ErrorCode.GRANT_REJECTED, ErrorCode.CLIENT_REJECTED) and (
        error or reply.status == 401
    ):
        return _ok(name, f"refuses an unknown client, as a token endpoint does: {failure.detail}")
    if failure.code in (ErrorCode.PROVIDER_RATE_LIMITED, ErrorCode.PROVIDER_ERROR) and reply.status != 400:
        return _warn(name, f"the server fails: {failure.detail}")
    if 400 <= reply.status < 500 and reply.status not in (404, 405, 410):
        return _warn(name, f"refuses in another way: {failure.detail}")
    return _problem(name, f"doesn't reply as a token endpoint does: {failure.detail}")


def _finding(level: CheckLevel, check: str, detail: str) -> CheckResult:
    return CheckResult(check=check, level=level, detail=detail)


_ok = partial(_finding, CheckLevel.OK)
_warn = partial(_finding, CheckLevel.WARNING)
_problem = partial(_finding, CheckLevel.PROBLEM)
