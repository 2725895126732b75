//! Parameters of TLS for the connections of migrations, with the names of QEMU's parameters.

use std::path::PathBuf;

use vmstate::channel::tls::{Fingerprint, NoFingerprint, TlsOptions};

/// The parameters of TLS. Each has a text, which is empty if nothing was given, as in QEMU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Directory with certificates and keys, in QEMU's layout; `None`: connections are not encrypted.
    pub creds: Option<PathBuf>,
    /// The name that a destination's certificate has to have; `None`: the host of its address.
    pub hostname: Option<String>,
    /// Distinguished names of sources that may connect; if empty, all trusted sources may.
    pub authz: Vec<String>,
    /// Certificates of the other side that are trusted exclusively; if empty, those of the authority are trusted.
    pub pin: Vec<Fingerprint>,
}

impl Tls {
    /// Names and meanings of the parameters.
    pub const PARAMETERS: [(&str, &str); 4] = [
        ("tls-creds", "directory with the certificates and keys of TLS, in QEMU's layout"),
        ("tls-hostname", "name that the destination's certificate has to have, where it is not the address's host"),
        ("tls-authz", "distinguished names of the sources that may connect, with ; between them"),
        ("tls-pin", "SHA-256 of the other side's certificate, in place of an authority; several with , between them"),
    ];

    /// Returns the parameter's static name if it is one of TLS.
    pub fn named(name: &str) -> Option<&'static str> {
        Self::PARAMETERS.iter().map(|(known, _)| *known).find(|known| *known == name)
    }

    /// Changes the parameter `name` to `text`.
    ///
    /// # Errors
    /// The reason, as a sentence for the user.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(), String> {
        let given = (!text.is_empty()).then_some(text);
        let list = |separator| text.split(separator).map(str::trim).filter(|one: &&str| !one.is_empty());
        match name {
            "tls-creds" => self.creds = given.map(PathBuf::from),
            "tls-hostname" => self.hostname = given.map(str::to_owned),
            "tls-authz" => self.authz = list(';').map(str::to_owned).collect(),
            "tls-pin" => {
                let pins: Result<Vec<Fingerprint>, _> = list(',').map(str::parse).collect();
                self.pin = pins.map_err(|error: NoFingerprint| format!("Parameter 'tls-pin': {error}"))?;
            }
            _ => return Err(format!("Parameter '{name}' is unexpected")),
        }
        Ok(())
    }

    /// The text of the parameter `name`.
    pub fn text(&self, name: &str) -> String {
        match name {
            "tls-creds" => self.creds.as_deref().map(|path| path.display().to_string()).unwrap_or_default(),
            "tls-hostname" => self.hostname.clone().unwrap_or_default(),
            "tls-authz" => self.authz.join(";"),
            "tls-pin" => self.pin.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
            _ => String::new(),
        }
    }

    /// Converts to the library's options; `None`: connections are not encrypted.
    pub fn options(&self) -> Option<TlsOptions> {
        let directory = self.creds.clone()?;
        Some(TlsOptions { directory, pins: self.pin.clone(), authorized: self.authz.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_reported_as_set_and_an_empty_text_clears_them() {
        let pin = ["00:11"; 16].join(":");
        let mut tls = Tls::default();
        let texts = [("tls-creds", "/certs"), ("tls-hostname", "b"), ("tls-authz", "CN=a,O=b;CN=c"), ("tls-pin", &pin)];
        for (name, text) in texts {
            tls.set(name, text).unwrap();
            assert_eq!(tls.text(name), text);
        }
        assert_eq!(tls.authz, ["CN=a,O=b", "CN=c"]);
        assert_eq!(tls.set("tls-pin", "00").unwrap_err(), format!("Parameter 'tls-pin': {NoFingerprint}"));
        assert_eq!(tls.pin.len(), 1, "what is refused changes nothing");
        for (name, _) in texts {
            tls.set(name, "").unwrap();
        }
        assert_eq!((tls.clone(), tls.options()), (Tls::default(), None));
    }
}
