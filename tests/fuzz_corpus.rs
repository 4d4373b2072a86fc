//! The fuzz targets in the ordinary test run: every input of `tests/fuzz/corpus`, as it is and bent
//! in a bounded number of ways, always the same ones. `tests/fuzz/README.md` says how to look for
//! more with coverage guidance.

#![expect(clippy::disallowed_methods, reason = "a test reads files")]

#[cfg(test)]
mod fuzz {
    pub(crate) mod targets;
}

#[cfg(test)]
mod replay {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::fuzz::targets::{TARGETS, run};

    /// Bent inputs made of each input.
    const BENT: usize = 100;
    /// A corpus is read by people too.
    const MAX_BYTES: usize = 8192;
    /// What readers of HTTP, JSON and URLs trip over.
    const PIECES: [&[u8]; 24] = [
        b"\"",
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"/",
        b"//",
        b"..",
        b";",
        b"?",
        b"#",
        b"@",
        b"%2f",
        b"%2e",
        b"%00",
        b"=",
        b" ",
        b"\n",
        b"\0",
        b"\xff",
        b"\xc3\xa9",
    ];

    fn corpus() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus")
    }

    fn inputs(target: &str) -> Vec<(String, Vec<u8>)> {
        let mut inputs: Vec<_> = fs::read_dir(corpus().join(target))
            .expect("a directory for each target")
            .map(|entry| {
                let entry = entry.expect("a readable directory");
                let name = format!("{target}/{}", entry.file_name().to_string_lossy());
                (name, fs::read(entry.path()).expect("a readable file"))
            })
            .collect();
        inputs.sort();
        inputs
    }

    /// Says which input it was, when a target fails.
    struct Told<'a>(&'a str, &'a [u8]);

    impl Drop for Told<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("{}: b\"{}\"", self.0, self.1.escape_ascii());
            }
        }
    }

    fn ask(target: &str, name: &str, input: &[u8]) {
        let told = Told(name, input);
        run(target, told.1);
    }

    /// xorshift64: any sequence will do, as long as it is the same each time.
    struct Sequence(u64);

    impl Sequence {
        fn below(&mut self, limit: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % limit.max(1) as u64).expect("below a usize")
        }

        /// Changes `input` in one place.
        fn bend(&mut self, input: &mut Vec<u8>, other: &[u8]) {
            let at = self.below(input.len() + 1);
            let end = (at + self.below(8)).min(input.len());
            match self.below(7) {
                0 => input.truncate(at),
                1 => drop(input.drain(at..end)),
                2 => drop(input.splice(at..at, PIECES[self.below(PIECES.len())].iter().copied())),
                3 => drop(input.splice(at..end, PIECES[self.below(PIECES.len())].iter().copied())),
                4 => {
                    let twice = input[at..].to_vec();
                    input.extend(twice);
                }
                5 => {
                    let rest = other.get(self.below(other.len() + 1)..).unwrap_or_default();
                    drop(input.splice(at.., rest.iter().copied()));
                }
                _ => {
                    if let Some(byte) = input.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
            }
        }
    }

    #[test]
    fn every_target_has_a_corpus_and_a_program() {
        let named: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        let kept = fs::read_dir(corpus()).expect("a directory").map(|entry| {
            let name = entry.expect("a readable directory").file_name();
            name.to_string_lossy().into_owned()
        });
        assert_eq!(kept.collect::<BTreeSet<_>>(), named);
        let manifest = fs::read_to_string(corpus().with_file_name("Cargo.toml")).expect("a file");
        let programs = manifest.split("[[bin]]").skip(1).map(|text| {
            let name = text.split('"').nth(1);
            name.expect("a name").to_owned()
        });
        assert_eq!(programs.collect::<BTreeSet<_>>(), named);
        for name in &named {
            let inputs = inputs(name);
            assert!(!inputs.is_empty(), "{name} has no input");
            for (name, input) in inputs {
                assert!(input.len() <= MAX_BYTES, "{name} has {} bytes", input.len());
            }
        }
    }

    #[test]
    fn what_was_found_stays_mended() {
        for (target, _) in TARGETS {
            for (name, input) in inputs(target) {
                ask(target, &name, &input);
            }
        }
    }

    #[test]
    fn bent_inputs_break_nothing() {
        for (target, _) in TARGETS {
            let mut sequence = Sequence(0x9e37_79b9_7f4a_7c15);
            let inputs = inputs(target);
            for (name, input) in &inputs {
                for _ in 0..BENT {
                    let mut bent = input.clone();
                    for _ in 0..=sequence.below(3) {
                        let (_, other) = &inputs[sequence.below(inputs.len())];
                        sequence.bend(&mut bent, other);
                    }
                    bent.truncate(4 * MAX_BYTES);
                    ask(target, name, &bent);
                }
            }
        }
    }
}
