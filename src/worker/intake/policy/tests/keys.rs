//! Commands of several keys: one answer and one entry, several facts and events.

use std::fs;
use std::path::Path;

use super::*;

/// What a command says of three keys.
fn three() -> Vec<Facts> {
    let of = |key: &str| Facts { key: Some(key.to_owned()), size: Some(3), attempts: 1, ..Facts::default() };
    ["a", "b", "c"].map(of).into()
}

fn answer(table: &Table, task: &ReadyTask, facts: Vec<Facts>) -> Answer {
    table.policy.settlement.answer(task.definition, &task.context, Ok("{}".into()), facts, Duration::from_millis(250))
}

/// The events among these publications, alone or in a batch.
fn events(sent: &[Publication]) -> Vec<Value> {
    let sent = sent.iter().filter(|publication| publication.address.exchange == events::EXCHANGE);
    sent.flat_map(|publication| match body(publication) {
        Value::Array(batch) => batch,
        alone => vec![alone],
    })
    .collect()
}

/// The ids of events and the keys they are about.
fn named(events: &[Value]) -> Vec<(String, String)> {
    let text = |event: &Value, name: &str| event[name].as_str().unwrap().to_owned();
    events.iter().map(|event| (text(event, "id"), text(event, "subject"))).collect()
}

