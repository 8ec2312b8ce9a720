//! The rule for the names of queues, of AMQP and of RabbitMQ.

/// The longest name of a queue, exchange or routing key in bytes, which is the longest short string of AMQP.
pub const MAX_BYTES: usize = 255;

/// The beginning of names that RabbitMQ reserves; it refuses to declare a queue with such a name.
pub const RESERVED_PREFIX: &str = "amq.";

/// The part of the rule about reserved names, to follow the description of a queue name in a message.
pub const NOT_RESERVED: &str = "not beginning with `amq.`, which RabbitMQ keeps for itself";

/// Tells whether a message can name this queue: the name has 1 to [`MAX_BYTES`] bytes.
#[must_use]
pub const fn is_valid(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_BYTES
}

/// Tells whether a client may declare a queue of this name: the name is valid and not reserved.
#[must_use]
pub fn can_be_declared(name: &str) -> bool {
    is_valid(name) && !name.starts_with(RESERVED_PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_1_to_255_bytes_and_are_not_reserved() {
        for (name, valid, declared) in [
            ("", false, false),
            ("q", true, true),
            ("a b/é", true, true),
            (&"q".repeat(255), true, true),
            (&"q".repeat(256), false, false),
            (&"é".repeat(128), false, false),
            ("amq.gen-1", true, false),
            ("amqp", true, true),
        ] {
            assert_eq!((is_valid(name), can_be_declared(name)), (valid, declared), "{name}");
        }
        assert!(NOT_RESERVED.contains(RESERVED_PREFIX));
    }
}
