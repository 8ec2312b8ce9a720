//! The table of time constants: what each bounds, and the test that shows it.
//!
//! `cargo test --test session_loop constants -- --nocapture` prints the table.

use std::path::{Path, PathBuf};

/// The folders whose constants are in the table.
const ROOMS: [&str; 3] = ["src/worker", "src/broker", "src/results"];

/// One constant.
struct Row {
    /// The file, and the name.
    path: &'static str,
    value: &'static str,
    bounds: &'static str,
    /// The test that fails when the constant is another one.
    test: &'static str,
}

const fn row(path: &'static str, value: &'static str, bounds: &'static str, test: &'static str) -> Row {
    Row { path, value, bounds, test }
}

#[rustfmt::skip]
const TABLE: &[Row] = &[
    row("broker/backoff.rs::FIRST", "100 ms", "the first wait for the next session", "the_ceiling_doubles_up_to_the_last"),
    row("broker/backoff.rs::LAST", "1 s", "every later wait for the next session", "the_ceiling_doubles_up_to_the_last"),
    row("broker/connector.rs::TRIAL", "60 s", "a trial of a queue without a consumer", "test_a_queue_that_gives_no_consumer_delays_no_other"),
    row("broker/gate.rs::PAUSE", "2 s", "a connection that is not read since nobody takes what came", "a_closed_gate_opens_a_little_after_two_seconds"),
    row("broker/keepalive.rs::LOOK", "1 s", "the time between two looks at an idle broker", "a_keepalive_makes_an_idle_broker_answer"),
    row("broker/keepalive.rs::LULL", "2 s", "the silence after which an idle broker is asked something", "a_keepalive_makes_an_idle_broker_answer"),
    row("broker/last_read.rs::DOUBT", "5500 ms", "the silence after which nothing begins", "nothing_begins_after_a_silence_of_five_and_a_half_seconds"),
    row("broker/last_read.rs::LATE", "60 s", "how long after a silence a delivery may be a second one", "what_comes_a_minute_after_a_silence_is_not_late"),
    row("broker/link.rs::LOOK", "1 s", "the time until a connection that ended unsaid is noticed", "a_silent_peer_is_noticed_by_its_missing_heartbeat"),
    row("broker/parking.rs::STEPS", "5 s, 30 s, 300 s", "the waits of parked publications", "later_steps_wait_longer_and_all_together_keep_the_bound"),
    row("broker/prefetch.rs::REST", "1 s", "the time between two changes of a prefetch", "a_prefetch_changes_once_a_second"),
    row("broker/session.rs::HASTE", "3 s", "the wait for one URL while another is untried", "a_url_that_does_not_answer_has_three_seconds"),
    row("results/redis/connection.rs::CONNECT", "4 s", "how long a connection to a Redis may take", "a_redis_that_does_not_greet_has_four_seconds"),
    row("results/redis/connection.rs::ANSWER", "5 s", "how long the answers of a Redis are waited for", "a_redis_that_does_not_answer_has_five_seconds"),
    row("results/redis/connection.rs::REPLICATED", "1 s", "how long a replica may take to have a result", "test_a_result_waits_for_a_replica"),
    row("results/redis/sentinel.rs::ASK", "2 s", "how long a sentinel may take to answer", "a_sentinel_that_does_not_answer_has_two_seconds"),
    row("results/redis/mod.rs::CHECK", "5 s", "the time between two checks of an idle Redis", "an_idle_redis_is_checked_every_five_seconds"),
    row("results/redis/mod.rs::TROUBLE", "1 s", "the time between two checks of a Redis that takes nothing", "an_idle_redis_is_checked_every_five_seconds"),
    row("worker/consumed_queues.rs::LOOK_AGAIN", "5 s", "the time until a consumed queue that is back is noticed", "a_consumed_queue_that_is_back_is_noticed"),
    row("worker/consumed_queues.rs::LONGEST_WAIT", "60 s", "the time between two trials of a queue without a consumer", "a_queue_without_a_consumer_is_tried_every_minute"),
    row("worker/dead_bound.rs::LOOK", "5 s", "the time until the bound of dead copies is kept", "dead_copies_above_their_bound_go_every_five_seconds"),
    row("worker/delivery/destinations.rs::FIRST_WAIT", "1 s", "the first wait for an address that took nothing", "a_full_queue_is_tried_every_five_seconds_in_the_end"),
    row("worker/delivery/destinations.rs::LONGEST_REFUSAL", "5 s", "the time between two tries of a full queue", "a_full_queue_is_tried_every_five_seconds_in_the_end"),
    row("worker/delivery/destinations.rs::LONGEST_SILENCE", "60 s", "the time between two tries of a silent queue", "a_silent_queue_is_tried_every_minute_in_the_end"),
    row("worker/delivery/destinations.rs::GLANCE", "1 s", "the wait for a confirm of a hopeless address", "an_answer_to_a_hopeless_address_has_a_glance_only"),
    row("worker/delivery/destinations.rs::HOPE", "300 s", "how long an address is hopeless without a try", "an_answer_to_a_hopeless_address_has_a_glance_only"),
    row("worker/delivery/destinations.rs::REFUSAL_MEMORY", "60 s", "how long a refusal counts", "a_refusal_is_forgotten_after_a_minute"),
    row("worker/delivery/destinations.rs::SILENCE_MEMORY", "3600 s", "how long a silence counts", "a_silence_is_forgotten_after_an_hour"),
    row("worker/delivery/destinations.rs::ANSWER_PATIENCE", "45 s", "how long an answer is tried at least", "an_answer_is_tried_for_three_quarters_of_a_minute"),
    row("worker/delivery/parked_consumer.rs::AGAIN", "5 s", "the time between two looks at the queues of parking", "queues_of_parking_are_looked_for_every_five_seconds"),
    row("worker/delivery/parking.rs::PATIENCE", "5 s", "how long a publication is tried before it is parked", "a_callback_is_parked_at_the_first_look_after_five_seconds"),
    row("worker/delivery/parking.rs::HASTE", "500 ms", "the same while half of the slots are held", "half_of_the_slots_make_haste_to_park"),
    row("worker/delivery/parking.rs::LONGEST_HOLD", "600 s", "how long a command keeps its slot", "a_slot_is_kept_for_ten_minutes_and_the_answer_is_known"),
    row("worker/delivery/parking.rs::REST", "5 s", "the time between two tries to park", "nothing_is_parked_for_five_seconds_after_a_step_refused"),
    row("worker/delivery/way.rs::SLOW", "1 s", "how long everybody waits for one address", "what_a_slow_batch_has_confirmed_is_settled_after_a_second"),
    row("worker/invalidations/mod.rs::PATIENCE", "45 s", "how long a caller waits for an announcement", "an_announcement_that_is_not_confirmed_ends_the_wait"),
    row("worker/invalidations/session.rs::HEARTBEAT", "10 s", "the time between two announcements", "a_worker_without_changes_announces_every_ten_seconds"),
    row("worker/invalidations/session.rs::CHECK_INTERVAL", "5 s", "the time between two checks that announcements come back", "what_does_not_come_back_is_missed_at_the_third_check"),
    row("worker/invalidations/session.rs::FIRST_RETRY", "1 s", "the first wait for a missing exchange", "a_missing_exchange_is_looked_at_less_and_less_often"),
    row("worker/invalidations/session.rs::LONGEST_RETRY", "30 s", "every later wait for a missing exchange", "a_missing_exchange_is_looked_at_less_and_less_often"),
    row("worker/invalidations/session.rs::PAUSE", "1 s", "the wait before an announcement is sent again", "an_unconfirmed_announcement_is_sent_again_after_a_second"),
    row("worker/journal/admission.rs::FOLLOW", "20 ms", "the age of the view of other journals", "the_view_of_siblings_is_twenty_milliseconds_old_at_most"),
    row("worker/journal/admission.rs::LONGEST_WAIT", "15 s", "the wait for the end of a run elsewhere", "a_run_elsewhere_is_waited_for_up_to_fifteen_seconds"),
    row("worker/journal/admission.rs::SESSION_WAIT", "2 s", "the wait for what becomes of a session elsewhere", "an_answer_elsewhere_is_waited_for_two_seconds"),
    row("worker/journal/lookup.rs::OPEN", "60 s", "how long after a session a fresh message may be a second copy", "a_second_copy_that_is_called_fresh_is_known_for_a_minute"),
    row("worker/journal/mod.rs::KEEP_ADOPTED", "3600 s", "how long adopted files of the earlier version stay", "what_the_earlier_version_took_over_is_swept_after_an_hour"),
    row("worker/journal/mod.rs::KEEP_SEGMENT", "120 s", "how long answers are kept, and the loss of a journal told", "a_journal_that_was_deleted_is_told_for_two_minutes"),
    row("worker/journal/revocations.rs::FRESH", "86400 s", "how long what is revoked again is not written again", "what_is_revoked_again_is_written_once_a_day"),
    row("worker/journal/revocations.rs::KEEP", "2592000 s", "how long a revocation is remembered", "the_oldest_are_forgotten_and_old_ones_do_not_count"),
    row("worker/journal/revocations.rs::LOOK", "1 s", "the time until a revocation of another worker is known", "what_is_revoked_is_known_after_a_restart_and_to_siblings"),
    row("worker/mod.rs::GOOD_SESSION", "10 s", "the life of a session after which waits begin anew", "a_session_of_ten_seconds_was_a_good_one"),
    row("worker/mod.rs::SECOND_LOOK", "5 s", "the time until a permanent fault at the start is believed", "a_fault_that_lasts_is_believed_after_a_second_look"),
    row("worker/own_queues.rs::LOOK_AGAIN", "5 s", "the time until an own queue that is back is noticed", "an_own_queue_that_is_back_is_noticed_after_five_seconds"),
    row("worker/own_queues.rs::UNHEARD", "1 s", "how long nobody asks who hears events", "events_that_nobody_hears_are_asked_for_once_a_second"),
    row("worker/remote/limits.rs::LOOK", "1 s", "the time until a rate limit that was lifted is noticed", "a_rate_limit_holds_and_ends_at_once"),
    row("worker/remote/monitor.rs::HEARTBEAT", "2 s", "the time between two heartbeats", "a_heartbeat_is_sent_every_two_seconds_until_the_end"),
    row("worker/remote/pidbox.rs::AGAIN", "5 s", "the time between two tries of a pidbox that another session has", "a_node_name_that_is_taken_is_asked_for_again"),
    row("worker/remote/pidbox.rs::DENIED_AGAIN", "60 s", "the same where a right is missing", "without_the_right_to_a_pidbox_commands_go_on"),
    row("worker/session_loop.rs::HUSH", "1 s", "the silence from which on every end is written at once, and the turn of an idle loop", "what_ends_in_a_silence_of_a_second_is_written_at_once"),
    row("worker/session_loop.rs::SKEW", "2 s", "how far the clocks of two workers may differ", "what_a_sibling_began_two_seconds_before_a_silence_counts"),
    row("worker/session_loop.rs::FAREWELL", "3 s", "the wait for the broker at a stop", "a_close_that_is_not_answered_ends_after_the_farewell"),
    row("worker/session_loop.rs::LAST_WRITES", "5 s", "the wait for writes that took effect when a session ends", "writes_that_took_effect_are_waited_for_at_the_end"),
    row("worker/session_loop/control.rs::GOODBYE", "1 s", "the wait for the last word to monitors", "a_last_word_that_nobody_takes_is_given_up"),
    row("worker/session_loop/deferred.rs::GLANCE", "250 ms", "the time until the end of a run elsewhere is noticed", "the_end_of_a_run_elsewhere_is_noticed_at_the_next_glance"),
    row("worker/session_loop/retry.rs::WAITS", "10 s, 300 s", "the wait before a command runs again", "waits_double_up_to_five_minutes"),
    row("worker/session_loop/deferred.rs::PATIENCE", "1 s", "the time between two looks at a delay queue that is down", "a_delay_queue_that_is_down_is_asked_for_once_a_second"),
    row("worker/session_loop/delivery.rs::LOOK", "100 ms", "the time between two looks at what waits for too long", "a_callback_is_parked_at_the_first_look_after_five_seconds"),
    row("worker/session_loop/deferred.rs::OUTAGE_LOOK", "1 s", "the time until a bucket that is back is noticed", "test_an_outage_uses_up_no_retries"),
    row("worker/session_loop/parking.rs::REPORT", "1 s", "the time between two reports of held commands", "held_commands_are_told_once_a_second"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the files below a folder with this extension.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found
}

/// Returns the constants of a source, with their values.
fn constants(source: &str) -> Vec<(String, Result<String, String>)> {
    let code = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let mut found = Vec::new();
    for (place, _) in code.match_indices("const ") {
        let declaration = &code[place + "const ".len()..];
        let Some((declared, rest)) = declaration.split_once('=') else { continue };
        let Some((name, kind)) = declared.split_once(':') else { continue };
        let is_name =
            name.chars().all(|letter| letter.is_ascii_uppercase() || letter.is_ascii_digit() || letter == '_');
        if is_name && kind.contains("Duration") {
            let expression = rest.split(';').next().unwrap_or_default();
            // The length of an array stands behind a semicolon, too.
            found.push((
                name.to_owned(),
                value(if kind.contains('[') { &rest[..rest.find("];").unwrap() + 1] } else { expression }),
            ));
        }
    }
    found
}

/// Evaluates sums and lists of durations.
fn value(expression: &str) -> Result<String, String> {
    let unknown = || format!("`{}` is no sum of `Duration::from_…`", expression.trim());
    let mut values = Vec::new();
    let mut between = "";
    let mut rest = expression;
    while let Some((before, after)) = rest.split_once("Duration::from_") {
        let (unit, after) = after.split_once('(').ok_or_else(unknown)?;
        let (number, after) = after.split_once(')').ok_or_else(unknown)?;
        let factors = number.split('*').map(|factor| factor.trim().replace('_', "").parse::<u64>());
        let number = factors.product::<Result<u64, _>>().map_err(|_| unknown())?;
        let unit = match unit {
            "millis" => 1,
            "secs" => 1_000,
            "mins" => 60_000,
            "hours" => 3_600_000,
            _ => return Err(unknown()),
        };
        between = before;
        match values.last_mut() {
            Some(last) if before.trim() == "+" => *last += number * unit,
            _ => values.push(number * unit),
        }
        rest = after;
    }
    if values.is_empty() || !between.chars().all(|sign| " +()[],\n0123456789_".contains(sign)) {
        return Err(unknown());
    }
    let text = |milliseconds: u64| match milliseconds {
        whole if whole.is_multiple_of(1_000) => format!("{} s", whole / 1_000),
        part => format!("{part} ms"),
    };
    Ok(values.into_iter().map(text).collect::<Vec<_>>().join(", "))
}

/// Returns every constant of the rooms with its value.
fn all() -> Vec<(String, Result<String, String>)> {
    let mut all = Vec::new();
    for file in ROOMS.iter().flat_map(|room| files(&root().join(room), "rs")) {
        let path = file.strip_prefix(root().join("src")).unwrap().to_str().unwrap().to_owned();
        if !path.ends_with("/tests.rs") && !path.contains("/tests/") {
            let found = constants(&std::fs::read_to_string(&file).unwrap());
            all.extend(found.into_iter().map(|(name, value)| (format!("{path}::{name}"), value)));
        }
    }
    all
}

/// Says how sources and table differ.
fn complaints(all: &[(String, Result<String, String>)], table: &[Row]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, value) in all {
        match (table.iter().find(|row| row.path == path), value) {
            (None, _) => complaints.push(format!("{path} is not in the table")),
            (Some(_), Err(why)) => complaints.push(format!("{path}: {why}")),
            (Some(row), Ok(value)) if row.value != value => {
                complaints.push(format!("{path} is {value}, not {}", row.value))
            }
            _ => {}
        }
    }
    let gone = table.iter().filter(|row| all.iter().all(|(path, _)| path != row.path));
    complaints.extend(gone.map(|row| format!("{} is not there", row.path)));
    complaints
}

