//! The real program: started with a configuration, listened to, and ended by its own id.

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::client::plain_get;

/// Polls of 20 ms before a wait is given up: 30 s.
const POLLS: usize = 1500;

/// The program under test.
pub(crate) struct Process {
    child: Option<Child>,
    pid: u32,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Process {
    /// Starts `holdfast run` and waits until it says that it is ready.
    pub(crate) async fn start(directory: &Path, config: &Value, admin: u16) -> Self {
        Self::start_under(&[], directory, config, admin).await
    }

    /// The same, run by the program and with the arguments in `under`.
    pub(crate) async fn start_under(
        under: &[String],
        directory: &Path,
        config: &Value,
        admin: u16,
    ) -> Self {
        let file = write_config(directory, config);
        let mut process = Self::spawn(under, &["run", "--config"], &file);
        for _ in 0..POLLS {
            if let Some(status) = process.status() {
                panic!("ended at start with {status:?}:\n{}", process.output());
            }
            if plain_get(admin, "/readyz").await.is_ok_and(|answer| answer.status() == 200) {
                return process;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("not ready within 30 s:\n{}", process.output());
    }

    /// Starts `holdfast run` and waits until its admin listener answers, ready or not.
    pub(crate) async fn start_unready(directory: &Path, config: &Value, admin: u16) -> Self {
        Self::start_unready_under(&[], directory, config, admin).await
    }

    /// The same, run by the program and with the arguments in `under`.
    pub(crate) async fn start_unready_under(
        under: &[String],
        directory: &Path,
        config: &Value,
        admin: u16,
    ) -> Self {
        let file = write_config(directory, config);
        let mut process = Self::spawn(under, &["run", "--config"], &file);
        for _ in 0..POLLS {
            if let Some(status) = process.status() {
                panic!("ended at start with {status:?}:\n{}", process.output());
            }
            if plain_get(admin, "/readyz").await.is_ok() {
                return process;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no answer within 30 s:\n{}", process.output());
    }

    fn spawn(under: &[String], arguments: &[&str], file: &Path) -> Self {
        let program = env!("CARGO_BIN_EXE_holdfast");
        let mut command = match under {
            [] => Command::new(program),
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
        };
        command.args(arguments).arg(file);
        Self::of(command)
    }

    /// Starts a command that becomes the program.
    pub(crate) fn of(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program");
        let lines = Arc::new(Mutex::new(Vec::new()));
        keep(child.stdout.take().expect("a pipe"), &lines);
        keep(child.stderr.take().expect("a pipe"), &lines);
        Self { pid: child.id(), child: Some(child), lines }
    }

    /// Starts a process that waits to take over from one that serves.
    pub(crate) fn upgrade(directory: &Path) -> Self {
        Self::spawn(&[], &["run", "--upgrade", "--config"], &directory.join("authority.yaml"))
    }

    /// A process that this one has started, and that writes where this one does.
    pub(crate) fn started_by(&self, pid: u32) -> Self {
        Self { child: None, pid, lines: Arc::clone(&self.lines) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Its parent, while it runs.
    pub(crate) fn parent(&self) -> u32 {
        self.status_of("PPid:").and_then(|id| id.parse().ok()).expect("a parent")
    }

    /// How it ended; `None` while it runs.
    fn status(&mut self) -> Option<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => child.try_wait().expect("a child").map(Some),
            None => {
                let status = fs::read_to_string(format!("/proc/{}/stat", self.pid));
                let gone = status.map_or(true, |text| text.contains(") Z "));
                gone.then_some(None)
            }
        }
    }

    /// Its resident memory, bytes.
    pub(crate) fn memory(&self) -> usize {
        let size = self.status_of("VmRSS:");
        let kilobytes = size.and_then(|size| size.trim_end_matches(" kB").parse().ok());
        kilobytes.unwrap_or(0_usize) * 1024
    }

    /// What the system says of it under `name`.
    fn status_of(&self, name: &str) -> Option<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid));
        let status = status.expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(|line| line.trim().to_owned())
    }

    /// Everything it wrote so far.
    pub(crate) fn output(&self) -> String {
        self.lines.lock().expect("whole lines").join("\n")
    }

    /// The records so far that `wanted` takes.
    pub(crate) fn records(&self, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        let lines = self.lines.lock().expect("whole lines");
        let records = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        records.filter(|record| wanted(record)).collect()
    }

    /// The first record that `wanted` takes, once it is written.
    pub(crate) async fn record(&self, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        for _ in 0..POLLS {
            if let Some(record) = self.records(&wanted).into_iter().next() {
                return Some(record);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        self.signal("TERM");
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.pid);
        let status = Command::new("sh").args(["-c", &command]).status().expect("a shell");
        assert!(status.success(), "SIG{name} could not be sent");
    }

    /// Kills it, with no process of ours in between.
    pub(crate) fn kill(&mut self) {
        self.child.as_mut().expect("a child").kill().expect("a child");
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> Option<ExitStatus> {
        for _ in 0..POLLS {
            if let Some(status) = self.status() {
                return status.or_else(|| Some(ExitStatus::default()));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }
}

/// Writes `authority.yaml`.
pub(crate) fn write_config(directory: &Path, config: &Value) -> PathBuf {
    let file = directory.join("authority.yaml");
    let text = serde_json::to_string_pretty(config).expect("JSON, which is YAML");
    fs::write(&file, text).expect("a writable directory");
    file
}

impl Drop for Process {
    fn drop(&mut self) {
        match &mut self.child {
            Some(child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            None => {
                let end = format!("kill -KILL {} 2>&-", self.pid);
                let _ = Command::new("sh").args(["-c", &end]).status();
            }
        }
    }
}

fn keep(pipe: impl Read + Send + 'static, lines: &Arc<Mutex<Vec<String>>>) {
    let lines = Arc::clone(lines);
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            lines.lock().expect("whole lines").push(line);
        }
    });
}

/// A loopback port that was free a moment ago, outside the range that outgoing connections take,
/// so that nobody else is likely to take it before the program does.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let spread = u16::try_from(std::process::id() % 500).expect("small") * 20;
    for _ in 0..2000 {
        let port = 20_000 + (spread + NEXT.fetch_add(1, Ordering::Relaxed)) % 12_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 20000 and 32000");
}
