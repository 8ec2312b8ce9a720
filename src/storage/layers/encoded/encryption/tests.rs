//! Whatever is changed, cut, moved or exchanged is noticed; what was written once is read for ever.

use std::io::Write as _;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::value::RawValue;

use super::chunk::{PLAIN, SEALED};
use super::*;
use crate::storage::error::{Error, ErrorKind};
use crate::storage::files::SpoolWriter;
use crate::storage::object::{Binary, Kind};

const OLD: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const NEW: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

fn key(text: &str) -> Key {
    Key::parse(text).unwrap()
}

fn keyring() -> Keyring {
    Keyring::parse(OLD).unwrap()
}

fn spool() -> Spool {
    Spool::new(std::env::temp_dir())
}

/// Bytes without a period that a chunk could hide.
fn plain(size: usize) -> Bytes {
    (0..size).map(|at| (at * 31 % 251) as u8).collect()
}

fn value(bytes: impl Into<Bytes>) -> Object {
    let payload = bytes.into();
    let mut attributes =
        Attributes::new(Kind::Bytes, "text/csv".to_owned(), payload.len() as u64, Checksum::of(&payload));
    attributes.metadata = Some(RawValue::from_string(r#"{"ü":["\u00e9",1.0]}"#.to_owned()).unwrap());
    attributes.operation_id = Some("0123456789abcdef0123456789abcdef".to_owned());
    Object { attributes, payload: payload.into() }
}

/// Opens attributes and the whole payload.
async fn open(keyring: &Keyring, name: &str, sealed: &Object) -> Result<(Attributes, Bytes)> {
    let (attributes, data_key) = keyring.open_attributes(&key(name), &sealed.attributes)?;
    let (payload, checksum) = data_key.open(&key(name), &sealed.payload, 0..u64::MAX, Some(&spool())).await?;
    let bytes = payload.into_memory().await.unwrap();
    assert_eq!(checksum, Checksum::of(&bytes));
    Ok((attributes, bytes))
}

fn damaged<T>(outcome: Result<T>) -> Error {
    let Err(error) = outcome else { panic!("it was opened") };
    assert_eq!(error.kind, ErrorKind::Integrity, "{error}");
    error
}

fn with_payload(sealed: &Object, bytes: impl Into<Bytes>) -> Object {
    Object { payload: Payload::Memory(bytes.into()), ..sealed.clone() }
}

fn memory(sealed: &Object) -> Bytes {
    sealed.payload.as_memory().unwrap().clone()
}

/// The sizes at which a payload begins to have another form.
const SIZES: [usize; 8] =
    [0, 1, PLAIN - 1, PLAIN, PLAIN + 1, 3 * PLAIN, SpoolWriter::IN_MEMORY, SpoolWriter::IN_MEMORY + 3 * PLAIN + 5];

#[tokio::test]
async fn objects_come_back_as_they_were() {
    for size in SIZES {
        let object = value(plain(size));
        let sealed = keyring().seal(&key("a/b"), &object, &spool()).await.unwrap();
        let attributes = &sealed.attributes;
        assert!(attributes.encrypted && attributes.metadata.is_none() && attributes.encryption.is_some());
        assert_eq!(attributes.size, size as u64);
        assert_eq!(attributes.stored_size, sealed.payload.len());
        assert_eq!(attributes.stored_size, (size + size.div_ceil(PLAIN).max(1) * 16) as u64);
        assert_eq!(sealed.payload.checksum().await.unwrap(), attributes.stored_checksum);
        assert_eq!(DataKey::opened_size(&key("a/b"), &sealed.payload).unwrap(), size as u64);
        assert_eq!(matches!(sealed.payload, Payload::File(_)), attributes.stored_size > 1 << 20, "memory is bounded");
        let (opened, bytes) = open(&keyring(), "a/b", &sealed).await.unwrap();
        assert_eq!(bytes, plain(size));
        let wanted = Attributes {
            encrypted: true,
            stored_size: attributes.stored_size,
            stored_checksum: attributes.stored_checksum,
            ..object.attributes
        };
        assert_eq!(serde_json::to_string(&opened).unwrap(), serde_json::to_string(&wanted).unwrap());
        assert!(opened.is_value_known());
        let (_, data_key) = keyring().open_attributes(&key("a/b"), attributes).unwrap();
        let in_memory = data_key.open(&key("a/b"), &sealed.payload, 1..u64::MAX, None).await.unwrap().0;
        assert_eq!(in_memory.as_memory().unwrap(), &plain(size).slice(1.min(size)..));
    }
}

#[tokio::test]
async fn nothing_hidden_is_in_the_stored_bytes() {
    let object = value(&b"the value of a secret"[..]);
    let sealed = keyring().seal(&key("k"), &object, &spool()).await.unwrap();
    let header = serde_json::to_string(&sealed.attributes).unwrap();
    let checksum = object.attributes.checksum.to_string();
    for hidden in ["secret", "\\u00e9", "é", "ü", checksum.as_str(), "0123456789abcdef0123456789abcdef"] {
        assert!(!header.contains(hidden), "{hidden}: {header}");
    }
    let bytes = memory(&sealed);
    assert!(!bytes.windows(6).any(|window| window == b"secret"));
    let again = keyring().seal(&key("k"), &object, &spool()).await.unwrap();
    assert_ne!(memory(&again), bytes, "equal values do not look equal");
    assert_eq!(again.attributes.operation_id, sealed.attributes.operation_id, "attempts of one command do");
}

#[tokio::test]
async fn two_attempts_of_one_command_are_recognized_while_sealed() {
    let object = value(plain(5));
    let attempts = [
        keyring().seal(&key("k"), &object, &spool()).await.unwrap().attributes,
        keyring().seal(&key("k"), &object, &spool()).await.unwrap().attributes,
    ];
    assert!(attempts[0].is_same_write(&attempts[1], None));
    let mut other = value(plain(5));
    other.attributes.operation_id = Some("f".repeat(32));
    let other = keyring().seal(&key("k"), &other, &spool()).await.unwrap().attributes;
    assert!(!attempts[0].is_same_write(&other, None));
    assert!(
        !object.attributes.is_same_write(&attempts[0], None),
        "sealed attributes are compared with sealed ones only"
    );
}

#[tokio::test]
async fn a_payload_in_a_file_must_still_be_the_one_of_the_attributes() {
    for size in [5, PLAIN + 1] {
        let object = value(plain(size));
        let file = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            Payload::file(Arc::new(file), 0, size as u64)
        };
        let same = Object { payload: file(&plain(size)), ..object.clone() };
        let sealed = keyring().seal(&key("k"), &same, &spool()).await.unwrap();
        assert_eq!(open(&keyring(), "k", &sealed).await.unwrap().1, plain(size));
        let mut changed = plain(size).to_vec();
        changed[size - 1] ^= 1;
        for bytes in [&changed[..], &changed[..size - 1]] {
            let object = Object { payload: file(bytes), ..object.clone() };
            damaged(keyring().seal(&key("k"), &object, &spool()).await);
        }
    }
}

#[tokio::test]
async fn a_full_disk_of_the_spool_is_no_damage() {
    let broken = Spool::new("/dev/null/x");
    let object = value(plain(2 << 20));
    let error = keyring().seal(&key("k"), &object, &broken).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Io, "{error}");
    let sealed = keyring().seal(&key("k"), &object, &spool()).await.unwrap();
    let (_, data_key) = keyring().open_attributes(&key("k"), &sealed.attributes).unwrap();
    let error = data_key.open(&key("k"), &sealed.payload, 0..u64::MAX, Some(&broken)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Io, "{error}");
}

