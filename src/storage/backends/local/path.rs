//! Paths of keys below the root, and keys of paths.
//!
//! The segments of a key are folders. The last one is a file whose name ends in `.obj`:
//!
//! - Every byte of a segment outside `[A-Za-z0-9._-]` is written `%XX`, upper-case.
//! - The name of a folder never ends in `.obj`: its last dot is written `%2E` then. So `a.obj` and `a.obj/b` can both
//!   exist, and so can `a` and `a/b`.
//! - An encoded segment of more than 200 characters is cut after 200 characters (one or two sooner where an escape
//!   would be split) until at most 200 are left. Each piece but the last is a folder whose name ends in a bare `%`. A
//!   last piece that is a folder and would be `.` or `..` has its last dot written `%2E`.
//!
//! So every component has at most 204 bytes, no name is special to the file system, and no path leaves the root. `#` is
//! always escaped, so names with `#` are free for this program's own folders. There is exactly one path for a key. A
//! file under any other name is foreign.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt as _;

use crate::storage::object::Key;

/// Ending of an object's file name.
const SUFFIX: &str = ".obj";

/// Longest piece of an encoded segment.
const PIECE: usize = 200;

/// Returns the one path of the key, relative to the root, with `/` between components.
pub(super) fn encode(key: &Key) -> String {
    let mut path = String::with_capacity(key.as_str().len() + 16);
    let mut segments = key.as_str().split('/').peekable();
    while let Some(segment) = segments.next() {
        push_segment(&mut path, segment, segments.peek().is_none());
    }
    path
}

fn push_segment(path: &mut String, segment: &str, is_file: bool) {
    let mut name = String::with_capacity(segment.len() + 8);
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-') {
            name.push(char::from(byte));
        } else {
            push_escape(&mut name, byte);
        }
    }
    if !is_file && name.ends_with(SUFFIX) {
        name.truncate(name.len() - SUFFIX.len());
        name.push_str("%2Eobj");
    }
    let mut remaining = name.as_str();
    while remaining.len() > PIECE {
        let end = remaining[PIECE - 2..PIECE].find('%').map_or(PIECE, |position| PIECE - 2 + position);
        path.push_str(&remaining[..end]);
        path.push_str("%/");
        remaining = &remaining[end..];
    }
    match (is_file, remaining) {
        (true, remaining) => {
            path.push_str(remaining);
            path.push_str(SUFFIX);
        }
        (false, ".") => path.push_str("%2E/"),
        (false, "..") => path.push_str(".%2E/"),
        (false, remaining) => {
            path.push_str(remaining);
            path.push('/');
        }
    }
}

fn push_escape(name: &mut String, byte: u8) {
    // Writing to a string cannot fail.
    if write!(name, "%{byte:02X}").is_err() {
        unreachable!("a string takes every write");
    }
}

/// Returns the bytes that one name on disk adds to a key, or `None` when no key has such a name.
///
/// Accepts more names than [`encode`] writes. A caller that has decoded a whole key must compare the key's path with
/// the path of the file.
pub(super) fn decode_name(name: &OsStr, is_folder: bool) -> Option<Vec<u8>> {
    let name = name.as_bytes();
    if !is_folder {
        return unescape(name.strip_suffix(SUFFIX.as_bytes())?);
    }
    if let Some(piece) = name.strip_suffix(b"%") {
        // A shorter piece would add little or nothing to a key, so pieces could be nested beyond any length of a path.
        return if (PIECE - 2..=PIECE).contains(&piece.len()) { unescape(piece) } else { None };
    }
    let mut part = unescape(name)?;
    part.push(b'/');
    Some(part)
}

