//! `cnf` × proof × certificate × rule → bound.

/// What an admission rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BoundBy {
    /// A `public` route: no token was read, no `X-Holdfast-*` is added.
    Public,
    /// An unbound token where that is allowed.
    Unbound,
    /// `cnf.jkt`, proven.
    Dpop,
    /// `cnf.x5t#S256`, proven.
    Mtls,
    /// Both, both proven.
    Both,
    /// `mode: observe` let it pass; nothing about the sender is proven.
    Observed,
}

impl BoundBy {
    /// The value of `X-Holdfast-Result`; `None` on public routes.
    #[must_use]
    pub fn result_header(self) -> Option<&'static str> {
        match self {
            Self::Public => None,
            Self::Unbound => Some("unbound"),
            Self::Dpop => Some("dpop"),
            Self::Mtls => Some("mtls"),
            Self::Both => Some("dpop+mtls"),
            Self::Observed => Some("observe"),
        }
    }
}
