use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;

use super::*;
use crate::policy::epoch::Reign;
use crate::store::epoch::{Epochs as _, OfProcess};

const LIMIT: Duration = Duration::from_secs(20);
const NOW: UnixTime = UnixTime::from_millis(1000);

type Taken = Result<(Serving, Vec<Named>), HandoverError>;

/// A process that waits in `directory`.
fn waiting(path: &Path) -> JoinHandle<Taken> {
    let path = path.to_owned();
    std::thread::spawn(move || Serving::await_at(&path, LIMIT, || false))
}

/// The process that waits, once it does.
fn next(path: &Path) -> Next {
    for _ in 0..500 {
        if let Some(next) = Next::at(path).unwrap() {
            return next;
        }
        std::thread::sleep(POLL);
    }
    panic!("nobody waits");
}

fn estate() -> (Estate, Vec<SocketAddr>) {
    let sockets: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
    let named = |(index, socket): (usize, TcpListener)| (format!("s{index}"), socket.into());
    let memory = OfProcess::new(Reign::of_process([1; 32], UnixTime::from_millis(0)));
    let sockets = sockets.into_iter().enumerate().map(named).collect();
    (Estate { sockets, memory: Some(Arc::new(memory)), ahead: Duration::from_secs(30) }, addresses)
}

#[test]
fn sockets_pass_and_the_one_that_serves_goes_last() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("upgrade.sock");
    // One that was killed has left it there.
    drop(UnixListener::bind(&path).unwrap());
    let taking = waiting(&path);
    let (estate, addresses) = estate();
    let mut next = next(&path);
    assert_eq!(next.pid(), std::process::id());
    let giving = std::thread::spawn(move || {
        let given = next.take(&estate, || NOW);
        (given, next, estate)
    });
    let (mut serving, sockets) = taking.join().unwrap().unwrap();
    let names: Vec<_> = sockets.iter().map(|socket| socket.name.clone()).collect();
    assert_eq!(names, ["s0", "s1", "s2"]);
    let mut given = super::super::sockets::Given::new(sockets);
    for (index, address) in addresses.iter().enumerate() {
        let any = SocketAddr::new(address.ip(), 0);
        let (socket, found) = given.take(&format!("s{index}"), any).unwrap();
        assert_eq!(found, *address);
        std::net::TcpStream::connect(address).unwrap();
        socket.set_nonblocking(false).unwrap();
        socket.accept().unwrap();
    }
    let secret = NonceSecret::new([7; 32]);
    assert_eq!(serving.ready(Some(&secret)).unwrap(), Some(NOW));
    let told = std::thread::spawn(move || serving.accepting());
    let (given, next, estate) = giving.join().unwrap();
    given.unwrap();
    assert_eq!(next.nonces().unwrap().bytes(), &[7; 32]);
    next.theirs().unwrap();
    told.join().unwrap().unwrap();
    assert!(!estate.memory.unwrap().takes(UnixTime::from_millis(1001)));
    assert!(!path.exists());
}

#[test]
fn the_next_one_is_told_nothing_when_the_one_that_serves_ends() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("upgrade.sock");
    let taking = waiting(&path);
    let (estate, _) = estate();
    let mut next = next(&path);
    next.peer.send_sockets(&estate.sockets).unwrap();
    let (mut serving, _) = taking.join().unwrap().unwrap();
    drop(next);
    assert!(matches!(serving.ready(None), Err(HandoverError::Gone(_))));
}

#[test]
fn whoever_breaks_off_leaves_the_one_that_serves_as_it_was() {
    for (name, line_was_drawn, breaks_off) in [
        ("declines", false, (|mut serving| serving.decline("no store")) as fn(Serving)),
        ("ends before it is ready", false, |serving| drop(serving)),
        ("ends before it accepts", true, |mut serving| {
            serving.ready(None).unwrap();
        }),
        ("does not wait for the last word", true, |mut serving| {
            serving.ready(None).unwrap();
            serving.peer.say(&Word::Accepting).unwrap();
        }),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("upgrade.sock");
        let taking = waiting(&path);
        let (estate, _) = estate();
        let mut next = next(&path);
        let other = std::thread::spawn(move || breaks_off(taking.join().unwrap().unwrap().0));
        let taken = next.take(&estate, || NOW);
        other.join().unwrap();
        let given = match taken {
            Ok(()) => next.theirs(),
            Err(error) => {
                drop(next);
                Err(error)
            }
        };
        assert!(given.is_err(), "{name}");
        let declined = matches!(&given, Err(HandoverError::Declined(why)) if why == "no store");
        assert_eq!(declined, name == "declines");
        // What the other may have admitted, dated ahead too, is not admitted again, and all later proofs are.
        let memory = estate.memory.unwrap();
        assert!(memory.takes(NOW.plus(Duration::from_millis(30_001))), "{name}");
        let since = memory.current().unwrap().since;
        let expected = NOW.plus(Duration::from_secs(30));
        assert_eq!(since == expected, line_was_drawn, "{name}: {since:?}");
    }
}

