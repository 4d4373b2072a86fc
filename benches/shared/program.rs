//! The real program as a process of its own.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rcgen::{CertifiedIssuer, ExtendedKeyUsagePurpose, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::http1::HOST;
use crate::pki::{identity, pem};
use crate::{Outcome, cpu};

/// How often readiness is asked for, and how long between.
const POLLS: usize = 1000;
const PAUSE: Duration = Duration::from_millis(20);

/// The program. It ends when this is dropped.
pub(crate) struct Edge(Child);

impl Edge {
    /// Writes the configuration to `directory` and starts the program of this build with it, or
    /// another one that `HOLDFAST_PROGRAM` names, so that two can be measured in turns.
    pub(crate) async fn start(directory: &Path, config: &Value, pinned: bool) -> Outcome<Self> {
        write(directory, "authority.yaml", &config.to_string())?;
        let program = std::env::var("HOLDFAST_PROGRAM");
        let program = program.as_deref().unwrap_or(env!("CARGO_BIN_EXE_holdfast"));
        let mut command = cpu::command(program, pinned, cpu::EDGE_CORE);
        command.args(["run", "--config"]).arg(directory.join("authority.yaml"));
        // Its records are written as ever, to where they cost the least.
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let mut edge = Self(child);
        edge.ready(config["edge"]["admin"]["address"].as_str().unwrap_or_default()).await?;
        Ok(edge)
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    async fn ready(&mut self, admin: &str) -> Outcome<()> {
        for _ in 0..POLLS {
            if let Some(status) = self.0.try_wait()? {
                return Err(format!("the edge ended at start: {status}").into());
            }
            if is_ready(admin).await.unwrap_or(false) {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err("the edge is not ready".into())
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn is_ready(admin: &str) -> std::io::Result<bool> {
    let mut socket = TcpStream::connect(admin).await?;
    socket
        .write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

/// One that was free a moment ago.
pub(crate) fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Writes a file that only its owner can read: of a key that others can read the program warns.
pub(crate) fn write(directory: &Path, name: &str, text: &str) -> std::io::Result<()> {
    let path = directory.join(name);
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
}

/// Writes the edge's certificate and key to `directory`.
pub(crate) fn certify(
    directory: &Path,
    authority: &CertifiedIssuer<'static, KeyPair>,
) -> Outcome<()> {
    let server = identity(authority, HOST, ExtendedKeyUsagePurpose::ServerAuth)?;
    write(directory, "server.pem", &pem("CERTIFICATE", &server.certificate))?;
    write(directory, "server.key", &server.key.serialize_pem())?;
    Ok(())
}

/// The `edge` of a configuration: the defaults, but for one worker thread and connections that
/// outlive a round.
pub(crate) fn edge(port: u16, admin: u16) -> Value {
    json!({
        "listeners": [{
            "name": "main",
            "address": format!("127.0.0.1:{port}"),
            "tls": {"certificates": [{"certificate": "server.pem", "key": "server.key"}]},
            "keepaliveRequests": 1_000_000,
        }],
        "admin": {"address": format!("127.0.0.1:{admin}")},
        "threads": 1,
    })
}
