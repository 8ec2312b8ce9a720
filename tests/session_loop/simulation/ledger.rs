//! The ledger of a seed: everything that is wrong with what came of its commands.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use filestorage::broker::{DEAD_QUEUE, METRICS_QUEUE};
use filestorage::celery::message::Message;
use serde_json::Value;

use super::commands::{Expected, NEXT};
use crate::model::{Arrival, Model, Verdict, commands_of};
use crate::sent::write;
use crate::site::{REPLIES, Site, WORK, is_acknowledged};
use crate::work;

/// How long an answer is tried at least before it is given up.
const ANSWER_PATIENCE: Duration = Duration::from_secs(45);
/// The longest way to the broker and back.
const ROUND_TRIP: Duration = Duration::from_secs(1);

/// Tells whether nothing of a command is left in the broker: neither in its queue, nor with a worker, nor parked.
pub(super) fn is_over(model: &Model, command: &Expected) -> bool {
    let is_own = |message: &Message| message.properties.correlation_id.as_deref() == Some(command.id.as_str());
    let waits = model.queues[WORK].messages.iter().any(|stored| is_own(&stored.message));
    let held = model.clients.values().flat_map(|client| client.unsettled.values());
    let is_held = held.into_iter().any(|unsettled| is_own(&unsettled.stored.message));
    is_acknowledged(model, &command.id) && !waits && !is_held && !model.delayed.contains(&command.id)
}

/// Tells whether everything is over, and nothing is parked.
pub(super) fn is_done(model: &Model, expected: &[Expected]) -> bool {
    model.parked().is_empty() && expected.iter().all(|command| is_over(model, command))
}

/// What reached the queues, by the command.
struct Reached {
    replies: BTreeMap<String, Vec<Message>>,
    next: BTreeMap<String, Vec<Message>>,
    dead: BTreeMap<String, Vec<Message>>,
    events: BTreeMap<String, Vec<Message>>,
    effects: BTreeMap<u64, usize>,
    runs: Vec<u64>,
    with_events: bool,
}

/// Says everything that is wrong with the end of a seed.
pub(super) fn judge(site: &Site, expected: &[Expected]) -> Vec<String> {
    let by_id = |queue: &str| {
        let mut by_id: BTreeMap<String, Vec<Message>> = BTreeMap::new();
        for message in site.messages(queue) {
            for id in commands_of(&message) {
                by_id.entry(id).or_default().push(message.clone());
            }
        }
        by_id
    };
    let mut effects: BTreeMap<u64, usize> = BTreeMap::new();
    work::effects().iter().for_each(|effect| *effects.entry(effect.number).or_default() += 1);
    let reached = Reached {
        replies: by_id(REPLIES),
        next: by_id(NEXT),
        dead: by_id(DEAD_QUEUE),
        events: by_id(METRICS_QUEUE),
        effects,
        runs: work::runs(),
        with_events: site.options.events,
    };
    site.broker.change(|model| {
        let mut faults = model.held_for_too_long();
        for message in model.parked() {
            faults.push(format!("of {:?} something is still parked", commands_of(message)));
        }
        for command in expected {
            if is_over(model, command) {
                reached.judge(model, command, &mut faults);
            } else {
                faults.push(format!("{} is not over", command.id));
            }
        }
        faults.extend(early_acknowledgements(model, expected));
        faults
    })
}

impl Reached {
    fn judge(&self, model: &Model, command: &Expected, faults: &mut Vec<String>) {
        let id = &command.id;
        let is_doubtful = model.doubtful.contains(id);
        self.judge_answers(model, command, faults);
        let number = write(id, "k").number();
        if command.state == Some("REVOKED") && self.runs.contains(&number) {
            faults.push(format!("{id} ran though it had expired"));
        }
        let effects = self.effects.get(&number).copied().unwrap_or_default();
        if effects != usize::from(command.writes) {
            faults.push(format!("{id} took effect {effects} times"));
        }
        let of = |queue: &BTreeMap<String, Vec<Message>>| queue.get(id).cloned().unwrap_or_default();
        let (next, dead, events) = (of(&self.next), of(&self.dead), of(&self.events));
        let is_event = self.with_events && matches!(command.state, None | Some("SUCCESS"));
        let wanted = [
            ("callbacks", command.follows, true, next.iter().map(name).collect()),
            ("dead copies", command.is_dead, true, dead.iter().map(name).collect()),
            ("events", is_event, false, events.iter().flat_map(|message| event_names(message, id)).collect()),
        ];
        for (what, is_wanted, is_exact, names) in wanted {
            let names: Vec<String> = names;
            let different = BTreeSet::from_iter(&names).len();
            let has_some = !names.is_empty();
            if is_wanted != has_some && (is_wanted || is_exact) || names.len() > 1 && !is_doubtful || different > 1 {
                faults.push(format!("{id} has {} {what}, {different} different ones", names.len()));
            }
        }
    }

