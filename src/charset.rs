//! Finds charsets by their names and decodes text strictly.
//!
//! A name has one meaning in headers of the web and another in Python. The WHATWG's table holds for the web, in which
//! `iso-8859-1` means windows-1252. Python's codecs hold for the `content_encoding` of a Celery producer, and there
//! `latin-1` is exactly ISO 8859-1. This room uses no other.

use std::borrow::Cow;

use encoding_rs::Encoding;

/// A charset that can be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Charset {
    /// UTF-8 in which a byte order mark is a character of the text.
    Utf8,
    /// UTF-8 whose byte order mark, if there is one, is not part of the text.
    Utf8Marked,
    /// ASCII: bytes below 128.
    Ascii,
    /// Exactly ISO 8859-1: each byte is a code point.
    Latin1,
    /// UTF-16; a byte order mark overrides the order that was named, and is not part of the text.
    Utf16 {
        /// Tells whether the bytes are big-endian when there is no byte order mark.
        big: bool,
    },
    /// UTF-32; a byte order mark overrides the order that was named, and is not part of the text.
    Utf32 {
        /// Tells whether the bytes are big-endian when there is no byte order mark.
        big: bool,
    },
    /// Any other charset of the WHATWG's table.
    Table(&'static Encoding),
}

impl Charset {
    /// Finds a charset by its name on the web, or else by its name in Python; returns `None` for an unknown name.
    #[must_use]
    pub fn of_web(label: &str) -> Option<Self> {
        let name = label.trim().trim_matches(['"', '\'']).trim().to_ascii_lowercase();
        match name.as_str() {
            // The WHATWG's table says windows-1252 for ASCII, which would accept every byte.
            "us-ascii" | "ascii" | "ansi_x3.4-1968" | "iso646-us" | "646" => return Some(Self::Ascii),
            "utf-8-sig" | "utf_8_sig" => return Some(Self::Utf8Marked),
            _ => {}
        }
        unicode(&name).or_else(|| table(&name)).or_else(|| Self::of_python(&name))
    }

    /// Finds a charset by the name of its Python codec; returns `None` for an unknown name.
    ///
    /// The case of letters does not matter; `-`, `_` and blanks are equal.
    #[must_use]
    pub fn of_python(label: &str) -> Option<Self> {
        let name: String = label.trim().to_ascii_lowercase().replace([' ', '_'], "-");
        match name.as_str() {
            "utf-8-sig" => return Some(Self::Utf8Marked),
            "ascii" | "us-ascii" | "646" | "ansi-x3.4-1968" | "iso646-us" => return Some(Self::Ascii),
            "latin-1" | "latin1" | "latin" | "l1" | "iso-8859-1" | "iso8859-1" | "8859" | "cp819" => {
                return Some(Self::Latin1);
            }
            _ => {}
        }
        // Names that only Python has, with the names of the same charsets in the WHATWG's table.
        let name = match name.as_str() {
            "cp932" | "ms932" | "mskanji" | "ms-kanji" | "shiftjis" | "sjis" | "s-jis" => "shift_jis",
            "shift-jis" => "shift_jis",
            "eucjp" | "ujis" => "euc-jp",
            "euckr" | "cp949" | "949" | "ms949" | "uhc" => "euc-kr",
            "cp936" | "936" | "ms936" | "gb2312" | "euc-cn" | "euccn" => "gbk",
            "cp950" | "950" | "ms950" | "big5-tw" | "big5-hkscs" | "big5hkscs" => "big5",
            "iso2022-jp" | "iso2022jp" => "iso-2022-jp",
            "mac-roman" | "macroman" => "macintosh",
            "mac-cyrillic" => "x-mac-cyrillic",
            "koi8-r" => "koi8-r",
            "cp1250" | "cp1251" | "cp1252" | "cp1253" | "cp1254" | "cp1255" | "cp1256" | "cp1257" | "cp1258" => {
                return table(&name);
            }
            "thai" | "tis620" | "iso8859-11" => "tis-620",
            "greek8" => "greek",
            other => other,
        };
        let latin = name.strip_prefix("latin-").map(|number| format!("latin{number}"));
        unicode(name).or_else(|| table(name)).or_else(|| table(&latin?))
    }

