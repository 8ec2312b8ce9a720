//! What `filestorage doctor` says of a broker.

use std::process::Command;

use serde_json::Value;

use super::*;

/// Exit code, and status and text of every line by its check.
fn doctor(url: &str) -> (i32, Vec<(String, String)>) {
    doctor_of(url, "classic")
}

fn doctor_of(url: &str, queue_type: &str) -> (i32, Vec<(String, String)>) {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_filestorage"))
        .args(["doctor", "--json", "--celery-task-queues", "q,filestorage"])
        .current_dir(folder.path())
        .env_clear()
        .env("CELERY_BROKER_URL", url)
        .env("METRICS_PORT", "1")
        .env("CELERY_TASK_DEFAULT_QUEUE_TYPE", queue_type)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"));
    let of = |line: &Value, name: &str| line[name].as_str().unwrap().to_owned();
    let line = |line: &Value| (of(line, "check"), format!("{} {}", of(line, "status"), of(line, "text")));
    (output.status.code().unwrap(), report["checks"].as_array().unwrap().iter().map(line).collect())
}

#[track_caller]
fn says(lines: &[(String, String)], check: &str, begin: &str, part: &str) {
    let found = lines.iter().any(|(of, text)| of == check && text.starts_with(begin) && text.contains(part));
    assert!(found, "{check}: {begin}…{part} in {lines:#?}");
}

#[test]
fn doctor_looks_at_queues_and_takes_nothing() {
    live(async |node, vhost| {
        let url = node.url_for("guest:guest", &vhost);
        let (code, fresh) = doctor(&url);
        assert_eq!(code, 0, "{fresh:#?}");
        says(&fresh, "broker", "ok ", &vhost);
        let missing = "q, filestorage, filestorage.dead, filestorage.metrics: not there yet";
        says(&fresh, "queues", "note ", missing);
        says(&fresh, "publish", "ok ", "");
        assert!(!fresh.iter().any(|(_, text)| text.contains("delivery-limit")), "{fresh:#?}");
        says(&doctor_of(&url, "quorum").1, "queues", "note ", "delivery-limit");

        let session = open(node, &vhost).await;
        consume(&session, "q", 1).await.1.close().await.unwrap();
        publish(&session, numbered("q", 3)).await;
        let (code, used) = doctor(&url);
        assert_eq!(code, 0);
        says(&used, "queues", "ok q: 3 messages wait, 0 consumers", "");
        says(&used, "queues", "note filestorage, filestorage.dead", "");
        until_ready(&session, "q", 3).await;

        session.topology().ensure_metrics(10).await.unwrap();
        let (code, told) = doctor(&url);
        assert_eq!(code, 0);
        says(&told, "events", "ok ", "may publish events");
        // Bound to everything, it gets nothing.
        says(&told, "queues", "ok filestorage.metrics: 0 messages wait", "");
        says(&doctor(&url).1, "queues", "ok filestorage.metrics: 0 messages wait", "");
        for name in ["filestorage", "filestorage.dead"] {
            assert_eq!(session.topology().look(name).await.unwrap(), Look::Missing, "{name}: looking makes nothing");
        }
    });
}

#[test]
fn doctor_says_which_permission_is_missing() {
    live(async |node, vhost| {
        let user = format!("doctor-{vhost}");
        node.ctl(&["add_user", &user, "word"]);
        let url = node.url_for(&format!("{user}:word"), &vhost);
        let (code, outside) = doctor(&url);
        assert_eq!(code, 78, "{outside:#?}");
        says(&outside, "broker", "fault ", &format!("give user '{user}' access"));
        says(&outside, "queues", "skipped ", "");
        says(&outside, "disk", "", "");

        node.ctl(&["set_permissions", "--vhost", &vhost, &user, "^$", "^$", ".*"]);
        let (code, least) = doctor(&url);
        assert_eq!(code, 78);
        says(&least, "queues", "fault q, filestorage, ", "lacks the configure permission");
        says(&least, "publish", "fault ", "amq.default");

        let owner = open(node, &vhost).await;
        for queue in ["q", "filestorage", "filestorage.dead", "filestorage.metrics"] {
            owner.topology().ensure_queue(&QueueSpec::durable(queue, QueueType::Classic)).await.unwrap();
        }
        node.ctl(&["set_permissions", "--vhost", &vhost, &user, "^$", "^amq\\.default$", ".*"]);
        let (code, silent) = doctor(&url);
        assert_eq!(code, 78, "{silent:#?}");
        says(&silent, "events", "fault ", "grant the write permission on exchange filestorage.events");
        node.ctl(&["set_permissions", "--vhost", &vhost, &user, "^$", "^(amq\\.default|filestorage\\.events)$", ".*"]);
        let (code, enough) = doctor(&url);
        assert_eq!(code, 0, "{enough:#?}");
        says(&enough, "events", "note ", "not there yet");
        says(&enough, "declare", "note this user may make no queues", "25 delay queues are missing");
        says(&enough, "publish", "ok ", "");
    });
}

#[test]
fn doctor_tries_every_url() {
    live(async |node, vhost| {
        let (code, lines) = doctor(&format!("amqp://127.0.0.1:1//;{}", node.url_for("guest:guest", &vhost)));
        assert_eq!(code, 69, "{lines:#?}");
        says(&lines, "broker", "fault ", "127.0.0.1:1");
        says(&lines, "broker", "ok ", &vhost);
        says(&lines, "queues", "note ", "");
    });
}
