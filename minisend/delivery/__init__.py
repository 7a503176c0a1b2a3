"""From the queue to a next hop: routes, MX look-up, TLS policy, attempts, the failure policy and retry times."""
