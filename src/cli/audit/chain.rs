//! A chain, followed line by line, wherever its lines are.

use serde_json::Value;

use crate::policy::audit::{CHECKPOINT_TYPE, Checkpoint, Head, Kind, Line, Preface, Rotated};
use crate::policy::digest::Sha256;
use crate::policy::jose::{CompactJws, PublicKey};
use crate::policy::json::{self, Object};

/// How far a chain was followed, and what was found.
#[derive(Debug)]
pub(super) struct Chain {
    /// The public keys that checkpoints are verified with; `None`: signatures are not looked at.
    keys: Option<Vec<Value>>,
    /// How many lines there may be without a checkpoint.
    most_unsigned: u64,
    /// Its id, once it is known.
    pub(super) id: Option<String>,
    /// What its first line follows; `None` before it.
    pub(super) before: Option<Head>,
    /// The last line.
    pub(super) head: Head,
    pub(super) checkpoints: u64,
    /// Checkpoints whose signature was not looked at.
    pub(super) unchecked: u64,
    /// The last line that a checkpoint covers.
    pub(super) signed: u64,
    /// What it says of lines that were moved out, the last time.
    pub(super) rotated: Option<Rotated>,
    /// The line that says so.
    rotated_at: u64,
}

impl Chain {
    pub(super) fn new(keys: Option<Vec<Value>>, most_unsigned: u64) -> Self {
        Self {
            keys,
            most_unsigned,
            id: None,
            before: None,
            head: Head::default(),
            checkpoints: 0,
            unchecked: 0,
            signed: 0,
            rotated: None,
            rotated_at: 0,
        }
    }

    /// Begins after `before`, or goes on there.
    ///
    /// # Errors
    /// That it does not go on there, in words.
    pub(super) fn begin(&mut self, before: Head) -> Result<(), String> {
        if self.before.is_none() {
            (self.before, self.head, self.signed) = (Some(before), before, before.seq);
            return Ok(());
        }
        let (end, next) = (self.head.seq, before.seq + 1);
        if next <= end {
            return Err(format!("line {next} is there twice: what is before ends at line {end}"));
        }
        if before.seq > end {
            return Err(format!("lines {} to {} are missing", end + 1, before.seq));
        }
        if before.hash != self.head.hash {
            return Err(format!("line {next} does not follow the line before it"));
        }
        Ok(())
    }

