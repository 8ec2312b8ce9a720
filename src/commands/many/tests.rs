//! Calls of many items over a store in memory.

use std::sync::Arc;

use crate::commands::{Budget, CommandTable, Context, Engine, ExceptionClass, Finished, KeyPlaces, Redelivered, run};
use crate::json::{Json, ParseLimits, parse};
use crate::provider::BackendKind;
use crate::storage::{COPIES, Key, Memory};

fn engine() -> Engine {
    Engine::new(Arc::new(Memory::new()), BackendKind::Local)
}

fn definition(task: &str) -> &'static crate::commands::Definition {
    CommandTable::default().find(&format!("filestorage.{task}")).unwrap()
}

async fn call(engine: &Engine, task: &str, argument: &str, context: Context) -> Finished {
    let argument = parse(argument.as_bytes(), ParseLimits::default()).unwrap();
    run(definition(task).parse(vec![argument], Vec::new()).unwrap(), engine, context).await
}

async fn answer(engine: &Engine, task: &str, argument: &str) -> serde_json::Value {
    serde_json::from_str(&call(engine, task, argument, Context::default()).await.result.unwrap()).unwrap()
}

#[test]
fn keys_are_known_where_they_stand() {
    assert_eq!(definition("store_many").key_places(), KeyPlaces::Anywhere);
    assert!(matches!(definition("delete_many").key_places(), KeyPlaces::Arguments(all) if all[0].is_list));
    let items = parse(br#"[["a", 1], {"key": "b", "data": 2}, ["a", 3], 4]"#, ParseLimits::default()).unwrap();
    let command = definition("store_many").parse(vec![items], Vec::new()).unwrap();
    let keys: Vec<&str> = command.keys().iter().map(|used| used.key.as_str()).collect();
    assert_eq!((keys, command.writes()), (vec!["a", "b", "a"], true));
}

#[tokio::test]
async fn each_item_tells_its_own_end() {
    let engine = engine();
    let finished =
        call(&engine, "store_many", r#"[["a", "one"], ["a/"], {"key": "b", "data": 1}]"#, Context::default());
    let finished = finished.await;
    let failures: Vec<_> =
        finished.facts.iter().map(|facts| facts.failure.as_ref().map(|error| error.exception)).collect();
    assert_eq!(failures, [None, Some(ExceptionClass::TypeError), None]);
    let told: Vec<_> = finished.facts.iter().map(|facts| (facts.key.as_deref(), facts.size, facts.attempts)).collect();
    assert_eq!(told, [(Some("a"), Some(3), 1), (None, None, 0), (Some("b"), Some(1), 1)]);
    let text = finished.result.unwrap();
    assert!(
        text.contains(r#"{"key": "a/", "ok": false, "error": {"type": "TypeError", "message": "store() missing"#),
        "{text}"
    );
}

#[tokio::test]
async fn a_value_that_is_no_json_comes_back_among_others() {
    let engine = engine();
    answer(&engine, "store_many", r#"[["a", NaN], ["b", [Infinity]], ["c", 1e400]]"#).await;
    let text = call(&engine, "retrieve_many", r#"["a", "b", "c"]"#, Context::default()).await.result.unwrap();
    let Json::Array(entries) = parse(text.as_bytes(), ParseLimits::default()).unwrap() else { panic!("{text}") };
    let found: Vec<_> = entries.iter().map(|entry| entry.get("result").unwrap().compact()).collect();
    assert_eq!(found, ["NaN", "[Infinity]", "1e400"]);
}

#[tokio::test]
async fn an_item_that_comes_again_finds_its_own_write() {
    let engine = engine();
    let context = |started_at| Context {
        operation_id: "0123".to_owned(),
        redelivered: Some(Redelivered { started_at }),
        ..Context::default()
    };
    let items = r#"[["a", 1], ["b", 2], ["b", 3], ["c", 4]]"#;
    let began = Some(jiff::Timestamp::now());
    let first = Context { redelivered: None, ..context(None) };
    let before = call(&engine, "store_many", items, first).await.result.unwrap();
    let generation =
        async |name: &str| engine.stat(&Key::parse(name).unwrap()).await.unwrap().unwrap().receipt.generation;
    let kept = [generation("a").await, generation("b").await, generation("c").await];
    let again = call(&engine, "store_many", items, context(began)).await.result.unwrap();
    assert_eq!([generation("a").await, generation("b").await, generation("c").await], kept);
    for (name, generation) in ["a", "b", "c"].iter().zip(&kept) {
        assert!(before.contains(generation) && again.contains(generation), "{name}: {before} {again}");
    }
}

#[tokio::test]
async fn an_answer_reserves_its_room_once_and_gives_it_back() {
    let engine = engine();
    let value = "x".repeat(100_000);
    let items: Vec<_> = (0..8).map(|number| format!(r#"["k{number}", "{value}"]"#)).collect();
    answer(&engine, "store_many", &format!("[{}]", items.join(","))).await;
    let budget = Budget::new(100_000_000);
    let context = |most| Context { max_reply_bytes: Some(most), budget: Some(budget.clone()), ..Context::default() };
    let keys = r#"["k0","k1","k2","k3","k4","k5","k6","k7"]"#;
    let finished = call(&engine, "retrieve_many", keys, context(1_000_000)).await;
    let length = finished.result.unwrap().len() as u64;
    assert_eq!((finished.held.as_ref().unwrap().bytes(), budget.held()), (COPIES * length, COPIES * length));
    drop(finished.held);
    assert_eq!(budget.held(), 0);
    let finished = call(&engine, "retrieve_many", keys, context(500_000)).await;
    let error = finished.result.unwrap_err();
    assert_eq!((error.exception, finished.held.is_none(), budget.held()), (ExceptionClass::ValueError, true, 0));
    assert!(error.to_string().contains("800000 bytes together"), "{error}");
    // A few small values are not counted.
    let finished = call(&engine, "retrieve_many", r#"["k0", "k1"]"#, context(500_000)).await;
    assert!(finished.result.is_ok() && finished.held.is_none());
}
