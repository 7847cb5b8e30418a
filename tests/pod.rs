//! The pods of `deploy/` come up and serve a login: a kubelet in small reads a manifest and starts what it says, command,
//! arguments, environment, mounted files, ports, probes and security settings, in sandboxes without a cluster and without
//! root. Needs `bwrap` (bubblewrap) on Linux; Kustomize and Helm where they are installed.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

mod support;

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::Value;
use sidegate::crypto::keyring::Key;
use support::client::Browser;
use support::provider::ProviderDouble;
use support::upstream::Upstream;
use support::wait::{PATIENCE, found};
use support::wire::{Conn, read_reply, request_bytes};
use tempfile::TempDir;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use toml::Table;

/// Set where the test runs in a network of its own, in which the manifest's ports are free.
const INSIDE: &str = "SIDEGATE_TEST_POD";
/// What others call the pod: only what listens on all addresses is reached by it.
const POD_IP: [u8; 4] = [127, 0, 0, 2];
/// The Service of the small Redis.
const REDIS_IP: &str = "127.0.0.3";

// -- Manifests -----------------------------------------------------------------------------------------------------

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a tool makes of the files in `deploy/`; none where it is not installed.
fn made(variable: &str, tool: &str, arguments: &[&str]) -> Option<String> {
    let program = std::env::var_os(variable).unwrap_or_else(|| tool.into());
    let Ok(made) = Command::new(program).args(arguments).current_dir(root()).output() else {
        eprintln!("skipped: {tool} is not installed (or set {variable} to its path)");
        return None;
    };
    assert!(made.status.success(), "{tool}: {}", String::from_utf8_lossy(&made.stderr));
    Some(String::from_utf8(made.stdout).unwrap())
}

/// Kubernetes documents.
#[derive(Clone, Debug)]
struct Manifest(Vec<Value>);

impl Manifest {
    fn parse(text: &str) -> Self {
        let documents = serde_yaml::Deserializer::from_str(text).map(|one| Value::deserialize(one).unwrap());
        Self(documents.filter(|one| !one.is_null()).collect())
    }

    fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        self.0.iter().find(|one| one["kind"] == kind && one["metadata"]["name"] == name)
    }

    /// The pod that has sidegate, and the pod that has Redis.
    fn pod(&self, container: &str) -> Option<&Value> {
        let pods = self.0.iter().filter(|one| one["kind"] == "Deployment").map(|one| &one["spec"]["template"]["spec"]);
        pods.into_iter().find(|pod| containers(pod).any(|one| one["name"] == container))
    }
}

/// Of both kinds, in the order of their start.
fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().flat_map(|kind| pod[kind].as_array().into_iter().flatten())
}

fn named<'v>(list: &'v Value, name: &str) -> Result<&'v Value, String> {
    let found = list.as_array().into_iter().flatten().find(|one| one["name"] == name);
    found.ok_or_else(|| format!("nothing is named {name} in {list}"))
}