    /// Begins a file, as its first line says.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub(super) fn begin_file(&mut self, preface: &Preface) -> Result<(), String> {
        self.begin(preface.before())?;
        self.is_of(&preface.chain)?;
        let Some(checkpoint) = &preface.checkpoint else { return Ok(()) };
        let jws = preface.jws.as_deref().unwrap_or_default();
        let good = checkpoint.chain == preface.chain && checkpoint.seq < preface.from;
        let signed = self.keys.as_ref().is_none_or(|keys| is_signed(jws, checkpoint, keys));
        let bad = || "the checkpoint in its first line is not one of this chain".to_owned();
        if good && signed { Ok(()) } else { Err(bad()) }
    }

    /// Whether it is the chain of this id, which it is from then on.
    ///
    /// # Errors
    /// That it is another, in words.
    pub(super) fn is_of(&mut self, id: &str) -> Result<(), String> {
        match &self.id {
            Some(known) if known != id => Err("it is a part of another chain".to_owned()),
            Some(_) => Ok(()),
            None => {
                self.id = Some(id.to_owned());
                Ok(())
            }
        }
    }

    /// The next line.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn take(&mut self, text: &str) -> Result<Line, String> {
        self.take_if(text, |_, _| Ok(()))
    }

    /// The next line, if `holds` finds nothing wrong with it.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn take_if(
        &mut self,
        text: &str,
        holds: impl FnOnce(&Line, &Sha256) -> Result<(), String>,
    ) -> Result<Line, String> {
        let before = self.head;
        let (head, line) = before.follow(text).map_err(|broken| broken.to_string())?;
        holds(&line, &head.hash)?;
        self.look(&line, before)?;
        self.head = head;
        Ok(line)
    }

    fn look(&mut self, line: &Line, before: Head) -> Result<(), String> {
        let seq = line.seq;
        let begins = line.kind == Kind::Begin;
        if begins != (seq == 1) {
            return Err(format!("line {seq}: a chain begins with its id, and only it does"));
        }
        if begins {
            let id = line.data.get("chain").and_then(Value::as_str).unwrap_or_default();
            self.is_of(id)
                .map_err(|_| format!("line {seq}: it is the beginning of another chain"))?;
        }
        if line.kind == Kind::Rotation {
            self.rotated = serde_json::from_value(line.data.clone()).ok().or(self.rotated.take());
            self.rotated_at = seq;
        }
        if line.kind == Kind::Checkpoint { self.checkpoint(line, before) } else { Ok(()) }
    }

    fn checkpoint(&mut self, line: &Line, before: Head) -> Result<(), String> {
        let seq = line.seq;
        let Some((checkpoint, jws)) = checkpoint_of(&line.data) else {
            return Err(format!("line {seq}: a checkpoint that cannot be read"));
        };
        let same = (checkpoint.seq, checkpoint.hash) == (before.seq, before.hash);
        if !same || self.is_of(&checkpoint.chain).is_err() {
            return Err(format!("line {seq}: a checkpoint of something else"));
        }
        match &self.keys {
            None => self.unchecked += 1,
            Some(keys) if is_signed(&jws, &checkpoint, keys) => {}
            Some(_) => {
                return Err(format!("line {seq}: a checkpoint that none of the keys signed"));
            }
        }
        let between = before.seq.saturating_sub(self.signed);
        if between > self.most_unsigned {
            return Err(format!("line {seq}: {between} lines before it have no checkpoint"));
        }
        self.checkpoints += 1;
        self.signed = before.seq;
        Ok(())
    }

    /// Lines after the last that a checkpoint covers; its own is covered by nothing but the next one.
    pub(super) fn unsigned(&self) -> u64 {
        let after = self.head.seq.saturating_sub(self.signed);
        if self.checkpoints > 0 { after.saturating_sub(1) } else { after }
    }

    /// The last line that was moved out, by a line that a checkpoint covers where there are keys to tell:
    /// whoever cuts the beginning off can write that it was moved, and not sign it.
    pub(super) fn moved_out(&self) -> Option<Head> {
        let said = self.keys.is_none() || self.rotated_at <= self.signed;
        self.rotated.as_ref().filter(|_| said).map(|rotated| rotated.last)
    }

    /// What keeps a chain from vouching for itself: whoever can write it can write all of it anew, but
    /// for the signatures.
    pub(super) fn unvouched(&self) -> Option<String> {
        if self.before.is_none_or(|before| before.seq == self.head.seq) {
            return Some("it has no line at all".to_owned());
        }
        if self.keys.is_none() {
            let text = "no keys are at hand (--jwks): its lines follow each other, and all of them could \
                        have been written anew";
            return Some(text.to_owned());
        }
        if self.checkpoints == 0 {
            let text = "it has no checkpoint: the edge signs one as soon as it runs";
            return Some(text.to_owned());
        }
        let after = self.head.seq - self.signed;
        (after > self.most_unsigned).then(|| {
            format!("the last {after} lines have no checkpoint: the edge would have signed them")
        })
    }

    /// Whether line `seq`, which is the head, is the one with this hash.
    pub(super) fn is_at(&self, seq: u64, hash: &Sha256) -> bool {
        self.head.seq == seq && self.head.hash == *hash
    }
}

/// What a line of a checkpoint holds: what was signed, and the signature.
pub(super) fn checkpoint_of(data: &Value) -> Option<(Checkpoint, String)> {
    let checkpoint = serde_json::from_value(data.get("checkpoint")?.clone()).ok()?;
    let jws = data.get("jws").and_then(Value::as_str).unwrap_or_default();
    Some((checkpoint, jws.to_owned()))
}

