// The session as a React hook (18 or newer): every component that uses it is drawn anew when it changes, in whatever tab.
import { useSyncExternalStore } from 'react';
import { createClient } from '@sidegate/client';

export const sidegate = createClient();

let session; // undefined: not known yet
const subscribe = (changed) =>
  sidegate.subscribe((heard) => {
    session = heard;
    changed();
  });

export function useSession() {
  return useSyncExternalStore(subscribe, () => session);
}

/** Its children for whoever is logged in, a button for everybody else. */
export function LoggedIn({ children }) {
  const current = useSession();
  if (!current) return null;
  if (!current.authenticated) return <button onClick={() => sidegate.login()}>Log in</button>;
  return children;
}