    /// Decodes all bytes; returns `None` when some of them are not valid in this charset.
    #[must_use]
    pub fn decode(self, bytes: &[u8]) -> Option<Cow<'_, str>> {
        match self {
            Self::Utf8 => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
            Self::Utf8Marked => Self::Utf8.decode(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)),
            Self::Ascii if bytes.is_ascii() => Self::Utf8.decode(bytes),
            Self::Ascii => None,
            Self::Latin1 => Some(Cow::Owned(bytes.iter().map(|byte| char::from(*byte)).collect())),
            Self::Utf16 { big } => {
                let (big, bytes) = match bytes {
                    [0xfe, 0xff, rest @ ..] => (true, rest),
                    [0xff, 0xfe, rest @ ..] => (false, rest),
                    _ => (big, bytes),
                };
                let charset = if big { encoding_rs::UTF_16BE } else { encoding_rs::UTF_16LE };
                charset.decode_without_bom_handling_and_without_replacement(bytes)
            }
            Self::Utf32 { big } => {
                let (big, bytes) = match bytes {
                    [0, 0, 0xfe, 0xff, rest @ ..] => (true, rest),
                    [0xff, 0xfe, 0, 0, rest @ ..] => (false, rest),
                    _ => (big, bytes),
                };
                utf32(big, bytes).map(Cow::Owned)
            }
            Self::Table(encoding) => encoding.decode_without_bom_handling_and_without_replacement(bytes),
        }
    }
}

/// Finds a charset of Unicode by any of its names on the web and in Python.
fn unicode(name: &str) -> Option<Charset> {
    Some(match name.replace('_', "-").as_str() {
        "utf-8" | "utf8" | "u8" | "unicode-1-1-utf-8" | "x-unicode20utf8" | "unicode11utf8" | "unicode20utf8" => {
            Charset::Utf8
        }
        "utf-16"
        | "utf16"
        | "u16"
        | "utf-16le"
        | "utf-16-le"
        | "utf16le"
        | "utf16-le"
        | "ucs-2"
        | "unicode"
        | "iso-10646-ucs-2"
        | "csunicode"
        | "unicodefeff"
        | "unicodelittleunmarked" => Charset::Utf16 { big: false },
        "utf-16be" | "utf-16-be" | "utf16be" | "utf16-be" | "unicodefffe" | "unicodebigunmarked" => {
            Charset::Utf16 { big: true }
        }
        "utf-32" | "utf32" | "u32" | "utf-32le" | "utf-32-le" | "utf32le" | "utf32-le" => Charset::Utf32 { big: false },
        "utf-32be" | "utf-32-be" | "utf32be" | "utf32-be" => Charset::Utf32 { big: true },
        _ => return None,
    })
}

/// Looks up a name in the WHATWG's table, without those entries that decode no text.
fn table(name: &str) -> Option<Charset> {
    let encoding = Encoding::for_label(name.as_bytes())?;
    let decodes = encoding != encoding_rs::REPLACEMENT && encoding != encoding_rs::X_USER_DEFINED;
    decodes.then_some(Charset::Table(encoding))
}