/// Tells whether a source has a test of this name.
fn has_test(source: &str, name: &str) -> bool {
    if source.contains(&format!("def {name}(")) {
        return name.starts_with("test_");
    }
    let Some((before, _)) = source.split_once(&format!("fn {name}(")) else { return false };
    let (before, _) = before.rsplit_once('\n').unwrap_or_default();
    let attributes = before.lines().rev().take_while(|line| line.trim_start().starts_with('#'));
    attributes.into_iter().any(|line| line.contains("test"))
}

#[test]
fn every_time_constant_is_in_the_table() {
    let complaints = complaints(&all(), TABLE);
    assert!(complaints.is_empty(), "{complaints:#?}");
    for row in TABLE {
        println!("{:52} {:16} {}\n{:70}{}", row.path, row.value, row.bounds, "", row.test);
    }
}

#[test]
fn every_time_constant_has_its_test() {
    let rust = ["src", "tests"].iter().flat_map(|folder| files(&root().join(folder), "rs"));
    let python = files(&root().join("tests"), "py");
    let sources: Vec<_> = rust.chain(python).map(|file| std::fs::read_to_string(file).unwrap()).collect();
    let missing = TABLE.iter().filter(|row| !sources.iter().any(|source| has_test(source, row.test)));
    let missing: Vec<_> = missing.map(|row| format!("{}: {} does not exist", row.path, row.test)).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn a_constant_that_is_missing_or_another_one_is_found() {
    let source = "const A: Duration = Duration::from_secs(7 * 86_400);\n\
                  pub(super) const B: Duration =\n    Duration::from_secs(1) + Duration::from_millis(5);\n\
                  const C: [(Duration, u64); 2] = [(Duration::from_secs(5), 4), (Duration::from_millis(30), 2)];\n\
                  const D: usize = 4;\nconst fn e() -> Duration {}\nconst F: Duration = A;\n\
                  #[cfg(test)]\nmod tests {\n    const G: Duration = Duration::from_secs(1);\n}";
    let found = constants(source);
    let values: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_deref().ok())).collect();
    assert_eq!(values, [("A", Some("604800 s")), ("B", Some("1005 ms")), ("C", Some("5 s, 30 ms")), ("F", None)]);
    let table = [row("A", "604800 s", "", ""), row("B", "1 s", "", ""), row("Z", "1 s", "", "")];
    let complaints = complaints(&found, &table);
    assert_eq!(
        complaints,
        ["B is 1005 ms, not 1 s", "C is not in the table", "F is not in the table", "Z is not there"]
    );
    assert!(has_test("#[test]\n#[ignore]\nfn a() {}", "a") && !has_test("fn a() {}", "a") && !has_test("", "a"));
}
