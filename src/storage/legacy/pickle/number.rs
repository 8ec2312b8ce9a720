//! Integers and floats as Python prints them.

use super::limits;

/// Reads an integer in little-endian two's complement; `None` for one of too many digits.
pub(super) fn integer(bytes: &[u8]) -> Option<Number> {
    let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
    if bytes.len() <= 8 {
        let mut whole = [if negative { 0xff } else { 0 }; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        return Some(Number::Small(i64::from_le_bytes(whole)));
    }
    // 4,300 digits are less than 1,786 bytes. A longer one may still be small: its first bytes may be the sign alone.
    let sign = if negative { 0xff } else { 0 };
    let length = bytes.iter().rposition(|byte| *byte != sign).map_or(0, |position| position + 1);
    if length > limits::DIGITS * 5 / 12 {
        return None;
    }
    let mut limbs: Vec<u32> = bytes[..length]
        .chunks(4)
        .map(|chunk| {
            let mut limb = [sign; 4];
            limb[..chunk.len()].copy_from_slice(chunk);
            let limb = u32::from_le_bytes(limb);
            if negative { !limb } else { limb }
        })
        .collect();
    if negative {
        add_one(&mut limbs);
    }
    let digits = decimal(limbs);
    (digits.len() <= limits::DIGITS).then(|| {
        let text = if negative { format!("-{digits}") } else { digits };
        Number::of_digits(&text)
    })
}

/// Reads an integer in decimal digits; `None` for anything else, and for too many digits.
pub(super) fn decimal_integer(text: &str) -> Option<Number> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let valid =
        !digits.is_empty() && digits.len() <= limits::DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !valid {
        return None;
    }
    let digits = match digits.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    };
    let negative = text.starts_with('-') && digits != "0";
    Some(Number::of_digits(&if negative { format!("-{digits}") } else { digits.to_owned() }))
}

/// An integer of any size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Number {
    Small(i64),
    /// In decimal digits.
    Large(Box<str>),
}

impl Number {
    fn of_digits(text: &str) -> Self {
        text.parse().map_or_else(|_| Self::Large(text.into()), Self::Small)
    }
}

fn add_one(limbs: &mut Vec<u32>) {
    for limb in limbs.iter_mut() {
        *limb = limb.wrapping_add(1);
        if *limb != 0 {
            return;
        }
    }
    limbs.push(1);
}

/// Writes limbs, the lowest first, in decimal.
fn decimal(mut limbs: Vec<u32>) -> String {
    const GROUP: u64 = 1_000_000_000;
    let mut groups = Vec::new();
    while limbs.last() == Some(&0) {
        limbs.pop();
    }
    while !limbs.is_empty() {
        let mut remainder = 0;
        for limb in limbs.iter_mut().rev() {
            let dividend = (remainder << 32) | u64::from(*limb);
            // The quotient of a remainder below the divisor fits into a limb.
            *limb = (dividend / GROUP) as u32;
            remainder = dividend % GROUP;
        }
        groups.push(remainder);
        while limbs.last() == Some(&0) {
            limbs.pop();
        }
    }
    let mut digits = groups.pop().unwrap_or(0).to_string();
    for group in groups.iter().rev() {
        digits.push_str(&format!("{group:09}"));
    }
    digits
}

/// Writes a float as Python's `repr` and `json.dumps` do.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity".to_owned() } else { "-Infinity".to_owned() };
    }
    let scientific = format!("{value:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = value.to_string();
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (value, text) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
            (5e-324, "5e-324"),
            (f64::INFINITY, "Infinity"),
            (f64::NEG_INFINITY, "-Infinity"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(float(value), text);
        }
    }

    #[test]
    fn integers_of_any_size_have_their_digits() {
        for (bytes, digits) in [
            (&b""[..], "0"),
            (b"\xff", "-1"),
            (b"\x00\x80", "-32768"),
            (b"\0\0\0\0\0\0\0\0\x01", "18446744073709551616"),
            (b"\0\0\0\0\0\0\0\0\xff", "-18446744073709551616"),
            (b"\0\0\0\0\0\0\0\x80\xff", "-9223372036854775808"),
            (b"\x01\0\0\0\0\0\0\0\0\0\0\0\0", "1"),
        ] {
            let found = integer(bytes).unwrap();
            assert_eq!(Some(found), decimal_integer(digits), "{bytes:?}");
        }
        assert_eq!(integer(&[0x7f; 1790]), None);
        let digits = "9".repeat(4300);
        assert_eq!(decimal_integer(&digits), Some(Number::Large(digits.clone().into())));
        assert_eq!(decimal_integer(&format!("{digits}9")), None);
        for text in ["", "-", "1L", "+1", "0x1", "1_0", " 1"] {
            assert_eq!(decimal_integer(text), None, "{text}");
        }
        assert_eq!(decimal_integer("-000"), Some(Number::Small(0)));
    }

    proptest! {
        #[test]
        fn both_forms_of_an_integer_agree(number: i128) {
            let found = integer(&number.to_le_bytes()).unwrap();
            prop_assert_eq!(Some(found), decimal_integer(&number.to_string()));
        }

        #[test]
        fn a_written_float_is_the_same_float(value in proptest::num::f64::ANY) {
            let again = float(value).replace("Infinity", "inf").parse::<f64>().unwrap();
            prop_assert!(again.to_bits() == value.to_bits() || value.is_nan());
        }
    }
}
