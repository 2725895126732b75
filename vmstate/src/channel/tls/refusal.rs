//! Why a TLS connection ended, as a sentence: the fault that this side found, or the alert of the other side.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage};

use crate::channel::waiters::MAGIC;
use crate::ram::multifd::packet::MAGIC_BYTES;

fn ended(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("TLS: {why}"))
}

/// The sentence for an error of the session. `first` are the first bytes that the peer sent.
pub(super) fn of(error: &Error, is_server: bool, first: &[u8]) -> io::Error {
    let peer = if is_server { "client" } else { "server" };
    ended(match error {
        Error::InvalidCertificate(error) => certificate(error, peer),
        Error::NoCertificatesPresented => format!("the {peer} has no certificate, and one is required"),
        Error::AlertReceived(alert) => said(*alert, peer),
        Error::PeerIncompatible(why) => format!("the {peer} has no TLS 1.3 that both sides know ({why:?})"),
        Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            match first {
                _ if first == MAGIC => format!("the {peer} sends a stream that is not encrypted; give it tls-creds"),
                _ if first == MAGIC_BYTES => {
                    format!("the {peer} opens a page channel that is not encrypted; give it tls-creds")
                }
                _ => format!("the {peer} does not speak TLS; give it tls-creds"),
            }
        }
        error => format!("{error}"),
    })
}

fn certificate(error: &CertificateError, peer: &str) -> String {
    use CertificateError as C;
    let what = match error {
        C::Expired | C::ExpiredContext { .. } => "has expired".to_owned(),
        C::NotValidYet | C::NotValidYetContext { .. } => "is not valid yet; compare both hosts' clocks".into(),
        C::Revoked => "has been revoked (ca-crl.pem)".into(),
        C::UnknownRevocationStatus => "is of an authority that ca-crl.pem says nothing about".into(),
        C::UnknownIssuer => "is not signed by an authority in ca-cert.pem".into(),
        C::BadSignature => "is not signed by the authority that it names".into(),
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => {
            format!("is not for a TLS {peer} (extended key usage)")
        }
        C::NotValidForNameContext { expected, presented } => {
            // `DnsName("a.example")`, `IpAddress(10.0.0.1)`
            let bare =
                |name: &String| name.split_once('(').map_or("", |(_, name)| name).trim_matches(['"', ')']).to_owned();
            let presented = match presented.is_empty() {
                true => "no host".into(),
                false => presented.iter().map(bare).collect::<Vec<_>>().join(", "),
            };
            format!("is for {presented}, not for {}; give tls-hostname if it is the right one", expected.to_str())
        }
        C::NotValidForName => "is for another host".into(),
        C::Other(why) => return why.to_string(),
        error => format!("is refused: {error}"),
    };
    format!("the {peer}'s certificate {what}")
}

/// The sentence for an alert of the peer (RFC 8446, section 6.2).
fn said(alert: AlertDescription, peer: &str) -> String {
    use AlertDescription as A;
    let what = match alert {
        A::CertificateExpired => "this side's certificate has expired, or is not valid yet",
        A::CertificateRevoked => "this side's certificate has been revoked",
        A::UnknownCA => "this side's certificate is not signed by an authority that it knows",
        A::UnsupportedCertificate => "this side's certificate is not for this purpose",
        A::DecryptError => "this side's certificate or its key is not that of the authority that it names",
        A::BadCertificate => "this side's certificate is damaged, or is for another host",
        A::CertificateUnknown | A::AccessDenied => {
            "this side's certificate is not accepted; the peer's own message has the reason"
        }
        A::CertificateRequired => "this side has no certificate, and one is required",
        A::ProtocolVersion | A::HandshakeFailure | A::InsufficientSecurity => "it has no TLS 1.3 in common",
        _ => "the connection cannot be trusted",
    };
    format!("the {peer} refuses: {what} (alert {alert:?})")
}

/// The error for a peer that closed the connection after the handshake was complete for this side, without sending anything.
pub(super) fn closed_after_handshake(is_server: bool) -> io::Error {
    let peer = if is_server { "client" } else { "server" };
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        format!(
            "TLS: the {peer} closed the connection behind the handshake, as one does that refuses this side's certificate; its log may say more"
        ),
    )
}

/// The error for a connection that ended within the handshake.
pub(super) fn closed(is_server: bool) -> io::Error {
    ended(match is_server {
        true => "the client closed the connection within the handshake".into(),
        false => "the server closed the connection within the handshake; it may not have been told to speak TLS \
                  (tls-creds), and its log may say more"
            .into(),
    })
}

/// The error for a connection that ended without `close_notify`.
pub(super) fn truncated() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "TLS: the connection ended without the peer's close_notify")
}
