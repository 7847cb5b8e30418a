//! What the repository ships beside the program: the manifest, the image, the documentation's examples and links.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "helpers of tests are test code too")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use http::Method;
use sidegate::config;
use sidegate::crypto::keyring::Key;
use sidegate::metrics::Metrics;
use toml::Table;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// README.md and its like, and docs/*.md.
fn documents() -> Vec<PathBuf> {
    let in_folder = |folder: PathBuf| {
        let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect::<Vec<_>>()
    };
    let mut all = in_folder(root().to_owned());
    all.extend(in_folder(root().join("docs")));
    all.sort();
    all
}

/// The contents of the code blocks of that language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut block: Option<(bool, String)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut block) {
            (Some(word), None) => block = Some((word.trim() == language, String::new())),
            (Some(_), Some((wanted, content))) => {
                if *wanted {
                    found.push(std::mem::take(content));
                }
                block = None;
            }
            (None, Some((_, content))) => {
                content.push_str(line);
                content.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(block.is_none(), "a code block is not closed");
    found
}

/// The manifest of one pod that needs no tool.
fn plain() -> Manifest {
    Manifest { name: "sidecar.yaml".to_owned(), text: read("deploy/kubernetes/sidecar.yaml") }
}

/// Every manifest with a sidecar: the plain one, and what the chart makes where helm is installed.
fn sidecars() -> Vec<Manifest> {
    let charts =
        [&["--set=app.image=app:1"][..], &["--set=app.image=app:1", "--values=deploy/helm/sidegate/values-redis.yaml"]];
    std::iter::once(plain()).chain(charts.into_iter().filter_map(chart)).collect()
}

/// The chart rendered with these options; none where helm is not installed.
fn chart(options: &[&str]) -> Option<Manifest> {
    let mut command = helm();
    command.args(["template", "app", "deploy/helm/sidegate", "--kube-version=1.31.0"]).args(options);
    let Ok(made) = command.output() else {
        eprintln!("skipped: helm is not installed (or set HELM to its path)");
        return None;
    };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    Some(Manifest { name: format!("the chart with {options:?}"), text: String::from_utf8(made.stdout).unwrap() })
}

fn helm() -> Command {
    let mut command = Command::new(std::env::var_os("HELM").unwrap_or_else(|| "helm".into()));
    command.current_dir(root());
    command
}

/// Kubernetes documents in one file.
struct Manifest {
    name: String,
    text: String,
}

impl Manifest {
    fn find(&self, kind: &str) -> Option<&str> {
        let line = format!("kind: {kind}");
        self.text.split("\n---\n").find(|text| text.lines().any(|own| own == line))
    }

    fn of(&self, kind: &str) -> &str {
        self.find(kind).unwrap_or_else(|| panic!("{}: no {kind}", self.name))
    }

    /// The deployment that has sidegate.
    fn deployment(&self) -> &str {
        let mut all = self.text.split("\n---\n").filter(|text| text.lines().any(|own| own == "kind: Deployment"));
        all.find(|text| text.contains("- name: sidegate\n")).unwrap_or_else(|| panic!("{}: no Deployment", self.name))
    }
}

/// The block scalar under `key: |`, its indentation taken off.
fn block_scalar(text: &str, key: &str) -> String {
    let opening = format!("{key}: |");
    let mut lines = text.lines().skip_while(|line| line.trim() != opening).skip(1).peekable();
    let indent = lines.peek().map_or(0, |line| line.len() - line.trim_start().len());
    assert!(indent > 0, "no {key} in the manifest");
    let inside = lines.take_while(|line| line.trim().is_empty() || line.len() - line.trim_start().len() >= indent);
    inside.map(|line| format!("{}\n", line.get(indent..).unwrap_or_default())).collect()
}

/// The part of a container: from its `- name:` to the next line that is indented less or begins another.
fn container(text: &str, name: &str) -> String {
    let opening = format!("        - name: {name}");
    let mut lines = text.lines().skip_while(|line| *line != opening);
    let first = lines.next().unwrap_or_else(|| panic!("no container {name}"));
    let rest = lines.take_while(|line| line.starts_with("          "));
    std::iter::once(first).chain(rest).map(|line| format!("{line}\n")).collect()
}

fn seconds(config: &Table, key: &str) -> u64 {
    let text = config["server"][key].as_str().unwrap();
    text.strip_suffix('s').and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{key} = {text}"))
}

fn number_after(text: &str, key: &str) -> u64 {
    let found = text.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(": "));
    found.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("no number at {key}"))
}