#[tokio::test]
async fn every_key_decrypts_and_the_first_encrypts() {
    let (old, new) = (keyring(), Keyring::parse(NEW).unwrap());
    let both = Keyring::parse(&format!("{NEW}\n{OLD}")).unwrap();
    let of_old = old.seal(&key("k"), &value(plain(5)), &spool()).await.unwrap();
    let of_both = both.seal(&key("k"), &value(plain(5)), &spool()).await.unwrap();
    for (keyring, sealed) in [(&both, &of_old), (&both, &of_both), (&new, &of_both)] {
        assert_eq!(open(keyring, "k", sealed).await.unwrap().1, plain(5));
    }
    let error = damaged(open(&old, "k", &of_both).await).to_string();
    let ids: Vec<String> = both.ids().map(|id| id.to_string()).collect();
    assert!(error.contains(&ids[0]) && error.contains(&format!("has {}", ids[1])), "{error}");
    assert!(error.contains("add the key"), "{error}");
}

#[tokio::test]
async fn a_new_name_or_master_key_needs_a_new_envelope_only() {
    let both = Keyring::parse(&format!("{NEW},{OLD}")).unwrap();
    let sealed = keyring().seal(&key("from"), &value(plain(PLAIN + 5)), &spool()).await.unwrap();
    let attributes = both.rewrap(&key("from"), &key("to"), &sealed.attributes).unwrap();
    let moved = Object { attributes, payload: sealed.payload.clone() };
    let (opened, bytes) = open(&Keyring::parse(NEW).unwrap(), "to", &moved).await.unwrap();
    assert_eq!(bytes, plain(PLAIN + 5));
    assert_eq!(opened.metadata.unwrap().get(), value("").attributes.metadata.unwrap().get());
    damaged(open(&both, "from", &moved).await);
    damaged(open(&keyring(), "to", &moved).await);
    assert_eq!(open(&both, "from", &sealed).await.unwrap().1, plain(PLAIN + 5), "the first object stays as it was");
}

