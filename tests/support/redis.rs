//! Real Redis servers, each a child process with a directory of its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};

use super::gateway::free_port;
use super::wait::until;

/// An answer of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Nil,
    Int(i64),
    Text(Vec<u8>),
    Error(String),
    List(Vec<Self>),
}

impl Reply {
    pub fn int(&self) -> i64 {
        match self {
            Self::Int(value) => *value,
            other => panic!("not a number: {other:?}"),
        }
    }

    pub fn text(&self) -> Vec<u8> {
        match self {
            Self::Text(value) => value.clone(),
            other => panic!("not a text: {other:?}"),
        }
    }

    pub fn list(&self) -> Vec<Self> {
        match self {
            Self::List(items) => items.clone(),
            other => panic!("not a list: {other:?}"),
        }
    }
}

/// A running server on a unix socket and a TCP port. Killed when dropped.
#[derive(Debug)]
pub struct Redis {
    child: Mutex<Child>,
    dir: TempDir,
    program: &'static str,
    arguments: Vec<String>,
    pub port: u16,
}

impl Redis {
    /// A server that keeps nothing on disk.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with more arguments, such as `["--requirepass", "secret"]`.
    pub async fn start_with(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let mut own: Vec<String> = ["--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--loglevel", "warning"]
            .map(str::to_owned)
            .to_vec();
        own.extend(["--dir".to_owned(), dir.path().display().to_string()]);
        own.extend(["--unixsocket".to_owned(), dir.path().join("redis.sock").display().to_string()]);
        if !arguments.contains(&"--tls-port") {
            own.extend(["--port".to_owned(), port.to_string()]);
        }
        let said = arguments.iter().map(|argument| argument.replace("PORT", &port.to_string()));
        own.extend(said.map(|argument| argument.replace("DIR", &dir.path().display().to_string())));
        Self::launch("redis-server", dir, own, port).await
    }

