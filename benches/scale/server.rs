//! A Redis of the benchmark's own.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use redis::{Connection, Pipeline};
use tempfile::TempDir;

use crate::cpu::Used;
use crate::program::free_port;
use crate::{Outcome, cpu};

/// How long it may take to answer first.
const PATIENCE: Duration = Duration::from_secs(10);
/// Keys that one command of the filling puts in.
const AT_ONCE: u64 = 10_000;
/// Milliseconds that a proof is remembered.
const WINDOW_MS: u64 = 3_600_000;

/// The server. It ends when this is dropped.
pub(crate) struct Server {
    process: Child,
    pub(crate) port: u16,
    _directory: TempDir,
}

/// What it takes when nothing else is asked of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alone {
    pub(crate) proofs: u64,
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
}

/// Whether there is a program to start.
pub(crate) fn is_there() -> bool {
    let mut command = Command::new("redis-server");
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl Server {
    /// One that keeps nothing on a disk, on the generator's core where there are two.
    pub(crate) fn start(pinned: bool) -> Outcome<Self> {
        let (directory, port) = (tempfile::tempdir()?, free_port()?);
        let mut command = cpu::command("redis-server", pinned, cpu::GENERATOR_CORE);
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--dir"]);
        command.arg(directory.path()).args(["--save", "", "--appendonly", "no"]);
        command.args(["--maxmemory-policy", "noeviction"]);
        let process = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let server = Self { process, port, _directory: directory };
        let began = Instant::now();
        while server.connect().is_err() {
            if began.elapsed() > PATIENCE {
                return Err("the server does not answer".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    fn connect(&self) -> Outcome<Connection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}/", self.port))?;
        let mut connection = client.get_connection()?;
        redis::cmd("PING").exec(&mut connection)?;
        Ok(connection)
    }

    /// Keys that it has.
    pub(crate) fn live(&self) -> Outcome<u64> {
        Ok(redis::cmd("DBSIZE").query(&mut self.connect()?)?)
    }

    /// Puts proofs in until there are `level`: the bytes of its memory then.
    pub(crate) fn fill(&self, level: u64) -> Outcome<u64> {
        let mut connection = self.connect()?;
        loop {
            let missing = level.saturating_sub(self.live()?);
            if missing == 0 {
                break;
            }
            let mut pipeline = Pipeline::new();
            for _ in 0..missing.min(AT_ONCE) {
                remember(&mut pipeline)?;
            }
            pipeline.exec(&mut connection)?;
        }
        let told: String = redis::cmd("INFO").arg("memory").query(&mut connection)?;
        let used = told.lines().find_map(|line| line.strip_prefix("used_memory:"));
        Ok(used.ok_or("no used_memory")?.trim().parse()?)
    }

    /// What a request sends, `proofs` times on one connection, `batch` requests in each write, with the
    /// server on the edge's core.
    pub(crate) fn alone(&self, proofs: u64, batch: u64, pinned: bool) -> Outcome<Alone> {
        let mut connection = self.connect()?;
        if pinned {
            cpu::pin(self.id(), cpu::EDGE_CORE);
        }
        let mut batches = Vec::new();
        for _ in 0..proofs / batch {
            let mut pipeline = Pipeline::new();
            for _ in 0..batch {
                remember(&mut pipeline)?;
                pipeline.cmd("GET").arg("{holdfast:0}:mark").ignore();
            }
            batches.push(pipeline);
        }
        let (before, began) = (Used::of(self.id())?, Instant::now());
        for pipeline in &batches {
            pipeline.exec(&mut connection)?;
        }
        let wall = began.elapsed();
        std::thread::sleep(Duration::from_millis(50));
        let cpu = Used::of(self.id())?.since(&before);
        Ok(Alone { proofs, wall, cpu })
    }
}

/// The note that an edge makes of a proof, of a key that no proof has.
fn remember(pipeline: &mut Pipeline) -> Outcome<()> {
    let mut hash = [0; 17];
    aws_lc_rs::rand::fill(&mut hash)?;
    let [tag, hash @ ..] = hash;
    let key = format!("{{holdfast:{tag}}}:r:{}", URL_SAFE_NO_PAD.encode(hash));
    pipeline.cmd("SET").arg(key).arg("").arg("NX").arg("PX").arg(WINDOW_MS).ignore();
    Ok(())
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