    fn judge_answers(&self, model: &Model, command: &Expected, faults: &mut Vec<String>) {
        let id = &command.id;
        let answers: Vec<Value> = self.replies.get(id).into_iter().flatten().map(answer).collect();
        let ends: BTreeSet<(String, String)> = answers.iter().filter_map(end).collect();
        let count = answers.iter().filter_map(end).count();
        match command.state {
            Some(_) if ends.is_empty() && was_given_up(model, id) => {}
            Some(state) if ends.len() != 1 => faults.push(format!("{id} has answers {ends:?} instead of one {state}")),
            Some(state) => {
                if ends.iter().any(|(found, _)| found != state) {
                    faults.push(format!("{id} is {ends:?} instead of {state}"));
                }
                if count != 1 && !model.doubtful.contains(id) {
                    faults.push(format!("{id} was answered {count} times without a reason"));
                }
            }
            None if count > 0 => faults.push(format!("{id} was answered though nobody asked")),
            None => {}
        }
    }
}

/// Tells whether the answer of a command may be given up when the last message about the command was acknowledged: the queue of answers had
/// taken nothing for so long, or the answer was parked for so long, each try of which may have met another fault.
fn was_given_up(model: &Model, id: &str) -> bool {
    let Some((settled, _)) = model.settled.iter().rev().find(|(_, of)| of == id) else { return false };
    let parked = model.settled.iter().find(|(_, of)| of == id).map(|(first, _)| *settled - *first);
    if parked.is_some_and(|parked| parked >= ANSWER_PATIENCE) {
        return true;
    }
    let mut refused_since = None;
    // Of what was taken in the meantime the worker did not know yet.
    let is_known = |arrival: &&Arrival| arrival.at + ROUND_TRIP <= *settled;
    for arrival in model.arrivals.iter().filter(|arrival| arrival.queue == REPLIES).filter(is_known) {
        match arrival.verdict {
            Verdict::Routed => refused_since = None,
            _ => _ = refused_since.get_or_insert(arrival.at),
        }
    }
    refused_since.is_some_and(|since| *settled - since >= ANSWER_PATIENCE)
}

/// Finds commands that were acknowledged before what they owe was confirmed.
fn early_acknowledgements(model: &Model, expected: &[Expected]) -> Vec<String> {
    let mut first: BTreeMap<(&str, String), usize> = BTreeMap::new();
    for (number, (queue, message)) in model.confirmed.iter().enumerate() {
        for id in commands_of(message) {
            let started = queue == REPLIES && end(&answer(message)).is_none();
            if !started {
                first.entry((queue, id)).or_insert(number);
            }
        }
    }
    let mut faults = Vec::new();
    for (id, confirmed) in &model.acknowledged {
        let Some(command) = expected.iter().find(|command| command.id == *id) else { continue };
        let delayed = first.keys().any(|(queue, of)| of == id && queue.starts_with("filestorage.delay."));
        let owes = [
            (command.state.is_some() && !was_given_up(model, id), REPLIES),
            (command.follows, NEXT),
            (command.is_dead, DEAD_QUEUE),
        ];
        for (_, queue) in owes.into_iter().filter(|(owes, _)| *owes && !delayed) {
            if first.get(&(queue, id.clone())).is_none_or(|number| number >= confirmed) {
                faults.push(format!("{id} was acknowledged before {queue} was confirmed"));
            }
        }
    }
    faults
}

/// Returns the id of a task.
fn name(message: &Message) -> String {
    message.headers.text("id").unwrap_or_default().to_owned()
}

/// Returns the ids of the events of a command in a message.
fn event_names(message: &Message, id: &str) -> Vec<String> {
    let events = match answer(message) {
        Value::Array(events) => events,
        event => vec![event],
    };
    let own = events.iter().filter(|event| event["data"]["task_id"] == id);
    own.map(|event| event["id"].as_str().unwrap_or_default().to_owned()).collect()
}

fn answer(message: &Message) -> Value {
    serde_json::from_slice(&message.body).unwrap_or_default()
}

/// Returns state and result of a final answer.
fn end(answer: &Value) -> Option<(String, String)> {
    let state = answer["status"].as_str().filter(|state| *state != "STARTED")?;
    Some((state.to_owned(), answer["result"].to_string()))
}
