/**
 * `<evergrant-connect base="/evergrant">`: which accounts a person has connected, and the buttons that connect,
 * reconnect and end them, for a product's own settings page.
 *
 * It talks to the product's own backend alone, and never sees a token or a key. README.md has the contract.
 */

/** Who has to act: the person, an administrator, nobody but time, or those who run the product. */
export type Turn = 'you' | 'admin' | 'time' | 'operator'
export type Status = 'connected' | 'failing' | 'reconnect' | 'pending' | 'choose' | 'ending'

export interface Account {
  /** Tells several accounts of one person at one integration apart: what the product leases with. */
  label: string
  /** The name that the provider gave, such as an email address. */
  account?: string | null
  status: Status
  turn?: Turn | null
  /** Why, in plain words. Without it the element says what the status means. */
  reason?: string | null
}

export interface Integration {
  integration: string
  title: string
  logo?: string | null
  /** Whether a person may connect several accounts. */
  several?: boolean
  accounts: Account[]
}

/** What happened: how a consent ended, or why a request was refused. `url` is where it goes on. */
export interface Notice {
  status?: string
  turn?: Turn | null
  reason?: string | null
  url?: string | null
}

/** What `GET connections` answers. `headers` are sent back with each POST. */
export interface Connections {
  integrations: Integration[]
  headers?: Record<string, string>
  notice?: Notice | null
}

/** Every text that the element shows. `{name}` is the title, with the account's name where there is one. */
export const WORDS = {
  connect: 'Connect',
  reconnect: 'Reconnect',
  another: 'Connect another account',
  disconnect: 'Disconnect',
  keep: 'Keep it',
  confirm: 'Disconnect {name}?',
  ends: "It can't be used from then on, and the access that you gave is revoked. You can connect it again.",
  ended: '{name} is disconnected.',
  use: 'Use {name}',
  again: 'Try again',
  login: 'Log in',
  none: 'Not connected',
  empty: 'There is nothing to connect.',
  unreachable: "Your connections can't be shown just now.",
  connected: 'Connected',
  failing: 'Connected, with trouble',
  reconnect_status: 'Connect again',
  pending: 'Not finished',
  choose: 'No account chosen',
  ending: 'Being ended',
  you: 'It is your turn.',
  admin: "It is an administrator's turn.",
  time: 'It needs only time.',
  operator: 'It is our turn.',
}
export type Words = typeof WORDS

const STYLE = `
:host {
display: block;
color: var(--_i);
--_i: var(--evergrant-ink, light-dark(#17211b, #eaf1ec));
--_s: var(--evergrant-soft, light-dark(#4c5a51, #a9b8ae));
--_l: var(--evergrant-line, light-dark(#d5ded7, #3c4942));
--_a: var(--evergrant-accent, light-dark(#1d6b3f, #6fce96));
--_o: var(--evergrant-on-accent, light-dark(#fff, #0c1a11));
--_b: var(--evergrant-bad, light-dark(#a3261f, #ff9a91));
--_r: var(--evergrant-radius, .6rem);
}
:host([hidden]) { display: none }
:host([theme=light]) { color-scheme: light }
:host([theme=dark]) { color-scheme: dark }
ul, p, h2 { margin: 0; padding: 0; list-style: none; font: inherit }
[part=item] { padding: 1rem 0; border-bottom: 1px solid var(--_l) }
[part=item]:last-child { border: 0 }
.row, .acts { display: flex; flex-wrap: wrap; gap: .5rem .8rem; align-items: center }
label { display: flex; gap: .6rem; align-items: baseline; cursor: pointer }
span { display: block }
.row + ul { margin-left: 3.05rem }
li.row { margin-top: .7rem }
.text { flex: 1 6rem; min-width: 0; overflow-wrap: anywhere }
li li .text { flex-basis: 14rem }
[part=title], h2 { font-weight: 600 }
[part=logo] { width: 2.25rem; height: 2.25rem; border-radius: .5rem; object-fit: contain; font-weight: 600 }
span[part=logo] { display: grid; place-content: center; background: var(--_l) }
[part=status], [part=reason], .soft { color: var(--_s); font-size: .9em }
[data-turn] > [part=status] { color: var(--_b) }
[data-turn=time] > [part=status] { color: var(--_s) }
input { accent-color: var(--_a) }
button, a { padding: .45rem .9rem; border: 1px solid var(--_a); border-radius: var(--_r); background: var(--_a); color: var(--_o); font: inherit; font-weight: 600; text-decoration: none; cursor: pointer }
[part~=second] { background: none; color: var(--_a) }
[part~=danger] { background: none; color: var(--_b); border-color: var(--_l) }
:focus-visible { outline: 3px solid var(--_a); outline-offset: 2px }
[aria-busy=true] { opacity: .75 }
[role]:not(:empty) { display: flex; flex-wrap: wrap; gap: .5rem .8rem; align-items: center; padding: .7rem .9rem; border: 1px solid var(--_l); border-left: 4px solid var(--_a); border-radius: min(var(--_r), .8rem) }
.bad { border-left-color: var(--_b) !important }
dialog { box-sizing: border-box; max-width: min(26rem, 100vw - 2rem); padding: 1.4rem; border: 1px solid var(--_l); border-radius: min(var(--_r), .8rem); background: var(--evergrant-ground, Canvas); color: inherit; overflow-wrap: anywhere }
dialog > * + * { margin-top: .9rem }
dialog::backdrop { background: #0008 }
`

