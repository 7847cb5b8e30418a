//! Servers that others wrote, as Debian packages them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::wait::until;

/// Ends with the test.
#[derive(Debug)]
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server with a configuration in a folder of its own.
#[derive(Debug)]
pub struct Running {
    pub addr: SocketAddr,
    _process: Process,
    folder: TempDir,
}

impl Running {
    /// Where its files are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Where Debian puts servers, for those who have no `/usr/sbin` on their path.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    places.map(|place| place.join(name)).find(|program| program.is_file())
}

/// Starts a server and waits until it listens; none when the machine does not have it. `write` gets a folder and the
/// port to listen on, writes the configuration and gives back the arguments.
pub async fn start(name: &str, port: u16, write: impl FnOnce(&Path) -> Vec<String>) -> Option<Running> {
    let program = program(name)?;
    let folder = TempDir::new().expect("a folder");
    let arguments = write(folder.path());
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the server starts");
    let addr: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
    // It does not tell when it listens.
    until(&format!("{name} listens"), async || tokio::net::TcpStream::connect(addr).await.is_ok()).await;
    Some(Running { addr, _process: Process(child), folder })
}

/// nginx with this text in its `http` block.
pub async fn nginx(port: u16, http: impl FnOnce(&Path) -> String) -> Option<Running> {
    start("nginx", port, |folder| {
        let (at, http) = (folder.display(), http(folder));
        let text = format!(
            r#"
            daemon off; master_process off; pid {at}/pid; error_log {at}/error.log;
            events {{ }}
            http {{
                access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/p;
                fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;
                {http}
            }}"#
        );
        std::fs::write(folder.join("nginx.conf"), text).expect("written");
        vec!["-p".to_owned(), at.to_string(), "-c".to_owned(), format!("{at}/nginx.conf")]
    })
    .await
}
