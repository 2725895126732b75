//! Verifiers of certificates: signed by an authority, or pinned one by one.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible, SignatureScheme,
};

use super::name::{Fingerprint, same, subject};

/// A sentence as an error of the TLS library's certificate checks.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refused(String);

fn refused(why: String) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Refused(why)))))
}

/// Trusts only certificates with a pinned fingerprint, whatever their authority, name or dates: the peer has proved that it has
/// the key.
#[derive(Debug)]
pub(super) struct Pinned {
    pub(super) pins: Vec<Fingerprint>,
    pub(super) provider: Arc<CryptoProvider>,
}

impl Pinned {
    fn check(&self, certificate: &CertificateDer<'_>, peer: &str) -> Result<(), Error> {
        let fingerprint = Fingerprint::of(certificate);
        match self.pins.contains(&fingerprint) {
            true => Ok(()),
            false => {
                Err(refused(format!("the {peer}'s certificate is not one of tls-pin; its SHA-256 is {fingerprint}")))
            }
        }
    }
}

/// The checks of signatures, which both verifier traits need. TLS 1.2 is not supported.
macro_rules! signatures_of_tls_1_3 {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(certificate, "server").map(|()| ServerCertVerified::assertion())
    }

    signatures_of_tls_1_3!();
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate, "client").map(|()| ClientCertVerified::assertion())
    }

    signatures_of_tls_1_3!();
}

/// Accepts clients that `trusts` accepts and whose certificate has one of `names`.
#[derive(Debug)]
pub(super) struct Authorized {
    pub(super) trusts: Arc<dyn ClientCertVerifier>,
    pub(super) names: Vec<String>,
}

impl ClientCertVerifier for Authorized {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.trusts.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.trusts.verify_client_cert(certificate, intermediates, now)?;
        let subject = subject(certificate).ok_or_else(|| refused("the client's certificate has no subject".into()))?;
        match self.names.iter().any(|name| same(name, &subject)) {
            true => Ok(verified),
            false => Err(refused(format!("the client is '{subject}', which is not one of tls-authz"))),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trusts.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.trusts.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.trusts.supported_verify_schemes()
    }
}