fn utf32(big: bool, bytes: &[u8]) -> Option<String> {
    let (units, rest) = bytes.as_chunks::<4>();
    if !rest.is_empty() {
        return None;
    }
    let read = |unit: &[u8; 4]| if big { u32::from_be_bytes(*unit) } else { u32::from_le_bytes(*unit) };
    units.iter().map(|unit| char::from_u32(read(unit))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web(label: &str, bytes: &[u8]) -> Option<String> {
        Charset::of_web(label)?.decode(bytes).map(Cow::into_owned)
    }

    fn python(label: &str, bytes: &[u8]) -> Option<String> {
        Charset::of_python(label)?.decode(bytes).map(Cow::into_owned)
    }

    #[test]
    fn charsets_are_found_by_their_web_names() {
        for (label, bytes, text) in [
            ("utf-8", "é".as_bytes(), "é"),
            ("UTF8", "é".as_bytes(), "é"),
            ("\"Utf-8\"", "é".as_bytes(), "é"),
            ("utf-8", b"\xef\xbb\xbfa", "\u{feff}a"),
            ("utf-8-sig", b"\xef\xbb\xbfa", "a"),
            ("utf-16le", b"h\0\xe9\0", "hé"),
            ("utf-16le", b"\xff\xfeh\0\xe9\0", "hé"),
            ("utf-16le", b"\xfe\xff\0h\0\xe9", "hé"),
            ("UTF-16BE", b"\0h\0\xe9", "hé"),
            ("utf-16", b"\xfe\xff\0h\0\xe9", "hé"),
            ("utf-16", b"h\0\xe9\0", "hé"),
            ("utf-16", b"\xff\xfe\x3d\xd8\x80\xde", "🚀"),
            ("utf-32le", b"\x80\xf6\x01\0", "🚀"),
            ("utf-32", b"\0\0\xfe\xff\0\x01\xf6\x80", "🚀"),
            ("windows-1252", b"\x80\xe9", "€é"),
            ("cp1252", b"\x80\xe9", "€é"),
            ("iso-8859-1", b"\x80\xe9", "€é"),
            ("latin1", b"\xe9", "é"),
            ("latin-1", b"\xe9", "é"),
            ("ISO-8859-15", b"\xa4", "€"),
            ("iso-8859-5", b"\xd0", "а"),
            ("koi8-r", b"\xc1", "а"),
            ("windows-1251", b"\xe0", "а"),
            ("iso-2022-jp", b"\x1b$B$\"\x1b(Ba", "あa"),
            ("shift_jis", b"\x82\xa0", "あ"),
            ("euc-jp", b"\xa4\xa2", "あ"),
            ("gb18030", b"\xc4\xe3", "你"),
            ("big5", b"\xa7A", "你"),
            ("euc-kr", b"\xb0\xa1", "가"),
            ("us-ascii", b"a", "a"),
            ("utf-16le", b"", ""),
        ] {
            assert_eq!(web(label, bytes).as_deref(), Some(text), "{label}");
        }
    }

    #[test]
    fn bytes_outside_the_charset_are_refused() {
        for (label, bytes) in [
            ("utf-8", &b"\xe9"[..]),
            ("us-ascii", b"\xe9"),
            ("utf-16le", b"h"),
            ("utf-16le", b"\x00\xd8h\0"),
            ("utf-32", b"a\0\0"),
            ("utf-32", b"\0\xd8\0\0"),
            ("shift_jis", b"\x82"),
            ("iso-2022-jp", b"\x1b$B\""),
            ("iso-2022-jp", b"\xe9"),
            ("euc-jp", b"\xff"),
            ("gb18030", b"\xff"),
        ] {
            let charset = Charset::of_web(label).unwrap();
            assert_eq!(charset.decode(bytes), None, "{label} {bytes:?}");
        }
        for label in ["", "klingon", "utf-7", "hz-gb-2312", "iso-2022-kr", "x-user-defined", "replacement", "binary"] {
            assert_eq!(Charset::of_web(label), None, "{label}");
        }
    }

    #[test]
    fn charsets_are_found_by_their_python_names() {
        for (label, bytes, text) in [
            ("latin-1", &b"\x80\xe9"[..], "\u{80}é"),
            ("ISO_8859_1", b"\x80\xe9", "\u{80}é"),
            ("iso8859-15", b"\xa4", "€"),
            ("iso8859_15", b"\xa4", "€"),
            ("latin-2", b"\xb1", "ą"),
            ("cp1252", b"\x80", "€"),
            ("cp932", b"\x82\xa0", "あ"),
            ("shift_jis", b"\x82\xa0", "あ"),
            ("iso2022_jp", b"\x1b$B$\"\x1b(B", "あ"),
            ("euc_jp", b"\xa4\xa2", "あ"),
            ("koi8_r", b"\xc1", "а"),
            ("mac_roman", b"\x8e", "é"),
            ("utf_16_le", b"h\0", "h"),
            ("UTF-16", b"\xff\xfeh\0", "h"),
            ("utf_32_be", b"\0\0\0h", "h"),
            ("utf_8_sig", b"\xef\xbb\xbfh", "h"),
            ("U8", b"h", "h"),
            ("ascii", b"h", "h"),
        ] {
            assert_eq!(python(label, bytes).as_deref(), Some(text), "{label}");
        }
        assert_eq!(Charset::of_python("base64"), None);
        assert_eq!(Charset::of_python("rot13"), None);
    }
}