function make(tag: string, attributes: Record<string, unknown>, ...children: (Node | string | false | null | undefined)[]): HTMLElement {
  const node = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') node.addEventListener(name, value as EventListener)
    else if (value != null && value !== false) node.setAttribute(name, String(value))
  }
  for (const child of children) if (child) node.append(child)
  return node
}

const works = ({ status }: { status: Status }): boolean => status === 'connected' || status === 'failing'

// so that a server that renders pages may import the module
const Base = globalThis.HTMLElement ?? (class {} as typeof HTMLElement)

export class EvergrantConnect extends Base {
  static readonly observedAttributes = ['base', 'pick']
  /** Texts in another language; `refresh` shows them. */
  words: Partial<Words> = {}
  /** The picked label of each integration, with the attribute `pick`. */
  value: Record<string, string> = {}
  #shown: Connections | undefined
  #notice: Notice | undefined
  #said = ''
  #busy = false
  #asked = 0
  #polls = 0
  #timer = 0
  #live = make('div', { part: 'notice', role: 'status' })
  #list = make('ul', { part: 'list', 'aria-busy': true })
  #dialog = make('dialog', { part: 'dialog', 'aria-labelledby': 'q' }) as HTMLDialogElement
  // another tab may have finished a consent, and a page of the browser's cache is old
  #seen = () => void (document.hidden || this.refresh())