#[test]
fn each_fact_is_an_event_and_a_repeated_answer_repeats_their_ids() {
    let mut table = Table::new();
    let mut message = store();
    message.headers.set("metrics_reply_to", Field::from("mine"));
    let task = table.ready(message.clone(), false);
    let one = answer(&table, &task, three()[..1].to_vec());
    let several = answer(&table, &task, three());
    table.run(&message, &several);
    let alone = events(&flatten(table.policy.settlement.close(task.context, &TaskEnd::Answered(&one))));
    table.journal.begin_session();
    let mut told = Vec::new();
    for _ in 0..2 {
        let (sent, outcome) = table.end(message.clone(), true);
        assert_eq!(outcome, CommandOutcome::Replayed);
        assert_eq!(routes(&sent), ["replies", "mine", "mine", "mine", "store.succeeded"]);
        let events = events(&sent);
        for (notice, event) in sent[1..4].iter().zip(&events) {
            assert_eq!(body(notice)["id"], event["id"], "its own events, each alone");
        }
        told.push(events);
        table.journal.begin_session();
    }
    let (first, again) = (named(&told[0]), named(&told[1]));
    assert_eq!(first, again);
    assert_eq!(first.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(first.iter().map(|(id, _)| id).collect::<std::collections::HashSet<_>>().len(), 3);
    assert_eq!(named(&alone), first[..1], "the first has the id that it has alone");
    assert_eq!(told[0][2]["data"]["key"], "c");
    assert_eq!(told[0][2]["data"]["task_id"], "id-1");
}

#[tokio::test(start_paused = true)]
async fn events_that_were_confirmed_are_not_sent_again_with_the_others() {
    let mut table = Table::new();
    let task = table.ready(store(), false);
    let answer = answer(&table, &task, three());
    let mut post = Post::of(table.policy.settlement.close(task.context, &TaskEnd::Answered(&answer)));
    // The reply, two events, and the third.
    let nacked = |sent: &Publication| Err(PublishError::Nacked(Box::new(sent.clone())));
    let (sent, outcome) = post.send_joined(2, |place, sent| if place == 2 { nacked(sent) } else { routed() });
    assert_eq!(routes(&sent), ["replies", "store.succeeded", "store.succeeded"]);
    assert_eq!(outcome.published, 2);
    assert!(post.outbox.take_done().is_empty());
    post.destinations.close(&sent[2].address);
    let (sent, outcome) = post.send_joined(2, |_, _| routed());
    assert_eq!(events(&sent)[0]["subject"], "c");
    assert_eq!((outcome.published, post.outbox.take_done().len()), (1, 1));
}

#[test]
fn one_command_has_one_entry_whatever_its_keys() {
    let mut table = Table::new();
    let task = table.ready(store(), false);
    let answer = answer(&table, &task, three());
    table.run(&store(), &answer);
    table.journal.commit().unwrap();
    let files = fs::read_dir(table._folder.path()).unwrap().map(|file| file.unwrap().path());
    let text = |end: &str| -> String {
        let files = fs::read_dir(table._folder.path()).unwrap().map(|file| file.unwrap().path());
        files
            .filter(|path| path.to_string_lossy().ends_with(end))
            .map(|path| fs::read_to_string(path).unwrap())
            .collect()
    };
    assert_eq!(files.filter(|path| path.to_string_lossy().ends_with(".log")).count(), 1);
    assert_eq!(text(".log").matches("{\"start\":").count(), 1);
    assert_eq!(text(".log").matches("{\"finish\":").count(), 1);
    assert_eq!(text(".answers").lines().count(), 1);
}

#[test]
fn an_earlier_worker_reads_the_first_fact_and_is_not_troubled_by_the_others() {
    /// An answer, as it was read when a command had one key at most.
    #[derive(serde::Deserialize)]
    struct Earlier {
        result: Value,
        event: Option<events::EventData>,
    }
    let mut table = Table::new();
    let task = table.ready(store(), false);
    let text = answer(&table, &task, three()).write(None).unwrap();
    let read = Answer::read(&text).unwrap();
    assert_eq!(read.event.as_ref().map(|event| &event.facts), three().first());
    assert!(read.more.iter().map(|more| &more.facts).eq(&three()[1..]));
    assert_eq!(read.write(None).unwrap(), text);
    let earlier: Earlier = serde_json::from_str(&text).unwrap();
    assert_eq!((earlier.result, earlier.event.unwrap().facts), (json!({}), three().remove(0)));
}

#[test]
fn a_key_that_failed_alone_is_told_apart() {
    let mut table = Table::new();
    let task = table.ready(store(), false);
    let mut facts = three();
    for (place, text) in [(0, "first"), (2, "third")] {
        facts[place].failure = Some(commands::CommandError::value_error(text));
    }
    let answer = answer(&table, &task, facts);
    let again = Answer::read(&answer.write(None).unwrap()).unwrap();
    for answer in [answer, again] {
        let mut table = Table::new();
        let task = table.ready(store(), false);
        let mut post = Post::of(table.policy.settlement.close(task.context, &TaskEnd::Answered(&answer)));
        let (publications, _) = post.send(|_, _| routed());
        assert_eq!(routes(&publications), ["replies", "store.failed", "store.succeeded"]);
        let (failed, succeeded) = (events(&publications[1..2]), events(&publications[2..]));
        let told = |event: &Value| (event["subject"].clone(), event["data"]["error"]["message"].clone());
        assert_eq!([told(&failed[0]), told(&failed[1])], [(json!("a"), json!("first")), (json!("c"), json!("third"))]);
        assert_eq!((told(&succeeded[0]), succeeded.len()), ((json!("b"), Value::Null), 1));
    }
}

#[test]
fn answers_of_the_version_with_one_key_are_read_and_written_as_they_were() {
    let mut table = Table::new();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journal-format-2");
    let mut lines = Vec::new();
    for file in fs::read_dir(fixtures).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|end| end == "answers") {
            lines.extend(fs::read_to_string(&path).unwrap().lines().map(str::to_owned));
        }
        fs::copy(&path, table._folder.path().join(path.file_name().unwrap())).unwrap();
    }
    assert_eq!(lines.len(), 2);
    for line in &lines {
        let (_, text) = line.split_once(' ').unwrap();
        assert_eq!(Answer::read(text).unwrap().write(None).unwrap(), text);
    }
    let message = |name: &str, id: &str, body: Value| {
        let mut message = task_message(name, &body);
        message.headers.set("id", id.into());
        message
    };
    let store = message("filestorage.store", "one", json!([["a/é", "v"], {}, {}]));
    let (sent, outcome) = table.end(store.clone(), true);
    assert_eq!((outcome, routes(&sent)), (CommandOutcome::Replayed, vec!["replies", "store.succeeded"]));
    assert_eq!(body(&sent[0])["result"], json!({"key": "a/é", "size": 3}));
    let digest = lines.iter().find(|line| line.contains("\"store\"")).unwrap().split_once(' ').unwrap().0;
    let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, format!("{digest}/succeeded").as_bytes()).to_string();
    assert_eq!(body(&sent[1])["id"], id.as_str(), "the id of the only event is made as it was");
    assert_eq!(body(&sent[1])["data"]["stored_size"], 3);
    let delete = message("filestorage.delete", "two", json!([["a/é"], {}, {}]));
    let (sent, _) = table.end(delete, true);
    assert_eq!(routes(&sent), ["replies", "delete.failed"]);
    assert_eq!(body(&sent[0])["result"]["exc_type"], "OSError");
}
