"""The routes: django-oauth-toolkit's endpoints, a login page, a resource, and the control API."""

import hashlib
import json
from collections.abc import Callable
from functools import wraps

from django.conf import settings
from django.contrib.auth.views import LoginView
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path
from django.utils.crypto import constant_time_compare
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods
from oauth2_provider import views as oauth
from oauth2_provider.decorators import protected_resource_metadata
from oauth2_provider.models import get_access_token_model, get_refresh_token_model
from oauth2_provider.urls import metadata_urlpatterns
from oauth2_provider.utils import parse_bearer_token

from examples.authorization_server.clients import register
from examples.authorization_server.observing import counts, hold
from examples.authorization_server.options import SeededClient

View = Callable[[HttpRequest], HttpResponse]


class Metadata(oauth.OAuthServerMetadataView):
    """The toolkit's metadata with the device authorization endpoint, which it omits (RFC 8628 section 4)."""

    def get(self, request: HttpRequest, *args: object, **kwargs: object) -> JsonResponse:
        metadata = json.loads(super().get(request, *args, **kwargs).content)
        return JsonResponse(
            {**metadata, "device_authorization_endpoint": f"{metadata['issuer']}/device-authorization/"}
        )


@require_http_methods(["GET"])
@protected_resource_metadata(scopes=["read"])
def whoami(request: HttpRequest) -> JsonResponse:
    """The protected resource. Answers 401 with a Bearer challenge without a valid token (RFC 6750)."""
    bearer = parse_bearer_token(request.META["HTTP_AUTHORIZATION"]) or ""
    checksum = hashlib.sha256(bearer.encode()).hexdigest()
    token = get_access_token_model().objects.select_related("user").get(token_checksum=checksum)
    return JsonResponse({"user": token.user.get_username(), "scopes": sorted(token.scope.split())})


@csrf_exempt
@require_http_methods(["POST"])
@protected_resource_metadata(scopes=["read"])
def add_note(request: HttpRequest) -> JsonResponse:
    """A call that changes something: counts the notes, and says what was written."""
    counts.called("note")
    return JsonResponse({"note": json.loads(request.body)["note"]}, status=201)


def controlled(view: View) -> View:
    """Require the control key, which is in the credentials file."""

    @csrf_exempt
    @wraps(view)
    def checked(request: HttpRequest) -> HttpResponse:
        if not constant_time_compare(request.META.get("HTTP_X_CONTROL_KEY", ""), settings.CONTROL_KEY):
            return JsonResponse({"error": "X-Control-Key is missing or wrong"}, status=403)
        return view(request)

    return checked


@controlled
@require_http_methods(["POST"])
def add_client(request: HttpRequest) -> JsonResponse:
    """Register a confidential client: `{client_id, client_secret, redirect_uri, grant_type?}`."""
    register(SeededClient(**json.loads(request.body)))
    return JsonResponse({"registered": True}, status=201)


@controlled
@require_http_methods(["GET"])
def show_counts(request: HttpRequest) -> JsonResponse:
    return JsonResponse(counts.snapshot())


@controlled
@require_http_methods(["GET"])
def show_issued(request: HttpRequest) -> JsonResponse:
    """The numbers of live and spent refresh tokens, and every code, verifier and token that was sent."""
    tokens = get_refresh_token_model().objects
    return JsonResponse(
        {
            "live": tokens.filter(revoked__isnull=True).count(),
            "spent": tokens.filter(revoked__isnull=False).count(),
            "secrets": counts.secrets(),
        }
    )


@controlled
@require_http_methods(["GET", "POST", "DELETE"])
def withhold(request: HttpRequest) -> JsonResponse:
    """POST `{grant_type}` withholds its next answer, DELETE releases it, GET shows the state."""
    if request.method == "POST":
        hold.arm(json.loads(request.body)["grant_type"])
    elif request.method == "DELETE":
        hold.release()
    return JsonResponse(hold.snapshot())


oauth_urlpatterns = [
    path(".well-known/oauth-authorization-server", Metadata.as_view(), name="oauth-server-metadata"),
    *metadata_urlpatterns,
    path("authorize/", oauth.AuthorizationView.as_view(), name="authorize"),
    path("token/", oauth.TokenView.as_view(), name="token"),
    path("revoke_token/", oauth.RevokeTokenView.as_view(), name="revoke-token"),
    path("register/", oauth.DynamicClientRegistrationView.as_view(), name="dcr-register"),
    path(
        "register/<str:client_id>/",
        oauth.DynamicClientRegistrationManagementView.as_view(),
        name="dcr-register-management",
    ),
    path("introspect/", oauth.IntrospectTokenView.as_view(), name="introspect"),
    path("device-authorization/", oauth.DeviceAuthorizationView.as_view(), name="device-authorization"),
    path("device/", oauth.DeviceUserCodeView.as_view(), name="device"),
    path(
        "device-confirm/<slug:client_id>/<slug:user_code>",
        oauth.DeviceConfirmView.as_view(),
        name="device-confirm",
    ),
    path(
        "device-grant-status/<slug:client_id>/<slug:user_code>",
        oauth.DeviceGrantStatusView.as_view(),
        name="device-grant-status",
    ),
]

urlpatterns = [
    path("", include((oauth_urlpatterns, "oauth2_provider"))),
    path("login/", LoginView.as_view(), name="login"),
    path("api/whoami", whoami),
    path("api/notes", add_note),
    path("_demo/clients", add_client),
    path("_demo/counts", show_counts),
    path("_demo/issued", show_issued),
    path("_demo/hold", withhold),
]
