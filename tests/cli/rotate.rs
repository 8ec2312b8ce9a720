//! Tests of `filestorage rotate` over a folder.

use serde_json::json;

use super::{Answer, Place, noise};

const OLD: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const NEW: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
const BOTH: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=,AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const OLD_ID: &str = "78d6c8062da7af58";
const NEW_ID: &str = "bc65713dcac86b22";

/// A folder, and the program with encryption on and these keys.
fn run(place: &Place, keys: &str, arguments: &[&str], input: &[u8]) -> Answer {
    place.run_with(arguments, &[("ENABLE_ENCRYPTION", "true"), ("ENCRYPTION_KEY", keys)], input)
}

fn rotate(place: &Place, keys: &str, more: &[&str]) -> Answer {
    run(place, keys, &[&["rotate", "--json"], more].concat(), b"")
}

/// A folder with values under the old key: 21 small ones, a large one, and one that is not encrypted.
fn filled() -> Place {
    let place = Place::new();
    for n in 0..21 {
        let stored = run(&place, OLD, &["store", &format!("k/{n:02}"), "--metadata", r#"{"n": 1.50}"#], b"value");
        assert_eq!(stored.code, 0, "{stored:?}");
    }
    assert_eq!(run(&place, OLD, &["store", "large"], &noise(3 << 20)).code, 0);
    place.store("plain", b"plain");
    place
}

#[test]
fn the_old_key_can_be_retired_after_a_rotation() {
    let place = filled();
    let before = run(&place, OLD, &["stat", "k/07", "--json"], b"").out;
    let wanted = json!({
        "dry_run": true, "key_id": NEW_ID, "rotated": 22, "current": 0, "not_encrypted": 1, "unknown_keys": {}, "failed": 0,
        "foreign": 0, "waiting": 0, "last": "plain", "complete": true
    });
    let dry = rotate(&place, BOTH, &["--dry-run"]);
    assert_eq!((dry.code, dry.json(), dry.errors.as_str()), (0, wanted.clone(), ""));
    let bytes = || place.objects().iter().map(|path| std::fs::metadata(path).unwrap().len()).sum::<u64>();
    let (size, files) = (bytes(), place.objects().len());

    let done = rotate(&place, BOTH, &[]);
    let mut rotated = wanted;
    rotated["dry_run"] = json!(false);
    assert_eq!((done.code, done.json(), done.errors.as_str()), (0, rotated, ""));
    assert_eq!((bytes(), place.objects().len()), (size, files), "headers have other keys and the same length");
    let again = run(&place, BOTH, &["rotate"], b"");
    assert_eq!(
        (again.code, again.text()),
        (
            0,
            &*format!(
                "rotated 0 values to the key {NEW_ID}, 22 were under it already, 1 are not encrypted, 0 failed\n"
            )
        )
    );

    assert_eq!(run(&place, NEW, &["stat", "k/07", "--json"], b"").out, before);
    assert_eq!(run(&place, NEW, &["retrieve", "large"], b"").out, noise(3 << 20));
    assert_eq!(run(&place, NEW, &["retrieve", "k/20"], b"").out, b"value");
    assert_eq!(run(&place, OLD, &["retrieve", "k/20"], b"").code, 65);
    assert_eq!(rotate(&place, NEW, &[]).json()["current"], 22);
}

#[test]
fn a_part_of_the_keys_is_rotated() {
    let place = filled();
    let part = rotate(&place, BOTH, &["--prefix", "k/1"]);
    assert_eq!((part.code, &part.json()["rotated"], &part.json()["last"]), (0, &json!(10), &json!("k/19")));
    let rest = rotate(&place, BOTH, &["--start-after", "k/15", "--parallel", "1"]);
    let counts = ["rotated", "current", "not_encrypted"].map(|name| rest.json()[name].as_u64().unwrap());
    assert_eq!(counts, [2, 4, 1]);
}

#[test]
fn values_under_a_missing_key_are_reported() {
    let place = filled();
    run(&place, NEW, &["store", "new"], b"new");
    let found = rotate(&place, NEW, &[]);
    assert_eq!(found.code, 65, "{found:?}");
    let summary = found.json();
    assert_eq!((&summary["unknown_keys"], &summary["current"]), (&json!({ OLD_ID: 22 }), &json!(1)));
    assert!(found.errors.lines().count() == 22 && found.errors.contains(OLD_ID) && found.errors.contains("k/07"));
    assert!(!found.errors.contains(&OLD[..12]) && !found.errors.contains(&NEW[..12]), "{found:?}");
    let text = run(&place, NEW, &["rotate"], b"");
    assert!(text.text().contains(&format!("22 values are encrypted with the key {OLD_ID}")), "{text:?}");

    // A damaged one does not keep the others.
    let path = place.objects().into_iter().find(|path| path.ends_with("k/03.obj")).unwrap();
    let content = std::fs::read(&path).unwrap();
    std::fs::write(&path, &content[..content.len() / 2]).unwrap();
    let found = rotate(&place, BOTH, &[]);
    let counts = ["rotated", "failed", "complete"].map(|name| found.json()[name].clone());
    assert_eq!((found.code, counts), (65, [json!(21), json!(1), json!(true)]), "{found:?}");
}

#[test]
fn a_rotation_needs_a_key_and_nothing_else() {
    let place = Place::new();
    let none = place.run(&["rotate"]);
    assert!(none.code == 78 && none.errors.contains("encryption_key"), "{none:?}");
    let empty = rotate(&place, BOTH, &[]);
    assert_eq!((empty.code, &empty.json()["rotated"], &empty.json()["complete"]), (0, &json!(0), &json!(true)));
    assert!(!place.path().join("storage").exists(), "nothing is made");
    // With encryption off, what is encrypted is rotated all the same.
    assert_eq!(run(&place, OLD, &["store", "k"], b"value").code, 0);
    let off = place.run_with(&["rotate", "--json"], &[("ENCRYPTION_KEY", BOTH)], b"");
    assert_eq!((off.code, &off.json()["rotated"]), (0, &json!(1)));
}
