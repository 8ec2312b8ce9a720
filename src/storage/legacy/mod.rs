//! What the Python class `FileStorage` wrote: how its files, its objects and its values are told apart and read.
//!
//! The class wrote texts in UTF-8, bytes as they are, and everything else as a pickle; above a threshold of bytes with
//! gzip. In a bucket, each object has the content type that Google's client gives by default, and `Content-Encoding:
//! gzip` where it applies. In a folder, a file has the name of its key, and a sidecar beside it only where metadata was
//! given.
//!
//! Everything here is about bytes and names, and touches no disk.

pub(in crate::storage) mod names;
pub(in crate::storage) mod pickle;
mod sidecar;

pub(in crate::storage) use self::sidecar::Sidecar;

use serde_json::value::RawValue;

use crate::storage::object::ContentType;

/// The content type of the objects that the class wrote into a bucket, whatever their values are.
pub(in crate::storage) const CONTENT_TYPE: &str = "text/plain";

/// The smallest threshold of compression that the documentation of the class shows. The class compressed nothing of
/// fewer bytes.
const THRESHOLD: u32 = 512;

/// Tells whether a file begins and ends as Python's `gzip.compress` writes it: no name, the best level, and more bytes
/// than the threshold.
///
/// `end` are the last four bytes: the size before compression, modulo 2³².
pub(in crate::storage) const fn is_python_gzip(begin: &[u8], end: [u8; 4]) -> bool {
    // Magic, deflate, no flags, four bytes of time, the best level, any system.
    matches!(begin, [0x1f, 0x8b, 8, 0, _, _, _, _, 2, _, ..]) && u32::from_le_bytes(end) > THRESHOLD
}

/// Returns the MIME type in the caller's metadata, where the documentation of the class puts it.
pub(in crate::storage) fn content_type(metadata: &RawValue) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Named {
        content_type: String,
    }

    let Named { content_type } = serde_json::from_str(metadata.get()).ok()?;
    ContentType::parse(&content_type).is_ok().then_some(content_type)
}

/// Tells whether a content type is one of bytes also where they happen to be a text.
pub(in crate::storage) fn is_binary(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let binary = ["application/octet-stream", "image/", "audio/", "video/", "font/"];
    !essence.ends_with("+xml") && binary.iter().any(|begin| essence.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_of_the_class_is_told_from_that_of_others() {
        let end = |size: u32| size.to_le_bytes();
        let python = b"\x1f\x8b\x08\x00\x01\x02\x03\x04\x02\xff";
        assert!(is_python_gzip(python, end(1025)));
        assert!(is_python_gzip(b"\x1f\x8b\x08\x00\0\0\0\0\x02\x03rest", end(513)));
        assert!(!is_python_gzip(python, end(512)), "the class compressed nothing so small");
        for other in [&b""[..], b"\x1f\x8b", b"\x1f\x8b\x08\x08\0\0\0\0\x02\x03", b"\x1f\x8b\x08\x00\0\0\0\0\x00\x03"] {
            assert!(!is_python_gzip(other, end(5000)), "{other:?}");
        }
    }

    #[test]
    fn content_types_of_bytes_are_known() {
        for binary in ["application/octet-stream", "IMAGE/png", "video/mp4; codecs=x"] {
            assert!(is_binary(binary), "{binary}");
        }
        for text in ["", "text/plain", "application/json", "image/svg+xml", "application/xml"] {
            assert!(!is_binary(text), "{text}");
        }
    }
}
