//! Objects as other tools see them, and other tools' objects as we see them.

use filestorage::storage::{Backend, Condition, DeleteOptions, ErrorKind, Gcs, GetOptions, Kind, Page, PutOptions};
use jiff::Timestamp;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::site::{Site, open};
use crate::support::{bytes, expired, key, object};

const WHOLE: GetOptions =
    GetOptions { range: None, limit: None, spooled: false, announced: false, version: None, uncached: false };

fn when(condition: Condition) -> PutOptions {
    PutOptions { condition, ..PutOptions::default() }
}

fn only(generation: &str) -> DeleteOptions {
    DeleteOptions { generation: Some(generation.to_owned()), ..DeleteOptions::default() }
}

#[tokio::test]
async fn every_operation_asks_as_little_as_it_can() {
    let site = Site::start();
    let bucket = open(site.options()).await;
    site.asked().await;
    let it = key("it");
    let first = object("1");
    let generation = first.attributes.generation.clone();
    bucket.put(&it, &first, &when(Condition::Absent)).await.unwrap();
    assert_eq!(site.asked().await, "POST ");
    bucket.put(&it, &object("2"), &PutOptions::default()).await.unwrap();
    assert_eq!(site.asked().await, "POST ");
    bucket.get(&it, GetOptions { limit: Some(9), ..WHOLE }).await.unwrap().unwrap();
    assert_eq!(site.asked().await, "GET ");
    bucket.stat(&it).await.unwrap().unwrap();
    assert_eq!(site.asked().await, "GET ");
    bucket.put(&it, &object("3"), &when(Condition::Generation(generation.clone()))).await.unwrap_err();
    assert_eq!(site.asked().await, "GET ");
    bucket.delete(&it, &only(&generation)).await.unwrap_err();
    assert_eq!(site.asked().await, "GET ");
    bucket.list(&Page { limit: Some(5), ..Page::default() }).await.unwrap();
    assert_eq!(site.asked().await, "GET ");
    bucket.flush(&it).await.unwrap();
    assert_eq!(site.asked().await, "");
    bucket.delete(&it, &DeleteOptions::default()).await.unwrap();
    assert_eq!(site.asked().await, "DELETE ");
}

