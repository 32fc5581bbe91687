// @cloudflare/workers-oauth-provider in workerd, for end-to-end tests (tests/fakes/providers/real_servers.py).
// Cloudflare's key-value store is in memory here. The library has no users of its own: whoever `login_hint`
// names consents. It names the resource that its tokens are for (`protected_resources` of RFC 9728).
import { OAuthAuthorizationServer } from '@cloudflare/workers-oauth-provider';

const RESOURCE = 'https://api.example/v1';
const rows = new Map();
const store = {
  async get(key, options) {
    const row = rows.get(key);
    if (row === undefined) return null;
    return (options?.type ?? options) === 'json' ? JSON.parse(row.value) : row.value;
  },
  async put(key, value, options) { rows.set(key, { value, metadata: options?.metadata ?? null }); },
  async delete(key) { rows.delete(key); },
  async list({ prefix = '' } = {}) {
    const names = [...rows.keys()].filter((name) => name.startsWith(prefix)).sort();
    return { keys: names.map((name) => ({ name, metadata: rows.get(name).metadata })), list_complete: true };
  },
};
const env = { OAUTH_KV: store };
let oauth;
let client;
let resource; // that the newest authorization request named

async function control(wanted, helpers) {
  if (wanted.redirect_uri) {
    const metadata = { clientName: 'Evergrant', tokenEndpointAuthMethod: 'client_secret_basic' };
    client = await helpers.createClient({ ...metadata, redirectUris: [wanted.redirect_uri] });
  }
  if (wanted.end_grants_of) {
    const { items } = await helpers.listUserGrants(wanted.end_grants_of);
    for (const grant of items) await helpers.revokeGrant(grant.id, wanted.end_grants_of);
  }
  const valid = Boolean(wanted.token && await oauth.validateToken(RESOURCE, wanted.token, env));
  return Response.json({ client_id: client.clientId, client_secret: client.clientSecret, resource, valid });
}

async function authorize(request, helpers) {
  const asked = await helpers.parseAuthRequest(request);
  const { searchParams } = new URL(request.url);
  const userId = searchParams.get('login_hint') ?? 'sam';
  resource = searchParams.get('resource');
  const { redirectTo } = await helpers.completeAuthorization({
    request: asked, userId, metadata: {}, scope: asked.scope, props: { userId },
  });
  return Response.redirect(redirectTo, 302);
}

export default {
  async fetch(request, bound, context) {
    const { origin, pathname } = new URL(request.url);
    oauth ??= new OAuthAuthorizationServer({
      issuer: origin, resources: [RESOURCE], defaultResource: RESOURCE, scopesSupported: ['read', 'offline_access'],
    });
    const helpers = oauth.getOAuthApi(env);
    if (pathname === '/_test') return control(await request.json(), helpers);
    if (pathname === '/authorize') return authorize(request, helpers);
    return oauth.fetch(request, env, context);
  },
};
