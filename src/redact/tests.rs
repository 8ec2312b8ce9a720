//! Tests of the redactor: secrets are hidden, other texts stay unchanged.

use std::path::Path;

use proptest::prelude::*;

use super::*;

#[test]
fn only_the_secret_parts_of_a_url_are_hidden() {
    for (url, shown) in [
        ("amqp://guest:guest@localhost:5672//", "amqp://guest:***@localhost:5672//"),
        ("amqp://u:p@ss/w:rd@host/v", "amqp://u:***@host/v"),
        ("amqp://a:x@one;amqps://b:y@two/v", "amqp://a:***@one;amqps://b:***@two/v"),
        ("amqp://localhost", "amqp://localhost"),
        ("amqp://me@[::1]:5672/v", "amqp://me@[::1]:5672/v"),
        ("amqp://0123456789abcdef@h", "amqp://***@h"),
        ("amqp://h/v?password=x", "amqp://h/v?***"),
        ("http://u:p@minio:9000/x", "http://***@minio:9000/x"),
        ("https://token@h", "https://***@h"),
        ("https://h/p?X-Goog-Signature=ab#c", "https://h/p?***"),
        ("https://h/p#frag", "https://h/p#***"),
        ("https://h/a@b/c", "https://h/a@b/c"),
    ] {
        assert_eq!(urls(url), shown);
        assert_eq!(redact(url), shown);
        assert_eq!(redact(&format!("cannot ask {url} \"why\"")), format!("cannot ask {shown} \"why\""));
        assert_eq!(redact(&format!("{{\"url\":\"{url}\",\"n\":1}}")), format!("{{\"url\":\"{shown}\",\"n\":1}}"));
    }
    for (text, shown) in [("guest:secret@host", "guest:***@host"), ("user@host", "user@host"), ("a?b", "a?***")] {
        assert_eq!(urls(text), shown);
    }
}

#[test]
fn harmless_texts_stay_unchanged() {
    for text in [
        "",
        "store \"a/b?c=d&e@f\": the disk is full",
        "gs://bucket/a?b#c@d is not there",
        "file:///a%20b?c",
        "name the bucket as s3://name, or set s3_endpoint_url (an http:// or https:// URL)",
        "check user 'me' and its password",
        "Basic authentication is off; Bearer of news",
        "\"key\": \"value\", \"secretary\": \"x\"",
        "did you mean http://host/path?",
        "a://b://c",
        "://",
    ] {
        assert!(matches!(redact(text), Cow::Borrowed(_)), "{text}: {}", redact(text));
    }
}

