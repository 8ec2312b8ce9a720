//! The byte stream of a connection, in which two faults of the library are mended before it reads.
//!
//! Both are in the crate `amq-protocol-types` (10.6.3), with whose functions lapin (4.12.3) reads frames:
//!
//! - `parse_short_string` takes UTF-8 only. AMQP 0-9-1 asks for UTF-8 in short strings, but RabbitMQ does not check them and
//!   delivers whatever a producer sent. One message id, routing key or header name with other bytes is a parse error, and lapin
//!   ends the connection. The broker delivers the same message to the next connection, which ends as well.
//! - `parse_field_table` and `parse_field_array` call each other through `parse_value` without a limit. A deeply nested header
//!   exhausts the stack of the thread that reads, which ends the process.
//!
//! This module may go when the crate takes any bytes in a short string and limits the nesting. Its tests give the crate's
//! functions the unmended bytes, and fail once these are read.

mod scrubber;
mod stream;

pub(super) use stream::connect as open_stream;

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::{Command, Output};

    use lapin::protocol::{basic::parse_properties, parse_class};
    use lapin::types::parsing::{parse_short_string, parse_value};

    use super::scrubber::tests::{SURROGATE, conversation, mended};

    /// The levels that the scrubber lets pass.
    const LET_THROUGH: u32 = 128;
    /// The levels that fit into one frame of RabbitMQ's default size, 128 KiB, at five bytes each.
    const IN_ONE_FRAME: u32 = 25_000;
    /// Tells the process that a test starts how many levels it parses.
    const LEVELS: &str = "FILESTORAGE_TEST_LEVELS";

    /// Splits a conversation into the payloads of its frames, each with the frame's type.
    fn frames(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
        let mut found = Vec::new();
        while let Some((&[kind, _, _, a, b, c, d], rest)) = bytes.split_first_chunk::<7>() {
            let (payload, end) = rest.split_at(u32::from_be_bytes([a, b, c, d]) as usize);
            found.push((kind, payload));
            bytes = &end[1..];
        }
        found
    }

    /// Tells for each method and each header of a conversation whether the library reads all of it.
    fn read(conversation: &[u8]) -> Vec<bool> {
        let methods_and_headers = frames(conversation).into_iter().filter(|(kind, _)| [1, 2].contains(kind));
        let is_read = |(kind, payload): (u8, &[u8])| match kind {
            1 => parse_class(payload).is_ok_and(|(rest, _)| rest.is_empty()),
            // Behind class, weight and size.
            _ => parse_properties(&payload[12..]).is_ok_and(|(rest, _)| rest.is_empty()),
        };
        methods_and_headers.map(is_read).collect()
    }

    #[test]
    fn the_library_refuses_text_that_is_not_utf_8() {
        assert!(parse_short_string(&b"\x02ab"[..]).is_ok());
        let refused = parse_short_string(&[&[3][..], SURROGATE].concat()[..]).map(|(_, text)| text);
        assert!(refused.as_ref().is_err_and(|fault| !fault.is_incomplete()), "the workaround may go: {refused:?}");

        // The fourth frame bears no text. The last one's name is ours, which the scrubber does not look at.
        let fine = read(&conversation(&mended(SURROGATE)));
        assert_eq!(fine, [true, true, true, true, true, true, true, false]);
        let unmended = read(&conversation(SURROGATE));
        assert_eq!(
            unmended,
            [false, false, false, true, false, false, false, false],
            "true where the workaround may go"
        );
    }

    /// Makes a list in a list, and so on.
    fn nested(levels: u32) -> Vec<u8> {
        let mut value = Vec::new();
        for inner in (0..levels).rev() {
            value.push(b'A');
            value.extend((5 * inner + 1).to_be_bytes());
        }
        value.push(b'V');
        value
    }

    /// Runs the test below in a process of its own, which parses so many levels.
    fn parse_elsewhere(levels: u32) -> Output {
        let name = "broker::lapin_workarounds::tests::the_library_exhausts_the_stack_by_nested_values";
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture"]).env(LEVELS, levels.to_string()).output().unwrap()
    }

    #[test]
    fn the_library_exhausts_the_stack_by_nested_values() {
        if let Ok(levels) = std::env::var(LEVELS) {
            let value = nested(levels.parse().unwrap());
            // The size that a thread of the runtime has.
            let reading = std::thread::Builder::new().stack_size(2 << 20);
            let is_read = reading.spawn(move || parse_value(&value[..]).is_ok_and(|(rest, _)| rest.is_empty()));
            assert!(is_read.unwrap().join().unwrap());
            println!("{levels} levels were read");
            return;
        }
        let fine = parse_elsewhere(LET_THROUGH);
        let text = String::from_utf8_lossy(&fine.stdout).into_owned();
        assert!(fine.status.success() && text.contains("128 levels were read"), "{fine:?}");

        let deep = parse_elsewhere(IN_ONE_FRAME);
        let words = String::from_utf8_lossy(&deep.stderr).into_owned();
        assert!(deep.status.signal().is_some(), "the workaround may go: {deep:?}");
        assert!(words.contains("overflowed its stack"), "{words}");
    }
}
