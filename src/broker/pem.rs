//! Reads certificate and key files before the library does, which says of a bad one only that something is missing.

use std::{fs, path::Path};

use super::{Error, ErrorKind, Result, Tls, TlsFiles};

impl TlsFiles {
    /// Reads the files, those that are named.
    ///
    /// # Errors
    /// `Setting` names the file that is missing or no PEM, and the mend.
    pub fn read(&self) -> Result<Tls> {
        let identity = match (&self.certificate_file, &self.key_file) {
            (Some(certificate), Some(file)) => Some((certificates(certificate)?, key(file)?)),
            (None, None) => None,
            _ => {
                let text = "a client certificate needs both its certificate file and its key file";
                return Err(Error::new(ErrorKind::Setting, text));
            }
        };
        Ok(Tls { authorities: self.ca_file.as_deref().map(certificates).transpose()?, identity })
    }
}

/// Reads a file of certificates.
fn certificates(path: &Path) -> Result<String> {
    let text = read(path)?;
    if block(&text, "CERTIFICATE") { Ok(text) } else { Err(fault(path, "holds no whole certificate in PEM")) }
}

/// Reads a file with a private key, one that no pass phrase protects.
fn key(path: &Path) -> Result<String> {
    let text = read(path)?;
    if block(&text, "ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        let mend =
            "is protected by a pass phrase, which nobody could enter; write it without: openssl pkey -in … -out …";
        return Err(fault(path, mend));
    }
    let known = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"];
    if known.iter().any(|label| block(&text, label)) {
        Ok(text)
    } else {
        Err(fault(path, "holds no whole private key in PEM"))
    }
}

fn read(path: &Path) -> Result<String> {
    let bytes = fs::read(path).map_err(|error| fault(path, &format!("cannot be read: {error}")))?;
    String::from_utf8(bytes).map_err(|_| fault(path, "is no PEM file, which is plain text"))
}

/// Tells whether the text has a block from its begin to its end.
fn block(text: &str, label: &str) -> bool {
    let rest = text.split_once(&format!("-----BEGIN {label}-----"));
    rest.is_some_and(|(_, rest)| rest.contains(&format!("-----END {label}-----")))
}

fn fault(path: &Path, what: &str) -> Error {
    Error::new(ErrorKind::Setting, format!("the file {} {what}", path.display()))
}
