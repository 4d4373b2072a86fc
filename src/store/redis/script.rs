//! Scripts: a few commands that no other comes between.

use redis::Pipeline;

/// What a script begins with that is for one epoch alone: the last key is the mark of its tag, and the last
/// argument what that is in this epoch.
const GUARD: &str = "
if redis.call('GET', KEYS[#KEYS]) ~= ARGV[#ARGV] then return redis.error_reply('EPOCH another') end
";
/// The code of what a guarded script answers in another epoch, having done nothing.
pub(super) const ANOTHER: &str = "EPOCH";

/// A script, with the name that a server keeps it under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    text: String,
    /// SHA-1, in hexadecimal digits.
    hash: String,
}

/// A script that does nothing in another epoch than the one that it is called for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarded(pub(super) Script);

impl Guarded {
    /// A script in Lua; `#KEYS` and `#ARGV` are not its own.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Script::new(&format!("{GUARD}{text}")))
    }
}

impl Script {
    /// A script in Lua.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let algorithm = &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY;
        let digest = aws_lc_rs::digest::digest(algorithm, text.as_bytes());
        let hash = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { text: text.to_owned(), hash }
    }

    /// Its call by the name that the server keeps it under.
    pub(super) fn by_hash(&self, keys: &[String], arguments: &[&[u8]]) -> Pipeline {
        call("EVALSHA", &self.hash, keys, arguments)
    }

    /// Its call with its text, which the server keeps from then on.
    pub(super) fn in_full(&self, keys: &[String], arguments: &[&[u8]]) -> Pipeline {
        call("EVAL", &self.text, keys, arguments)
    }
}

fn call(name: &str, what: &str, keys: &[String], arguments: &[&[u8]]) -> Pipeline {
    let mut pipeline = Pipeline::new();
    pipeline.cmd(name).arg(what).arg(keys.len()).arg(keys);
    for argument in arguments {
        pipeline.arg(*argument);
    }
    pipeline
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_server_s_name() {
        // `SCRIPT LOAD "return 1"`
        assert_eq!(Script::new("return 1").hash, "e0e1f9fabfc9d4800c877a703b823ac0578ff8db");
    }
}
