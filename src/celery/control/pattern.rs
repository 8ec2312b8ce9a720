//! Which nodes a pattern of a request names.

use regex::{Regex, RegexBuilder};

/// The most memory that one pattern may take, in bytes.
const MOST_MEMORY: usize = 1 << 16;
/// The longest pattern in bytes: what it takes before its memory is known grows with its length.
const LONGEST: usize = 512;

/// Tells whether a pattern names a node. `matcher` is `glob`, which matches the whole name, or `pcre`, which matches its beginning.
///
/// # Errors
/// The pattern or the matcher is none.
pub(super) fn matches(node: &str, pattern: &str, matcher: &str) -> Result<bool, String> {
    if pattern.len() > LONGEST {
        return Err(format!("its pattern has more than {LONGEST} bytes"));
    }
    let expression = match matcher {
        "glob" => glob(pattern),
        "pcre" => format!("^(?:{pattern})"),
        _ => return Err("its matcher is neither glob nor pcre".to_owned()),
    };
    let compiled =
        RegexBuilder::new(&expression).size_limit(MOST_MEMORY).dot_matches_new_line(matcher == "glob").build();
    compiled.map(|pattern: Regex| pattern.is_match(node)).map_err(|_| format!("its pattern is no {matcher}"))
}

/// Translates a pattern of Python's `fnmatch` into a regular expression for the whole text.
fn glob(pattern: &str) -> String {
    let mut expression = String::from("^");
    let mut rest = pattern;
    while let Some(character) = rest.chars().next() {
        rest = &rest[character.len_utf8()..];
        match character {
            '*' => expression.push_str(".*"),
            '?' => expression.push('.'),
            '[' => match set(rest) {
                Some((set, length)) => {
                    expression.push_str(&set);
                    rest = &rest[length..];
                }
                None => expression.push_str("\\["),
            },
            other => expression.push_str(&regex::escape(other.encode_utf8(&mut [0; 4]))),
        }
    }
    expression.push('$');
    expression
}

/// Translates a set of characters up to its `]`, and returns its length in the pattern.
fn set(rest: &str) -> Option<(String, usize)> {
    let negated = rest.starts_with('!');
    let begin = usize::from(negated);
    // A bracket that comes first is a member.
    let first = rest[begin..].chars().next()?.len_utf8();
    let end = begin + first + rest[begin + first..].find(']')?;
    let mut set = String::from(if negated { "[^" } else { "[" });
    for character in rest[begin..end].chars() {
        if character != '-' && !character.is_alphanumeric() {
            set.push('\\');
        }
        set.push(character);
    }
    set.push(']');
    Some((set, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_whole_names_as_fnmatch_does() {
        let node = "files@host-1";
        for pattern in ["*", "files@*", "*@host-1", "files?host-?", "files@host-[0-9]", "files@host-[!a]", "[f]*[1]"] {
            assert_eq!(matches(node, pattern, "glob"), Ok(true), "{pattern}");
        }
        for pattern in ["files", "Files@*", "files@host-[!1]", "host", "files@host-[", "f.*", "[]*"] {
            assert_eq!(matches(node, pattern, "glob"), Ok(false), "{pattern}");
        }
        assert_eq!(matches("[x", "[x", "glob"), Ok(true), "a bracket that is not closed stands for itself");
        assert_eq!(matches("]x", "[]]x", "glob"), Ok(true));
    }

    #[test]
    fn regular_expressions_match_the_beginning() {
        assert_eq!(matches("files@host", "fi", "pcre"), Ok(true));
        assert_eq!(matches("files@host", "host|files", "pcre"), Ok(true));
        assert_eq!(matches("files@host", "host", "pcre"), Ok(false));
        assert!(matches("files@host", "(", "pcre").is_err());
        assert!(matches("files@host", "((a{100}){100}){100}", "pcre").is_err(), "its memory is bounded");
        assert!(matches("files@host", "a", "shell").is_err());
        assert!(matches("files@host", &"\\w".repeat(300), "pcre").is_err(), "its length is bounded");
    }
}