fn words(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// A port of a container, by number or by name.
fn port(container: &Value, port: &Value) -> Result<u16, String> {
    let number = match port.as_str() {
        Some(name) => &named(&container["ports"], name)?["containerPort"],
        None => port,
    };
    number.as_u64().and_then(|number| u16::try_from(number).ok()).ok_or_else(|| format!("no port: {port}"))
}

// -- Containers ----------------------------------------------------------------------------------------------------

/// A container that runs. Killed when dropped.
struct Running {
    child: Mutex<Child>,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Running {
    /// Starts a program of this machine as the container's. `entrypoint` is where it stands in the image, `command` what
    /// the image runs without `args`.
    fn start(
        program: &Path,
        entrypoint: &str,
        command: &[&str],
        pod: &Value,
        container: &Value,
        volumes: &Path,
        hosts: &Path,
    ) -> Result<Self, String> {
        let security = |key: &str| {
            let own = &container["securityContext"][key];
            if own.is_null() { &pod["securityContext"][key] } else { own }.clone()
        };
        let mut run = Command::new("bwrap");
        run.args(["--die-with-parent", "--new-session", "--unshare-user", "--unshare-pid", "--unshare-ipc"]);
        for (option, key) in [("--uid", "runAsUser"), ("--gid", "runAsGroup")] {
            let id = security(key).as_u64().filter(|id| *id != 0).ok_or_else(|| format!("{key} is missing or 0"))?;
            run.args([option, &id.to_string()]);
        }
        for capability in words(&security("capabilities")["drop"]) {
            run.args(["--cap-drop", &capability]);
        }
        // The image: the program, the libraries it is linked with, certificate authorities.
        for folder in ["/lib", "/lib64", "/usr/lib", "/etc/ssl"].into_iter().filter(|path| Path::new(path).exists()) {
            run.args(["--ro-bind", folder, folder]);
        }
        run.args([Path::new("--ro-bind"), program, Path::new(entrypoint)]);
        run.args([Path::new("--ro-bind"), hosts, Path::new("/etc/hosts")]);
        run.args(["--proc", "/proc", "--dev", "/dev"]);
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            let source = volumes.join(mount["name"].as_str().unwrap());
            if !source.exists() {
                return Err(format!("no volume for {mount}"));
            }
            let how = if mount["readOnly"] == true { "--ro-bind" } else { "--bind" };
            run.args([Path::new(how), &source, Path::new(mount["mountPath"].as_str().unwrap())]);
        }
        if security("readOnlyRootFilesystem") == true {
            run.args(["--remount-ro", "/"]);
        }
        run.arg("--clearenv");
        for variable in container["env"].as_array().into_iter().flatten() {
            run.args(["--setenv", variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap()]);
        }
        let own = words(&container["command"]);
        run.arg("--").args(if own.is_empty() { vec![entrypoint.to_owned()] } else { own });
        let given = words(&container["args"]);
        run.args(if given.is_empty() { command.iter().map(|&word| word.to_owned()).collect() } else { given });
        run.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = run.spawn().map_err(|error| format!("bwrap: {error}"))?;

        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (told, complained) = (Arc::clone(&lines), Arc::clone(&lines));
        std::thread::spawn(move || {
            BufReader::new(out).lines().map_while(Result::ok).for_each(|one| told.lock().push(one))
        });
        std::thread::spawn(move || {
            BufReader::new(err).lines().map_while(Result::ok).for_each(|one| complained.lock().push(one));
        });
        Ok(Self { child: Mutex::new(child), lines })
    }

    fn output(&self) -> String {
        self.lines.lock().join("\n")
    }

    /// Asks as the kubelet does until one answer is a success: as often as the probe allows, but faster. What does not
    /// take a connection yet is waited for.
    async fn probe(&self, container: &Value, name: &str) -> Result<(), String> {
        let probe = &container[name];
        let ask = &probe["httpGet"];
        let to = SocketAddr::from((POD_IP, port(container, &ask["port"])?));
        let path = ask["path"].as_str().ok_or_else(|| format!("{name} has no path"))?;
        let mut headers = vec![("Host".to_owned(), to.to_string()), ("Connection".to_owned(), "close".to_owned())];
        for header in ask["httpHeaders"].as_array().into_iter().flatten() {
            let (name, value) = (header["name"].as_str().unwrap(), header["value"].as_str().unwrap());
            headers.retain(|(own, _)| !own.eq_ignore_ascii_case(name));
            headers.push((name.to_owned(), value.to_owned()));
        }
        let mut seen = None;
        for _ in 0..probe["failureThreshold"].as_u64().unwrap_or(3) {
            let answer = async {
                let mut connection = self.connect(to).await?;
                let sent = connection.send(&request_bytes("GET", path, &headers, None)).await;
                sent.map_err(|error| error.to_string())?;
                let reply = read_reply(&mut connection, "GET").await.map_err(|error| error.to_string())?;
                reply.map(|reply| reply.status).ok_or_else(|| "no answer".to_owned())
            };
            seen = Some(timeout(PATIENCE, answer).await.map_err(|_| "no answer in time".to_owned())??);
            if seen.is_some_and(|status| (200..400).contains(&status)) {
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await; // the probe's period
        }
        Err(format!("{name} at {to}{path}: {seen:?}\n{}", self.output()))
    }

    /// A connection, unless all that listens has been told and it is not there, or the program ends.
    async fn connect(&self, to: SocketAddr) -> Result<Conn, String> {
        let tried = found(async || {
            let listens = self.lines.lock().iter().filter(|line| line.contains(r#""event":"listening""#)).count();
            match Conn::dial(to).await {
                Ok(connection) => return Some(Ok(connection)),
                Err(error) if listens >= 2 => return Some(Err(format!("{to}: {error}\n{}", self.output()))),
                Err(_) => {}
            }
            let ended = self.child.lock().try_wait().unwrap();
            ended.map(|status| Err(format!("ended with {status}:\n{}", self.output())))
        });
        tried.await.unwrap_or_else(|| Err(format!("nothing listens on {to}")))
    }

    /// A signal to the program itself, which is the youngest descendant of the sandbox's process.
    fn signal(&self, signal: Signal) {
        let mut id = self.child.lock().id();
        while let Some(child) = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))
            .ok()
            .and_then(|all| all.split_whitespace().next()?.parse().ok())
        {
            id = child;
        }
        // It may have ended by itself.
        let _ = kill_process(Pid::from_raw(i32::try_from(id).unwrap()).unwrap(), signal);
    }

    /// SIGTERM, and its exit code.
    async fn stop(&self) -> Option<i32> {
        self.signal(Signal::TERM);
        let ended = found(async || self.child.lock().try_wait().unwrap()).await;
        ended.unwrap_or_else(|| panic!("still running:\n{}", self.output())).code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Not the sandbox first: the next pod needs the ports, so the program has to be gone when this returns.
        self.signal(Signal::KILL);
        let _ = self.child.get_mut().wait();
    }
}

// -- The pod -------------------------------------------------------------------------------------------------------

/// What stands beside the pod: the provider, and an app for it to have.
struct Around {
    provider: ProviderDouble,
    app: Upstream,
}

/// The files of all volumes of a pod, one folder each. What an operator has to fill in is filled in.
fn mount(manifest: &Manifest, pod: &Value, around: &Around) -> Result<(TempDir, String), String> {
    let folder = tempfile::tempdir().unwrap();
    let mut public_url = String::new();
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let place = folder.path().join(volume["name"].as_str().unwrap());
        fs::create_dir(&place).unwrap();
        if let Some(name) = volume["configMap"]["name"].as_str() {
            let map = manifest.find("ConfigMap", name).ok_or_else(|| format!("no ConfigMap {name}"))?;
            for (file, text) in map["data"].as_object().into_iter().flatten() {
                let mut table: Table = text.as_str().unwrap().parse().map_err(|error| format!("{file}: {error}"))?;
                if let Some(provider) = table.get_mut("provider").and_then(toml::Value::as_table_mut) {
                    provider.insert("issuer".to_owned(), around.provider.issuer.clone().into());
                    provider.insert("client_id".to_owned(), around.provider.client_id().into());
                }
                if let Some(url) = table.get("server").and_then(|server| server.get("public_url")?.as_str()) {
                    url.clone_into(&mut public_url);
                }
                fs::write(place.join(file), table.to_string()).unwrap();
            }
        } else if let Some(name) = volume["secret"]["secretName"].as_str() {
            // The names that docs/kubernetes.md tells to create, where the manifest brings no Secret of its own.
            let named = manifest.find("Secret", name).map(|secret| secret["stringData"].as_object().unwrap());
            let keys = named.map_or_else(
                || vec!["client-secret".to_owned(), "session-key".to_owned()],
                |keys| keys.keys().cloned().collect(),
            );
            for key in keys {
                let content =
                    if key == "session-key" { Key::generate().to_base64url() } else { around.provider.client_secret() };
                fs::write(place.join(&key), content).unwrap();
                let mode = volume["secret"]["defaultMode"].as_u64().and_then(|mode| u32::try_from(mode).ok());
                fs::set_permissions(place.join(&key), Permissions::from_mode(mode.unwrap_or(0o644))).unwrap();
            }
        }
    }
    Ok((folder, public_url))
}

/// Passes connections on, as if the one who listens stood here.
async fn forward(at: &str, to: SocketAddr) -> Result<tokio::task::AbortHandle, String> {
    let listener = TcpListener::bind(at).await.map_err(|error| format!("{at}: {error}"))?;
    let accept = async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                if let Ok(mut server) = TcpStream::connect(to).await {
                    let _ = copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    };
    Ok(tokio::spawn(accept).abort_handle())
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Starts the pod in its order, waits for every probe, logs a user in by the Service's port, and stops it.
async fn comes_up(manifest: &Manifest) -> Result<(), String> {
    let around = Around { provider: ProviderDouble::start().await, app: Upstream::start().await };
    let pod = manifest.pod("sidegate").ok_or("no pod has sidegate")?;
    let (volumes, public_url) = mount(manifest, pod, &around)?;
    around.provider.register(&public_url);
    let hosts = volumes.path().join("hosts");
    fs::write(&hosts, format!("127.0.0.1 localhost\n{REDIS_IP} app-redis\n")).unwrap();

    let mut redis = None;
    if let Some(pod) = manifest.pod("redis") {
        let container = named(&pod["containers"], "redis")?;
        let at = port(container, &Value::from("redis"))?.to_string();
        let program = ["/usr/bin/redis-server", "/usr/local/bin/redis-server"].map(Path::new);
        let program = program.into_iter().find(|path| path.exists()).ok_or("redis-server is not installed")?;
        let command = ["--port", &at];
        let mut container = container.clone();
        let args =
            command.into_iter().map(Value::from).chain(container["args"].as_array().cloned().unwrap_or_default());
        container["args"] = args.collect();
        let running =
            Running::start(program, "/usr/local/bin/redis-server", &[], pod, &container, volumes.path(), &hosts)?;
        redis = Some(running);
    }

    let sidegate = containers(pod).find(|one| one["name"] == "sidegate").unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_sidegate"));
    let running = Running::start(program, "/usr/local/bin/sidegate", &["run"], pod, sidegate, volumes.path(), &hosts)?;
    running.probe(sidegate, "startupProbe").await?;

    // Only now the app, which listens where the manifest tells it to.
    let app = named(&pod["containers"], "app")?;
    let listen = named(&app["env"], "LISTEN")?["value"].as_str().unwrap().to_owned();
    let app_addr = around.app.url().trim_start_matches("http://").parse().unwrap();
    let _app = AbortOnDrop(forward(&listen, app_addr).await?);
    running.probe(sidegate, "readinessProbe").await?;
    running.probe(sidegate, "livenessProbe").await?;
    running.probe(app, "readinessProbe").await?;

    let service = manifest.find("Service", "app").ok_or("no Service")?;
    let http = port(sidegate, &service["spec"]["ports"][0]["targetPort"])?;
    let browser = Browser::behind(&public_url, SocketAddr::from((POD_IP, http)));
    let page = browser.login("/").await;
    let answer = browser.fetch("/api/orders").await;
    if (page.status, answer.status) != (200, 200) {
        return Err(format!("login {page:?}\n{answer:?}\n{}", running.output()));
    }
    let token = around.app.requests_to("/api/orders").last().and_then(|request| request.bearer().map(str::to_owned));
    assert!(token.is_some_and(|token| around.provider.is_active(&token)), "the app gets the user's token");
    let around_it = SocketAddr::from((POD_IP, listen.rsplit_once(':').unwrap().1.parse().unwrap()));
    assert!(TcpStream::connect(around_it).await.is_err(), "the app is reached around sidegate");
    if redis.is_some() {
        let mut admin = Conn::dial(SocketAddr::from((POD_IP, port(sidegate, &"admin".into())?))).await.unwrap();
        admin.send(b"GET /metrics HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").await.unwrap();
        let metrics = read_reply(&mut admin, "GET").await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&metrics.body).contains("\nsidegate_redis_up 1\n"), "{}", running.output());
    }
    assert_eq!(running.stop().await, Some(0), "{}", running.output());
    Ok(())
}

