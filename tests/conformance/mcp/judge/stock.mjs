// The TypeScript SDK's client, which is given a server's URL and nothing else. It prints the address that a person
// has to open, reads from its input the address to which the browser came back, and prints the server's tools.
//
//   node stock.mjs FOLDER_WITH_NODE_MODULES URL REDIRECT_URI
import { createRequire } from 'node:module';
import { createInterface } from 'node:readline/promises';
import { pathToFileURL } from 'node:url';

const [, , packages, url, redirect] = process.argv;
const resolve = createRequire(pathToFileURL(`${packages}/`)).resolve;
const load = (name) => import(pathToFileURL(resolve(`@modelcontextprotocol/sdk/client/${name}.js`)));
const { Client } = await load('index');
const { StreamableHTTPClientTransport } = await load('streamableHttp');

const kept = {};
const person = {
  redirectUrl: redirect,
  clientMetadata: { client_name: 'Coder in TypeScript', redirect_uris: [redirect], token_endpoint_auth_method: 'none' },
  clientInformation: () => kept.client,
  saveClientInformation: (client) => { kept.client = client; },
  tokens: () => kept.tokens,
  saveTokens: (tokens) => { kept.tokens = tokens; },
  saveCodeVerifier: (verifier) => { kept.verifier = verifier; },
  codeVerifier: () => kept.verifier,
  redirectToAuthorization: (address) => console.log(String(address)),
};
const transport = () => new StreamableHTTPClientTransport(new URL(url), { authProvider: person });
const newClient = () => new Client({ name: 'coder', version: '1' });

const first = transport();
await newClient().connect(first).then(
  () => { throw new Error('it was let in without a person'); },
  (error) => { if (error.constructor.name !== 'UnauthorizedError') throw error; },
);
const back = await createInterface({ input: process.stdin }).question('');
await first.finishAuth(new URL(back).searchParams.get('code'));
const client = newClient();
await client.connect(transport());
console.log(JSON.stringify((await client.listTools()).tools.map((tool) => tool.name)));
await client.close();
process.exit(0); // its reader of the input would wait for more
