"""What `/scim/v2` serves: the user with the attributes that are kept, and the documents of discovery.

Of a person no more is asked for than a login and a match need; the standard's other attributes are ignored.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from scim2_models import (
    URN,
    AuthenticationScheme,
    Bulk,
    CaseExact,
    ChangePassword,
    ComplexAttribute,
    ETag,
    Filter,
    InvalidValueException,
    Meta,
    Patch,
    Required,
    Resource,
    ResourceType,
    Schema,
    ScimPolicy,
    ServiceProviderConfig,
    Sort,
    Uniqueness,
)

from evergrant_server.core.people.leavers import DirectoryUser, Email, user_key
from evergrant_server.core.text import is_storable_text

ROOT = "/scim/v2"
MOST_LISTED = 200
_LONGEST, _MOST_EMAILS = 320, 20
# as identity providers send it: Microsoft Entra names what it removes by a value, Okta sends a whole person
POLICY = ScimPolicy(
    unknown=ScimPolicy.Unknown.ignore,
    remove_value_as_filter=ScimPolicy.RemoveValue.apply,
    unmatched_path_filter=ScimPolicy.UnmatchedPathFilter.create,
)


class ScimEmail(ComplexAttribute):
    """One address. It is the tenant's directory that vouches for it."""

    value: str | None = None
    """The address."""

    type: str | None = None
    """What it is for, such as work."""

    primary: bool | None = None
    """Whether it is the one that a match looks at."""


class ScimUser(Resource[Any]):
    """A person of the tenant (RFC 7643 section 4.1), as far as Evergrant keeps one."""

    __schema__ = URN("urn:ietf:params:scim:schemas:core:2.0:User")

    user_name: Annotated[str | None, Uniqueness.server, Required.true] = None
    """The name with which the person logs in at the tenant's issuer."""

    display_name: Annotated[str | None, CaseExact.true] = None
    """The name that admins read."""

    active: bool | None = None
    """Whether the person works for the tenant: false begins their offboarding."""

    emails: list[ScimEmail] | None = None
    """The person's addresses."""


def resource_of(user: DirectoryUser, base_url: str) -> ScimUser:
    """The user as it is served."""
    emails = [ScimEmail(value=email.value, type=email.type, primary=email.primary) for email in user.emails]
    return ScimUser(
        id=user.id,
        external_id=user.external_id,
        user_name=user.user_name,
        display_name=user.display_name,
        active=user.active,
        emails=emails or None,
        meta=Meta(
            resource_type="User",
            created=user.created_at,
            last_modified=user.changed_at,
            location=f"{base_url}{ROOT}/Users/{user.id}",
        ),
    )


def members_of(resource: ScimUser) -> Mapping[str, Any]:
    """The fields of a user that a directory has sent. Raises SCIMException for what no row can hold."""
    assert resource.user_name is not None  # scim2-models demands it
    if not resource.user_name.strip():
        raise InvalidValueException(detail="userName must not be empty.")
    _require_text("userName", resource.user_name)
    _require_text("externalId", resource.external_id or "")
    _require_text("displayName", resource.display_name or "")
    if len(resource.emails or ()) > _MOST_EMAILS:
        raise InvalidValueException(detail=f"A user has at most {_MOST_EMAILS} emails.")
    for email in resource.emails or ():
        _require_text("emails", f"{email.value or ''}{email.type or ''}")
    emails = [
        Email(value=email.value, type=email.type, primary=email.primary)
        for email in resource.emails or ()
        if email.value
    ]
    return {
        "user_name": resource.user_name,
        "user_key": user_key(resource.user_name),
        "external_id": resource.external_id,
        "display_name": resource.display_name,
        "active": resource.active,
        "emails": tuple(emails),
    }


def _require_text(attribute: str, text: str) -> None:
    if len(text) > _LONGEST or not is_storable_text(text):
        raise InvalidValueException(
            detail=f"{attribute} has at most {_LONGEST} characters, none of them NUL or half a character."
        )


def service_provider_config(base_url: str) -> ServiceProviderConfig:
    """What of SCIM is supported (RFC 7643 section 5)."""
    key = AuthenticationScheme(
        type=AuthenticationScheme.Type.oauthbearertoken,
        name="API key",
        description="A key of an app with the action directory, as a bearer token (RFC 6750)",
        primary=True,
    )
    return ServiceProviderConfig(
        patch=Patch(supported=True),
        bulk=Bulk(supported=False, max_operations=0, max_payload_size=0),
        filter=Filter(supported=True, max_results=MOST_LISTED),
        change_password=ChangePassword(supported=False),
        sort=Sort(supported=False),
        etag=ETag(supported=False),
        authentication_schemes=[key],
        meta=Meta(resource_type="ServiceProviderConfig", location=f"{base_url}{ROOT}/ServiceProviderConfig"),
    )


def resource_types(base_url: str) -> list[ResourceType]:
    """Users alone (RFC 7643 section 6)."""
    users = ResourceType.from_resource(ScimUser)
    users.description = "A person of the tenant"
    users.meta = Meta(resource_type="ResourceType", location=f"{base_url}{ROOT}/ResourceTypes/User")
    return [users]


def schemas(base_url: str) -> list[Schema]:
    """The attributes of a user (RFC 7643 section 7)."""
    user = ScimUser.to_schema()
    user.name, user.description = "User", "A person of the tenant"
    user.meta = Meta(resource_type="Schema", location=f"{base_url}{ROOT}/Schemas/{user.id}")
    return [user]
