//! Which network an address belongs to, by databases in MaxMind's format.
//!
//! Both are read into memory, so that a file may be replaced while it is in use, and both addresses
//! of a comparison are looked up in the same build.

pub mod sample;

use std::net::IpAddr;
use std::path::Path;

use maxminddb::{MaxMindDbError, Reader};
use serde::Deserialize;

use crate::policy::capsule::facts::{Databases, canonical};
use crate::policy::capsule::node::Network;

/// Characters of a region that are taken: `XX-XXX`, with room.
const REGION_BYTES: usize = 16;

/// The databases that are in force.
#[derive(Default)]
pub struct Networks {
    asn: Option<Reader<Vec<u8>>>,
    region: Option<Reader<Vec<u8>>>,
}

impl std::fmt::Debug for Networks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Networks").field("builds", &self.builds()).finish()
    }
}

/// A record of a database of autonomous systems (GeoLite2-ASN and its like).
#[derive(Deserialize)]
struct AsnRecord {
    autonomous_system_number: Option<u32>,
}

/// A record of a database of countries or cities (GeoLite2-City and its like).
#[derive(Deserialize)]
struct RegionRecord {
    country: Option<Place>,
    subdivisions: Option<Vec<Place>>,
}

#[derive(Deserialize)]
struct Place {
    iso_code: Option<String>,
}

impl Networks {
    /// Reads the databases; the factor of one that is not named is off.
    ///
    /// # Errors
    /// What is wrong with a file, the file's name apart.
    pub fn open(asn: Option<&Path>, region: Option<&Path>) -> Result<Self, String> {
        Ok(Self { asn: asn.map(open).transpose()?, region: region.map(open).transpose()? })
    }

    /// The builds, seconds since the epoch.
    #[must_use]
    pub fn builds(&self) -> Databases {
        let build = |reader: &Option<Reader<Vec<u8>>>| {
            reader.as_ref().map(|reader| reader.metadata().build_epoch)
        };
        Databases { asn: build(&self.asn), region: build(&self.region) }
    }

    /// Where an address belongs. What a database cannot say, or says in a way that cannot be read, is
    /// unknown.
    #[must_use]
    pub fn locate(&self, address: IpAddr) -> Network {
        let address = canonical(address);
        Network { address, asn: self.asn(address), region: self.region(address) }
    }

    fn asn(&self, address: IpAddr) -> Option<u32> {
        let record: AsnRecord = self.asn.as_ref()?.lookup(address).ok()?.decode().ok()??;
        record.autonomous_system_number
    }

    /// ISO 3166-2 where the subdivision is known, else the country.
    fn region(&self, address: IpAddr) -> Option<String> {
        let record: RegionRecord = self.region.as_ref()?.lookup(address).ok()?.decode().ok()??;
        let country = record.country?.iso_code?;
        let subdivision = record.subdivisions.unwrap_or_default().into_iter().next();
        let region = match subdivision.and_then(|place| place.iso_code) {
            Some(subdivision) => format!("{country}-{subdivision}"),
            None => country,
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (region.len() <= REGION_BYTES && region.bytes().all(plain)).then_some(region)
    }
}

fn open(path: &Path) -> Result<Reader<Vec<u8>>, String> {
    let reader = Reader::open_readfile(path).map_err(|error| words(&error))?;
    // A file that was cut off may still have its metadata, which stand at its end or its middle.
    let looked = [IpAddr::from([0, 0, 0, 0]), IpAddr::from([255, 255, 255, 255])];
    for address in looked {
        reader.lookup(address).map_err(|error| words(&error))?;
    }
    Ok(reader)
}

fn words(error: &MaxMindDbError) -> String {
    if let MaxMindDbError::Io(error) = error {
        return error.to_string();
    }
    format!("not a database in MaxMind's format, or damaged ({error})")
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "a test writes files")]
mod tests {
    use super::sample::{Entry, database};
    use super::*;

    fn entry(
        network: &str,
        asn: Option<u32>,
        region: Option<(&'static str, &'static str)>,
    ) -> Entry {
        Entry { network: network.parse().unwrap(), asn, region }
    }

    fn file(content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("networks.mmdb");
        std::fs::write(&path, content).unwrap();
        (scratch, path)
    }

    fn networks() -> Networks {
        let content = database(
            &[
                entry("192.0.2.0/25", Some(64_500), Some(("SE", "M"))),
                entry("192.0.2.128/25", Some(64_501), None),
                entry("198.51.100.7/32", None, Some(("NO", "03"))),
            ],
            1_800_000_000,
        );
        let (_scratch, path) = file(&content);
        Networks::open(Some(&path), Some(&path)).unwrap()
    }

    #[test]
    fn addresses_are_found() {
        let networks = networks();
        assert_eq!(networks.builds().asn, Some(1_800_000_000));
        for (address, asn, region) in [
            ("192.0.2.1", Some(64_500), Some("SE-M")),
            ("::ffff:192.0.2.127", Some(64_500), Some("SE-M")),
            ("192.0.2.128", Some(64_501), None),
            ("198.51.100.7", None, Some("NO-03")),
            ("198.51.100.6", None, None),
            ("2001:db8::1", None, None),
            ("0.0.0.0", None, None),
        ] {
            let found = networks.locate(address.parse().unwrap());
            assert_eq!((found.asn, found.region.as_deref()), (asn, region), "{address}");
        }
        let mapped = networks.locate("::ffff:192.0.2.1".parse().unwrap());
        assert_eq!(mapped.address, "192.0.2.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn without_a_database_its_factor_is_off() {
        let none = Networks::default();
        assert_eq!(none.builds(), Databases::default());
        assert_eq!(none.locate([192, 0, 2, 1].into()).asn, None);
    }

    #[test]
    fn what_is_no_database_is_refused_and_a_cut_one_says_nothing_wrong() {
        let good = database(&[entry("192.0.2.0/24", Some(1), Some(("SE", "M")))], 1);
        for content in [&b""[..], b"not a database", &good[..good.len() / 3]] {
            let (_scratch, path) = file(content);
            assert!(Networks::open(Some(&path), None).is_err());
        }
        // Any byte may be wrong: the worst that comes of it is that nothing is known.
        for place in 0..good.len() {
            for bit in [0x01, 0x80, 0xff] {
                let mut content = good.clone();
                content[place] ^= bit;
                let (_scratch, path) = file(&content);
                if let Ok(networks) = Networks::open(Some(&path), Some(&path)) {
                    let _ = networks.locate([192, 0, 2, 1].into());
                    let _ = networks.locate([10, 0, 0, 1].into());
                }
            }
        }
    }
}