#[tokio::test]
async fn a_renamed_or_relabelled_object_is_noticed() {
    let sealed = keyring().seal(&key("a"), &value(plain(5)), &spool()).await.unwrap();
    let error = damaged(open(&keyring(), "b", &sealed).await);
    assert!(error.to_string().contains("renamed"), "{error}");
    let changes: [fn(&mut Attributes); 7] = [
        |it| it.kind = Kind::Text,
        |it| it.size += 1,
        |it| it.compression = Some("gzip".to_owned()),
        |it| it.content_type = "text/cs".to_owned(),
        |it| it.content_type = "text/csv;v=1".to_owned(),
        |it| it.encryption = None,
        |it| it.encryption.as_mut().unwrap().sealed.0.clear(),
    ];
    for change in changes {
        let mut changed = sealed.clone();
        change(&mut changed.attributes);
        damaged(open(&keyring(), "a", &changed).await);
    }
}

#[tokio::test]
async fn an_envelope_of_another_object_is_noticed() {
    let first = keyring().seal(&key("k"), &value(plain(5)), &spool()).await.unwrap();
    let second = keyring().seal(&key("k"), &value(plain(5)), &spool()).await.unwrap();
    let [one, two] = [&first, &second].map(|sealed| sealed.attributes.encryption.clone().unwrap());
    let mixed = [
        Envelope { message_id: two.message_id, ..one.clone() },
        Envelope { wrapped_key: two.wrapped_key, ..one.clone() },
        Envelope { commitment: two.commitment, ..one.clone() },
        Envelope { sealed: two.sealed.clone(), ..one.clone() },
        Envelope { message_id: two.message_id, wrapped_key: two.wrapped_key, ..one.clone() },
        Envelope { sealed: one.sealed.clone(), ..two.clone() },
        two,
    ];
    for envelope in mixed {
        let mut changed = first.clone();
        changed.attributes.encryption = Some(envelope);
        damaged(open(&keyring(), "k", &changed).await);
    }
    let mut uncommitted = first.clone();
    uncommitted.attributes.encryption.as_mut().unwrap().commitment = Binary([0; 32]);
    let error = damaged(open(&keyring(), "k", &uncommitted).await);
    assert!(error.to_string().contains("commitment"), "{error}");
    damaged(open(&keyring(), "k", &with_payload(&first, memory(&second))).await);
}