#[test]
fn keys_and_tokens_are_hidden_however_they_are_escaped() {
    let pem = "-----BEGIN PRIVATE KEY-----\nMIIEvQcanary+/=\nAAAA\n-----END PRIVATE KEY-----\n";
    let json = serde_json::json!({"type": "service_account", "private_key": pem, "client_email": "a@b"}).to_string();
    let (debug, twice) = (format!("{json:?}"), format!("{:?}", format!("{json:?}")));
    for text in [pem, &json, &debug, &twice, &format!("{pem:?}"), &json[..json.len() / 2]] {
        let shown = redact(text);
        assert!(!shown.contains("canary") && shown.contains(HIDDEN), "{shown}");
    }
    assert_eq!(redact(&format!("before {pem}after")), "before ***\nafter");
    let shown = redact(&json);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap()["client_email"], "a@b", "{shown}");
    for (text, shown) in [
        (r#"{"client_secret":"a\"b","n":1}"#, r#"{"client_secret":"***","n":1}"#),
        (r#""{\"refresh_token\": \"a\\\"b\", \"n\": 1}""#, r#""{\"refresh_token\": \"***\", \"n\": 1}""#),
        (r#"{"authorization": "Bearer ya29.abcdef"}"#, r#"{"authorization": "***"}"#),
        ("authorization: Bearer ya29.abcdef, x", "authorization: Bearer ***, x"),
        ("Signature=0123456789abcdef0123", "Signature=***"),
        ("the token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dBjftJeZ4CVP is old", "the token *** is old"),
    ] {
        assert_eq!(redact(text), shown);
    }
}

#[test]
fn a_known_secret_is_hidden_in_every_form() {
    remember("hunter2/\"so+secret");
    for text in ["a hunter2/\"so+secret b", r#"{"a":"hunter2/\"so+secret"}"#, "p=hunter2%2F%22so%2Bsecret&"] {
        let shown = redact(text);
        assert!(shown.contains(HIDDEN) && !shown.contains("hunter2"), "{shown}");
    }
    // Texts that also occur in harmless words are not registered.
    for plain in ["guest", "filestorage", "abc12"] {
        remember(plain);
        let text = format!("the queue {plain}.dead");
        assert_eq!(redact(&text), text);
    }
}

#[test]
fn a_secret_that_begins_another_leaves_none_of_it() {
    remember("Summer-2025");
    remember("Summer-2025-and-more");
    assert_eq!(redact("now Summer-2025-and-more, was Summer-2025"), format!("now {HIDDEN}, was {HIDDEN}"));
}

#[test]
fn a_misplaced_text_is_recognized_by_its_form() {
    use base64::Engine as _;
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    for (text, shape) in [
        ("{\n  \"type\": \"service_account\"\n}".to_owned(), Shape::Credentials),
        (" '{\"private_key\": \"x\"}'".to_owned(), Shape::Credentials),
        (base64(b"{\n  \"type\": \"service_account\", \"private_key\": \"x\"\n}"), Shape::Credentials),
        ("{\"a\": 1}".to_owned(), Shape::Json),
        ("-----BEGIN RSA PRIVATE KEY-----\nx".to_owned(), Shape::Pem),
        ("amqp://u:secret@h".to_owned(), Shape::Url),
        ("u:secret@h:5672//".to_owned(), Shape::Login),
        ("amqp:/u:secret@h".to_owned(), Shape::Login),
        ("https://h/path".to_owned(), Shape::Url),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP".to_owned(), Shape::Token),
        (base64(&[7; 32]), Shape::Key),
        (base64(&[255; 32]), Shape::Key),
        ("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned(), Shape::Key),
        ("0123456789abcdef0123456789abcdef".to_owned(), Shape::Key),
        ("one\ntwo".to_owned(), Shape::Lines),
    ] {
        assert_eq!(Shape::of(&text), Some(shape), "{text}");
        assert!(!path(Path::new(&text)).contains(&text));
    }
    for text in [
        "/var/lib/filestorage/keys/Production2024/key.json",
        "./storage",
        "key.json",
        "C:/keys/key.json",
        "/run/secrets/celery_broker_url",
        "/data/a:b@c",
        "celery@host.example",
        "my-project-123456",
        "Project-Credentials-Prod-2024-Final",
        "filestorage@%h",
        "filestorage-7d9c6b5f4d-x2x9z",
        "f47ac10b-58cc-4372-a567-0e02b2c3d479",
        "europe-west1",
        "::1",
        "/home/Someone/Documents/Work2024/KeysAndOtherThings",
        "",
    ] {
        assert_eq!(Shape::of(text), None, "{text}");
    }
}

#[test]
fn a_panic_is_reported_without_its_quotation() {
    for (text, shown) in [
        ("called `Option::unwrap()` on a `None` value", "called"),
        (
            "byte index 1 is not a char boundary; it is inside 'é' of `secret`",
            "byte index 1 is not a char boundary; it is inside",
        ),
        (
            "index out of bounds: the len is 3 but the index is 5",
            "index out of bounds: the len is 3 but the index is 5",
        ),
        ("no text: \"secret\"", "no text"),
    ] {
        assert_eq!(unquoted(text), shown);
    }
}

proptest! {
    #[test]
    fn the_login_of_any_url_is_hidden(
        user in "[a-z]{1,8}",
        password in "[^\\s\"';]{1,24}",
        before in "\\PC{0,12}[ =:(\"]",
    ) {
        let password = format!("canary{password}");
        let shown = redact(&format!("{before}amqp://{user}:{password}@host:5672/v")).into_owned();
        prop_assert!(!shown.contains("canary"), "{}", shown);
    }

    #[test]
    fn any_text_is_taken(text in "\\PC{0,60}", piece in "(://|-----BEGIN |\"private_key\":\"|Bearer |eyJ|@|\\?|\\\\\")") {
        for text in [format!("{text}{piece}{text}"), format!("{piece}{text}"), format!("{text}{piece}")] {
            let once = redact(&text).into_owned();
            assert!(Shape::of(&text).is_none_or(|shape| !shape.to_string().is_empty()));
            drop(urls(&text));
            assert!(text.starts_with(unquoted(&text)));
            prop_assert!(!once.is_empty() || text.is_empty());
        }
    }
}
