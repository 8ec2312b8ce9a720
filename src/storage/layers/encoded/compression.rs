//! Which values are compressed, and how.

use crate::storage::object::{Attributes, Codec};

/// The rule by which values are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// The codec.
    pub codec: Codec,
    /// The codec's level, 1 up to [`Codec::best_level`].
    pub level: i32,
    /// Only values of more bytes than this are compressed.
    pub threshold: u64,
}

impl Compression {
    /// Tells whether a value is worth an attempt: it is large enough, and its content type is not compressed in itself.
    #[must_use]
    pub fn covers(&self, attributes: &Attributes) -> bool {
        attributes.size > self.threshold && !is_compressed(&attributes.content_type)
    }
}

/// Tells whether the bytes of a content type are compressed in themselves: images, sound, films, archives, Office files.
fn is_compressed(content_type: &str) -> bool {
    const PLAIN_IMAGES: [&str; 5] =
        ["image/svg+xml", "image/bmp", "image/x-ms-bmp", "image/x-portable-pixmap", "image/tiff"];
    const PLAIN_SOUND: [&str; 3] = ["audio/wav", "audio/x-wav", "audio/midi"];
    const COMPRESSED: [&str; 22] = [
        "application/epub+zip",
        "application/gzip",
        "application/java-archive",
        "application/vnd.android.package-archive",
        "application/vnd.apache.parquet",
        "application/vnd.ms-cab-compressed",
        "application/vnd.rar",
        "application/x-7z-compressed",
        "application/x-brotli",
        "application/x-bzip",
        "application/x-bzip2",
        "application/x-compress",
        "application/x-gzip",
        "application/x-lz4",
        "application/x-lzma",
        "application/x-rar-compressed",
        "application/x-xz",
        "application/x-zip-compressed",
        "application/x-zstd",
        "application/zip",
        "application/zstd",
        "font/woff2",
    ];
    const OFFICE: [&str; 2] = ["application/vnd.openxmlformats-", "application/vnd.oasis.opendocument."];
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.split_once('/').map(|(family, _)| family) {
        Some("image") => !PLAIN_IMAGES.contains(&essence.as_str()),
        Some("audio") => !PLAIN_SOUND.contains(&essence.as_str()),
        Some("video") => true,
        _ => COMPRESSED.contains(&essence.as_str()) || OFFICE.iter().any(|office| essence.starts_with(office)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::object::{Checksum, Kind};

    #[test]
    fn small_and_compressed_values_are_left_alone() {
        let rule = Compression { codec: Codec::Gzip, level: 3, threshold: 1024 };
        let covers = |content_type: &str, size| {
            rule.covers(&Attributes::new(Kind::Bytes, content_type.to_owned(), size, Checksum::of(b"")))
        };
        for (content_type, expected) in [
            ("text/plain; charset=utf-8", true),
            ("application/json", true),
            ("application/octet-stream", true),
            ("application/pdf", true),
            ("image/svg+xml", true),
            ("audio/wav", true),
            ("application/vnd.ms-excel", true),
            ("nonsense", true),
            ("image/jpeg", false),
            ("IMAGE/PNG; q=1", false),
            ("audio/mpeg", false),
            ("video/mp4", false),
            ("application/zip", false),
            ("application/x-gzip", false),
            ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", false),
            ("application/vnd.oasis.opendocument.text", false),
        ] {
            assert_eq!(covers(content_type, 1025), expected, "{content_type}");
            assert!(!covers(content_type, 1024), "the threshold itself is not above the threshold");
        }
    }
}
