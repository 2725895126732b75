//! The configuration of a TLS client or server: certificates and keys in QEMU's file layout, and the trusted peers.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::OFlag;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use super::name::Fingerprint;
use super::verify::{Authorized, Pinned};

/// The largest file of certificates that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// Certificates and trust, in the terms of QEMU's `tls-creds-x509`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsOptions {
    /// The directory with the files: `ca-cert.pem`, optionally `ca-crl.pem` with revoked certificates, `server-cert.pem` and
    /// `server-key.pem` for a server, `client-cert.pem` and `client-key.pem` for a client.
    pub directory: PathBuf,
    /// Fingerprints of trusted peer certificates. If there are any, only these are trusted, whatever their authority, name or
    /// dates.
    pub pins: Vec<Fingerprint>,
    /// For a server, the distinguished names of clients that may connect; if empty, all clients with a trusted certificate.
    pub authorized: Vec<String>,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub struct TlsError {
    path: PathBuf,
    what: String,
}

/// Configuration of the server's side. Clones share it.
#[derive(Clone, Debug)]
pub struct TlsServer(Arc<ServerConfig>);

/// Configuration of the client's side. Clones share it.
#[derive(Clone, Debug)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    /// The server's certificate must have the name of the host.
    by_name: bool,
}

impl TlsServer {
    /// Reads the files of a server, which requires a certificate of each client.
    ///
    /// # Errors
    /// Names the file that is missing or wrong.
    pub fn new(options: &TlsOptions) -> Result<Self, TlsError> {
        let files = Files(&options.directory);
        let provider = Arc::new(ring::default_provider());
        let mut trusts: Arc<dyn ClientCertVerifier> = match options.pins.is_empty() {
            true => WebPkiClientVerifier::builder_with_provider(files.roots()?, Arc::clone(&provider))
                .with_crls(files.revoked()?)
                .build()
                .map_err(|error| files.error("ca-cert.pem", error.to_string()))?,
            false => Arc::new(pinned(options, &provider)),
        };
        if !options.authorized.is_empty() {
            trusts = Arc::new(Authorized { trusts, names: options.authorized.clone() });
        }
        let unusable = |error: rustls::Error| files.error("server-cert.pem", error.to_string());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(trusts)
            .with_single_cert(files.certificates("server-cert.pem")?, files.key("server-key.pem")?)
            .map_err(unusable)?;
        // Each connection belongs to one migration, and no TLS session is resumed.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self(Arc::new(config)))
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0)
    }
}

impl TlsClient {
    /// Reads the files of a client. Without `client-cert.pem` it has no certificate, which a server may refuse.
    ///
    /// # Errors
    /// Names the file that is missing or wrong.
    pub fn new(options: &TlsOptions) -> Result<Self, TlsError> {
        let files = Files(&options.directory);
        let provider = Arc::new(ring::default_provider());
        let unusable = |error: rustls::Error| files.error("client-cert.pem", error.to_string());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .dangerous();
        let config = match options.pins.is_empty() {
            true => config.with_custom_certificate_verifier(
                WebPkiServerVerifier::builder_with_provider(files.roots()?, provider)
                    .with_crls(files.revoked()?)
                    .build()
                    .map_err(|error| files.error("ca-cert.pem", error.to_string()))?,
            ),
            false => config.with_custom_certificate_verifier(Arc::new(pinned(options, &provider))),
        };
        let mut config = match files.is_there("client-cert.pem") {
            true => config
                .with_client_auth_cert(files.certificates("client-cert.pem")?, files.key("client-key.pem")?)
                .map_err(unusable)?,
            false => config.with_no_client_auth(),
        };
        config.resumption = Resumption::disabled();
        Ok(Self { config: Arc::new(config), by_name: options.pins.is_empty() })
    }

    pub(super) fn config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.config)
    }

    /// The name that the certificate of the server at `host` must have.
    pub(super) fn name(&self, host: &str) -> io::Result<ServerName<'static>> {
        match ServerName::try_from(host.to_owned()) {
            Ok(name) => Ok(name),
            // The name is not compared with anything.
            Err(_) if !self.by_name => Ok(ServerName::IpAddress(std::net::Ipv4Addr::LOCALHOST.into())),
            Err(_) => {
                let what = match host {
                    "" => "TLS: the server's certificate has to be for a name, and the address has none; give tls-hostname".into(),
                    host => format!("TLS: '{host}' is no host's name or address; give tls-hostname"),
                };
                Err(io::Error::new(io::ErrorKind::InvalidInput, what))
            }
        }
    }
}

fn pinned(options: &TlsOptions, provider: &Arc<CryptoProvider>) -> Pinned {
    Pinned { pins: options.pins.clone(), provider: Arc::clone(provider) }
}

/// A directory in QEMU's layout.
struct Files<'a>(&'a Path);

impl Files<'_> {
    fn error(&self, name: &str, what: String) -> TlsError {
        TlsError { path: self.0.join(name), what }
    }

    fn is_there(&self, name: &str) -> bool {
        self.0.join(name).exists()
    }

    /// Reads a file. A FIFO without a writer must not block the open.
    fn read(&self, name: &str) -> Result<Vec<u8>, TlsError> {
        let open = || {
            let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(self.0.join(name))?;
            let is_file = file.metadata()?.is_file();
            if is_file { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
        };
        let mut bytes = Vec::new();
        let read = open().and_then(|file: File| file.take(LONGEST).read_to_end(&mut bytes));
        read.map_err(|error| self.error(name, error.to_string()))?;
        Ok(bytes)
    }

    fn certificates(&self, name: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&self.read(name)?).collect();
        match certificates {
            Ok(certificates) if !certificates.is_empty() => Ok(certificates),
            Ok(_) => Err(self.error(name, "it has no certificate (BEGIN CERTIFICATE)".into())),
            Err(error) => Err(self.error(name, error.to_string())),
        }
    }

    fn key(&self, name: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(&self.read(name)?).map_err(|error| self.error(name, error.to_string()))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in self.certificates("ca-cert.pem")? {
            roots.add(authority).map_err(|error| self.error("ca-cert.pem", error.to_string()))?;
        }
        Ok(Arc::new(roots))
    }

    fn revoked(&self) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
        const NAME: &str = "ca-crl.pem";
        if !self.is_there(NAME) {
            return Ok(Vec::new());
        }
        let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&self.read(NAME)?).collect();
        lists.map_err(|error| self.error(NAME, error.to_string()))
    }
}