fn unescape(name: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut bytes_left = name.iter();
    while let Some(&byte) = bytes_left.next() {
        if byte == b'%' {
            let digit = |byte: &u8| char::from(*byte).to_digit(16);
            let (high, low) = (digit(bytes_left.next()?)?, digit(bytes_left.next()?)?);
            bytes.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn decode(path: &str) -> Option<Key> {
        let (folders, file) = path.rsplit_once('/').map_or((None, path), |(folders, file)| (Some(folders), file));
        let mut bytes = Vec::new();
        for folder in folders.into_iter().flat_map(|folders| folders.split('/')) {
            bytes.extend(decode_name(OsStr::new(folder), true)?);
        }
        bytes.extend(decode_name(OsStr::new(file), false)?);
        let key = Key::parse(&String::from_utf8(bytes).ok()?).ok()?;
        (encode(&key) == path).then_some(key)
    }

    fn path(key: &str) -> String {
        let key = Key::parse(key).unwrap();
        let path = encode(&key);
        assert_eq!(decode(&path), Some(key));
        assert!(path.len() <= 3200, "{}", path.len());
        for component in Path::new(&path).components() {
            let std::path::Component::Normal(name) = component else { panic!("{path}") };
            assert!(name.len() <= 204, "{path}");
        }
        path
    }

    #[test]
    fn keys_have_these_paths() {
        assert_eq!(path("reports/2026/a.txt"), "reports/2026/a.txt.obj");
        assert_eq!(path("a b/ü?"), "a%20b/%C3%BC%3F.obj");
        assert_eq!(path("a.obj"), "a.obj.obj");
        assert_eq!(path("a.obj/b"), "a%2Eobj/b.obj");
        assert_eq!(path("#tmp/x"), "%23tmp/x.obj");
        assert_eq!(path("..."), "....obj");
        assert_eq!(path(".../x"), ".../x.obj");
        assert_eq!(path("%2E%2E/x"), "%252E%252E/x.obj");
        let xs = |count: usize| "x".repeat(count);
        assert_eq!(path(&xs(200)), format!("{}.obj", xs(200)));
        assert_eq!(path(&xs(201)), format!("{}%/x.obj", xs(200)));
        assert_eq!(path(&format!("{}./y", xs(200))), format!("{}%/%2E/y.obj", xs(200)));
        assert_eq!(path(&format!("{}../y", xs(200))), format!("{}%/.%2E/y.obj", xs(200)));
        assert_eq!(path(&format!("{}..", xs(200))), format!("{}%/...obj", xs(200)));
        assert_eq!(path(&format!("{}.obj/y", xs(199))), format!("{}%/%2Eobj/y.obj", xs(199)));
        for (plain, cut) in [(197, 200), (198, 198), (199, 199)] {
            let key = format!("{}?{}", xs(plain), xs(9));
            assert_eq!(path(&key).find("%/"), Some(cut), "{plain}");
        }
    }

    #[test]
    fn names_that_encode_never_writes_are_foreign() {
        for path in [
            "a",
            "a%2e.obj",
            "%61.obj",
            "a%.obj",
            "%/b.obj",
            "a%/b.obj",
            "a b.obj",
            "a%0A.obj",
            "%FF.obj",
            ".obj",
            "..obj",
            "a.obj/b.obj",
            "%2E/b.obj",
            "a%G0.obj",
            "A%c3%bc.obj",
            "a%2F.obj",
            "a%2Fb.obj",
        ] {
            assert_eq!(decode(path), None, "{path:?}");
        }
        let long = "x".repeat(201);
        assert_eq!(decode(&format!("{long}.obj")), None);
        assert_eq!(decode(&format!("{}%/.obj", &long[1..])), None);
    }

    proptest! {
        #[test]
        fn every_legal_key_has_one_legal_path(text in "(\\PC{1,90}|[a.%/é]{150,400}|(\\.obj|/|\\.|x{99}|🦀){1,40})") {
            if Key::parse(&text).is_ok() {
                path(&text);
            }
        }

        #[test]
        fn different_keys_have_different_paths(one in "[a.%obj/]{1,8}", other in "[a.%obj/]{1,8}") {
            if let (Ok(one), Ok(other)) = (Key::parse(&one), Key::parse(&other)) {
                prop_assert_eq!(one == other, encode(&one) == encode(&other));
            }
        }

        #[test]
        fn decoding_takes_any_name(name in proptest::collection::vec(any::<u8>(), 0..40), is_folder: bool) {
            decode_name(OsStr::from_bytes(&name), is_folder);
        }
    }
}