/// Whether `jws` is a signature over `checkpoint` by the key of the set that it names.
fn is_signed(jws: &str, checkpoint: &Checkpoint, keys: &[Value]) -> bool {
    let signed = || {
        let jws = CompactJws::parse(jws)?;
        let typ = json::string(&jws.header, "typ").ok()??;
        let kid = json::string(&jws.header, "kid").ok()??;
        let payload: Value = serde_json::to_value(&jws.payload).ok()?;
        let jwk = keys.iter().find(|jwk| jwk.get("kid").and_then(Value::as_str) == Some(kid))?;
        let key = PublicKey::from_jwk(&Object::from(jwk.as_object()?)).ok()?;
        let algorithm = jws.algorithm().filter(|algorithm| key.fits(*algorithm))?;
        let same = serde_json::from_value::<Checkpoint>(payload).ok()? == *checkpoint;
        Some(typ == CHECKPOINT_TYPE && same && jws.verified_by(&key, algorithm))
    };
    signed().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::policy::audit::Draft;
    use crate::policy::time::UnixTime;

    const AT: UnixTime = UnixTime::from_secs(1_800_000_000);

    /// Lines of the chain `id`.
    fn lines(id: &str, count: u64) -> Vec<String> {
        let mut head = Head::default();
        let draft = |seq| match seq {
            1 => Draft::new(Kind::Begin, AT, id, None, &json!({ "chain": id })),
            seq => Draft::new(Kind::Replay, AT, &seq.to_string(), None, &json!({})),
        };
        (1..=count)
            .map(|seq| {
                let line = draft(seq).line(seq, &head.hash);
                head = head.follow(&line).unwrap().0;
                line
            })
            .collect()
    }

    /// What stands before line `seq`.
    fn before(lines: &[String], seq: u64) -> Head {
        let last = lines.iter().take(seq as usize - 1).next_back();
        Head {
            seq: seq - 1,
            hash: last.map_or(Head::default().hash, |it| Sha256::of(it.as_bytes())),
        }
    }

    fn part(
        chain: &mut Chain,
        id: &str,
        lines: &[String],
        from: u64,
        to: u64,
    ) -> Result<(), String> {
        chain.begin_file(&Preface::new(id, before(lines, from), to, None, AT))?;
        let part = lines.iter().skip(from as usize - 1).take((to + 1 - from) as usize);
        part.into_iter().try_for_each(|line| chain.take(line).map(drop))
    }

    #[test]
    fn parts_of_one_chain_follow_each_other() {
        let (lines, others) = (lines("a", 20), lines("b", 20));
        let (a, b) = (&lines[..], &others[..]);
        for (name, parts, expect) in [
            ("ok/whole", vec![("a", a, 1, 20)], None),
            ("ok/excerpt", vec![("a", a, 5, 9)], None),
            ("ok/two", vec![("a", a, 1, 9), ("a", a, 10, 20)], None),
            (
                "fail/gap",
                vec![("a", a, 1, 9), ("a", a, 11, 20)],
                Some("lines 10 to 10 are missing"),
            ),
            ("fail/twice", vec![("a", a, 1, 9), ("a", a, 9, 20)], Some("line 9 is there twice")),
            ("fail/other", vec![("a", a, 1, 9), ("b", b, 10, 20)], Some("does not follow")),
            ("fail/renamed", vec![("b", a, 5, 9), ("a", a, 10, 20)], Some("another chain")),
            ("fail/false beginning", vec![("b", a, 1, 9)], Some("the beginning of another chain")),
        ] {
            let mut chain = Chain::new(None, 1000);
            let done = parts
                .into_iter()
                .try_for_each(|(id, lines, from, to)| part(&mut chain, id, lines, from, to));
            match expect {
                None => assert_eq!(done, Ok(()), "{name}"),
                Some(expect) => {
                    assert!(done.as_ref().is_err_and(|it| it.contains(expect)), "{name}: {done:?}")
                }
            }
        }
    }

    /// Whoever cuts the beginning off can write that it was moved, and not sign it.
    #[test]
    fn what_was_moved_out_is_nobodys_word_until_it_is_signed() {
        let lines = lines("a", 6);
        let rotated = Rotated { file: "f".into(), from: 1, last: before(&lines, 4) };
        let data = serde_json::to_value(&rotated).unwrap();
        let end = before(&lines, 7);
        let line = Draft::new(Kind::Rotation, AT, "7", None, &data).line(7, &end.hash);
        for (name, keys, signed, found) in [
            ("without keys", None, 3, true),
            ("not signed", Some(Vec::new()), 3, false),
            ("signed up to it", Some(Vec::new()), 6, false),
            ("signed", Some(Vec::new()), 7, true),
        ] {
            let mut chain = Chain::new(keys, 1000);
            part(&mut chain, "a", &lines, 4, 6).unwrap();
            chain.take(&line).unwrap();
            chain.signed = signed;
            assert_eq!(chain.moved_out(), found.then_some(rotated.last), "{name}");
        }
    }

    #[test]
    fn what_is_changed_in_a_part_is_found() {
        let mut lines = lines("a", 20);
        let mut chain = Chain::new(None, 1000);
        lines[6] = lines[6].replace("\"7\"", "\"X\"");
        let done = part(&mut chain, "a", &lines, 5, 9);
        assert_eq!(
            done,
            Err("line 8 does not follow the line before it: one of both was changed".into())
        );
        // Without a key nothing vouches for it.
        assert!(chain.unvouched().is_some_and(|why| why.contains("no keys")));
    }
}
