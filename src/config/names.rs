//! Addresses of the names that a configuration has, asked for when it is read.

#![expect(
    clippy::disallowed_methods,
    reason = "the system's resolver blocks and has no time limit"
)]

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// How many are asked for at once.
const AT_ONCE: usize = 16;
/// How long all of them are waited for together: whoever renews a certificate must not wait for a
/// resolver that is silent. It stands in a text as well.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a host and its port are.
pub(super) type Found = io::Result<Vec<SocketAddr>>;

/// What each name has, in order.
///
/// What is not answered in time is an error; the threads that still ask end with that question.
pub(super) fn look_up(names: Vec<(String, u16)>) -> Vec<Found> {
    look_up_by(names, PATIENCE, |host, port| Ok((host, port).to_socket_addrs()?.collect()))
}

fn look_up_by(
    names: Vec<(String, u16)>,
    patience: Duration,
    ask: impl Fn(&str, u16) -> Found + Copy + Send + 'static,
) -> Vec<Found> {
    let silent = || Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 5 s"));
    let mut all: Vec<Found> = names.iter().map(|_| silent()).collect();
    let threads = AT_ONCE.min(names.len());
    let queue = Arc::new(Mutex::new(names.into_iter().enumerate()));
    let (answers, answered) = mpsc::channel();
    for _ in 0..threads {
        let (queue, answers) = (Arc::clone(&queue), answers.clone());
        let next = move || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = move || {
            while let Some((index, (host, port))) = next() {
                // Nobody waits any more.
                if answers.send((index, ask(&host, port))).is_err() {
                    return;
                }
            }
        };
        // Where there is no thread to be had the others do it, or time runs out.
        let _ = std::thread::Builder::new().name("names".to_owned()).spawn(work);
    }
    drop(answers);
    let end = Instant::now() + patience;
    while let Ok((index, found)) =
        answered.recv_timeout(end.saturating_duration_since(Instant::now()))
    {
        if let Some(place) = all.get_mut(index) {
            *place = found;
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_resolver_is_not_waited_for_and_the_others_are_heard() {
        let names = |hosts: &[&str]| hosts.iter().map(|host| ((*host).to_owned(), 80)).collect();
        let ask = |host: &str, port: u16| match host {
            "silent" => {
                std::thread::sleep(Duration::from_secs(60));
                Ok(Vec::new())
            }
            "none" => Err(io::Error::other("there is none")),
            _ => Ok(vec![SocketAddr::from(([127, 0, 0, 1], port))]),
        };
        let began = Instant::now();
        let all = look_up_by(names(&["silent", "one", "none", "two"]), Duration::from_secs(2), ask);
        assert!(began.elapsed() < Duration::from_secs(30));
        let told: Vec<_> = all
            .iter()
            .map(|found| match found {
                Ok(addresses) => format!("{addresses:?}"),
                Err(error) => error.to_string(),
            })
            .collect();
        let one = "[127.0.0.1:80]";
        assert_eq!(told, ["no answer within 5 s", one, "there is none", one]);
        assert!(look_up(Vec::new()).is_empty());
    }
}
