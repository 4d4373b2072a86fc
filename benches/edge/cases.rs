//! What is compared.

/// One kind of request over one protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) kind: Kind,
    pub(crate) protocol: Protocol,
}

/// What a request shows, and what the edge does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing, to a public route: the edge as a plain proxy.
    Public,
    /// The fields of [`Kind::Dpop`], to a public route that passes them on unread: what their bytes
    /// cost.
    Passed,
    /// A token that the edge remembers and a new proof.
    Dpop,
    /// A token that the edge remembers, bound to the connection's certificate.
    Mtls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    H2,
}

impl Protocol {
    pub(crate) const ALL: [Self; 2] = [Self::Http1, Self::H2];

    /// As ALPN has it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http/1.1",
            Self::H2 => "h2",
        }
    }
}

impl Kind {
    const ALL: [Self; 4] = [Self::Public, Self::Passed, Self::Dpop, Self::Mtls];

    fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Passed => "public, fields of dpop",
            Self::Dpop => "dpop",
            Self::Mtls => "mtls",
        }
    }

    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Public => "/public/orders/1",
            Self::Passed => "/passed/orders/1",
            Self::Dpop | Self::Mtls => "/bound/orders/1",
        }
    }
}

impl Case {
    pub(crate) fn all() -> Vec<Self> {
        let of = |kind| Protocol::ALL.map(|protocol| Self { kind, protocol });
        Kind::ALL.into_iter().flat_map(of).collect()
    }

    pub(crate) fn name(self) -> String {
        format!("{}, {}", self.kind.name(), self.protocol.name())
    }
}