/// Reordered, doubled, dropped and exchanged chunks, and what is cut off or put on.
#[tokio::test]
async fn chunks_stand_in_their_own_place() {
    let sealed = keyring().seal(&key("k"), &value(plain(3 * PLAIN + 5)), &spool()).await.unwrap();
    let other = keyring().seal(&key("k"), &value(plain(3 * PLAIN + 5)), &spool()).await.unwrap();
    let (bytes, foreign) = (memory(&sealed), memory(&other));
    let chunk = |number: usize| bytes.slice(number * SEALED..bytes.len().min((number + 1) * SEALED));
    let foreign = |number: usize| foreign.slice(number * SEALED..foreign.len().min((number + 1) * SEALED));
    let all = |chunks: &[Bytes]| chunks.concat();
    assert_eq!(all(&[chunk(0), chunk(1), chunk(2), chunk(3)]), bytes);
    for wrong in [
        all(&[chunk(1), chunk(0), chunk(2), chunk(3)]),
        all(&[chunk(0), chunk(0), chunk(2), chunk(3)]),
        all(&[chunk(0), chunk(1), chunk(2), chunk(2)]),
        all(&[chunk(0), chunk(1), chunk(3)]),
        all(&[chunk(0), chunk(1), chunk(2)]),
        all(&[chunk(1), chunk(2), chunk(3)]),
        all(&[chunk(3)]),
        all(&[chunk(0), chunk(1), chunk(2), chunk(3), chunk(3)]),
        all(&[chunk(0), chunk(1), chunk(2), chunk(2), chunk(3)]),
        all(&[chunk(0), foreign(1), chunk(2), chunk(3)]),
        all(&[chunk(0), chunk(1), chunk(2), foreign(3)]),
        Vec::new(),
    ] {
        damaged(open(&keyring(), "k", &with_payload(&sealed, wrong)).await);
    }
    // An empty value is one empty chunk, so nothing is not an empty value.
    let empty = keyring().seal(&key("k"), &value(""), &spool()).await.unwrap();
    assert_eq!(empty.payload.len(), 16);
    damaged(open(&keyring(), "k", &with_payload(&empty, "")).await);
}

#[tokio::test]
async fn a_part_opens_its_chunks_and_the_last_one_only() {
    let sealed = keyring().seal(&key("k"), &value(plain(4 * PLAIN)), &spool()).await.unwrap();
    let (_, data_key) = keyring().open_attributes(&key("k"), &sealed.attributes).unwrap();
    let part = async |bytes: Vec<u8>, part: Range<usize>| {
        let part = part.start as u64..part.end as u64;
        data_key.open(&key("k"), &Payload::Memory(bytes.into()), part, Some(&spool())).await
    };
    let wanted = PLAIN + 5..PLAIN + 9;
    for (chunk, matters) in [(0, false), (1, true), (2, false), (3, true)] {
        let mut bytes = memory(&sealed).to_vec();
        bytes[chunk * SEALED + 100] ^= 1;
        let outcome = part(bytes, wanted.clone()).await;
        assert_eq!(outcome.is_err(), matters, "chunk {chunk}");
        if let Ok((payload, _)) = outcome {
            assert_eq!(payload.into_memory().await.unwrap(), plain(4 * PLAIN)[wanted.clone()]);
        }
    }
    let cut = memory(&sealed)[..3 * SEALED].to_vec();
    damaged(part(cut.clone(), 0..1).await);
    damaged(part(cut, 0..0).await);
}

#[test]
fn nothing_secret_is_shown() {
    let data_key = DataKey::random().unwrap();
    assert_eq!(format!("{data_key:?}"), "DataKey(***)");
    assert!(!format!("{:?}", keyring()).contains("AQEB"));
}

