//! One connection to one server.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Pipeline, RedisConnectionInfo, Value};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use crate::policy::reach::Lookup;

use super::settings::{Address, Login, Settings, Tls};
use crate::store::task::Task;

/// Requests that wait to be written.
const WAITING: usize = 1024;

/// Why a server cannot be used, in words for the log: no secret is in them.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// No connection.
    #[error("{0}: {1}")]
    Connect(Address, std::io::Error),
    /// No connection in time.
    #[error("{0}: no connection within {1:?}")]
    Late(Address, Duration),
    /// A name, where none may be looked up.
    #[error("{0}: the edge is sealed, and this is no address")]
    Sealed(Address),
    /// A file cannot be used.
    #[error("{0}")]
    File(String),
    /// The server takes neither user nor password, or does not speak as one.
    #[error("{0}: {1}")]
    Server(Address, String),
}

/// A connection: many requests share it, each with its answers in order. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct Link {
    connection: MultiplexedConnection,
    driver: Task,
}

impl Link {
    /// Connects within `connectTimeout` all in all.
    pub(super) async fn open(
        settings: &Settings,
        address: &Address,
        login: &Login,
    ) -> Result<Self, LinkError> {
        let within = settings.connect_timeout;
        let opened = Self::connect(settings, address, login);
        let late = |_| LinkError::Late(address.clone(), within);
        tokio::time::timeout(within, opened).await.map_err(late)?
    }

    async fn connect(
        settings: &Settings,
        address: &Address,
        login: &Login,
    ) -> Result<Self, LinkError> {
        let wrong = |error| LinkError::Connect(address.clone(), error);
        let password = login.password_file.as_deref().map(password).transpose()?;
        let tls = settings.tls.as_ref().map(client).transpose()?;
        let socket = match (address.host.parse::<IpAddr>(), settings.lookup) {
            (Ok(ip), _) => TcpStream::connect((ip, address.port)).await,
            (Err(_), Some(Lookup { .. })) => {
                TcpStream::connect((address.host.as_str(), address.port)).await
            }
            (Err(_), None) => return Err(LinkError::Sealed(address.clone())),
        };
        let socket = socket.map_err(wrong)?;
        socket.set_nodelay(true).map_err(wrong)?;
        let (Some(tls), Some(rules)) = (tls, &settings.tls) else {
            return Self::speak(socket, address, login, password).await;
        };
        let name = rules.server_name.as_ref().unwrap_or(&address.host).clone();
        let name = ServerName::try_from(name)
            .map_err(|error| LinkError::Server(address.clone(), error.to_string()))?;
        let socket = TlsConnector::from(tls).connect(name, socket).await.map_err(wrong)?;
        Self::speak(socket, address, login, password).await
    }

    async fn speak<S>(
        socket: S,
        address: &Address,
        login: &Login,
        password: Option<Zeroizing<String>>,
    ) -> Result<Self, LinkError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut info = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some(user) = &login.user {
            info = info.set_username(user);
        }
        if let Some(password) = password {
            info = info.set_password(password.as_str());
        }
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_pipeline_buffer_size(WAITING);
        let made = MultiplexedConnection::new_with_config(&info, socket, config).await;
        let (connection, driver) =
            made.map_err(|error| LinkError::Server(address.clone(), error.to_string()))?;
        Ok(Self { connection, driver: Task::start(&Handle::current(), driver) })
    }

    /// Whether it has ended.
    pub(super) fn ended(&self) -> bool {
        self.driver.ended()
    }

    /// Sends once, never again: `None` when no answer came within `timeout` or the connection ended,
    /// so that nobody knows what the server did.
    pub(super) async fn send(&self, pipeline: &Pipeline, timeout: Duration) -> Option<Vec<Value>> {
        let mut connection = self.connection.clone();
        let count = pipeline.len();
        let sent = connection.send_packed_commands(pipeline, 0, count);
        let answers = tokio::time::timeout(timeout, sent).await.ok()?.ok()?;
        (answers.len() == count).then_some(answers)
    }
}

fn password(path: &std::path::Path) -> Result<Zeroizing<String>, LinkError> {
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|error| LinkError::File(format!("{}: {error}", path.display())))?;
    Ok(Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned()))
}

fn client(tls: &Tls) -> Result<Arc<ClientConfig>, LinkError> {
    let wrong = |error: rustls::Error| LinkError::File(format!("TLS: {error}"));
    let mut roots = RootCertStore::empty();
    for path in &tls.authorities {
        for certificate in certificates(path)? {
            roots.add(certificate).map_err(wrong)?;
        }
    }
    if tls.authorities.is_empty() {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    // Commands have no provider for the whole process.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().map_err(wrong)?;
    let builder = builder.with_root_certificates(roots);
    let config = match &tls.client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            // The parser's own words may quote the file.
            let bad = |_| LinkError::File(format!("{}: no private key", key.display()));
            let private = PrivateKeyDer::from_pem_file(key).map_err(bad)?;
            builder.with_client_auth_cert(certificates(chain)?, private).map_err(wrong)?
        }
    };
    Ok(Arc::new(config))
}

fn certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let wrong = |error| LinkError::File(format!("{}: {error}", path.display()));
    let found = CertificateDer::pem_file_iter(path).map_err(wrong)?;
    found.collect::<Result<Vec<_>, _>>().map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::super::settings::{Topology, Wait};
    use super::*;
    use crate::policy::reach::Reach;

    #[tokio::test]
    async fn a_sealed_edge_asks_for_no_name() {
        let name = Address { host: "localhost".to_owned(), port: 1 };
        for (sealed, host, looked) in
            [(true, "localhost", false), (true, "127.0.0.1", true), (false, "localhost", true)]
        {
            let settings = Settings {
                lookup: Reach::of(sealed).lookup(),
                topology: Topology::Standalone(vec![name.clone()]),
                login: Login::default(),
                tls: None,
                prefix: "test".to_owned(),
                connect_timeout: Duration::from_secs(5),
                timeout: Duration::from_secs(5),
                wait: Wait { replicas: 0, within: Duration::ZERO },
                require_persistence: false,
            };
            let address = Address { host: host.to_owned(), port: 1 };
            let error = Link::open(&settings, &address, &Login::default()).await.unwrap_err();
            let refused = matches!(error, LinkError::Sealed(_));
            assert_eq!(refused, !looked, "{host}, sealed {sealed}: {error}");
        }
    }
}
