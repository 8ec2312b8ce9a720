//! What a broker says first: which login methods it offers.

/// Reads the SASL mechanisms out of `connection.start`, the first frame of a broker (AMQP 0-9-1, 1.4.2.1); `None` where that is not
/// what these bytes begin with.
///
/// The library sends its login whatever is offered, and RabbitMQ then ends the connection without a word.
pub(super) fn mechanisms(bytes: &[u8]) -> Option<Vec<String>> {
    // Method frame, channel 0, its size; class 10, method 10; version 0-9.
    let rest = bytes.strip_prefix(&[1, 0, 0])?.get(4..)?.strip_prefix(&[0, 10, 0, 10, 0, 9])?;
    let (_properties, rest) = long(rest)?;
    let (mechanisms, _) = long(rest)?;
    Some(String::from_utf8_lossy(mechanisms).split_whitespace().map(str::to_owned).collect())
}

/// Splits off what a length of four bytes announces.
fn long(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(mechanisms: &str) -> Vec<u8> {
        let mut frame = vec![1, 0, 0, 0, 0, 0, 99, 0, 10, 0, 10, 0, 9, 0, 0, 0, 3, b'a', b'b', b'c'];
        frame.extend(u32::try_from(mechanisms.len()).unwrap().to_be_bytes());
        frame.extend(mechanisms.bytes());
        frame.extend([0, 0, 0, 5, b'e', b'n', b'_', b'U', b'S', 0xCE]);
        frame
    }

    #[test]
    fn the_methods_offered_are_read() {
        assert_eq!(mechanisms(&start("PLAIN AMQPLAIN")).unwrap(), ["PLAIN", "AMQPLAIN"]);
        assert!(mechanisms(&start("")).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_greeting_says_nothing() {
        let frame = start("EXTERNAL");
        for end in 0..28 {
            assert_eq!(mechanisms(&frame[..end]), None, "{end}");
        }
        assert_eq!(mechanisms(b"AMQP\x00\x00\x09\x01"), None);
        assert_eq!(mechanisms(&[1, 0, 0, 0, 0, 0, 4, 0, 10, 0, 50, 0xCE]), None);
    }
}
