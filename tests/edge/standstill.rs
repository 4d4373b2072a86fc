//! An edge whose threads stand still, while the process goes on and its ports are open.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, Stdio};

use tokio::net::TcpStream;

use super::support::server::skip;
use super::support::world::World;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/stand_still.py");
/// SIGABRT.
const ABORTED: i32 = 6;

/// What holds the threads, until they have ended.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Stops every thread that serves; `None` where that is not allowed.
fn stop(world: &World) -> Option<Holder> {
    let mut command = Command::new("python3");
    command.args([SCRIPT, "stop", &world.process.pid().to_string(), "edge"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("python3");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let stopped = lines.next().and_then(Result::ok).and_then(|line| line.parse().ok());
    let holder = Holder(child);
    match stopped {
        Some(0) => panic!("no thread that serves was found"),
        Some(1_usize..) => Some(holder),
        None => {
            skip("threads of another process cannot be stopped here");
            None
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_that_stand_still_end_the_process() {
    if Command::new("python3").arg("--version").stdout(Stdio::null()).status().is_err() {
        return skip("python3");
    }
    let under = ["python3", SCRIPT, "run"].map(str::to_owned);
    let mut world = World::start_under(&under, |_| {}).await;
    let Some(_holder) = stop(&world) else { return };
    // All that a probe of the port sees.
    let port = world.client.port;
    TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
    let mut ended = None;
    for _ in 0..6 {
        ended = world.process.ended().await;
        if ended.is_some() {
            break;
        }
    }
    let output = world.process.output();
    let status = ended.unwrap_or_else(|| panic!("it goes on:\n{output}"));
    assert_eq!(status.signal(), Some(ABORTED), "{status:?}:\n{output}");
    assert!(output.contains("error: the threads that serve have stood still for 60 s"), "{output}");
}