  connectedCallback(): void {
    if (!this.shadowRoot) {
      const style = new CSSStyleSheet()
      style.replaceSync(STYLE)
      const root = this.attachShadow({ mode: 'open' })
      root.adoptedStyleSheets = [style]
      root.append(this.#live, this.#list, this.#dialog)
    }
    document.addEventListener('visibilitychange', this.#seen)
    void this.refresh()
  }

  disconnectedCallback(): void {
    document.removeEventListener('visibilitychange', this.#seen)
    clearTimeout(this.#timer)
  }

  attributeChangedCallback(): void {
    if (this.shadowRoot) void this.refresh()
  }

  /** Ask the product's backend again, and show its answer. */
  async refresh(): Promise<void> {
    const asked = ++this.#asked
    const here = new URL(location.href)
    const code = here.searchParams.get('evergrant')
    let path = 'connections'
    if (code) {
      path += '?evergrant=' + encodeURIComponent(code)
      here.searchParams.delete('evergrant')
      history.replaceState(history.state, '', here)
      this.#polls = 0
    }
    clearTimeout(this.#timer)
    try {
      const shown: Connections = await this.#send('GET', path)
      if (asked !== this.#asked) return
      const { notice, integrations } = (this.#shown = shown)
      if (notice || this.#notice?.status !== 'ended') this.#notice = notice ?? undefined
      const ending = integrations.some((one) => one.accounts.some((own) => own.status === 'ending'))
      if ((ending || notice?.status === 'pending') && this.#polls++ < 20) this.#timer = setTimeout(() => this.refresh(), 3000)
      this.dispatchEvent(new CustomEvent('evergrant-change', { detail: shown }))
    } catch (failure) {
      if (asked !== this.#asked) return
      this.#notice = failure as Notice
    }
    this.#render()
  }

  /** Raises a Notice. */
  async #send(method: string, path: string): Promise<any> {
    let answer: any
    try {
      const headers = { Accept: 'application/json', ...(method === 'POST' && this.#shown?.headers) }
      const response = await fetch(`${this.getAttribute('base') ?? '/evergrant'}/${path}`, { method, headers, cache: 'no-store' })
      answer = response.status === 204 ? {} : await response.json()
      if (response.ok) return answer
    } catch {
      answer = {}
    }
    throw { status: 'failed', turn: answer.turn ?? 'operator', reason: answer.reason ?? this.#text('unreachable'), url: answer.url }
  }

  /** Send one command at a time. A refusal is shown. */
  async #command(act: string, integration: string, label: string, done?: Notice): Promise<void> {
    if (this.#busy) return
    this.#busy = true
    this.#render()
    try {
      const { url } = await this.#send('POST', `${act}/${encodeURIComponent(integration)}?label=${encodeURIComponent(label)}`)
      if (url) return location.assign(url)
      this.#notice = done
      this.#polls = 0
      await this.refresh()
    } catch (failure) {
      this.#notice = failure as Notice
    } finally {
      this.#busy = false
      this.#render()
    }
  }

  #text(word: keyof Words, name = ''): string {
    return (this.words[word] ?? WORDS[word]).replace('{name}', name)
  }

  #why(reason?: string | null, turn?: Turn | null): string {
    return (reason ?? '') + (turn ? ' ' + this.#text(turn) : '')
  }

  #render(): void {
    const focused = (this.shadowRoot!.activeElement as HTMLElement | null)?.dataset.key
    const shown = this.#shown?.integrations
    this.#list.setAttribute('aria-busy', String(this.#busy || !(shown || this.#notice)))
    this.#list.replaceChildren(...(shown ?? []).map((one) => this.#item(one)))
    if (shown?.length === 0) this.#list.append(make('li', { class: 'soft' }, this.#text('empty')))
    this.#say()
    if (focused) {
      const keys = [...this.#list.querySelectorAll<HTMLElement>('[data-key]')]
      const near = focused.split('/')[0] + '/'
      ;(keys.find((node) => node.dataset.key === focused) ?? keys.find((node) => node.dataset.key!.startsWith(near)))?.focus()
    }
  }

  #say(): void {
    const { status, turn, reason, url } = this.#notice ?? {}
    const failed = status === 'failed'
    const said = this.#why(reason, turn)
    if (said === this.#said) return // it isn't read out twice
    this.#said = said
    this.#live.classList.toggle('bad', failed)
    this.#live.replaceChildren()
    if (said) this.#live.append(make('p', { class: 'text' }, said))
    if (url) this.#live.append(make('a', { part: 'link', href: url }, this.#text('login')))
    else if (failed) this.#live.append(this.#button('again', 'second', '', '', () => this.refresh()))
  }

  #button(word: keyof Words, kind: string, key: string, name: string, click: () => void): HTMLElement {
    const text = this.#text(word)
    return make('button', { type: 'button', part: 'button ' + kind, 'data-key': key, 'aria-label': name ? `${text}: ${name}` : null, click }, text)
  }

  #connect(word: keyof Words, kind: string, integration: string, label: string, name: string): HTMLElement {
    return this.#button(word, kind, `${integration}/${label}`, name, () => this.#command('connect', integration, label))
  }

  #item({ integration, title, logo, several, accounts }: Integration): HTMLElement {
    const letter = make('span', { part: 'logo', 'aria-hidden': 'true' }, title[0])
    const image: HTMLElement | '' | null | undefined = logo && make('img', { part: 'logo', src: logo, alt: '', error: () => image && image.replaceWith(letter) })
    const some = accounts.length > 0
    const usable = accounts.filter(works).map((own) => own.label)
    if (!usable.includes(this.value[integration]!)) this.value[integration] = usable[0]!
    let label = 'default'
    for (let number = 2; accounts.some((own) => own.label === label); number++) label = 'account-' + number
    return make(
      'li',
      { part: 'item' },
      make(
        'div',
        { class: 'row' },
        image || letter,
        make('div', { class: 'text' }, make('span', { part: 'title' }, title), !some && make('span', { part: 'status' }, this.#text('none'))),
        !some && this.#connect('connect', '', integration, label, title),
      ),
      some &&
        make(
          'ul',
          { part: 'accounts' },
          ...accounts.map((own) => this.#account(own, integration, title, usable.length > 1)),
          several && make('li', { class: 'row' }, this.#connect('another', 'second', integration, label, title)),
        ),
    )
  }

  #account({ label, account, status, turn, reason }: Account, integration: string, title: string, several: boolean): HTMLElement {
    const called = account ?? (label === 'default' ? '' : label)
    const name = called ? `${title}, ${called}` : title
    const radio = several && this.hasAttribute('pick') && works({ status }) && (make('input', {
      type: 'radio',
      name: integration,
      'data-key': `${integration}/${label}/use`,
      'aria-label': this.#text('use', name),
      change: () => {
        this.value[integration] = label
        this.dispatchEvent(new CustomEvent('evergrant-pick', { detail: { integration, label, account } }))
      },
    }) as HTMLInputElement)
    if (radio) radio.checked = label === this.value[integration]
    const waits = status === 'pending'
    return make(
      'li',
      { class: 'row', part: 'account' },
      make(
        radio ? 'label' : 'div',
        { class: 'text' },
        radio,
        make(
          'span',
          { 'data-turn': waits ? null : turn },
          called || (radio && title),
          make('span', { part: 'status' }, this.#text(status === 'reconnect' ? 'reconnect_status' : status)),
          turn && make('span', { part: 'reason' }, this.#why(reason, turn)),
        ),
      ),
      make(
        'div',
        { class: 'acts' },
        (waits || status === 'reconnect') && this.#connect(waits ? 'connect' : 'reconnect', '', integration, label, name),
        !waits && status !== 'ending' && this.#button('disconnect', 'danger', `${integration}/${label}/end`, name, () => this.#confirm(integration, label, name)),
      ),
    )
  }

  #confirm(integration: string, label: string, name: string): void {
    const dialog = this.#dialog
    const end = () => {
      dialog.close()
      void this.#command('disconnect', integration, label, { status: 'ended', reason: this.#text('ended', name) })
    }
    dialog.replaceChildren(
      make('h2', { id: 'q' }, this.#text('confirm', name)),
      make('p', {}, this.#text('ends')),
      make('div', { class: 'acts' }, this.#button('disconnect', 'danger', '', '', end), this.#button('keep', 'second', '', '', () => dialog.close())),
    )
    dialog.showModal()
    ;(dialog.lastElementChild!.lastElementChild as HTMLElement).focus()
  }
}

globalThis.customElements?.get('evergrant-connect') ?? globalThis.customElements?.define('evergrant-connect', EvergrantConnect)

declare global {
  interface HTMLElementTagNameMap {
    'evergrant-connect': EvergrantConnect
  }
  interface HTMLElementEventMap {
    'evergrant-change': CustomEvent<Connections>
    'evergrant-pick': CustomEvent<{ integration: string; label: string; account?: string | null }>
  }
}
