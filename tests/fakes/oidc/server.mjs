// panva's oidc-provider on a free port of loopback, for end-to-end tests (tests/fakes/providers/oidc_provider.py).
// Anybody may register a client (RFC 7591) and log in as anybody. It remembers what it was asked at
// its OAuth endpoints, and forgets everything when it ends.
//
//   node server.mjs FOLDER_WITH_NODE_MODULES '{"accessTokenSeconds": 6, "requirePar": true, ...}'
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [, , packages, given] = process.argv;
const defaults = { accessTokenSeconds: 3600, nonceFor: 'wants a nonce', requirePar: false };
const options = { ...defaults, ...JSON.parse(given) };
console.info = console.warn = () => {}; // its advice to whoever would run it in production
const resolve = createRequire(pathToFileURL(`${packages}/`)).resolve;
const { default: Provider, errors } = await import(pathToFileURL(resolve('oidc-provider')));

const API = 'https://api.example/v1'; // the resource that tokens may be for (RFC 8707)
const server = createServer();
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
const issuer = `http://127.0.0.1:${server.address().port}`;
const calls = [];
const grantOf = {}; // by account, the newest
const disabled = new Set();
const newKey = (kid) => {
  const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { ...privateKey.export({ format: 'jwk' }), alg: 'ES256', use: 'sig', kid };
};

// its forms have their button outside, which is for browsers that run scripts
const withButton = (form, label) => form.replace('</form>', `<button type="submit">${label}</button></form>`);

const makeProvider = (kid) => new Provider(issuer, {
  jwks: { keys: [newKey(kid)] },
  extraTokenClaims: () => options.claims, // of access tokens that are JWTs
  clientDefaults: { id_token_signed_response_alg: 'ES256' },
  cookies: { keys: [randomBytes(32).toString('hex')] },
  scopes: ['openid', 'offline_access', 'read', 'write', 'groups'],
  claims: { openid: ['sub'], email: ['email', 'email_verified'], groups: ['groups'] }, // the address at the UserInfo endpoint alone
  rotateRefreshToken: true, // and whoever uses one twice loses the grant
  issueRefreshToken: async (ctx, client) => client.grantTypeAllowed('refresh_token'),
  findAccount: async (ctx, id) => (disabled.has(id) ? undefined : {
    accountId: id,
    claims: async () => ({ sub: id, email: `${id}@corp.example`, email_verified: !id.startsWith('new-'), groups: [id.split('-')[0]] }),
  }),
  pkce: { required: () => true },
  ttl: {
    AccessToken: options.accessTokenSeconds,
    ClientCredentials: options.accessTokenSeconds,
    DeviceCode: 600,
    RefreshToken: 86400,
    PushedAuthorizationRequest: 60,
    Grant: 86400,
    Interaction: 600,
    Session: 86400,
  },
  features: {
    clientCredentials: { enabled: true },
    introspection: { enabled: true },
    registration: { enabled: true },
    registrationManagement: { enabled: true },
    revocation: { enabled: true },
    pushedAuthorizationRequests: {
      enabled: true,
      requirePushedAuthorizationRequests: options.requirePar,
    },
    dPoP: { enabled: true, nonceSecret: randomBytes(32), requireNonce: (ctx) => ctx.oidc.client?.clientName === options.nonceFor },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: async (ctx, indicator) => {
        if (indicator === API) return { scope: 'read write', accessTokenFormat: 'opaque', audience: API };
        if (!options.claims) throw new errors.InvalidTarget();
        const jwt = { sign: { alg: 'ES256' } };
        return { scope: 'read write', accessTokenFormat: 'jwt', audience: indicator, jwt };
      },
    },
    deviceFlow: {
      enabled: true,
      userCodeInputSource: async (ctx, form) => { ctx.body = withButton(form, 'Continue'); },
      userCodeConfirmSource: async (ctx, form) => { ctx.body = withButton(form, 'Continue'); },
    },
  },
});

const watch = async (ctx, next) => {
  if (ctx.path === '/_test/calls') {
    ctx.body = calls;
    return;
  }
  if (ctx.path === '/_test/rotate') { // another key from now on, and no client
    serve(ctx.query.kid);
    ctx.body = {};
    return;
  }
  if (ctx.path === '/_test/end') { // what a person does on a page of theirs
    await (await provider.Grant.find(grantOf[ctx.query.account])).destroy();
    ctx.body = {};
    return;
  }
  if (ctx.path === '/_test/disable') {
    disabled.add(ctx.query.account);
    ctx.body = {};
    return;
  }
  await next();
  const { route, params, body } = ctx.oidc ?? {};
  const grant = ctx.oidc?.entities.Grant;
  if (grant?.accountId) grantOf[grant.accountId] = grant.jti;
  if (!['token', 'pushed_authorization_request', 'authorization', 'revocation'].includes(route)) return;
  const asked = route === 'authorization' ? Object.fromEntries(new URLSearchParams(ctx.querystring)) : body;
  calls.push({
    route,
    status: ctx.status,
    error: ctx.body?.error ?? null,
    client_id: ctx.oidc.client?.clientId ?? null,
    grant_type: params?.grant_type ?? null,
    proof: Boolean(ctx.get('dpop')),
    asked: asked ?? {},
  });
};

let answer;
let provider;
const serve = (kid) => {
  provider = makeProvider(kid);
  provider.use(watch);
  answer = provider.callback();
};
serve('only');
server.on('request', (request, response) => answer(request, response));
process.on('SIGTERM', () => process.exit(0));
console.log(JSON.stringify({ issuer, resource: API }));
