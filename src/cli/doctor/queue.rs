//! Checks the broker: whether it answers, which queues exist, and what this user may do.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::fanout;
use super::report::Report;
use crate::broker::{
    BrokerOptions, DEAD_QUEUE, Delay, EVENTS_EXCHANGE as EVENTS, Error, ErrorKind, Look, METRICS_QUEUE, Parking,
    Presence, PublishError, QueueSpec, QueueType, Session, Topology,
};
use crate::celery::message::{Address, Field, Headers, Message, Properties, Publication};
use crate::results::ResultBackend;
use crate::wiring::{Code, Failure};
use crate::worker::ParkedNote;

/// Parked publications that are listed.
const LISTED: usize = 10;
/// The longest wait for one answer of the broker.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Checks all brokers of the settings, and at the first one that answers, queues and permissions.
pub(super) async fn check(
    report: &mut Report<'_>,
    options: BrokerOptions,
    queues: &[String],
    events: bool,
    is_shared: bool,
    results: &dyn ResultBackend,
) -> Result<(), Failure> {
    let quorum = options.queue_type == QueueType::Quorum;
    let mut session = None;
    for url in &options.urls {
        let one = BrokerOptions { urls: vec![url.clone()], timeout: TIMEOUT, ..options.clone() };
        match Session::open(&one).await {
            Ok(opened) => {
                report.fine("broker", format!("{url} answers"))?;
                session.get_or_insert(opened);
            }
            Err(error) => report.fault("broker", code(&error), error.to_string())?,
        }
    }
    let Some(session) = session else {
        for part in ["queues", "parked", "publish", "events", "declare", "cache"] {
            report.skipped(part, "no broker answers")?;
        }
        return Ok(());
    };
    let topology = session.topology();
    let mut missing = Vec::new();
    for queue in queues.iter().map(String::as_str).chain([DEAD_QUEUE, METRICS_QUEUE]) {
        match topology.look(queue).await {
            Ok(Look::Present { messages, consumers }) => {
                report.fine("queues", format!("{queue}: {messages} messages wait, {consumers} consumers"))?;
            }
            Ok(Look::Missing) => missing.push(queue),
            Ok(Look::Down(words)) => {
                let remedy = "start the node of the cluster that holds it";
                report.fault("queues", Code::Unavailable, format!("{queue} cannot be reached: {words}; {remedy}"))?;
            }
            Err(error) => report.fault("queues", code(&error), format!("{queue}: {error}"))?,
        }
    }
    parked(report, &topology, &session.parking()).await?;
    declare(report, &topology, &session.delay(), &missing).await?;
    if quorum {
        // AMQP shows neither policies nor this limit.
        let limit = "RabbitMQ 4 drops a message of a quorum queue after 20 returns, unless a policy sets `delivery-limit` to -1";
        report.note("queues", format!("{limit}; `rabbitmqctl list_policies` shows it (RabbitMQ 3 has no limit)"))?;
    }
    publish(report, &session, results).await?;
    if events {
        publish_event(report, &session).await?;
    } else {
        report.skipped("events", "enable_events is false")?;
    }
    fanout::check(report, &session, is_shared).await?;
    session.close().await;
    Ok(())
}

/// Counts what is parked and lists the first of it; everything stays where it is. AMQP shows no sizes.
async fn parked(report: &mut Report<'_>, topology: &Topology, parking: &Parking) -> Result<(), Failure> {
    let (mut counts, mut missing, mut total) = (Vec::new(), Vec::new(), 0);
    for queue in Parking::queues() {
        match topology.look(&queue).await {
            Ok(Look::Present { messages, .. }) => {
                total += u64::from(messages);
                counts.push(format!("{messages} in {queue}"));
            }
            Ok(Look::Missing) => missing.push(queue),
            Ok(Look::Down(words)) => {
                let remedy = "start the node of the cluster that holds it";
                report.fault("parked", Code::Unavailable, format!("{queue} cannot be reached: {words}; {remedy}"))?;
            }
            Err(error) => report.fault("parked", code(&error), format!("{queue}: {error}"))?,
        }
    }
    if !missing.is_empty() {
        let missing = missing.join(", ");
        let remedy =
            "the first worker declares them, or deploy/rabbitmq/definitions; without them commands keep their slots";
        report.note("parked", format!("{missing}: not there yet; {remedy}"))?;
    }
    match total {
        0 => report.fine("parked", "no publication is parked"),
        _ => {
            let remedy =
                "empty the queues that take nothing; `rabbitmqctl list_queues name message_bytes` shows the sizes";
            report.note("parked", format!("{total} publications are parked: {}; {remedy}", counts.join(", ")))?;
            list_parked(report, parking).await
        }
    }
}

async fn list_parked(report: &mut Report<'_>, parking: &Parking) -> Result<(), Failure> {
    let now = Timestamp::now();
    match parking.peek(LISTED).await {
        Ok(messages) => {
            for message in messages {
                match ParkedNote::read(&message, now) {
                    Ok(ParkedNote { role, task_id, queue, since }) => {
                        let task = task_id.map_or_else(|| "an unnamed task".to_owned(), |id| format!("task {id}"));
                        report.note("parked", format!("{role} of {task} for '{queue}', parked since {since}"))?;
                    }
                    Err(why) => report.note("parked", format!("a message that cannot be read: {why}"))?,
                }
            }
            Ok(())
        }
        Err(error) => report.note("parked", format!("what is parked cannot be listed: {error}")),
    }
}

