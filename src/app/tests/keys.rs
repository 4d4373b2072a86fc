//! Key sets whose configuration is replaced.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;
use crate::config::tests::{SMALL, site};
use crate::edge::jwks::{JwksError, KeySets};
use crate::edge::outgoing::OutgoingError;
use crate::edge::tls::WithdrawnCertificates;
use crate::policy::reach::Reach;
use crate::telemetry::metrics::{Metrics, Shape};

/// A server of a JWK set that can be switched off, the URL, and how often it was asked.
async fn server(set: String) -> (String, Arc<AtomicBool>, Arc<AtomicUsize>) {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks", socket.local_addr().unwrap());
    let (up, asked) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let (switch, counter) = (Arc::clone(&up), Arc::clone(&asked));
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = socket.accept().await.unwrap();
            counter.fetch_add(1, Ordering::SeqCst);
            read_message(&mut stream).await;
            let status = if switch.load(Ordering::SeqCst) { 200 } else { 500 };
            let length = set.len();
            let answer = format!(
                "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{set}"
            );
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (url, up, asked)
}

async fn until(what: impl Fn() -> bool) {
    for _ in 0..500 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not happen within 5 s");
}

fn loaded(keys: &KeySets) -> bool {
    keys.status().all(|(_, status)| status.loaded)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_set_is_handed_on_and_its_fetches_end() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let site = site();
    let set = std::fs::read_to_string(site.path().join("keys/jwks.json")).unwrap();
    let (url, up, asked) = server(set).await;
    let config = |url: &str| {
        let jwks = format!("jwks: {{url: '{url}', refresh: 10s, cooldown: 1s}}");
        let text = SMALL.replace("jwks: {file: keys/jwks.json}", &jwks);
        config::load_str(&text, site.path()).config.unwrap()
    };
    let (config, elsewhere) = (config(&url), config(&format!("{url}/other")));
    let metrics = Arc::new(
        Metrics::new(&Shape { issuers: &["https://as.example.com"], ..Shape::default() }).unwrap(),
    );
    let handle = Handle::current();
    let log = Log::start(Box::new(std::io::sink()), tracing::Level::ERROR).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let lasting = Lasting::new(&config, &log, provider, &handle).unwrap();
    let make = |config: &Config, previous: Option<&KeySets>| {
        let gate = Arc::new(gate(
            config,
            &lasting,
            Arc::default(),
            Arc::new(WithdrawnCertificates::default()),
        ));
        (KeySets::new(&config.issuers, &config.reach, &gate, &metrics, previous).unwrap(), gate)
    };

    // `check` lets no such configuration through; this is what would stop it if it did.
    let own = gate(&config, &lasting, Arc::default(), Arc::new(WithdrawnCertificates::default()));
    let made = KeySets::new(&config.issuers, &Reach::of(true), &Arc::new(own), &metrics, None);
    assert!(matches!(made, Err(JwksError::Outgoing(OutgoingError::Sealed(_)))));

    let (first, first_gate) = make(&config, None);
    assert!(!loaded(&first));
    first.start(&handle);
    until(|| loaded(&first)).await;
    assert_eq!(asked.load(Ordering::SeqCst), 1);

    up.store(false, Ordering::SeqCst);
    let (second, _second_gate) = make(&config, Some(&first));
    assert!(loaded(&second), "the last good set is in force from the start");
    let (other, _other_gate) = make(&elsewhere, Some(&first));
    assert!(!loaded(&other), "what another URL said is nothing to this one");
    second.start(&handle);
    until(|| second.status().any(|(_, status)| status.error.is_some())).await;
    assert!(loaded(&second), "and stays while there is no other");

    drop(first);
    until(|| Arc::strong_count(&first_gate) == 1).await;
}