/// Runs a test of this file in a network of its own, where the manifest's ports are free. True within.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let mut sandbox = Command::new("bwrap");
    sandbox.args(["--die-with-parent", "--dev-bind", "/", "/", "--unshare-net", "--setenv", INSIDE, "1", "--"]);
    let test = sandbox.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).status();
    match test {
        Ok(status) => assert!(status.success(), "see above"),
        Err(error) => eprintln!("skipped: bwrap (bubblewrap) cannot be started: {error}"),
    }
    false
}

/// The chart leaves to its user how the app is told where to listen.
const OWN_ENV: &str = r#"--set-json=app.env=[{"name":"LISTEN","value":"127.0.0.1:3000"}]"#;

const PLAIN: &str = include_str!("../deploy/kubernetes/sidecar.yaml");

/// K8S-06, K8S-07: each pod that the repository ships.
#[test]
fn the_shipped_pods_come_up_and_serve_a_login() {
    if !inside("the_shipped_pods_come_up_and_serve_a_login") {
        return;
    }
    let kustomized = |folder| {
        made("KUSTOMIZE", "kustomize", &["build", folder])
            .or_else(|| made("KUBECTL", "kubectl", &["kustomize", folder]))
    };
    let chart = |more: &[&str]| {
        let first =
            ["template", "app", "deploy/helm/sidegate", "--kube-version=1.31.0", "--set=app.image=app:1", OWN_ENV];
        made("HELM", "helm", &[&first[..], more].concat())
    };
    let all = [
        ("sidecar.yaml", Some(PLAIN.to_owned())),
        ("the Kustomize overlay with Redis", kustomized("deploy/kustomize/redis")),
        ("the chart", chart(&[])),
        ("the chart with Redis", chart(&["--values=deploy/helm/sidegate/values-redis.yaml"])),
    ];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (name, text) in all {
        let Some(text) = text else { continue };
        runtime.block_on(comes_up(&Manifest::parse(&text))).unwrap_or_else(|error| panic!("{name}: {error}"));
        eprintln!("{name}: came up, and served a login");
    }
}