/// What `check` finds in a configuration, its secret files being where it says, as mounted: mode 0440.
fn findings(config: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let private = |name: &str, content: String| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
    };
    private("session-key", Key::generate().to_base64url());
    private("client-secret", "a-secret-of-the-test".to_owned());
    let here = folder.path().display();
    let mut config = config.to_owned();
    for (name, path) in [("client-secret", "client_secret_file = \""), ("session-key", "key_files = [\"")] {
        for old in [format!("/run/secrets/sidegate/{name}"), name.to_owned()] {
            config = config.replace(&format!("{path}{old}\""), &format!("{path}{here}/{name}\""));
        }
    }
    let file = folder.path().join("sidegate.toml");
    fs::write(&file, config).unwrap();
    match config::load(&[file]) {
        Ok(config) => config.warnings.iter().map(ToString::to_string).collect(),
        Err(problems) => panic!("refused: {problems:?}"),
    }
}

/// Complaints about keys in a part of a configuration that are none; files that are missing here are no matter.
fn unknown_keys(part: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("part.toml");
    fs::write(&file, part).unwrap();
    let problems = config::load(&[file]).err().unwrap_or_default();
    problems
        .iter()
        .map(ToString::to_string)
        .filter(|text| text.contains("unknown ") || text.contains("must be "))
        .collect()
}

/// K8S-14: the shipped manifests' configuration is one that `check` has nothing to say about.
#[test]
fn the_manifests_configuration_is_fine() {
    for manifest in sidecars() {
        let name = &manifest.name;
        let text = block_scalar(manifest.of("ConfigMap"), "sidegate.toml");
        assert_eq!(findings(&text), Vec::<String>::new(), "{name}");
        let config: Table = text.parse().unwrap();
        assert_eq!(config["server"]["listen"].as_str(), Some("0.0.0.0:8080"));
        assert_eq!(config["admin"]["listen"].as_str(), Some("0.0.0.0:9180"), "the kubelet's probes must reach it");
        for route in config["route"].as_array().unwrap() {
            let upstream = route["upstream"].as_str().unwrap();
            assert!(upstream.starts_with("http://127.0.0.1:"), "{name}: K8S-14: {upstream} is not loopback");
        }
    }
}

/// K8S-01, K8S-02, K8S-04, K8S-05, K8S-16, ASVS-13.2.2, ASVS-15.2.5.
#[test]
fn the_pod_has_no_privileges() {
    for manifest in sidecars() {
        let (name, deployment) = (&manifest.name, manifest.deployment());
        for line in [
            "automountServiceAccountToken: false",
            "shareProcessNamespace: false",
            "runAsNonRoot: true",
            "type: RuntimeDefault",
        ] {
            assert!(deployment.contains(line), "{name}: {line}");
        }
        for part in ["sidegate", "app"] {
            let container = container(deployment, part);
            for line in [
                "allowPrivilegeEscalation: false",
                "readOnlyRootFilesystem: true",
                "drop: [\"ALL\"]",
                "requests:",
                "limits:",
            ] {
                assert!(container.contains(line), "{name}: {part}: {line}");
            }
        }
        for word in ["hostNetwork", "hostPID", "hostIPC", "hostPath", "hostPort", "privileged: true"] {
            assert!(!manifest.text.contains(word), "{name}: {word}");
        }
    }
}

/// K8S-07: starts before the app; K8S-06: probes on the admin port, and time enough for the stop.
#[test]
fn sidegate_is_a_native_sidecar() {
    for manifest in sidecars() {
        let (name, deployment) = (&manifest.name, manifest.deployment());
        let (before, after) = deployment.split_once("\n      containers:\n").unwrap();
        let (_, init) = before.split_once("\n      initContainers:\n").unwrap();
        assert!(init.contains("- name: sidegate\n") && !after.contains("- name: sidegate\n"), "{name}");
        let sidegate = container(deployment, "sidegate");
        assert!(sidegate.contains("restartPolicy: Always"), "{name}");
        for (probe, path) in [("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/livez")] {
            let (_, rest) = sidegate.split_once(&format!("{probe}:\n")).unwrap_or_else(|| panic!("{name}: no {probe}"));
            let asks: Vec<&str> = rest.lines().take(3).map(str::trim).collect();
            assert_eq!(asks, ["httpGet:", &format!("path: {path}"), "port: admin"], "{name}: {probe}");
        }
        assert!(sidegate.contains("- name: admin\n              containerPort: 9180"), "{name}");

        let config: Table = block_scalar(manifest.of("ConfigMap"), "sidegate.toml").parse().unwrap();
        let needed = number_after(&container(deployment, "app"), "seconds")
            + seconds(&config, "shutdown_delay")
            + seconds(&config, "shutdown_drain");
        let granted = number_after(deployment, "terminationGracePeriodSeconds");
        assert!(granted > needed, "{name}: {granted} s are granted, {needed} s needed");
    }
}

