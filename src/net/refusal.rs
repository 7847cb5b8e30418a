//! A request that ends before it is one.

use std::net::IpAddr;

use bytes::Bytes;

use crate::web::problem::{Code, Problem};

/// Why bytes were not accepted as a request. Never holds a byte of them: refusals are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which refusal.
    pub code: Code,
    /// One sentence for a developer.
    pub detail: &'static str,
}

impl Refusal {
    pub(crate) const fn new(code: Code, detail: &'static str) -> Self {
        Self { code, detail }
    }

    pub(crate) const fn bad(detail: &'static str) -> Self {
        Self::new(Code::BadRequest, detail)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.code, refusal.detail)
    }
}

/// Renders refusals: the answer's look, the access line and the metrics are not this layer's business.
pub trait Refusals: Send + Sync + 'static {
    /// The complete HTTP/1.1 answer, `Connection: close` included. Called once a refusal. `received` is what came and
    /// was not taken for a request: the head, as far as it was read.
    fn refuse(&self, refusal: &Refusal, peer: IpAddr, received: &[u8]) -> Bytes;
}
