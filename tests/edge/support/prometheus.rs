//! A real Prometheus, and the tools that come with it and with Alertmanager: those that are installed, or
//! those that `tests/run` has put into target/prometheus.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::client::Message;
use super::process::free_port;
use super::scripted::{Scripted, reply};
use super::server::{Server, skip};

/// Where rules and examples are.
pub(crate) const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/prometheus");

/// Where the runbook is, to this Prometheus.
pub(crate) const RUNBOOK: &str = "https://wiki.example/RUNBOOK.md";

/// A program; `None` where it is not there, which in CI is a failure.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/prometheus/usr/bin").join(name);
    if own.exists() {
        return Some(own);
    }
    let mut found = Command::new(name);
    found.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    if found.status().is_ok_and(|status| status.success()) {
        return Some(name.into());
    }
    skip(&format!("there is no {name}"));
    None
}

/// A server that scrapes one edge, and goes by the rules with every wait of theirs cut to a second.
pub(crate) struct Prometheus {
    port: u16,
    _server: Server,
    _directory: TempDir,
}

impl Prometheus {
    /// `None` where there is none to be started.
    pub(crate) async fn start(edge: u16) -> Option<Self> {
        Self::start_with(edge, "").await
    }

    /// The same; `settings` are further lines of how it scrapes, and sections of its configuration.
    pub(crate) async fn start_with(edge: u16, settings: &str) -> Option<Self> {
        let program = program("prometheus")?;
        let (directory, port) = (TempDir::new().expect("a directory"), free_port());
        let rules = fs::read_to_string(Path::new(RULES).join("holdfast.rules.yaml"));
        fs::write(directory.path().join("rules.yaml"), hurried(&rules.expect("the rules")))
            .expect("a writable directory");
        let config = directory.path().join("prometheus.yml");
        let text = format!(
            "global:\n\
             \x20 scrape_interval: 500ms\n\
             \x20 evaluation_interval: 1s\n\
             \x20 external_labels: {{runbooks: '{RUNBOOK}'}}\n\
             rule_files: [rules.yaml]\n\
             scrape_configs:\n\
             - job_name: holdfast\n\
             \x20 static_configs: [{{targets: ['127.0.0.1:{edge}']}}]\n\
             {settings}"
        );
        fs::write(&config, text).expect("a writable directory");
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let server = Server::start(&mut command, port).await?;
        let prometheus = Self { port, _server: server, _directory: directory };
        for _ in 0..1500 {
            // It listens before it answers.
            if prometheus.get("/api/v1/rules").await.is_ok() {
                return Some(prometheus);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("prometheus does not answer within 30 s");
    }

    /// The series that a query comes to now.
    pub(crate) async fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let answer = self.get(&format!("/api/v1/query?query={}", escaped(expression))).await?;
        if answer["status"] != "success" {
            return Err(answer["error"].as_str().unwrap_or("no answer").to_owned());
        }
        match answer["data"]["result"].as_array() {
            // A scalar is a pair, not a list of series.
            Some(pair) if answer["data"]["resultType"] == "scalar" => Ok(vec![pair.clone().into()]),
            Some(series) => Ok(series.clone()),
            None => Err(format!("no result: {answer}")),
        }
    }

    /// The names of the alerts that fire now.
    pub(crate) async fn firing(&self) -> Vec<String> {
        let series = self.query("ALERTS{alertstate=\"firing\"}").await.unwrap_or_default();
        let name = |one: &Value| one["metric"]["alertname"].as_str().map(str::to_owned);
        let mut names: Vec<_> = series.iter().filter_map(name).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Waits until exactly these alerts fire.
    pub(crate) async fn fires(&self, expected: &[&str]) {
        let mut found = Vec::new();
        for _ in 0..300 {
            found = self.firing().await;
            if found == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("{found:?} fire, and not {expected:?}");
    }

    /// What its interface answers.
    pub(crate) async fn get(&self, target: &str) -> Result<Value, String> {
        let read = async {
            let mut socket = TcpStream::connect(("127.0.0.1", self.port)).await?;
            // HTTP/1.0 has no chunks.
            let request = format!("GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n");
            socket.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = read.await.map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&answer);
        let (_, body) = text.split_once("\r\n\r\n").ok_or("no answer")?;
        serde_json::from_str(body).map_err(|error| format!("{error}: {body}"))
    }
}

/// Alertmanager looks for its templates where its package puts them. One that was only unpacked finds them
/// there all the same, in a sight of the files of its own.
fn alertmanager() -> Option<Command> {
    let program = program("prometheus-alertmanager")?;
    let home = program.parent().and_then(Path::parent).map(|usr| usr.join("share"));
    let Some(home) = home.filter(|home| home.starts_with(env!("CARGO_MANIFEST_DIR"))) else {
        return Some(Command::new(program));
    };
    let script = format!(
        "mount -t overlay -o lowerdir={}:/usr/share templates /usr/share && exec \"$@\"",
        home.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", &script, "sh"]).arg(program);
    Some(command)
}

/// An Alertmanager by the example in `deploy/`, with its waits cut to a second, and those whom it tells.
pub(crate) struct Alertmanager {
    port: u16,
    receivers: Scripted,
    _server: Server,
    _directory: TempDir,
}

impl Alertmanager {
    /// `None` where there is none to be started.
    pub(crate) async fn start() -> Option<Self> {
        let mut command = alertmanager()?;
        let (directory, port) = (TempDir::new().expect("a directory"), free_port());
        let receivers = Scripted::start(|_| reply(200, "text/plain", "")).await;
        let example = fs::read_to_string(Path::new(RULES).join("alertmanager.yml"));
        let mut example = hurried(&example.expect("the example"));
        for name in ["pager", "tickets", "security"] {
            let ours = format!("http://127.0.0.1:{}/{name}", receivers.port);
            let theirs = format!("http://{name}.example/holdfast");
            assert!(example.contains(&theirs), "{theirs}");
            example = example.replace(&theirs, &ours);
        }
        let config = directory.path().join("alertmanager.yml");
        fs::write(&config, example).expect("a writable directory");
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.path={}", directory.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            // It looks for no others.
            .arg("--cluster.listen-address=");
        let server = Server::start(&mut command, port).await?;
        Some(Self { port, receivers, _server: server, _directory: directory })
    }

    /// What has a Prometheus send its alerts here.
    pub(crate) fn settings(&self) -> String {
        let target = format!("127.0.0.1:{}", self.port);
        format!("alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{target}']}}]}}]}}\n")
    }

    /// The alert as `receiver` was told of it, once that has been.
    ///
    /// # Errors
    /// What it was told instead, within a time that nobody waits for.
    pub(crate) async fn told(
        &self,
        receiver: &str,
        alert: &str,
        status: &str,
    ) -> Result<Value, String> {
        let mut alerts = Vec::new();
        for _ in 0..300 {
            let to = |message: &Message| message.start.contains(&format!("/{receiver} "));
            let messages = self.receivers.all().into_iter().filter(to);
            let of = |message: Message| message.json()["alerts"].as_array().cloned();
            alerts = messages.filter_map(of).flatten().collect();
            let found = alerts
                .iter()
                .find(|one| one["labels"]["alertname"] == alert && one["status"] == status);
            if let Some(found) = found {
                return Ok(found.clone());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Err(format!("{receiver} was not told that {alert} is {status}, but {alerts:?}"))
    }

    /// Whether `receiver` was told of the alert so far.
    pub(crate) fn tells(&self, receiver: &str, alert: &str) -> bool {
        let of = |message: &Message| {
            message.start.contains(&format!("/{receiver} "))
                && String::from_utf8_lossy(&message.body).contains(&format!("\"{alert}\""))
        };
        self.receivers.all().iter().any(of)
    }
}

/// Rules, or who is told, with every wait but for repetitions cut to a second.
fn hurried(rules: &str) -> String {
    let line = |line: &str| {
        let key = line.trim_start();
        let indent = &line[..line.len() - key.len()];
        match key.split_once(": ") {
            Some((name @ ("for" | "interval" | "group_wait" | "group_interval"), _)) => {
                format!("{indent}{name}: 1s\n")
            }
            Some(_) | None => format!("{line}\n"),
        }
    };
    rules.lines().map(line).collect()
}

fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