/// K8S-08, K8S-09, ASVS-13.2.3, ASVS-13.3.1, ASVS-13.3.2: mounted for sidegate alone, and others cannot read them.
/// Placeholders start nothing; the chart has none.
#[test]
fn secrets_are_mounted_and_empty() {
    for manifest in sidecars() {
        let (name, deployment) = (&manifest.name, manifest.deployment());
        assert!(deployment.contains("secretName: sidegate\n            defaultMode: 0440"), "{name}");
        assert!(deployment.contains("fsGroup:"), "{name}");
        assert!(container(deployment, "sidegate").contains("secrets\n"), "{name}");
        let app = container(deployment, "app");
        assert!(!app.contains("volumeMounts") && !app.contains("secretKeyRef"), "{name}");
        let Some(secret) = manifest.find("Secret") else { continue };
        for key in ["client-secret", "session-key"] {
            let line = secret.lines().find(|line| line.trim().starts_with(key)).unwrap();
            assert!(line.contains(": \"\""), "{line}");
        }
    }
}

/// K8S-10, K8S-14, ASVS-8.4.2, ASVS-13.2.4, ASVS-13.4.5: only the ingress reaches the app, by sidegate, and only
/// monitoring the admin port.
#[test]
fn the_network_policy_opens_two_ports() {
    for manifest in sidecars() {
        let (name, policy) = (&manifest.name, manifest.of("NetworkPolicy"));
        let (ingress, egress) = policy.split_once("\n  egress:\n").unwrap();
        let ports: Vec<&str> = ingress.lines().filter_map(|line| line.trim().strip_prefix("port: ")).collect();
        assert_eq!(ports, ["8080", "9180"], "{name}");
        assert_eq!(ingress.matches("- from:").count(), 2, "{name}");
        assert!(egress.contains("port: 53") && egress.contains("port: 443"), "{name}");
        assert!(manifest.text.contains("targetPort: http") && !manifest.text.contains("targetPort: admin"), "{name}");
    }
}

/// The chart's topology with Redis, its pod without an app, and its refusal of values it does not know.
#[test]
fn the_chart_has_what_replicas_need() {
    let Some(three) = chart(&["--set=app.image=app:1", "--values=deploy/helm/sidegate/values-redis.yaml"]) else {
        return;
    };
    assert!(three.deployment().contains("replicas: 3"));
    assert!(three.of("PodDisruptionBudget").contains("maxUnavailable: 1"));
    assert!(three.of("PodMonitor").contains("port: admin"));
    let redis = block_scalar(three.of("ConfigMap"), "redis.toml");
    let config = format!("{redis}\n{}", block_scalar(three.of("ConfigMap"), "sidegate.toml"));
    assert_eq!(findings(&config), Vec::<String>::new());
    assert!(three.of("NetworkPolicy").contains("port: 6379"));

    let alone = chart(&[]).unwrap();
    assert!(!alone.deployment().contains("initContainers") && alone.find("PodDisruptionBudget").is_none());
    assert!(chart(&["--set=enabled=false"]).unwrap().find("Deployment").is_none(), "a library for other charts");
    let unknown = helm().args(["lint", "--strict", "deploy/helm/sidegate", "--set=replica=2"]).output().unwrap();
    assert!(!unknown.status.success(), "values.schema.json knows no `replica`");
}

/// Every document fits the schemas of Kubernetes, unknown fields included. By the tool `kubernetes-validate` of PyPI,
/// where it is installed.
#[test]
fn the_manifests_fit_the_schemas_of_kubernetes() {
    let folder = tempfile::tempdir().unwrap();
    let tool = std::env::var_os("KUBERNETES_VALIDATE").unwrap_or_else(|| "kubernetes-validate".into());
    for manifest in sidecars() {
        let file = folder.path().join("manifest.yaml");
        // Of the Prometheus operator, not of Kubernetes.
        let own = manifest.text.split("\n---\n").filter(|text| !text.contains("\nkind: PodMonitor\n"));
        fs::write(&file, own.collect::<Vec<_>>().join("\n---\n")).unwrap();
        let Ok(judged) = Command::new(&tool).args(["--strict", "--kubernetes-version=1.31"]).arg(&file).output() else {
            eprintln!("skipped: kubernetes-validate is not installed (or set KUBERNETES_VALIDATE to its path)");
            return;
        };
        assert!(judged.status.success(), "{}: {}", manifest.name, String::from_utf8_lossy(&judged.stdout));
    }
}

