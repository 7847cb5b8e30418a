//! HTTP vocabulary shared by all layers: what a request says, what an answer of ours is. No IO, no Pingora.

pub mod challenge;
pub mod conditional;
pub mod cookies;
pub mod fetch;
pub mod forwarded;
pub mod headers;
pub mod origin;
pub mod pages;
pub mod path;
pub mod problem;
pub mod query;
pub mod request;
pub mod response;
pub mod return_to;
