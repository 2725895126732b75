//! Makes certificates for two hosts in the layout that `tls-creds` reads: signed by an authority made for them, or by
//! themselves.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use vmstate::channel::tls::Fingerprint;

/// A day, which is also the largest tolerated difference of two clocks.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Description of the certificates to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Directory for the files; created if it does not exist.
    pub directory: PathBuf,
    /// Names and addresses of destinations.
    pub hosts: Vec<String>,
    /// Days of validity, from now on.
    pub days: u32,
    /// Whether to sign each certificate by itself, without an authority: the other side is given its SHA-256.
    pub self_signed: bool,
}

/// Why no certificates were made.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file or the directory cannot be made.
    #[error("{}: {source}", path.display())]
    File {
        /// File or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A certificate cannot be made.
    #[error("{what}: {source}")]
    Content {
        /// Name of the certificate.
        what: String,
        /// Reason of the library.
        source: rcgen::Error,
    },
}

/// Makes the certificates; returns the file name and the SHA-256 of each. If one of the files exists, none is made.
///
/// # Errors
/// See [`CertificateError`].
pub fn make(wanted: &Wanted) -> Result<Vec<(String, Fingerprint)>, CertificateError> {
    let content = |what: &str| {
        let what = what.to_owned();
        move |source| CertificateError::Content { what, source }
    };
    let key = || KeyPair::generate().map_err(content("a key"));
    let mut files = Vec::new();
    let mut fingerprints = Vec::new();
    let authority = if wanted.self_signed {
        None
    } else {
        let mut params = params(&[], wanted.days, "authority of minivmm tls init").map_err(content("the authority"))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, key()?).map_err(content("the authority"))?;
        files.push(("ca-cert.pem".to_owned(), authority.pem()));
        files.push(("ca-key.pem".to_owned(), authority.key().serialize_pem()));
        Some(authority)
    };
    for (end, purpose) in
        [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let mut params = params(&wanted.hosts, wanted.days, &format!("minivmm {end}")).map_err(content("--host"))?;
        // TLS 1.3 needs signatures only. QEMU (`crypto/tlscredsx509.c`) also requires key encipherment and refuses the
        // directory without it.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![purpose];
        let key = key()?;
        let certificate = match &authority {
            Some(authority) => {
                params.use_authority_key_identifier_extension = true;
                params.signed_by(&key, authority)
            }
            None => params.self_signed(&key),
        };
        let certificate = certificate.map_err(content("a certificate"))?;
        let name = format!("{end}-cert.pem");
        fingerprints.push((name.clone(), Fingerprint::of(certificate.der())));
        files.push((name, certificate.pem()));
        files.push((format!("{end}-key.pem"), key.serialize_pem()));
    }
    write(&wanted.directory, &files)?;
    Ok(fingerprints)
}

fn params(hosts: &[String], days: u32, name: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    params.not_before = date_time_ymd(1970, 1, 1) + now.saturating_sub(DAY);
    params.not_after = date_time_ymd(1970, 1, 1) + now + DAY * days;
    Ok(params)
}

/// Writes all `files`, or none if one of them exists. Keys are readable for this user only.
fn write(directory: &Path, files: &[(String, String)]) -> Result<(), CertificateError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| CertificateError::File { path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed(directory))?;
    for (name, _) in files {
        let path = directory.join(name);
        if path.symlink_metadata().is_ok() {
            let source = io::Error::new(
                io::ErrorKind::AlreadyExists,
                "it is there already, and is kept; give another directory",
            );
            return Err(failed(&path)(source));
        }
    }
    for (name, text) in files {
        let path = directory.join(name);
        let mode = if name.ends_with("-key.pem") { 0o600 } else { 0o644 };
        let file = File::options().write(true).create_new(true).mode(mode).open(&path);
        file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed(&path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use vmstate_lab::{qemu, skip};

    use super::*;

    /// QEMU checks the usage, the signature and the dates of both certificates when the object is made, before it runs anything.
    #[test]
    fn a_qemu_accepts_the_directory_at_either_end() {
        let program = match qemu::any() {
            Ok(program) => program,
            Err(reason) => return skip::skip(&reason),
        };
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("certs");
        make(&Wanted { directory: directory.clone(), hosts: vec!["there".into()], days: 1, self_signed: false })
            .unwrap();
        for endpoint in ["server", "client"] {
            let object = |directory: &Path| {
                format!("tls-creds-x509,id=tls,dir={},endpoint={endpoint},verify-peer=on", directory.display())
            };
            let run = |object: String| {
                let mut child = Command::new(&program)
                    .args(["-machine", "none", "-display", "none", "-qmp", "stdio", "-object", &object])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap();
                let commands = b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"quit\"}";
                // A QEMU that refuses may have ended already.
                let _ = child.stdin.take().unwrap().write_all(commands);
                child.wait_with_output().unwrap()
            };
            let accepted = run(object(&directory));
            assert!(accepted.status.success(), "{}", String::from_utf8_lossy(&accepted.stderr));
            assert!(!run(object(&place.path().join("elsewhere"))).status.success());
        }
    }
}
