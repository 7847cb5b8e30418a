//! What replicas share, in Redis or Valkey: the only user of the client crate. A normal request with the cookie store
//! does not come here.
