//! What one check costs by itself, on the edge's core while that rests.

use std::path::Path;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, KeyPair as _, ParsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::proofs::Key;
use crate::{Outcome, cpu};

/// Signatures of one key, with what they are of.
pub(crate) struct Signatures {
    /// Parsed before.
    key: ParsedPublicKey,
    signed: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Signatures {
    pub(crate) fn new(key: &Key, proofs: &[String]) -> Outcome<Self> {
        let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.pair.public_key().as_ref())?;
        let signed = |proof: &String| {
            let (input, signature) = proof.rsplit_once('.').ok_or("a proof has a signature")?;
            Outcome::Ok((input.as_bytes().to_vec(), URL_SAFE_NO_PAD.decode(signature)?))
        };
        Ok(Self { key, signed: proofs.iter().map(signed).collect::<Outcome<_>>()? })
    }

    /// CPU time of one ES256 verification.
    pub(crate) fn cost(&self) -> Outcome<Duration> {
        timed(&self.signed, |(input, signature)| {
            self.key.verify_sig(input, signature).map_err(|_| "a proof does not verify".into())
        })
    }
}

/// What `measuring` finds on a thread of its own, which has the edge's core where it can be `pinned`.
pub(crate) fn measured<T: Send + 'static>(
    pinned: bool,
    measuring: impl FnOnce() -> Outcome<T> + Send + 'static,
) -> Outcome<T> {
    let thread = std::thread::spawn(move || {
        if pinned {
            cpu::pin(this_thread()?, cpu::EDGE_CORE);
        }
        measuring()
    });
    thread.join().map_err(|_| "the measuring thread ended early")?
}

/// CPU time of `each` on one of `all`, after some of them to begin with.
pub(crate) fn timed<T>(all: &[T], each: impl FnMut(&T) -> Outcome<()> + Copy) -> Outcome<Duration> {
    let (first, rest) = all.split_at(all.len() / 10);
    first.iter().try_for_each(each)?;
    let before = of_this_thread()?;
    rest.iter().try_for_each(each)?;
    let took = Duration::from_nanos(of_this_thread()? - before);
    Ok(took / u32::try_from(rest.len().max(1))?)
}

/// Nanoseconds of CPU time of the calling thread so far.
fn of_this_thread() -> Outcome<u64> {
    // Takes it off its core, so that its time is added up.
    std::thread::sleep(Duration::from_millis(2));
    cpu::of_thread(Path::new("/proc/thread-self"))
}

/// The calling thread's id.
fn this_thread() -> Outcome<u32> {
    let link = std::fs::read_link("/proc/thread-self")?;
    let id = link.file_name().and_then(|name| name.to_str()).ok_or("a thread has an id")?;
    Ok(id.parse()?)
}
