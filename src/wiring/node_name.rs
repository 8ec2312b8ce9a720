//! Expands the node name of a worker, by the rules of Celery's `-n`.

/// The longest node name in bytes: the names of consumers and queues add to it, and AMQP's short strings hold 255 bytes.
const LONGEST: usize = 200;

/// Expands `%h` (the host name), `%n` (its first part), `%d` (the rest) and `%%`.
///
/// A result without `@` gets `filestorage@` before it.
///
/// # Errors
///
/// The text names an unknown `%` sequence, or the length of a name that is too long.
pub(crate) fn expand(pattern: &str, host: &str) -> Result<String, String> {
    let (first, rest) = host.split_once('.').unwrap_or((host, ""));
    let mut name = String::new();
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            name.push(character);
            continue;
        }
        match characters.next() {
            Some('h') => name.push_str(host),
            Some('n') => name.push_str(first),
            Some('d') => name.push_str(rest),
            Some('%') => name.push('%'),
            other => {
                let other = other.map(String::from).unwrap_or_default();
                return Err(format!("worker_name has %{other}; known are %h, %n, %d and %%"));
            }
        }
    }
    let name = if name.contains('@') { name } else { format!("filestorage@{name}") };
    if name.len() > LONGEST {
        let length = name.len();
        return Err(format!(
            "worker_name is {length} bytes long with its host name, and {LONGEST} is the most: AMQP's names hold 255, and \
             the names of the worker's consumers and queues add to it; shorten worker_name (-n)"
        ));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn patterns_expand_as_in_celery() {
        for (pattern, name) in [
            ("filestorage@%h", "filestorage@box.example.org"),
            ("w1@%n", "w1@box"),
            ("w@%d", "w@example.org"),
            ("100%%@%h", "100%@box.example.org"),
            ("alone", "filestorage@alone"),
        ] {
            assert_eq!(expand(pattern, "box.example.org").unwrap(), name);
        }
        assert_eq!(expand("w@%n%d", "box").unwrap(), "w@box");
        assert!(expand("w@%i", "box").unwrap_err().contains("%i"));
        assert!(expand("w@%", "box").is_err());
        assert_eq!(expand(&"w".repeat(188), "box").unwrap().len(), 200);
        let long = expand(&format!("{}@%h", "ä".repeat(100)), "box").unwrap_err();
        assert!(long.contains("worker_name is 204 bytes") && long.contains("200 is the most"), "{long}");
    }
}
