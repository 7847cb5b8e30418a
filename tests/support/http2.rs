//! HTTP/2: a client by frames, a client by the `h2` crate, and a gRPC server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::exact::{Fields, PATIENCE};

/// What a client says first (RFC 9113 section 3.4), with empty SETTINGS.
pub fn preface() -> Vec<u8> {
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, b"")].concat()
}

/// A frame of HTTP/2 (RFC 9113 section 4.1).
pub fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// A field of HPACK without any compression (RFC 7541 section 6.2.3).
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| {
        let mut bytes = Vec::new();
        if text.len() < 127 {
            bytes.push(u8::try_from(text.len()).expect("short"));
        } else {
            bytes.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                bytes.push(u8::try_from(rest % 128).expect("seven bits") | 128);
                rest /= 128;
            }
            bytes.push(u8::try_from(rest).expect("seven bits"));
        }
        bytes.extend_from_slice(text.as_bytes());
        bytes
    };
    [vec![0x10], text(name), text(value)].concat()
}

/// A frame that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A client that sends exactly these bytes.
#[derive(Debug)]
pub struct Raw(pub TcpStream);

impl Raw {
    /// Connects and says the preface.
    pub async fn dial(addr: SocketAddr) -> Self {
        let mut raw = Self(TcpStream::connect(addr).await.expect("a connection"));
        raw.send(&preface()).await;
        raw
    }

    /// The server may have ended the connection already.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
    }

    /// The next frame; none at the end.
    pub async fn next(&mut self) -> Option<Frame> {
        let read = async {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            Some(Frame { kind: head[3], flags: head[4], stream, payload })
        };
        tokio::time::timeout(PATIENCE, read).await.expect("a frame or an end")
    }

    /// The first frame of this kind; none when the connection ends before.
    pub async fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// What became of stream 1: the first byte of its head's block, or 0 when it or the connection was ended.
    pub async fn outcome(&mut self) -> Option<u8> {
        loop {
            match self.next().await {
                Some(frame) if frame.kind == 1 && frame.stream == 1 => return frame.payload.first().copied(),
                Some(Frame { kind: 3 | 7, .. }) | None => return None,
                Some(_) => {}
            }
        }
    }
}

/// An answer with what follows it.
#[derive(Clone, Debug, Default)]
pub struct Whole {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

/// A client that does it right.
#[derive(Debug)]
pub struct Client {
    send: SendRequest<Bytes>,
    connection: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Client {
    /// By prior knowledge.
    pub async fn dial(addr: SocketAddr) -> Self {
        Self::on(TcpStream::connect(addr).await.expect("a connection")).await
    }

    /// On a connection that is there.
    pub async fn on<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Self {
        let (send, connection) = h2::client::handshake(stream).await.expect("a handshake");
        Self { send, connection: tokio::spawn(async move { drop(connection.await) }) }
    }

    /// Sends a request; its body, if any, in two pieces. The error is the stream's.
    pub async fn call(
        &self,
        method: &str,
        url: &str,
        fields: &Fields<'_>,
        body: Option<&[u8]>,
    ) -> Result<Whole, h2::Error> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(()).expect("a request");
        let mut send = self.send.clone().ready().await?;
        let (answer, mut stream) = send.send_request(request, body.is_none())?;
        if let Some(body) = body {
            let (front, back) = body.split_at(body.len() / 2);
            stream.send_data(Bytes::copy_from_slice(front), false)?;
            stream.send_data(Bytes::copy_from_slice(back), true)?;
        }
        Self::read(answer).await
    }

    /// Sends a head that says that a body follows, and no body.
    pub async fn stall(&self, url: &str, fields: &Fields<'_>) -> Result<Whole, h2::Error> {
        let mut request = Request::builder().method("POST").uri(url);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let mut send = self.send.clone().ready().await?;
        let (answer, _stream) = send.send_request(request.body(()).expect("a request"), false)?;
        Self::read(answer).await
    }

    async fn read(answer: h2::client::ResponseFuture) -> Result<Whole, h2::Error> {
        let read = async {
            let answer: Response<h2::RecvStream> = answer.await?;
            let (head, mut stream) = answer.into_parts();
            let mut body = Vec::new();
            while let Some(piece) = stream.data().await {
                let piece = piece?;
                body.extend_from_slice(&piece);
                stream.flow_control().release_capacity(piece.len())?;
            }
            let trailers = stream.trailers().await?;
            Ok(Whole { status: head.status.as_u16(), headers: head.headers, body, trailers })
        };
        tokio::time::timeout(PATIENCE, read).await.expect("an answer or an end")
    }
}

/// An upstream that speaks HTTP/2 only: echoes the body, after the first piece of it, with trailers as gRPC has them.
#[derive(Debug)]
pub struct GrpcUpstream {
    pub addr: SocketAddr,
    heads: Arc<Mutex<Vec<http::request::Parts>>>,
    task: JoinHandle<()>,
}

impl Drop for GrpcUpstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl GrpcUpstream {
    /// Over TLS with the acceptor, else by prior knowledge. Waits so long before it answers.
    pub async fn start(tls: Option<TlsAcceptor>, pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let heads = Arc::default();
        let seen = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, tls) = (Arc::clone(&seen), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, seen, pause).await;
                            }
                        }
                        None => serve(stream, seen, pause).await,
                    }
                });
            }
        });
        Self { addr, heads, task }
    }

    /// The heads that came.
    pub fn heads(&self) -> Vec<http::request::Parts> {
        self.heads.lock().clone()
    }
}

async fn serve<S>(stream: S, seen: Arc<Mutex<Vec<http::request::Parts>>>, pause: Duration)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let (head, mut body) = request.into_parts();
        let grpc = head.headers.get("content-type").cloned();
        seen.lock().push(head);
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let mut answer = Response::builder().status(200).header("server", "grpc-double");
            if let Some(kind) = grpc {
                answer = answer.header("content-type", kind);
            }
            let Ok(mut stream) = respond.send_response(answer.body(()).expect("a head"), false) else { return };
            while let Some(Ok(piece)) = body.data().await {
                let _ = body.flow_control().release_capacity(piece.len());
                if stream.send_data(piece, false).is_err() {
                    return;
                }
            }
            let mut trailers = HeaderMap::new();
            for (name, value) in [("grpc-status", "0"), ("grpc-message", "fine"), ("set-cookie", "sidegate=late")] {
                trailers.insert(http::HeaderName::from_static(name), http::HeaderValue::from_static(value));
            }
            let _ = stream.send_trailers(trailers);
        });
    }
}