/// A manifest that does not fit the program does not come up.
#[test]
fn a_manifest_that_does_not_fit_does_not_come_up() {
    if !inside("a_manifest_that_does_not_fit_does_not_come_up") {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for (old, new, why) in [
        ("path: /readyz", "path: /ready", "startupProbe at 127.0.0.2:9180/ready: Some(404)"),
        ("path: /livez", "path: /alive", "livenessProbe at 127.0.0.2:9180/alive: Some(404)"),
        ("containerPort: 9180", "containerPort: 9181", "127.0.0.2:9181: Connection refused"),
        ("listen = \"0.0.0.0:9180\"", "listen = \"127.0.0.1:9180\"", "127.0.0.2:9180: Connection refused"),
        ("targetPort: http", "targetPort: web", "nothing is named web"),
        ("\"-c\", \"/etc/sidegate/sidegate.toml\"", "\"-c\", \"/etc/sidegate.toml\"", "ended with exit status: 78"),
        ("args: [\"run\", ", "args: [\"serve\", ", "ended with exit status: 64"),
        ("mountPath: /run/secrets/sidegate", "mountPath: /run/secrets", "ended with exit status: 78"),
        ("client-secret: \"\"", "client_secret: \"\"", "ended with exit status: 78"),
        ("client_secret_file = ", "secret_file = ", "ended with exit status: 78"),
        ("value: \"127.0.0.1:3000\"", "value: \"127.0.0.1:3001\"", "readinessProbe at 127.0.0.2:8080/: Some(502)"),
        ("- name: LISTEN", "- name: ADDRESS", "nothing is named LISTEN"),
        ("value: app.example.com", "value: other.example.com", "readinessProbe at 127.0.0.2:8080/: Some(421)"),
        ("runAsUser: 65532", "runAsUser: 0", "runAsUser is missing or 0"),
    ] {
        assert!(PLAIN.contains(old), "{old}");
        let error = runtime.block_on(comes_up(&Manifest::parse(&PLAIN.replace(old, new)))).expect_err(new);
        assert!(error.contains(why), "{new}: {error}");
    }
}
