//! Which clients are enforced while the others are observed: a share of them, chosen by a hash.
//!
//! ```text
//! bucket = SHA-256(lp(salt) ‖ lp(client))[0..8] as u64 mod 100        enforced: bucket < percent
//! ```
//!
//! So a client's bucket never changes while the salt does not: a higher percentage adds clients and
//! lets go of none. `lp(x)` is the length of `x` in two bytes, then `x`.

use super::digest::{Sha256, lp};

/// A share of all clients, in percent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u8);

impl Share {
    /// Nobody.
    pub const NONE: Self = Self(0);
    /// Everybody.
    pub const ALL: Self = Self(100);

    /// Of `percent`, 0 to 100; `None` for more.
    #[must_use]
    pub const fn of_percent(percent: u8) -> Option<Self> {
        if percent <= 100 { Some(Self(percent)) } else { None }
    }

    /// In percent.
    #[must_use]
    pub const fn percent(self) -> u8 {
        self.0
    }

    /// Whether `client` belongs to it. Nobody knows whose share it is where there is none: who cannot be
    /// told from others belongs to every share but that of nobody, so that to withhold a name is no
    /// way out.
    #[must_use]
    pub fn has(self, salt: &str, client: Option<&str>) -> bool {
        match client {
            _ if self == Self::NONE => false,
            Some(client) => bucket(salt, client) < self.0,
            None => true,
        }
    }
}

/// The bucket of a client, 0 to 99: it belongs to every share of more percent than that.
#[must_use]
pub fn bucket(salt: &str, client: &str) -> u8 {
    let mut input = Vec::with_capacity(salt.len() + client.len() + 4);
    lp(&mut input, salt.as_bytes());
    lp(&mut input, client.as_bytes());
    let hash = Sha256::of(&input).0;
    let number = hash.iter().take(8).fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    u8::try_from(number % 100).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn share(percent: u8) -> Share {
        Share::of_percent(percent).unwrap()
    }

    proptest! {
        #[test]
        fn a_higher_percentage_lets_go_of_nobody(
            salt in ".{0,20}", client in ".{0,60}", low in 0_u8..=100, more in 0_u8..=100,
        ) {
            let high = (low + more).min(100);
            let (salt, client) = (salt.as_str(), Some(client.as_str()));
            prop_assert!(!share(low).has(salt, client) || share(high).has(salt, client));
            prop_assert!(!Share::NONE.has(salt, client) && Share::ALL.has(salt, client));
        }
    }

    /// Of 20,000 clients each bucket has some 200, by which it is off by 15 (a standard deviation, so
    /// that 75 is none that 100 buckets and 20 salts would show); a share has its part to one percent.
    #[test]
    fn buckets_are_about_as_full_as_each_other() {
        for salt in 0..20 {
            let salt = format!("salt-{salt}");
            let mut found = [0_u32; 100];
            for client in 0..20_000 {
                found[usize::from(bucket(&salt, &format!("client-{client}")))] += 1;
            }
            for (bucket, count) in found.iter().enumerate() {
                assert!((125..=275).contains(count), "{salt}: bucket {bucket} has {count}");
            }
            let quarter: u32 = found[..25].iter().sum();
            assert!((4800..=5200).contains(&quarter), "{salt}: {quarter}");
        }
    }

    #[test]
    fn another_salt_chooses_others() {
        let clients = || (0..2000).map(|client| format!("client-{client}"));
        let both = clients()
            .filter(|client| share(50).has("a", Some(client)) && share(50).has("b", Some(client)));
        assert!((400..=600).contains(&both.count()));
        // Where salt ends and client begins makes a difference.
        let moved = clients().filter(|it| bucket("a", &format!("b{it}")) != bucket("ab", it));
        assert!(moved.count() > 1900);
    }

    #[test]
    fn who_is_not_known_belongs_to_every_share_but_none() {
        assert!(!Share::NONE.has("", None));
        for percent in 1..=100 {
            assert!(share(percent).has("", None), "{percent}");
        }
        assert_eq!(Share::of_percent(101), None);
    }

    /// What was in force stays so over every version: these are not to change.
    #[test]
    fn buckets_stay_where_they_are() {
        for (salt, client, expect) in
            [("", "client-1", 68), ("", "mobile", 42), ("2026", "mobile", 50)]
        {
            assert_eq!(bucket(salt, client), expect, "{salt} {client}");
        }
    }
}