/// Kustomize's overlay is made of the plain manifest.
#[test]
fn the_overlay_names_files_that_exist() {
    for folder in ["deploy/kubernetes", "deploy/kustomize/redis"] {
        let text = read(&format!("{folder}/kustomization.yaml"));
        let (_, resources) = text.split_once("\nresources:\n").unwrap();
        for name in resources.lines().map_while(|line| line.strip_prefix("  - ")) {
            assert!(root().join(folder).join(name).exists(), "{folder}: {name}");
        }
    }
}

/// One version everywhere.
#[test]
fn versions_agree() {
    let version = env!("CARGO_PKG_VERSION");
    for (file, line) in [
        ("deploy/helm/sidegate/Chart.yaml", format!("appVersion: \"{version}\"")),
        ("deploy/helm/sidegate/Chart.yaml", format!("version: {version}")),
        ("deploy/helm/sidegate/values.yaml", format!("tag: \"{version}\"")),
        ("deploy/kubernetes/sidecar.yaml", format!("image: registry.example.com/team/sidegate:{version}")),
        ("client/package.json", format!("\"version\": \"{version}\",")),
        ("CHANGELOG.md", format!("## {version}")),
    ] {
        assert!(read(file).lines().any(|own| own.trim().starts_with(&line)), "{file}: {line}");
    }
    let msrv = env!("CARGO_PKG_RUST_VERSION");
    assert!(read("README.md").contains(&format!("Rust {msrv} or newer")));
}

/// npm packs the licence that lies in the folder, and no link to it.
#[test]
fn the_kit_brings_its_licence() {
    assert_eq!(read("client/LICENSE"), read("LICENSE"));
}

/// K8S-03, ASVS-15.2.3.
#[test]
fn the_image_is_small_and_not_root() {
    let text = read("deploy/Dockerfile");
    let last_stage = text.rsplit_once("\nFROM ").unwrap().1;
    assert!(last_stage.starts_with("gcr.io/distroless/") && !last_stage.contains("\nRUN "));
    let user = last_stage.lines().find_map(|line| line.strip_prefix("USER ")).unwrap();
    assert!(user.split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id != 0)), "{user}");
    assert!(text.contains("--locked") && text.contains("--no-default-features"));
    assert!(last_stage.contains(r#"ENTRYPOINT ["/usr/local/bin/sidegate"]"#));
}

/// Every example in the documentation is TOML, and every whole one is a configuration without problems.
#[test]
fn documented_configurations_are_fine() {
    let mut whole = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for block in blocks(&text, "toml") {
            let name = document.display();
            let table = block.parse::<Table>().unwrap_or_else(|error| panic!("{name}: {error}\n{block}"));
            if ["server", "provider", "route"].iter().all(|section| table.contains_key(*section)) {
                findings(&block);
                whole += 1;
            } else {
                let unknown = unknown_keys(&block);
                assert!(unknown.is_empty(), "{name}: {unknown:?}\n{block}");
            }
        }
    }
    assert!(whole >= 6, "README.md and docs/spa-guide.md have one each, docs/migration.md four");
}

/// SUP-06: a reader who follows a link arrives.
#[test]
fn links_in_the_documentation_lead_somewhere() {
    let mut checked = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').map_or((target, None), |(file, anchor)| (file, Some(anchor)));
            let path = if file.is_empty() { document.clone() } else { document.with_file_name(file) };
            assert!(path.exists(), "{}: {target}", document.display());
            if let Some(anchor) = anchor {
                let headings = fs::read_to_string(&path).unwrap();
                let found = headings.lines().filter(|line| line.starts_with('#')).any(|line| slug(line) == anchor);
                assert!(found, "{}: {target} names no heading", document.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 20);
}

/// A heading's anchor: lower case, blanks to dashes, punctuation gone.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|one| one.is_alphanumeric() || matches!(one, ' ' | '-' | '_'));
    kept.map(|one| if one == ' ' { '-' } else { one }).collect()
}

/// The Rust files below a folder, without those that hold tests only.
fn sources(folder: PathBuf, found: &mut Vec<PathBuf>) {
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            sources(path, found);
        } else if path.to_str().is_some_and(|name| name.ends_with(".rs") && !name.ends_with("tests.rs")) {
            found.push(path);
        }
    }
}

