//! What is compared.

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// For a token, through a public route: the edge as a plain proxy.
    Plain,
    /// The same with a proof, through a public route that passes it on unread: what its bytes cost.
    Passed,
    /// With a proof, to a server that binds by itself: nothing is kept.
    Native,
    /// Without anything, where the edge binds what it can: two records, bound to nobody.
    Unbound,
    /// Over a connection with a certificate, where the edge binds: two records.
    Mtls,
    /// With a proof, where the edge binds: two records.
    Dpop,
    /// A refresh token of [`Kind::Dpop`]'s and a proof: its record is read, two are written.
    Refresh,
    /// For a resource, with an opaque token of [`Kind::Dpop`]'s and a proof: its record is read.
    Record,
    /// For a resource, with a JWT that says what it is bound to and is remembered, and a proof.
    Cnf,
}

impl Kind {
    /// In the order in which a round has them: what uses tokens comes after what issues them.
    pub(crate) const ALL: [Self; 9] = [
        Self::Plain,
        Self::Passed,
        Self::Native,
        Self::Unbound,
        Self::Mtls,
        Self::Dpop,
        Self::Refresh,
        Self::Record,
        Self::Cnf,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Passed => "plain, with a proof",
            Self::Native => "native, dpop",
            Self::Unbound => "retrofit, nothing to bind",
            Self::Mtls => "retrofit, mtls",
            Self::Dpop => "retrofit, dpop",
            Self::Refresh => "retrofit, refresh, dpop",
            Self::Record => "resource, record",
            Self::Cnf => "resource, cnf in a JWT",
        }
    }

    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Plain | Self::Passed => "/plain/token",
            Self::Native => "/native/token",
            Self::Unbound | Self::Mtls | Self::Dpop | Self::Refresh => "/retrofit/token",
            Self::Record | Self::Cnf => "/orders/1",
        }
    }

    /// Whether it is a resource that is asked for.
    pub(crate) fn reads(self) -> bool {
        matches!(self, Self::Record | Self::Cnf)
    }

    pub(crate) fn has_proof(self) -> bool {
        !matches!(self, Self::Plain | Self::Unbound | Self::Mtls)
    }

    /// Whether tokens are kept.
    pub(crate) fn keeps(self) -> bool {
        matches!(self, Self::Unbound | Self::Mtls | Self::Dpop | Self::Refresh)
    }
}