#[tokio::test]
async fn what_we_write_is_an_ordinary_object() {
    let site = Site::start();
    let options = site.options();
    let bucket = open(options.clone()).await;
    let sessions = Gcs::open(options.clone()).await.unwrap().with_resumable_from(1);
    let metadata = |text: &str| Some(RawValue::from_string(text.to_owned()).unwrap());
    for resumable in [false, true] {
        let put = async |name: &str, object: &_| match resumable {
            true => Backend::put(&sessions, &key(name), object, &PutOptions::default()).await,
            false => bucket.put(&key(name), object, &PutOptions::default()).await,
        };
        let mut plain = object("a,b\n");
        plain.attributes.content_type = "text/csv; charset=utf-8".to_owned();
        plain.attributes.metadata = metadata(r#"{"author":"Ada","Größe":1,"title":"ü","upper":"A b"}"#);
        put("t/a b?", &plain).await.unwrap();
        let found = site.describe(&options.bucket, "t%2Fa%20b%3F").await;
        assert_eq!(found["contentType"], "text/csv; charset=utf-8");
        assert_eq!((&found["contentEncoding"], &found["cacheControl"]), (&Value::Null, &Value::Null));
        assert_eq!((&found["metadata"]["author"], &found["metadata"]["upper"]), (&json!("Ada"), &json!("A b")));
        assert_eq!(found["metadata"].as_object().unwrap().len(), 3, "{found}");
        let mut packed = object("not really gzip");
        packed.attributes.compression = Some("gzip".to_owned());
        put("packed", &packed).await.unwrap();
        let found = site.describe(&options.bucket, "packed").await;
        assert_eq!((&found["contentEncoding"], &found["cacheControl"]), (&json!("gzip"), &json!("no-transform")));
        // Raw bytes come back, whatever they are said to be.
        let found = bucket.get(&key("packed"), WHOLE).await.unwrap().unwrap();
        assert_eq!(found.attributes.compression.as_deref(), Some("gzip"));
        assert_eq!(&*bytes(found).await, b"not really gzip");
    }
}

#[tokio::test]
async fn what_other_tools_wrote_is_read_by_its_content_type() {
    let site = Site::start();
    let options = site.options();
    let bucket = open(options.clone()).await;
    let insert = json!({ "metadata": { "Author": "Ada", "größe": "ü" } });
    for (content_type, kind) in [
        ("text/plain", Kind::Text),
        ("text/csv; charset=latin1", Kind::Text),
        ("application/json", Kind::Json),
        ("application/json; charset=utf-8", Kind::Json),
        ("application/pdf", Kind::Bytes),
        ("application/octet-stream", Kind::Bytes),
    ] {
        let it = key("from/outside é");
        let before = Timestamp::now();
        site.write(&options.bucket, it.as_str(), content_type, insert.clone(), "[1, 2]").await;
        let found = bucket.get(&it, WHOLE).await.unwrap().unwrap();
        let attributes = bucket.stat(&it).await.unwrap().unwrap();
        for attributes in [&found.attributes, &attributes] {
            assert_eq!((attributes.kind, attributes.content_type.as_str()), (kind, content_type));
            assert_eq!((attributes.size, attributes.stored_size, attributes.expires_at), (6, 6, None));
            assert_eq!(attributes.metadata.as_ref().unwrap().get(), r#"{"Author":"Ada","größe":"ü"}"#);
            assert!(attributes.stored_at >= before && attributes.info.received_at == Some(attributes.stored_at));
        }
        assert_eq!(&*bytes(found).await, b"[1, 2]");
        // Its generation is the bucket's own.
        let native = site.describe(&options.bucket, "from%2Foutside%20%C3%A9").await["generation"].clone();
        assert_eq!(json!(attributes.generation), native);
        assert_eq!(bucket.delete(&it, &only("1")).await.unwrap_err().kind, ErrorKind::Precondition);
        let how = when(Condition::Generation("1".to_owned()));
        assert_eq!(bucket.put(&it, &object("x"), &how).await.unwrap_err().kind, ErrorKind::Precondition);
        let exactly = when(Condition::Generation(attributes.generation.clone()));
        bucket.put(&it, &object("x"), &exactly).await.unwrap();
        assert_eq!(bucket.delete(&it, &only(&attributes.generation)).await.unwrap_err().kind, ErrorKind::Precondition);
    }
}

#[tokio::test]
async fn an_object_changed_by_another_tool_can_be_replaced() {
    let site = Site::start();
    let options = site.options();
    let bucket = open(options.clone()).await;
    let it = key("it");
    bucket.put(&it, &object("ours"), &PutOptions::default()).await.unwrap();
    let ours = site.describe(&options.bucket, "it").await;
    let insert = json!({ "metadata": ours["metadata"] });
    site.write(&options.bucket, "it", "text/plain", insert, "theirs").await;
    for error in [bucket.get(&it, WHOLE).await.unwrap_err(), bucket.stat(&it).await.unwrap_err()] {
        assert_eq!(error.kind, ErrorKind::Integrity);
        assert!(error.message().contains("another tool") && error.message().contains("store it again"), "{error}");
    }
    assert_eq!(bucket.list(&Page::default()).await.unwrap().entries.len(), 1);
    let absent = bucket.put(&it, &object("2"), &when(Condition::Absent)).await.unwrap_err();
    assert_eq!(absent.kind, ErrorKind::Integrity);
    bucket.put(&it, &object("2"), &PutOptions::default()).await.unwrap();
    assert_eq!(&*bytes(bucket.get(&it, WHOLE).await.unwrap().unwrap()).await, b"2");
}

#[tokio::test]
async fn names_that_are_no_keys_are_skipped_and_counted() {
    let site = Site::start();
    let options = site.options();
    let bucket = open(options.clone()).await;
    for name in ["a//b", "dir/", "/x", "b/../c", "line\u{1}break", "z"] {
        site.write(&options.bucket, name, "text/plain", json!({}), "x").await;
    }
    bucket.put(&key("dir/a"), &expired("x"), &PutOptions::default()).await.unwrap();
    let all = bucket.list(&Page::default()).await.unwrap();
    let names: Vec<_> = all.entries.iter().map(|entry| (entry.key.as_str(), entry.expires_at.is_some())).collect();
    assert_eq!((names, all.foreign, all.more), (vec![("dir/a", true), ("z", false)], 5, false));
    let first = bucket.list(&Page { limit: Some(1), ..Page::default() }).await.unwrap();
    assert_eq!((first.entries.len(), first.more), (1, true));
    let last = Page { start_after: Some("dir/a".to_owned()), limit: Some(1), ..Page::default() };
    let last = bucket.list(&last).await.unwrap();
    assert_eq!((last.entries[0].key.as_str(), last.more), ("z", false));
}

#[tokio::test]
async fn a_write_beyond_the_bucket_s_limits_is_refused_unasked() {
    let site = Site::start();
    let bucket = open(site.options()).await;
    let mut large = object("x");
    let metadata = |size: usize| RawValue::from_string(format!(r#"{{"a":"{}"}}"#, "x".repeat(size))).unwrap();
    large.attributes.metadata = Some(metadata(7_000));
    bucket.validate(&key("a"), &large.attributes).unwrap();
    bucket.put(&key("a"), &large, &PutOptions::default()).await.unwrap();
    let found = bucket.get(&key("a"), WHOLE).await.unwrap().unwrap();
    assert_eq!(found.attributes.metadata.unwrap().get(), metadata(7_000).get());
    large.attributes.metadata = Some(metadata(8_000));
    site.asked().await;
    let refused = bucket.validate(&key("a"), &large.attributes).unwrap_err();
    let failed = bucket.put(&key("a"), &large, &PutOptions::default()).await.unwrap_err();
    for error in [refused, failed] {
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.message().contains("shorten it"), "{error}");
    }
    assert_eq!(
        bucket.validate(&key(".well-known/acme-challenge/x"), &object("x").attributes).unwrap_err().kind,
        ErrorKind::Invalid
    );
    assert_eq!(site.asked().await, "");
}
