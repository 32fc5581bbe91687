// React 19: the connect element in a settings page. `make typescript` builds evergrant-connect-0.1.0.tgz.
import { useEffect, useRef, type DetailedHTMLProps, type HTMLAttributes } from 'react'
import type { EvergrantConnect } from 'evergrant-connect'
import 'evergrant-connect'

type Props = DetailedHTMLProps<HTMLAttributes<EvergrantConnect>, EvergrantConnect> & { base?: string; pick?: boolean }
declare module 'react' {
  namespace JSX { interface IntrinsicElements { 'evergrant-connect': Props } }
}

export function Connections({ onPick }: { onPick: (integration: string, label: string) => void }) {
  const element = useRef<EvergrantConnect>(null)
  useEffect(() => {
    const picked = (event: HTMLElementEventMap['evergrant-pick']) => onPick(event.detail.integration, event.detail.label)
    element.current?.addEventListener('evergrant-pick', picked)
    return () => element.current?.removeEventListener('evergrant-pick', picked)
  }, [onPick])
  return <evergrant-connect ref={element} base="/evergrant" pick />
}