/// Objects that a program of its own has written, `tests/fixtures/encryption-format-1/make`.
#[tokio::test]
async fn version_1_is_read_for_ever() {
    #[derive(serde::Deserialize)]
    struct Case {
        name: String,
        keys: String,
        attributes: Attributes,
        payload: String,
        plain_sha256: String,
        checksum: String,
        operation_id: Option<String>,
        metadata: Option<String>,
    }
    let text = include_str!("../../../../../tests/fixtures/encryption-format-1/objects.json");
    let cases: Vec<Case> = serde_json::from_str(text).unwrap();
    assert!(cases.len() >= 5);
    for case in cases {
        let payload = Payload::Memory(STANDARD.decode(&case.payload).unwrap().into());
        let sealed = Object { attributes: case.attributes, payload };
        let keyring = Keyring::parse(&case.keys).unwrap();
        let (opened, bytes) = open(&keyring, &case.name, &sealed).await.unwrap();
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
        let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, case.plain_sha256, "{}", case.name);
        assert_eq!(opened.checksum.to_string(), case.checksum);
        assert_eq!(opened.operation_id, case.operation_id);
        assert_eq!(opened.metadata.map(|raw| raw.get().to_owned()), case.metadata);
    }
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_part_of_any_value_is_right(size in 0usize..5 * PLAIN, begin in 0usize..5 * PLAIN, length in 0usize..5 * PLAIN) {
        run(async {
            let sealed = keyring().seal(&key("k"), &value(plain(size)), &spool()).await.unwrap();
            let (_, data_key) = keyring().open_attributes(&key("k"), &sealed.attributes).unwrap();
            let part = begin as u64..(begin + length) as u64;
            let (payload, _) = data_key.open(&key("k"), &sealed.payload, part, Some(&spool())).await.unwrap();
            let wanted = plain(size).slice(begin.min(size)..(begin + length).min(size));
            assert_eq!(payload.into_memory().await.unwrap(), wanted);
        });
    }

    #[test]
    fn a_changed_bit_is_noticed(size in 0usize..3 * PLAIN, at in any::<prop::sample::Index>(), bit in 0u8..8) {
        run(async {
            let sealed = keyring().seal(&key("k"), &value(plain(size)), &spool()).await.unwrap();
            let mut bytes = memory(&sealed).to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            damaged(open(&keyring(), "k", &with_payload(&sealed, bytes)).await);
        });
    }

    #[test]
    fn a_cut_or_extended_payload_is_noticed(size in 0usize..3 * PLAIN, at in any::<prop::sample::Index>(), more in 1usize..2 * SEALED) {
        run(async {
            let sealed = keyring().seal(&key("k"), &value(plain(size)), &spool()).await.unwrap();
            let bytes = memory(&sealed);
            damaged(open(&keyring(), "k", &with_payload(&sealed, bytes.slice(..at.index(bytes.len())))).await);
            let longer = [&bytes[..], &vec![0; more]].concat();
            damaged(open(&keyring(), "k", &with_payload(&sealed, longer)).await);
        });
    }

    #[test]
    fn a_changed_character_of_the_envelope_is_noticed(at in any::<prop::sample::Index>(), new in "[A-Za-z0-9+/=:{}\",]") {
        run(async {
            let sealed = keyring().seal(&key("k"), &value(plain(5)), &spool()).await.unwrap();
            let text = serde_json::to_string(&sealed.attributes.encryption).unwrap();
            let at = at.index(text.len());
            let changed = format!("{}{new}{}", &text[..at], &text[at + 1..]);
            prop_assume!(changed != text);
            // What does not parse any more is refused where the attributes are read.
            if let Ok(envelope) = serde_json::from_str::<Envelope>(&changed) {
                let attributes = Attributes { encryption: Some(envelope), ..sealed.attributes.clone() };
                damaged(open(&keyring(), "k", &Object { attributes, ..sealed }).await);
            }
            Ok(())
        })?;
    }
}