/// There is no moment in which the one has left and the other has given up.
#[test]
fn who_gives_up_waiting_for_the_last_word_is_not_left_to() {
    let (one, other) = UnixStream::pair().unwrap();
    let one = Next { peer: Peer::new(one, geteuid()).unwrap(), ceded: None, nonces: None };
    let mut other = Serving { peer: Peer::new(other, geteuid()).unwrap(), nonces: true };
    assert!(other.accepting_within(Duration::from_millis(10)).is_err());
    assert!(one.theirs().is_err(), "it left to one that ends");
}

#[test]
fn one_waits_at_a_time_and_nothing_is_removed_that_is_no_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("upgrade.sock");
    assert!(Next::at(&path).unwrap().is_none());
    let first = Meeting::new(&path).unwrap();
    assert_eq!(path.symlink_metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(Meeting::new(&path), Err(HandoverError::Occupied(_))));
    drop(first);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(Meeting::new(&path), Err(HandoverError::Taken(_))));
    assert!(matches!(Next::at(&path), Err(HandoverError::Taken(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    let link = directory.path().join("link.sock");
    std::os::unix::fs::symlink(directory.path().join("elsewhere"), &link).unwrap();
    assert!(matches!(Meeting::new(&link), Err(HandoverError::Taken(_))));
}

/// Words of builds that know nothing of nonces are understood, and none is said to them that they are not.
#[test]
fn a_build_of_before_is_not_told_of_nonces() {
    let word = serde_json::from_str(r#"{"sockets":{"version":1,"names":[]}}"#).unwrap();
    assert!(matches!(word, Word::Sockets { nonces: false, .. }));
    let (one, other) = UnixStream::pair().unwrap();
    let peer = Peer::new(one, geteuid()).unwrap();
    let mut before = Peer::new(other, geteuid()).unwrap();
    let mut serving = Serving { peer, nonces: false };
    before.say(&Word::Line { line: None }).unwrap();
    serving.ready(Some(&NonceSecret::new([7; 32]))).unwrap();
    assert!(matches!(before.hear(LIMIT), Ok(Word::Ready)));
    let printed = format!("{:?}", Word::Nonces { secret: Secret::of(&NonceSecret::new([7; 32])) });
    assert!(!printed.contains("BwcH"), "{printed}");
}

#[test]
fn nobody_comes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("upgrade.sock");
    let none = Serving::await_at(&path, Duration::ZERO, || false);
    assert!(matches!(none, Err(HandoverError::Nobody(_))));
    let off = Serving::await_at(&path, LIMIT, || true);
    assert!(matches!(off, Err(HandoverError::CalledOff)));
    assert!(!path.exists());
}

/// What is no handover keeps nobody from coming after it.
#[test]
fn who_says_something_else_is_passed_over() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("upgrade.sock");
    let taking = waiting(&path);
    let mut first = next(&path);
    first.peer.say(&Word::Ready).unwrap();
    drop(first);
    drop(next(&path));
    let mut third = next(&path);
    let (estate, _) = estate();
    third.peer.send_sockets(&estate.sockets).unwrap();
    assert_eq!(taking.join().unwrap().unwrap().1.len(), 3);
}

#[test]
fn another_users_process_is_given_and_asked_nothing() {
    let (one, _two) = UnixStream::pair().unwrap();
    let other = Uid::from_raw(geteuid().as_raw() + 1);
    assert!(matches!(Peer::new(one, other), Err(HandoverError::Stranger(_))));
}
