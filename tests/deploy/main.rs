//! `deploy/`: the manifests, the container and the Debian package, looked at by the tools that read them
//! and tried with the real program.

#![expect(clippy::disallowed_methods, reason = "a test runs programs, and looks at files")]

#[cfg(test)]
mod container;
#[cfg(test)]
mod debian;
#[cfg(test)]
mod kubernetes;
#[cfg(test)]
mod scratch;
#[cfg(test)]
mod systemd;
