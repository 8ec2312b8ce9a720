//! Tests with pickles of Python's own, with damaged ones, and with hostile ones.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;
use crate::storage::object::Kind;

#[derive(serde::Deserialize)]
struct Case {
    value: String,
    protocol: u8,
    pickle: String,
    json: serde_json::Value,
}

static CASES: LazyLock<Vec<(Case, Vec<u8>)>> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/legacy/pickles.json");
    let cases: Vec<Case> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let bytes = |case: &Case| STANDARD.decode(&case.pickle).unwrap();
    cases.into_iter().map(|case| (bytes(&case), case)).map(|(bytes, case)| (case, bytes)).collect()
});

/// The largest value that is written here.
const MOST: u64 = 1 << 20;

fn read(input: &[u8]) -> Result<(Kind, Vec<u8>, Types), String> {
    let pickle = Pickle::read(input).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    let written = pickle.write(MOST, |bytes| {
        out.extend_from_slice(bytes);
        Ok(())
    });
    let types = written.map_err(|error| error.to_string())?;
    Ok((pickle.kind(), out, types))
}

#[track_caller]
fn json(input: &[u8]) -> String {
    String::from_utf8(read(input).unwrap().1).unwrap()
}

#[test]
fn every_protocol_is_read() {
    assert!(CASES.len() > 300);
    for (Case { value, protocol, json, .. }, pickle) in &*CASES {
        let (kind, bytes, _) = read(pickle).unwrap_or_else(|error| panic!("{value} of protocol {protocol}: {error}"));
        let found = match kind {
            Kind::Json => serde_json::from_slice(&bytes).unwrap(),
            Kind::Text => serde_json::Value::String(String::from_utf8(bytes).unwrap()),
            Kind::Bytes => match String::from_utf8(bytes) {
                Ok(text) => serde_json::json!({ "__type__": "bytes", "__value__": text }),
                Err(error) => {
                    serde_json::json!({ "__type__": "base64", "__value__": STANDARD.encode(error.as_bytes()) })
                }
            },
        };
        assert_eq!(found, *json, "{value} of protocol {protocol}");
        assert_eq!(is_pickle(pickle), *protocol >= 2);
    }
}

#[test]
fn numbers_are_written_to_the_last_digit() {
    let of = |value: &str| {
        let (_, pickle) = CASES.iter().find(|(case, _)| case.value == value && case.protocol == 4).unwrap();
        json(pickle)
    };
    for text in ["1.5", "-0.0", "1e+300", "5e-324", "18446744073709551616", "-9223372036854775808"] {
        assert_eq!(of(text), text);
    }
    for (pickle, text) in [
        (&b"\x80\x02G\x7f\xf0\0\0\0\0\0\0."[..], "Infinity"),
        (b"\x80\x02G\x7f\xf8\0\0\0\0\0\0.", "NaN"),
        (b"(lp0\nI01\naI00\naL5L\naF2.5\na.", "[true,false,5,2.5]"),
    ] {
        assert_eq!(json(pickle), text);
    }
}

