//! The replay log at ten million live proofs: what an insert costs, and what an entry weighs.
//!
//! `benches/README.md` has the method and the figures.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a benchmark reports")]
#![expect(clippy::disallowed_methods, reason = "a benchmark reads its own memory")]

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use holdfast::policy::digest::{Jkt, Sha256};
use holdfast::policy::epoch::Epoch;
use holdfast::policy::time::UnixTime;
use holdfast::store::replay::{MemoryReplay, ReplayLog as _, Use};

const START: i64 = 1_800_000_000;
const LIVE: u32 = 10_000_000;
const WINDOW_S: u32 = 300;

/// A line of `/proc/self/status`, in bytes.
fn memory(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1024.0
}

fn used(jkt: Jkt, jti: &str) -> Use<'_> {
    Use { jkt, jti, epoch: Epoch(Sha256([0; 32])) }
}

fn replay(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let jkt = Jkt(Sha256::of(b"key"));
    let log = MemoryReplay::new(&[7; 32], Duration::from_secs(WINDOW_S.into()), usize::MAX);
    let before = memory("VmRSS");
    // Spread over one window, as live traffic is.
    runtime.block_on(async {
        for number in 0..LIVE {
            let now = UnixTime::from_secs(START + i64::from(number / (LIVE / WINDOW_S)));
            log.check_and_insert(used(jkt, &format!("{number:032x}")), now).await.unwrap();
        }
    });
    let peak = memory("VmHWM") - before;
    eprintln!("replay: {:.1} bytes a live proof at the peak", peak / f64::from(LIVE));

    let now = UnixTime::from_secs(START + i64::from(WINDOW_S));
    let mut number = LIVE;
    let mut group = criterion.benchmark_group("replay at 10 million live");
    group.throughput(Throughput::Elements(1));
    group.bench_function("insert", |bencher| {
        bencher.iter(|| {
            number += 1;
            let jti = format!("{number:032x}");
            runtime.block_on(log.check_and_insert(used(jkt, &jti), now)).unwrap();
        });
    });
    group.bench_function("replay refused", |bencher| {
        bencher.iter(|| {
            number = number.wrapping_mul(2_654_435_761).wrapping_add(1);
            let jti = format!("{:032x}", number % LIVE);
            runtime.block_on(log.check_and_insert(used(jkt, &jti), now)).unwrap_err();
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3)).sample_size(50);
    targets = replay
}
criterion_main!(benches);
