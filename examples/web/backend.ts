// The connect element's backend in any server that has fetch's Request and Response: Node, Deno, Bun, Next, Hono.
import { Evergrant, EvergrantError } from 'evergrant'

/** From your session: who is logged in, and a random text of 43 letters or more that stays in the session. */
export interface Person { subject: string; verifier: string }

const OFFERS = [{ integration: 'crm', title: 'The CRM', logo: '/crm.svg' }]
const STATUS: Record<string, string> = { active: 'connected', needs_reauth: 'reconnect', pending_consent: 'pending', revoking: 'ending' }
const TURN: Record<string, string> = { subject: 'you', time: 'time', operator: 'operator' }

export async function answer(request: Request, evergrant: Evergrant, person: Person | undefined): Promise<Response> {
  const url = new URL(request.url), query = url.searchParams, label = query.get('label') ?? 'default'
  const [act, integration = ''] = url.pathname.split('/').slice(2)
  const back = (code: string) => new Response(null, { status: 303, headers: { Location: `/settings?evergrant=${code}` } })
  if (!person) return Response.json({ reason: 'Your login is over.', url: '/login' }, { status: 401 })
  if (request.method === 'POST' && request.headers.get('Sec-Fetch-Site') !== 'same-origin') return new Response(null, { status: 403 })
  const { subject, verifier } = person
  try {
    if (request.method === 'POST' && act === 'connect') {
      const digest = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(verifier))
      const challenge = btoa(String.fromCharCode(...new Uint8Array(digest))).replace(/\+/g, '-').replace(/\//g, '_').replace(/=/g, '')
      const opened = await evergrant.connect({ integration, subject, label, challenge, return_to: `${url.origin}/evergrant/connected` })
      return Response.json({ url: opened.connect_url ?? `/settings?evergrant=${opened.reason ?? opened.state}` })
    }
    if (act === 'connected') {
      const connection_id = query.get('connection_id') ?? '', code = query.get('evergrant_code')
      if (!code) return back(query.get('state') ?? 'failed')
      const { data, error } = await evergrant.api.POST('/v1/connections/{connection_id}/confirm', { params: { path: { connection_id } }, body: { code, subject, verifier } })
      return back(data?.reason ?? data?.state ?? (error as { code?: string } | undefined)?.code ?? 'failed')
    }
    const { data } = await evergrant.api.GET('/v1/connections', { params: { query: { subject, accounts: true } } })
    const own = (data?.items ?? []).filter((one) => one.state in STATUS)
    if (request.method === 'POST' && act === 'disconnect') {
      for (const { id } of own.filter((one) => one.integration === integration && one.label === label)) {
        await evergrant.api.POST('/v1/connections/{connection_id}/revoke', { params: { path: { connection_id: id } }, body: { reason: 'ended by its person' } })
      }
      return new Response(null, { status: 204 })
    }
    const shown = own.map(({ integration, label, account, state, failing_since, repairer }) => ({
      ...{ integration, label, account, status: state === 'active' && failing_since ? 'failing' : STATUS[state] },
      turn: state === 'needs_reauth' ? 'you' : failing_since && repairer ? (TURN[repairer] ?? 'admin') : null,
    }))
    return Response.json({ integrations: OFFERS.map((offer) => ({ ...offer, accounts: shown.filter((one) => one.integration === offer.integration) })) })
  } catch (error) {
    if (!(error instanceof EvergrantError)) throw error
    return Response.json({ turn: 'operator', reason: 'That did not work just now.' }, { status: 503 })
  }
}
