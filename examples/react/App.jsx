import { useEffect, useState } from 'react';
import { LoggedIn, sidegate, useSession } from './session.jsx';

export function App() {
  return (
    <LoggedIn>
      <Greeting />
      <Orders />
    </LoggedIn>
  );
}

function Greeting() {
  const session = useSession();
  return (
    <p>
      {session.claims.name} <button onClick={() => sidegate.logout()}>Log out</button>
    </p>
  );
}

function Orders() {
  const [orders, setOrders] = useState([]);
  useEffect(() => {
    const given = new AbortController();
    sidegate
      .fetch('/api/orders', { signal: given.signal })
      .then((answer) => (answer.ok ? answer.json() : []))
      .then(setOrders, () => {}); // the component is gone, or the network is
    return () => given.abort();
  }, []);
  return <ul>{orders.map(({ id, title }) => <li key={id}>{title}</li>)}</ul>;
}
