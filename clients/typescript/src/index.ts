/**
 * Evergrant's client: name a connection, get a working access token or a typed answer.
 *
 * The types of every route are generated from the server's OpenAPI document (`src/api.d.ts`).
 */

import createClient, { type Client } from 'openapi-fetch'
import type { components, paths } from './api.js'

export type { components, paths } from './api.js'

type LeaseBody = components['schemas']['LeaseBody']
type LeaseView = components['schemas']['LeaseView']
type ConnectionBody = components['schemas']['ConnectionBody']

/** A problem document of the server (RFC 9457). `code` is stable. */
interface Problem {
  code?: string
  detail?: string
  repair?: string
  connect_url?: string
  missing_scopes?: string
  moved_to?: string
  retry_after?: number
}

/** A working access token. `expires_at` is RFC 3339, or null if the token doesn't expire. */
export type Lease = { kind: 'lease' } & LeaseView

/** The subject has to consent: send them to `connectUrl`, once. */
export interface ConsentRequired {
  kind: 'consent_required'
  code: string
  connectUrl: string
}

export interface EvergrantOptions {
  /** The server's address, such as `https://evergrant.example`. */
  url: string
  /** An API key or an access token, or a function that returns one for each request. */
  apiKey: string | (() => string | Promise<string>)
  /** Milliseconds until a request that is repeated is given up; 30,000 unless told. */
  deadline?: number
  /**
   * Addresses of the operator's cells, to which a server may say that the tenant has moved: whole origins, or
   * `https://*.` with a domain. The key is sent there; nothing else is followed.
   */
  cells?: string[]
}

export interface LeaseOptions extends Omit<LeaseBody, 'integration' | 'subject' | 'label'> {
  label?: string
}

/** What the server refused. `code` is stable; `repair` says what ends the failure. */
export class EvergrantError extends Error {
  constructor(
    readonly code: string,
    readonly detail: string,
    readonly repair: string,
    readonly status: number | undefined,
  ) {
    super(`${code}: ${detail} (${repair})`)
    this.name = 'EvergrantError'
  }
}

export class Evergrant {
  /**
   * Every route, typed: `evergrant.api.GET('/v1/connections')`. Nothing is repeated here, and nothing raised but
   * `tenant_moved`, for an address that `cells` doesn't name.
   */
  readonly api: Client<paths>
  readonly #deadline: number
  readonly #cells: string[]
  readonly #given: string
  #url: string

  constructor({ url, apiKey, deadline = 30_000, cells = [] }: EvergrantOptions) {
    this.#deadline = deadline
    this.#cells = cells.map(withoutSlash)
    this.#given = this.#url = withoutSlash(url)
    this.api = createClient<paths>({ baseUrl: this.#given, fetch: (request) => this.#fetch(request) })
    this.api.use({
      async onRequest({ request }) {
        const key = typeof apiKey === 'string' ? apiKey : await apiKey()
        request.headers.set('Authorization', `Bearer ${key}`)
        return request
      },
    })
  }

  /** A token for the subject's account, or the link with which the subject consents. */
  async lease(integration: string, subject: string, options: LeaseOptions = {}): Promise<Lease | ConsentRequired> {
    const body = { label: 'default', ...options, integration, subject }
    const { data, problem, status } = await this.#repeated(() => this.api.POST('/v1/lease', { body }))
    if (data !== undefined) return { kind: 'lease', ...data }
    if (problem.connect_url !== undefined && problem.code !== undefined) {
      return { kind: 'consent_required', code: problem.code, connectUrl: problem.connect_url }
    }
    throw errorOf(problem, status)
  }

  /** The connection of these names, made if it isn't there; `connect_url` while a consent is awaited. */
  async connect(body: ConnectionBody): Promise<components['schemas']['ConnectionView']> {
    const key = crypto.randomUUID() // repeated, the request makes one connection
    const { data, problem, status } = await this.#repeated(() =>
      this.api.POST('/v1/connections', { body, headers: { 'Idempotency-Key': key } }),
    )
    if (data === undefined) throw errorOf(problem, status)
    return data
  }

  /** Sends a request where the tenant lives: after a cell has said that it has left (421), to its new one. */
  async #fetch(request: Request): Promise<Response> {
    const again = request.clone()
    const response = await fetch(await this.#at(request))
    if (response.status !== 421) return response
    const { code, moved_to: address } = (await response.clone().json().catch(() => ({}))) as Problem
    if (code !== 'tenant_moved' || address === undefined) return response
    const url = withoutSlash(address)
    if (!this.#cells.some((cell) => isCell(url, cell))) {
      const repair = "If this is your operator's cell, name it in `cells`, or give it as `url`."
      throw new EvergrantError('tenant_moved', `The tenant lives at ${url} now, as ${this.#url} says.`, repair, 421)
    }
    this.#url = url
    return fetch(await this.#at(again))
  }

  async #at(request: Request): Promise<Request> {
    if (this.#url === this.#given) return request
    const { method, headers, signal } = request
    const body = request.body === null ? null : await request.arrayBuffer() // whole: no chunks of unknown length
    return new Request(this.#url + request.url.slice(this.#given.length), { method, headers, body, signal })
  }

  /** Repeats what may succeed later (429, 503, no connection) until the deadline, as `Retry-After` says. */
  async #repeated<T>(
    send: () => Promise<{ data?: T; error?: unknown; response: Response }>,
  ): Promise<{ data: T | undefined; problem: Problem; status: number | undefined }> {
    const ends = Date.now() + this.#deadline
    for (let attempt = 0; ; attempt++) {
      let wait = Math.min(100 * 2 ** attempt, 5_000)
      try {
        const { data, error, response } = await send()
        const problem = typeof error === 'object' && error !== null ? (error as Problem) : {}
        const later = response.status === 429 || response.status === 503
        const seconds = Number(response.headers.get('Retry-After') ?? NaN)
        if (seconds >= 0) wait = seconds * 1_000
        if (!later || Number.isNaN(seconds) || Date.now() + wait > ends) {
          return { data, problem, status: response.status }
        }
      } catch (error) {
        if (!(error instanceof TypeError)) throw error // what `fetch` throws when there is no response
        if (Date.now() + wait > ends) {
          throw new EvergrantError('unreachable', error.message, 'Check the address and that the server runs.', undefined)
        }
      }
      await new Promise((resolve) => setTimeout(resolve, wait))
    }
  }
}

function errorOf(problem: Problem, status: number | undefined): EvergrantError {
  return new EvergrantError(
    problem.code ?? 'unknown',
    problem.detail ?? 'The answer is no problem document.',
    problem.repair ?? 'Check that the address is that of an Evergrant server.',
    status,
  )
}

function withoutSlash(url: string): string {
  return url.replace(/\/+$/, '')
}

/** Whether the address is this cell's, or one of the hosts below `https://*.`. */
function isCell(address: string, cell: string): boolean {
  if (!URL.canParse(address)) return false
  const url = new URL(address)
  if (url.origin !== address || (url.protocol !== 'https:' && url.hostname !== '127.0.0.1')) return false
  if (!cell.startsWith('https://*.')) return address === cell
  const allowed = new URL(cell.replace('*.', 'any.'))
  return url.port === allowed.port && url.hostname.endsWith(allowed.hostname.slice('any'.length))
}
