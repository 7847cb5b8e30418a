//! The way in: accept loop, TLS handshake, the strict head of HTTP/1.1, tunnels that can be closed.
