//! Servers that we did not write.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A test that cannot run here; in CI that is a failure.
pub(crate) fn skip(reason: &str) {
    let ci = std::env::var_os("CI").is_some_and(|value| value == "true");
    assert!(!ci, "a skip is a failure in CI: {reason}");
    eprintln!("SKIPPED: {reason}; `tests/run` installs it");
}

/// Where nginx keeps what does not fit into memory: its own places are root's.
pub(crate) fn nginx_paths(directory: &Path) -> String {
    let names = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    names.map(|name| format!("{name}_temp_path {}/{name};\n", directory.display())).concat()
}

/// A server that ends with the test.
pub(crate) struct Server(Child);

impl Server {
    /// Starts it and waits until it listens on `port`.
    pub(crate) async fn start(command: &mut Command, port: u16) -> Option<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut server = match child {
            Ok(child) => Self(child),
            Err(error) => {
                skip(&format!("{name}: {error}"));
                return None;
            }
        };
        for _ in 0..1500 {
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return Some(server);
            }
            if let Ok(Some(status)) = server.0.try_wait() {
                panic!("{name} ended with {status}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{name} does not listen");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
