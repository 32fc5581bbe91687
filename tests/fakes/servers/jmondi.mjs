// @jmondi/oauth2-server on a free port of loopback, for end-to-end tests (tests/fakes/providers/real_servers.py).
// The library leaves storage to whoever uses it: here it is in memory. It has no metadata and no users of its
// own: whoever `login_hint` names consents.
//
//   node jmondi.mjs FOLDER_WITH_NODE_MODULES
import { randomBytes } from 'node:crypto';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const require = createRequire(pathToFileURL(`${process.argv[2]}/`));
const { AuthorizationServer, DateInterval } = require('@jmondi/oauth2-server');
const { handleVanillaError, requestFromVanilla, responseToVanilla } = require('@jmondi/oauth2-server/vanilla');

const random = () => randomBytes(32).toString('hex');
const client = { id: 'evergrant', name: 'Evergrant', secret: random(), redirectUris: [], scopes: [],
  allowedGrants: ['authorization_code', 'refresh_token'] };
const codes = new Map();
const tokens = [];

const clients = {
  getByIdentifier: async (id) => (id === client.id ? client : undefined),
  isClientValid: async (grant, known, secret) => secret === known.secret,
};
const tokenRows = {
  issueToken: async (known, scopes, user) => ({ accessToken: random(), client: known, scopes, user, revoked: false }),
  issueRefreshToken: async (token) => Object.assign(token, {
    refreshToken: random(), refreshTokenExpiresAt: new DateInterval('30d').getEndDate(),
  }),
  persist: async (token) => { tokens.push(token); },
  revoke: async (token) => { token.revoked = true; },
  isRefreshTokenRevoked: async (token) => token.revoked,
  getByRefreshToken: async (value) => tokens.find((token) => token.refreshToken === value),
};
const scopes = {
  getAllByIdentifiers: async (names) => names.map((name) => ({ name })),
  finalize: async (asked) => asked,
};
const codeRows = {
  issueAuthCode: (known, user, asked) => ({ code: random(), client: known, user, scopes: asked }),
  persist: async (code) => { codes.set(code.code, code); },
  getByIdentifier: async (code) => codes.get(code),
  isRevoked: async (code) => codes.get(code).revoked === true,
  revoke: async (code) => { codes.get(code).revoked = true; },
};
const users = { getUserByCredentials: async (id) => ({ id }) };

const oauth = new AuthorizationServer(clients, tokenRows, scopes, random());
oauth.enableGrantTypes('refresh_token', { grant: 'authorization_code', userRepository: users, authCodeRepository: codeRows });

const control = (wanted) => {
  if (wanted.redirect_uri) client.redirectUris = [wanted.redirect_uri];
  for (const token of tokens) if (token.user.id === wanted.end_grants_of) token.revoked = true;
  return Response.json({ client_id: client.id, client_secret: client.secret });
};

const respond = async (request) => {
  const { pathname, searchParams } = new URL(request.url);
  if (pathname === '/_test') return control(await request.json());
  try {
    const asked = await requestFromVanilla(request);
    if (pathname === '/token') return responseToVanilla(await oauth.respondToAccessTokenRequest(asked));
    const authorization = await oauth.validateAuthorizationRequest(asked);
    Object.assign(authorization, { user: { id: searchParams.get('login_hint') }, isAuthorizationApproved: true });
    return responseToVanilla(await oauth.completeAuthorizationRequest(authorization));
  } catch (error) {
    return responseToVanilla(handleVanillaError(error));
  }
};

const server = createServer(async (incoming, outgoing) => {
  const parts = [];
  for await (const part of incoming) parts.push(part);
  const { method, url, headers } = incoming;
  const reply = await respond(new Request(`${issuer}${url}`, {
    method, headers: Object.entries(headers), body: method === 'POST' ? Buffer.concat(parts) : undefined,
  }));
  outgoing.writeHead(reply.status, Object.fromEntries(reply.headers));
  outgoing.end(Buffer.from(await reply.arrayBuffer()));
});
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
const issuer = `http://127.0.0.1:${server.address().port}`;
process.on('SIGTERM', () => process.exit(0));
console.log(JSON.stringify({ issuer, control: `${issuer}/_test` }));
