//! The configuration that quickstart writes: short, and commented for a first reader.

use std::net::SocketAddr;

use super::authority::AUDIENCE;

/// The file's name.
pub(super) const FILE: &str = "authority.yaml";

/// Where everything listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Addresses {
    /// The edge.
    pub(super) edge: SocketAddr,
    /// Metrics and health.
    pub(super) admin: SocketAddr,
    /// The sample Authorization Server.
    pub(super) authority: SocketAddr,
    /// The sample Authorization Server that binds nothing.
    pub(super) legacy: SocketAddr,
    /// The sample API.
    pub(super) api: SocketAddr,
}

impl Addresses {
    /// The edge's external origin.
    pub(super) fn origin(&self) -> String {
        format!("https://localhost:{}", self.edge.port())
    }
}

/// The text of the file.
pub(super) fn text(addresses: &Addresses) -> String {
    let mut text = include_str!("authority.yaml").to_owned();
    for (name, value) in [
        ("@origin@", addresses.origin()),
        ("@host@", format!("localhost:{}", addresses.edge.port())),
        ("@edge@", addresses.edge.to_string()),
        ("@admin@", addresses.admin.to_string()),
        ("@authority@", addresses.authority.to_string()),
        ("@legacy@", addresses.legacy.to_string()),
        ("@api@", addresses.api.to_string()),
        ("@audience@", AUDIENCE.to_owned()),
    ] {
        text = text.replace(name, &value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_blank_is_filled_in() {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let addresses = Addresses {
            edge: address,
            admin: address,
            authority: address,
            legacy: address,
            api: address,
        };
        assert!(!text(&addresses).contains('@'));
    }
}
