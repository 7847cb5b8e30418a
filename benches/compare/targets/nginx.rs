//! nginx with one worker, as a distribution packs it.

use std::fmt::Write as _;

use super::{World, directory, find, local, write};
use crate::process::Launch;
use crate::support::gateway::free_port;

/// `bearer`: bytes of what replaces the cookie; 0 for nothing.
pub(super) fn launch(world: &World, name: &str, bearer: usize) -> Result<Launch, String> {
    let program = find("nginx")?;
    let (addr, dir) = (local(free_port()), directory());
    let mut temporary = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(temporary, "{kind}_temp_path {};", dir.path().join(kind).display());
    }
    let exchange = match bearer {
        0 => String::new(),
        length => format!("proxy_set_header Cookie \"\"; proxy_set_header Authorization \"{}\";", "b".repeat(length)),
    };
    // One process that does not fork: its worker is all there is to measure, and nobody changes the user.
    let text = format!(
        r"
        daemon off; master_process off; worker_processes 1;
        pid {pid}; error_log stderr warn;
        events {{ worker_connections 24000; }}
        http {{
            access_log off; keepalive_timeout 3600; keepalive_requests 1000000000; client_header_buffer_size 8k;
            {temporary}
            upstream app {{ server {app}; keepalive 512; keepalive_requests 1000000000; keepalive_timeout 3600; }}
            server {{
                listen {addr} backlog=4096;
                location / {{
                    proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection '';
                    {exchange}
                }}
            }}
        }}
        ",
        pid = dir.path().join("pid").display(),
        app = world.app,
    );
    let file = write(&dir, "nginx.conf", &text);
    let args = ["-c".to_owned(), file, "-p".to_owned(), dir.path().display().to_string()].into();
    Ok(Launch { name: name.to_owned(), program, args, env: Vec::new(), addr, probe: (addr, "/readyz"), dir })
}