/// ASVS 16.1.1, ASVS-16.2.3: the inventory of the log is complete.
#[test]
fn every_log_event_is_documented() {
    let documented = read("docs/operations.md") + &read("docs/endpoints.md");
    let mut files = Vec::new();
    sources(root().join("src"), &mut files);
    let mut events = 0;
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for event in code.split("event = \"").skip(1).filter_map(|rest| rest.split('"').next()) {
            assert!(documented.contains(&format!("`{event}`")), "{}: {event} is not documented", file.display());
            events += 1;
        }
    }
    assert!(events > 10);
}

/// Operators look up what they see: every code and every metric stands in the reference.
#[test]
fn the_reference_lists_every_code_and_metric() {
    let reference = read("docs/endpoints.md");
    let source = read("src/web/problem.rs");
    let (_, words) = source.split_once("fn as_str(self)").unwrap();
    let (words, _) = words.split_once("\nimpl ").unwrap();
    let codes: Vec<&str> = words.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert!(codes.len() > 20);
    for code in codes {
        assert!(reference.contains(&format!("`{code}`")), "{code} is not in docs/endpoints.md");
    }
    let metrics = Metrics::new().render();
    let names = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for name in names.filter(|name| name.starts_with("sidegate_")) {
        assert!(reference.contains(&format!("`{name}`")), "{name} is not in docs/endpoints.md");
    }
}

/// The names of all metrics that a process shows which has done everything once.
fn metrics() -> BTreeSet<String> {
    let metrics = Metrics::new();
    metrics.route("/").observe(&Method::GET, 200, Duration::ZERO, Some(Duration::ZERO));
    metrics.set_redis_up(true);
    let text = metrics.render();
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next().map(str::to_owned)).collect()
}

/// MET-03: every name of the contract is there.
#[test]
fn metrics_have_the_names_that_alerts_are_written_against() {
    let there = metrics();
    for name in [
        "sidegate_requests_total",
        "sidegate_request_duration_seconds",
        "sidegate_upstream_duration_seconds",
        "sidegate_logins_total",
        "sidegate_refreshes_total",
        "sidegate_refresh_duration_seconds",
        "sidegate_refresh_joined_total",
        "sidegate_stale_cookies_total",
        "sidegate_cookie_reuse_total",
        "sidegate_handoff_entries",
        "sidegate_handoff_bytes",
        "sidegate_sessions_ended_total",
        "sidegate_csrf_refused_total",
        "sidegate_cookie_bytes",
        "sidegate_provider_request_duration_seconds",
        "sidegate_redis_up",
        "sidegate_config_reloads_total",
        "sidegate_connections",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_cpu_seconds_total",
    ] {
        assert!(there.contains(name), "{name}");
    }
}

#[test]
fn dashboard_and_alerts_ask_for_metrics_that_exist() {
    let there = metrics();
    let dashboard = read("deploy/grafana/sidegate.json");
    assert!(serde_json::from_str::<serde_json::Value>(&dashboard).is_ok_and(|json| json["panels"].is_array()));
    for text in [dashboard, read("deploy/prometheus/alerts.yaml")] {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let asked: BTreeSet<&str> =
            words.filter(|word| word.starts_with("sidegate_") || word.starts_with("process_")).collect();
        assert!(asked.len() > 8, "{asked:?}");
        for name in asked {
            assert!(there.contains(name.trim_end_matches("_bucket")), "{name}");
        }
    }
}

/// Who is woken by an alert finds it in the runbook.
#[test]
fn every_alert_is_in_the_runbook() {
    let runbook = read("docs/operations.md");
    let alerts = read("deploy/prometheus/alerts.yaml");
    let names: Vec<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(names.len() > 8);
    for name in names {
        assert!(runbook.contains(&format!("`{name}`")), "{name} is not in docs/operations.md");
    }
}

#[test]
fn the_compose_files_configuration_is_fine() {
    let text = read("deploy/compose/sidegate.toml").replace("/run/secrets/", "/run/secrets/sidegate/");
    for finding in findings(&text) {
        assert!(finding.contains("plain http to app"), "{finding}");
    }
    let compose = read("deploy/compose/compose.yaml");
    for line in ["    read_only: true", "    cap_drop: [ALL]", "    internal: true"] {
        assert!(compose.lines().any(|own| own == line), "{line}");
    }
}

/// A reload is a signal away, and the stop is given its time.
#[test]
fn the_systemd_unit_knows_the_program() {
    let unit = read("deploy/systemd/sidegate.service");
    for line in [
        "ExecStart=/usr/local/bin/sidegate run -c /etc/sidegate/sidegate.toml",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "RestartPreventExitStatus=78",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "LimitCORE=0",
    ] {
        assert!(unit.lines().any(|own| own == line), "{line}");
    }
}
