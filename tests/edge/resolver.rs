//! A resolver that forgets, and one that is silent, while a configuration is read again.

use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;

use super::support::Table;
use super::support::client::Request;
use super::support::server::skip;
use super::support::world::{Expect, World, expect_eq};

/// Has the edge believe files of these names, and nobody else.
fn with_files(directory: &TempDir, environment: &str) -> Vec<String> {
    let at = directory.path().display();
    let script = format!(
        "mount --bind {at}/hosts /etc/hosts && mount --bind {at}/resolv.conf /etc/resolv.conf && \
         exec env {environment} \"$@\""
    );
    let words = ["unshare", "--mount", "--map-root-user", "sh", "-c", &script, "sh"];
    words.map(str::to_owned).to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resolver_that_is_away_takes_no_server_away_and_holds_nothing_up() {
    // Takes questions and answers none.
    let Ok(_silent) = UdpSocket::bind("127.0.0.53:53") else {
        return skip("a resolver of the test's own: no right to port 53, or it is taken");
    };
    let files = TempDir::new().expect("a directory");
    let write = |name: &str, text: &str| {
        std::fs::write(files.path().join(name), text).expect("a writable directory");
    };
    write("hosts", "127.0.0.1 localhost service.example\n");
    write("resolv.conf", "nameserver 127.0.0.53\noptions timeout:2 attempts:3\n");
    let manager = UnixDatagram::bind(files.path().join("notify.sock")).expect("a socket");
    manager.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
    let environment =
        format!("NOTIFY_SOCKET={}/notify.sock WATCHDOG_USEC=500000", files.path().display());
    let world = World::start_under(&with_files(&files, &environment), |config| {
        let servers = &mut config["upstreams"]["echo"]["servers"];
        let port = servers[0].as_str().and_then(|it| it.split_once(':')).expect("a port").1;
        *servers = json!([format!("service.example:{port}")]);
        config["upstreams"]["echo"]["resolveInterval"] = json!("1h");
    })
    .await;
    let mut table = Table::default();
    let asked = async || world.send(&Request::new("GET", "/public/1")).await;
    table.row("ok/before", world.judge(asked().await, Expect::Public).await);

    // The name has no address any more, and it takes seconds to hear that.
    write("hosts", "127.0.0.1 localhost\n");
    let told = std::thread::spawn(move || {
        let (mut buffer, mut watched, mut reloading) = ([0; 4096], 0, false);
        loop {
            let read = manager.recv(&mut buffer).expect("a message");
            let text = String::from_utf8_lossy(&buffer[..read]).into_owned();
            reloading = reloading || text.contains("RELOADING=1");
            watched += usize::from(reloading && text.contains("WATCHDOG=1"));
            if reloading && text.contains("READY=1") {
                return watched;
            }
        }
    });
    table.row("reload", expect_eq("taken", &world.told_to_reload().await, &true));
    let watched = told.join().expect("a count");
    let well = watched >= 4;
    table.row("meanwhile", expect_eq(&format!("{watched} words that all is well"), &well, &true));
    table.row("ok/after", world.judge(asked().await, Expect::Public).await);
    let warned = world.process.records(|record| {
        record["finding"].as_str().is_some_and(|text| text.contains("has no address now"))
    });
    table.row("told", expect_eq("warnings", &warned.len(), &1));
}
