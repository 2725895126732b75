//! Names of certificates: the SHA-256 fingerprint, and the distinguished name of the subject.

use std::fmt;
use std::str::FromStr;

use rustls::crypto::ring::cipher_suite::TLS13_AES_128_GCM_SHA256;
use rustls::pki_types::CertificateDer;
use x509_cert::der::Decode;

/// SHA-256 of a certificate, as `openssl x509 -noout -fingerprint -sha256` prints it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// The error for a text that is not a fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("write the SHA-256 of a certificate: 64 hexadecimal digits, with colons between them or without")]
pub struct NoFingerprint;

impl Fingerprint {
    /// The fingerprint of a certificate in DER.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        let mut digest = [0; 32];
        // The hash of a TLS 1.3 cipher suite, so that no other library is needed for SHA-256.
        if let Some(suite) = TLS13_AES_128_GCM_SHA256.tls13() {
            let hash = suite.common.hash_provider.hash(certificate);
            digest.iter_mut().zip(hash.as_ref()).for_each(|(to, from)| *to = *from);
        }
        Self(digest)
    }
}

impl FromStr for Fingerprint {
    type Err = NoFingerprint;

    fn from_str(text: &str) -> Result<Self, NoFingerprint> {
        let text = text.strip_prefix("sha256:").unwrap_or(text);
        let digits: Vec<u8> = text.bytes().filter(|&byte| byte != b':').collect();
        let mut digest = [0; 32];
        if digits.len() != 64 {
            return Err(NoFingerprint);
        }
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |index: usize| pair.get(index).and_then(|&digit| char::from(digit).to_digit(16));
            let (high, low) = (digit(0).ok_or(NoFingerprint)?, digit(1).ok_or(NoFingerprint)?);
            *byte = u8::try_from(high << 4 | low).map_err(|_| NoFingerprint)?;
        }
        Ok(Self(digest))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .enumerate()
            .try_for_each(|(index, byte)| write!(f, "{}{byte:02X}", if index == 0 { "" } else { ":" }))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// The subject of a certificate, as RFC 4514 writes it; `None` if it cannot be parsed.
pub(super) fn subject(certificate: &CertificateDer<'_>) -> Option<String> {
    let certificate = x509_cert::Certificate::from_der(certificate).ok()?;
    Some(certificate.tbs_certificate().subject().to_string())
}

/// True if both are the same distinguished name. GnuTLS writes the parts in the order of the certificate, RFC 4514 in reverse.
pub(super) fn same(one: &str, other: &str) -> bool {
    let (one, mut other) = (parts(one), parts(other));
    if one == other {
        return true;
    }
    other.reverse();
    one == other
}

/// Splits `CN=a,O=b` at its unescaped commas, and trims spaces.
fn parts(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut escaped = false;
    for c in name.chars() {
        match (c, parts.last_mut()) {
            (',', _) if !escaped => parts.push(String::new()),
            (c, Some(part)) => part.push(c),
            (_, None) => {}
        }
        escaped = c == '\\' && !escaped;
    }
    parts.iter().map(|part| part.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_written_with_colons_or_without() {
        let plain = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";
        let fingerprint: Fingerprint = plain.parse().unwrap();
        let shown = fingerprint.to_string();
        assert!(shown.starts_with("00:11:22:33") && shown.ends_with("EE:FF"), "{shown}");
        assert_eq!(shown.parse(), Ok(fingerprint));
        assert_eq!(format!("sha256:{plain}").parse(), Ok(fingerprint));
        for wrong in ["", "00", &plain[1..], &format!("{plain}0"), &plain.replace('a', "g"), &plain.replace('1', "é")]
        {
            assert_eq!(wrong.parse::<Fingerprint>(), Err(NoFingerprint), "{wrong}");
        }
    }

    #[test]
    fn a_distinguished_name_is_the_same_in_either_order() {
        assert!(same("CN=laptop,O=Home", "CN=laptop,O=Home"));
        assert!(same("CN=laptop, O=Home", "O=Home,CN=laptop"));
        assert!(same(r"CN=a\,b,O=Home", r"O=Home,CN=a\,b"));
        for other in ["CN=laptop", "CN=laptop,O=Home,C=DE", "CN=Laptop,O=Home", "", r"CN=laptop\,O=Home"] {
            assert!(!same("CN=laptop,O=Home", other), "{other}");
        }
    }
}
