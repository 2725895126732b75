//! Certificates made with `rcgen`, in QEMU's file layout.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevocationReason, RevokedCertParams,
    SerialNumber, date_time_ymd,
};
use vmstate::channel::tls::TlsOptions;

pub(crate) const SERIAL: u64 = 77;

/// The faults that a certificate can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    None,
    Missing,
    Expired,
    Early,
    Unknown,
    Purpose,
    Name,
}

pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Writes `ca-cert.pem`, and `server-…` or `client-…` with that fault, to `dir`.
    pub(crate) fn write(&self, dir: &Path, end: &str, flaw: Flaw) -> TlsOptions {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("ca-cert.pem"), self.0.pem()).unwrap();
        let options = TlsOptions { directory: dir.into(), ..TlsOptions::default() };
        if flaw == Flaw::Missing {
            return options;
        }
        let names = match flaw {
            Flaw::Name => vec!["elsewhere.example".into()],
            _ => vec!["there.example".into(), "127.0.0.1".into()],
        };
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::OrganizationName, "Guests, moved");
        params.distinguished_name.push(DnType::CommonName, end);
        params.serial_number = Some(SerialNumber::from(SERIAL));
        params.use_authority_key_identifier_extension = true;
        match flaw {
            Flaw::Expired => params.not_after = date_time_ymd(2020, 1, 1),
            Flaw::Early => params.not_before = date_time_ymd(2090, 1, 1),
            _ => {}
        }
        params.extended_key_usages = match (end == "server") != (flaw == Flaw::Purpose) {
            true => vec![ExtendedKeyUsagePurpose::ServerAuth],
            false => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        let key = KeyPair::generate().unwrap();
        let unknown = Self::new();
        let issuer = if flaw == Flaw::Unknown { &unknown.0 } else { &self.0 };
        let certificate = params.signed_by(&key, issuer).unwrap();
        std::fs::write(dir.join(format!("{end}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{end}-key.pem")), key.serialize_pem()).unwrap();
        options
    }

    /// Writes a revocation list to `dir` for the serial number of all the tests' certificates.
    pub(crate) fn revoke(&self, dir: &Path) {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from(SERIAL),
                revocation_time: date_time_ymd(2024, 1, 1),
                reason_code: Some(RevocationReason::KeyCompromise),
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        std::fs::write(dir.join("ca-crl.pem"), list.signed_by(&self.0).unwrap().pem().unwrap()).unwrap();
    }
}

/// A self-signed certificate.
pub(crate) fn alone(dir: &Path, end: &str) -> TlsOptions {
    std::fs::create_dir_all(dir).unwrap();
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, end);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    std::fs::write(dir.join(format!("{end}-cert.pem")), certificate.pem()).unwrap();
    std::fs::write(dir.join(format!("{end}-key.pem")), key.serialize_pem()).unwrap();
    TlsOptions { directory: dir.into(), ..TlsOptions::default() }
}