    /// A sentinel that watches this server under the name `main`.
    pub async fn sentinel(&self) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let port = free_port();
        let file = dir.path().join("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\nunixsocket {}\ndir {}\nsentinel monitor main 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n",
            dir.path().join("redis.sock").display(),
            dir.path().display(),
            self.port
        );
        std::fs::write(&file, text).expect("a written configuration");
        Self::launch("redis-sentinel", dir, vec![file.display().to_string()], port).await
    }

    async fn launch(program: &'static str, dir: TempDir, arguments: Vec<String>, port: u16) -> Self {
        let child = spawn(program, &arguments);
        let redis = Self { child: Mutex::new(child), dir, program, arguments, port };
        redis.wait_until_ready().await;
        redis
    }

    async fn wait_until_ready(&self) {
        until("it listens", async || {
            if let Ok(Some(status)) = self.child.lock().try_wait() {
                panic!("{} ended with {status}", self.program);
            }
            UnixStream::connect(self.socket()).await.is_ok()
        })
        .await;
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("redis.sock")
    }

    /// `unix:…`
    pub fn unix_url(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    /// `redis://…`
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Stops answering, and says nothing.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Goes on where it was.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends, with everything it knew.
    pub fn stop(&self) {
        let mut child = self.child.lock();
        let _ = child.kill();
        let _ = child.wait();
    }

    /// Comes back at the same address after [`Self::stop`].
    pub async fn restart(&self) {
        self.stop();
        let _ = std::fs::remove_file(self.socket());
        *self.child.lock() = spawn(self.program, &self.arguments);
        self.wait_until_ready().await;
    }

    fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.lock().id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(id, signal).expect("our own child");
    }

    /// One command by the unix socket.
    pub async fn ask(&self, command: &[&[u8]]) -> Reply {
        let mut stream = UnixStream::connect(self.socket()).await.expect("a connection");
        converse(&mut stream, command).await
    }

    /// The same, in words.
    pub async fn say(&self, command: &str) -> Reply {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        self.ask(&words).await
    }

    /// One command by TCP, for servers that listen there only.
    pub async fn say_at(port: u16, command: &str) -> Reply {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await.expect("a connection");
        converse(&mut stream, &words).await
    }

    /// The names of all keys.
    pub async fn keys(&self) -> Vec<String> {
        let keys = self.say("KEYS *").await.list();
        keys.iter().map(|key| String::from_utf8(key.text()).expect("keys are text")).collect()
    }

    /// All that somebody sees who has the server: names and values.
    pub async fn dump(&self) -> Vec<u8> {
        let mut all = Vec::new();
        for key in self.keys().await {
            all.extend_from_slice(key.as_bytes());
            all.push(b'\n');
            let value = match self.say(&format!("TYPE {key}")).await.text().as_slice() {
                b"string" => vec![self.say(&format!("GET {key}")).await],
                b"zset" => self.say(&format!("ZRANGE {key} 0 -1")).await.list(),
                // Its time ended just now.
                b"none" => Vec::new(),
                other => panic!("{key} is a {}", String::from_utf8_lossy(other)),
            };
            for part in value {
                all.extend(part.text());
                all.push(b'\n');
            }
        }
        all
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Three masters that share the slots among them.
pub async fn cluster() -> Vec<Redis> {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let arguments = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-node-timeout"];
        nodes.push(
            Redis::start_with(&[&arguments[..], &["2000", "--cluster-port", &free_port().to_string()]].concat()).await,
        );
    }
    for (index, node) in nodes.iter().enumerate() {
        let (from, to) = (index * 16384 / 3, (index + 1) * 16384 / 3 - 1);
        assert_eq!(node.say(&format!("CLUSTER ADDSLOTSRANGE {from} {to}")).await, Reply::Text(b"OK".to_vec()));
        assert_eq!(node.say(&format!("CLUSTER SET-CONFIG-EPOCH {}", index + 1)).await, Reply::Text(b"OK".to_vec()));
    }
    for other in &nodes[1..] {
        let bus = other.arguments.iter().skip_while(|a| *a != "--cluster-port").nth(1).expect("a port");
        let met = nodes[0].say(&format!("CLUSTER MEET 127.0.0.1 {} {bus}", other.port)).await;
        assert_eq!(met, Reply::Text(b"OK".to_vec()));
    }
    for node in &nodes {
        until("the nodes are a cluster", async || {
            let info = String::from_utf8(node.say("CLUSTER INFO").await.text()).expect("text");
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        })
        .await;
    }
    nodes
}

fn spawn(program: &str, arguments: &[String]) -> Child {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// RESP2, one command.
async fn converse(stream: &mut (impl AsyncRead + AsyncWrite + Unpin + Send), command: &[&[u8]]) -> Reply {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for part in command {
        bytes.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        bytes.extend_from_slice(part);
        bytes.extend_from_slice(b"\r\n");
    }
    stream.write_all(&bytes).await.expect("sent");
    let mut reader = BufReader::new(stream);
    read(&mut reader).await
}

async fn read(reader: &mut (impl AsyncRead + Unpin + Send)) -> Reply {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(reader.read_u8().await.expect("an answer"));
    }
    let text = String::from_utf8_lossy(&line[1..line.len() - 2]).into_owned();
    match line[0] {
        b'+' => Reply::Text(text.into_bytes()),
        b'-' => Reply::Error(text),
        b':' => Reply::Int(text.parse().expect("a number")),
        b'$' | b'*' if text == "-1" => Reply::Nil,
        b'$' => {
            let mut bytes = vec![0; text.parse::<usize>().expect("a length") + 2];
            reader.read_exact(&mut bytes).await.expect("all of it");
            bytes.truncate(bytes.len() - 2);
            Reply::Text(bytes)
        }
        b'*' => {
            let mut items = Vec::new();
            for _ in 0..text.parse::<usize>().expect("a length") {
                items.push(Box::pin(read(reader)).await);
            }
            Reply::List(items)
        }
        other => panic!("not RESP: {}", char::from(other)),
    }
}
