//! Scripts: a few commands that no other comes between.

/// A script, with the name that a server keeps it under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    text: &'static str,
    hash: String,
}

impl Script {
    /// A script in Lua.
    #[must_use]
    pub fn new(text: &'static str) -> Self {
        let algorithm = &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY;
        let digest = aws_lc_rs::digest::digest(algorithm, text.as_bytes());
        let hash = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { text, hash }
    }

    pub(super) fn text(&self) -> &str {
        self.text
    }

    /// SHA-1, in hexadecimal digits.
    pub(super) fn hash(&self) -> &str {
        &self.hash
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_server_s_name() {
        // `SCRIPT LOAD "return 1"`
        assert_eq!(Script::new("return 1").hash(), "e0e1f9fabfc9d4800c877a703b823ac0578ff8db");
    }
}
