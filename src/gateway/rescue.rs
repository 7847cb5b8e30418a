//! Every error of Pingora's, turned into the answer that the client gets.

use pingora::{Error, ErrorSource, ErrorType};

use crate::web::problem::{Code, Problem};

/// None when the client is gone and nobody reads an answer.
pub fn problem(error: &Error) -> Option<Problem> {
    use ErrorType as E;
    let unreachable = || Problem::new(Code::UpstreamUnreachable, "The application cannot be reached.");
    let answer = match error.etype() {
        E::HTTPStatus(413) => Problem::new(Code::BodyTooLarge, "The request body is larger than this route takes."),
        E::HTTPStatus(408) => stalled(),
        E::HTTPStatus(400) => Problem::new(Code::BadRequest, "The request is malformed."),
        kind => match (error.esource(), kind) {
            (ErrorSource::Downstream, E::ReadTimedout) => stalled(),
            (ErrorSource::Downstream, E::ReadError | E::WriteError | E::WriteTimedout | E::ConnectionClosed) => {
                return None;
            }
            (ErrorSource::Downstream, _) => Problem::new(Code::BadRequest, "The request is malformed."),
            (
                ErrorSource::Upstream,
                E::ConnectTimedout | E::TLSHandshakeTimedout | E::ReadTimedout | E::WriteTimedout,
            ) => timed_out(),
            (
                ErrorSource::Upstream,
                E::ConnectRefused
                | E::ConnectNoRoute
                | E::ConnectError
                | E::ConnectProxyFailure
                | E::BindError
                | E::AcceptError
                | E::SocketError
                | E::TLSHandshakeFailure
                | E::InvalidCert
                | E::HandshakeError
                | E::TLSWantX509Lookup,
            ) => unreachable(),
            // In TLS 1.3 an upstream refuses our certificate when it is for us to speak.
            (ErrorSource::Upstream, _) if is_tls(error) && !has_begun(error) => unreachable(),
            (ErrorSource::Upstream, _) => {
                Problem::new(Code::UpstreamProtocol, "The application's answer is not valid HTTP.")
            }
            (ErrorSource::Internal | ErrorSource::Unset, _) => {
                Problem::new(Code::Internal, "This is a bug in the gateway; the log has it under the request id.")
            }
        },
    };
    Some(answer)
}

fn is_tls(error: &Error) -> bool {
    let mut cause = error.cause.as_deref().map(|cause| cause as &(dyn std::error::Error + 'static));
    while let Some(error) = cause {
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if error.is::<rustls::Error>() || inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Part of an answer's head came before the connection broke. Pingora says so in words only.
pub fn has_begun(error: &Error) -> bool {
    let read = error.context.as_ref().and_then(|context| context.as_str().rsplit_once("bytes already read: "));
    read.is_some_and(|(_, count)| count != "0")
}

/// The upstream was silent for longer than it may.
pub fn timed_out() -> Problem {
    Problem::new(Code::UpstreamTimeout, "The application did not answer in time.")
}

/// The client stopped sending its request's body.
pub fn stalled() -> Problem {
    Problem::new(Code::RequestTimeout, "The request did not arrive in time.")
}
