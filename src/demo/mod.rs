//! `sidegate demo`: gateway, provider, API and SPA in one process. Never for production.