/// Declares a queue that is removed with this connection, to check whether this user may declare queues.
async fn declare(report: &mut Report<'_>, topology: &Topology, delay: &Delay, missing: &[&str]) -> Result<(), Failure> {
    let spec = QueueSpec {
        durable: false,
        exclusive: true,
        auto_delete: true,
        ..QueueSpec::durable(format!("filestorage.doctor-{}", Uuid::new_v4().simple()), QueueType::Classic)
    };
    let made = topology.ensure_queue(&spec).await;
    let missing = missing.join(", ");
    match made {
        Ok(Presence::Created | Presence::Present) if missing.is_empty() => {
            report.fine("declare", "this user may make queues")
        }
        Ok(Presence::Created | Presence::Present) => {
            report.note("queues", format!("{missing}: not there yet; the first worker declares them"))
        }
        Ok(Presence::Denied(words)) if missing.is_empty() => match delay.lack().await {
            Ok(None) => {
                report.fine("declare", "this user may not declare queues, which is not needed: all queues exist")
            }
            Ok(Some(lack)) => report.note("declare", format!("this user may make no queues ({words}): {lack}")),
            Err(error) => report.fault("declare", code(&error), error.to_string()),
        },
        Ok(Presence::Denied(words)) => {
            let remedy = format!("let another user make {missing}, or grant it");
            report.fault("queues", Code::Configuration, format!("{missing}: not there, and {words}; {remedy}"))
        }
        Ok(Presence::Down(words)) => report.fault("declare", Code::Unavailable, words),
        Err(error) => report.fault("declare", code(&error), error.to_string()),
    }
}

/// Checks whether answers can be given; nobody receives anything.
async fn publish(report: &mut Report<'_>, session: &Session, results: &dyn ResultBackend) -> Result<(), Failure> {
    let publisher = session.publisher();
    // A broker with an alarm accepts no message until the alarm is over.
    let Ok(probed) = tokio::time::timeout(TIMEOUT, results.probe(&publisher)).await else {
        let why = format!("{:?}", session.state());
        let remedy = if results.is_over_broker() {
            "if it is blocked, `rabbitmqctl status` names the alarm: free memory or disk there"
        } else {
            "start the store of results, or correct CELERY_RESULT_BACKEND"
        };
        return report.fault("publish", Code::Unavailable, format!("nothing is taken ({why}); {remedy}"));
    };
    match probed {
        Ok(()) => report.fine("publish", "this user may answer commands"),
        Err(PublishError::Refused { text, .. }) if !results.is_over_broker() => {
            report.fault("publish", Code::Configuration, format!("{text}; {}", results.remedy()))
        }
        Err(PublishError::Lost(text)) if !results.is_over_broker() => {
            let remedy = "start it, or correct CELERY_RESULT_BACKEND";
            report.fault("publish", Code::Unavailable, format!("no result can be kept: {text}; {remedy}"))
        }
        Err(PublishError::Refused { code, text }) => {
            let remedy = results.remedy();
            report.fault("publish", Code::Configuration, format!("the broker answered {code} {text}; {remedy}"))
        }
        Err(error) => report.fault("publish", Code::Unavailable, format!("{error}; try again")),
    }
}

/// Publishes an event that reaches no queue, to check the permission to publish events.
///
/// The broker checks the permission first, and then refuses the message because of its invalid expiration. A broker that
/// accepts the message delivers an event that is marked as a probe.
async fn publish_event(report: &mut Report<'_>, session: &Session) -> Result<(), Failure> {
    let id = Uuid::new_v4().to_string();
    let event = json!({
        "specversion": "1.0",
        "id": id,
        "source": "filestorage doctor",
        "type": "filestorage.probe",
        "datacontenttype": "application/json",
        "data": {"probe": true},
    });
    let message = Message {
        properties: Properties {
            content_type: Some("application/cloudevents+json".to_owned()),
            expiration: Some("probe".to_owned()),
            message_id: Some(id),
            ..Properties::default()
        },
        headers: Headers::from_iter([("filestorage_probe".to_owned(), Field::Bool(true))]),
        body: event.to_string().into(),
    };
    let address = Address { exchange: EVENTS.to_owned(), routing_key: "doctor.probe".to_owned() };
    let publisher = session.publisher();
    let publication = vec![Publication { address, message }];
    let Ok(mut answers) = tokio::time::timeout(TIMEOUT, publisher.publish(publication, true)).await else {
        return report.skipped("events", "the broker takes nothing now");
    };
    match answers.pop() {
        // 406 is the refusal of the expiration.
        Some(Ok(_) | Err(PublishError::Refused { code: 406, .. })) => {
            report.fine("events", format!("this user may publish events to the exchange {EVENTS}"))
        }
        Some(Err(PublishError::Refused { code: 404, .. })) => {
            report.note("events", format!("the exchange {EVENTS} is not there yet; the first worker declares it"))
        }
        Some(Err(PublishError::Refused { code, text })) => {
            let remedy = format!("grant the write permission on exchange {EVENTS} with rabbitmqctl set_permissions");
            let why = format!("events cannot be published: the broker answered {code} {text}; {remedy}");
            report.fault("events", Code::Configuration, why)
        }
        Some(Err(error)) => report.fault("events", Code::Unavailable, format!("{error}; try again")),
        None => report.skipped("events", "the broker said nothing"),
    }
}

fn code(error: &Error) -> Code {
    match error.kind() {
        ErrorKind::Unreachable | ErrorKind::Lost | ErrorKind::Down | ErrorKind::Full => Code::Unavailable,
        _ => Code::Configuration,
    }
}