#[test]
fn what_json_cannot_keep_is_told() {
    for (pickle, text, types) in [
        (&b"\x80\x04]."[..], "[]", Types::Kept),
        (b"\x80\x04).", "[]", Types::Changed),
        (b"\x80\x04\x8f(K\x01\x90.", "[1]", Types::Changed),
        (b"\x80\x04}K\x01K\x02s.", r#"{"1":2}"#, Types::Changed),
        (b"\x80\x04}(K\x01K\x02\x8c\x011K\x03u.", r#"{"1":3}"#, Types::Changed),
        (b"\x80\x04}(\x8c\x01aK\x01\x8c\x01bK\x02\x8c\x01aK\x03u.", r#"{"a":3,"b":2}"#, Types::Kept),
    ] {
        let (_, bytes, found) = read(pickle).unwrap();
        assert_eq!((String::from_utf8(bytes).unwrap().as_str(), found), (text, types));
    }
    for (pickle, words) in [
        (&b"\x80\x04})K\x01s."[..], "a dict whose key is a tuple"),
        (b"\x80\x04}C\x01aK\x01s.", "a dict whose key is bytes"),
        (b"cdatetime\ntimedelta\n(I1\nI0\nI0\ntR.", "datetime.timedelta"),
        (b"cuuid\nUUID\n)\x81.", "without its number"),
        (b"cbuiltins\nset\n.", "a class"),
        (b"\x80\x04]\x94h\x00a.", "contains itself"),
    ] {
        let error = read(pickle).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn nothing_is_executed_and_what_is_asked_for_is_named() {
    let long = [&b"c"[..], &b"x".repeat(5000), b"\nrun\n."].concat();
    for (pickle, words) in [
        (&b"cos\nsystem\n(S'echo hurt'\ntR."[..], "os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "builtins.eval"),
        (b"\x80\x02csubprocess\nPopen\n)\x81.", "subprocess.Popen"),
        (b"(ios\nsystem\n.", "os.system"),
        (b"(cos\nsystem\nS'x'\no.", "os.system"),
        (b"(S'a'\no.", "opcode OBJ at byte 6"),
        (b"\x80\x02cbuiltins\nset\n)}\x92.", "opcode NEWOBJ_EX"),
        (b"Pid\n.", "opcode PERSID at byte 0"),
        (b"NQ.", "opcode BINPERSID"),
        (b"\x82\x01.", "opcode EXT1"),
        (b"\x83\x01\x00.", "opcode EXT2"),
        (b"\x84\x01\x00\x00\x00.", "opcode EXT4"),
        (b"\x80\x05\x97.", "opcode NEXT_BUFFER"),
        (b"\x80\x05C\x00\x98.", "opcode READONLY_BUFFER"),
        (b"\x80\x04]}b.", "opcode BUILD"),
        (b"\x80\x04NNR.", "nothing to call"),
        (b"cdecimal\nDecimal\n(S'1\"}'\ntR.", "arguments that Python never writes"),
        (b"cbuiltins\nset\nNR.", "arguments that Python never writes"),
        (b"\xff.", "unknown opcode 0xff"),
        (b"\x80\x06N.", "protocol 6"),
        (&long, "xxx"),
    ] {
        let error = read(pickle).unwrap_err();
        assert!(error.contains(words) && error.len() < 400, "{error}");
    }
}

#[test]
fn damage_is_told() {
    for (pickle, words) in [
        (&b""[..], "cut off"),
        (b"\x80\x04", "cut off"),
        (b".", "no value on the stack"),
        (b"(.", "no value on the stack"),
        (b"N", "cut off"),
        (b"NN..", "1 bytes follow"),
        (b"\x80\x04\x8c\x05abc.", "cut off"),
        (b"X\xff\xff\xff\xffabc.", "cut off"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\xffabc.", "cut off"),
        (b"\x8b\xff\xff\xff\x7f.", "cut off"),
        (b"\x80\x04\x8c\x03\xed\xa0\x80.", "lone surrogate"),
        (b"V\\ud800\n.", "no character"),
        (b"S'abc\n.", "quotes"),
        (b"h\x00.", "memo entry"),
        (b"g5\n.", "memo entry"),
        (b"N(h\x00.", "memo entry"),
        (b"Nr\xff\xff\xff\x7f.", "does not follow"),
        (b"Np4000000000\n.", "does not follow"),
        (b"a.", "no value on the stack"),
        (b"NNa.", "no container"),
        (b"}(NNNu.", "without a value"),
        (b"]NNs.", "no dict"),
        (b"u.", "no mark"),
        (b"Fx\n.", "no number"),
        (b"I1x\n.", "no integer"),
    ] {
        let error = read(pickle).unwrap_err();
        assert!(error.contains(words), "{pickle:?}: {error}");
    }
}

/// A list of two references to the one before it, and so on: a value of 2ⁿ members.
fn bomb(levels: usize) -> Vec<u8> {
    let mut pickle = b"\x80\x04]\x94".to_vec();
    for level in 0..levels {
        pickle.extend([b'0', b']', 0x94, b'(', b'h', level as u8, b'h', level as u8, b'e']);
    }
    pickle.push(b'.');
    pickle
}

#[test]
fn hostile_pickles_end_soon_and_small() {
    let shared = |times: usize| -> Vec<u8> {
        // One long text, wrapped anew by each call.
        let text = "x".repeat(100_000);
        let mut pickle = b"c_codecs\nencode\nq\x00X".to_vec();
        pickle.extend((text.len() as u32).to_le_bytes());
        pickle.extend(text.as_bytes());
        pickle.extend(b"X\x06\x00\x00\x00latin1\x86q\x01");
        pickle.extend(b"h\x00h\x01R0".repeat(times));
        pickle.push(b'.');
        pickle
    };
    let deep = [&b"]".repeat(600)[..], &b"a".repeat(599), b"."].concat();
    let wide = [&b"\x80\x04]\x94("[..], &b"N".repeat(1000), b"e0(", &b"h\x00".repeat(300_000), b"l."].concat();
    let integers = [&b"("[..], &[&b"\x8b\xf4\x01\0\0"[..], &[0x7f; 500]].concat().repeat(3000), b"l."].concat();
    // One dict, filled at one key again and again, and then listed again and again.
    let repeated = |key: &[u8], fill: usize, times: usize| {
        let begin = [&b"\x80\x04\x8c"[..], &[key.len() as u8], key, b"\x940}\x94"].concat();
        let filled = b"h\x00Ns".repeat(fill);
        [&begin[..], &filled, b"0(", &b"h\x01".repeat(times), b"l."].concat()
    };
    for (pickle, words) in [
        (repeated(b"a", 1_000_000, 2_000_000), "repeats the keys"),
        (repeated(b"a", 1_000, 2_000_000), "repeats the keys"),
        (repeated(&[b'a'; 255], 10_000, 1_000), "repeats the keys"),
        (repeated(b"", 1, 2_000_000), "more than 1048576 bytes"),
        (bomb(200), "more than 1048576 bytes"),
        (deep, "deeper than 512"),
        (wide, "more than 1048576 bytes"),
        (b"]".repeat(2_000_000), "containers"),
        (b"N".repeat(5_000_000), "values"),
        (b"(".repeat(5_000_000), "values"),
        ([&b"N"[..], &b"\x94".repeat(5_000_000)].concat(), "values"),
        (shared(2000), "makes more than"),
        (integers, "large integers"),
        (vec![b'N'; limits::BYTES + 1], "at most 67108864"),
    ] {
        // Without a bound this would take hours.
        let error = read(&pickle).unwrap_err();
        assert!(error.contains(words), "{words}: {error}");
    }
    assert_eq!(json(&repeated(b"a", 1_000, 2)), r#"[{"a":null},{"a":null}]"#);
    assert_eq!(json(&bomb(3)), "[[[[],[]],[[],[]]],[[[],[]],[[],[]]]]");
}

#[test]
fn the_state_of_a_uuid_costs_little_however_often_it_is_set() {
    // The state has the number and behind it a long key, which is the first that is looked at.
    let state = |members: &[u8], times: usize| {
        let long = "x".repeat(8 << 20);
        let mut pickle = b"\x80\x02}q\x00(".to_vec();
        pickle.extend(members);
        pickle.push(b'X');
        pickle.extend((long.len() as u32).to_le_bytes());
        pickle.extend(long.as_bytes());
        pickle.extend(b"Nu0cuuid\nUUID\n)\x81");
        pickle.extend(b"h\x00b".repeat(times));
        pickle.push(b'.');
        pickle
    };
    let number = b"X\x03\x00\x00\x00intK\x05";
    // Were the long key copied each time, this would take hours.
    let written = json(&state(number, 300_000));
    assert!(written.contains("00000000000000000000000000000005"), "{written}");
    let many = [&number[..], &b"K\x01N".repeat(4)].concat();
    assert!(read(&state(&many, 1)).unwrap_err().contains("BUILD"), "no UUID has so many members");
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(read(&bytes));
        drop(read(&[&b"\x80\x04"[..], &bytes, b"."].concat()));
    }

    #[test]
    fn no_sequence_of_opcodes_makes_the_reader_panic(
        bytes in proptest::collection::vec(
            proptest::sample::select(&b"(.012FIJKLMNRSTUVXabcdeghlpqrstu})]GBC\x80\x81\x85\x86\x87\x88\x8a\x8c\x8f\x90\x91\x93\x94\x95\x96\0\x01\n'"[..]),
            0..60,
        )
    ) {
        drop(read(&bytes));
    }

    #[test]
    fn no_damage_makes_the_reader_panic(
        case in 0..360usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut pickle = CASES[case % CASES.len()].1.clone();
        for (at, byte) in changes {
            let at = at.index(pickle.len());
            pickle[at] = byte;
        }
        drop(read(&pickle));
        drop(read(&pickle[..cut.index(pickle.len())]));
    }
}
