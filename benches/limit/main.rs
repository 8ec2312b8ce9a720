//! The limit: a bare lapin consumer that answers, awaits the confirm and acknowledges, message by message.
//!
//! It stores nothing and publishes once a command, with as many confirms under way as the prefetch allows. What a
//! worker on the same library reaches is measured against it. Two connections, so that acknowledgements and publishes
//! do not wait for each other, or one with `ONE_CONNECTION=1`. Started by `benches/run` with the
//! name of its queue.
//!
//! With `LIMIT_FOLDER` it also does the least that a store of files can do: it parses the body, and writes, syncs and renames
//! a file, or reads or removes it. It keeps no journal, checks nothing and tells nobody. What a worker costs beyond that is its own.

use std::error::Error;
use std::fmt::Write;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties};

const PREFETCH: u16 = 512;

type Failure = Box<dyn Error>;

// One thread: for small commands a second one costs more than it brings.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    // `cargo bench` and `cargo test --benches` start every bench target bare.
    let Some(queue) = std::env::args().skip(1).find(|argument| !argument.starts_with("--")) else {
        println!("limit: names no queue, nothing to do; benches/run drives it");
        return Ok(());
    };
    let broker = std::env::var("CELERY_BROKER_URL").unwrap_or_else(|_| "amqp://guest:guest@localhost:5672//".into());

    let consuming = Connection::connect(&broker, ConnectionProperties::default()).await?;
    let publishing = if std::env::var_os("ONE_CONNECTION").is_some() {
        None
    } else {
        Some(Connection::connect(&broker, ConnectionProperties::default()).await?)
    };
    let input = consuming.create_channel().await?;
    let output = publishing.as_ref().unwrap_or(&consuming).create_channel().await?;
    output.confirm_select(ConfirmSelectOptions::default()).await?;
    input.queue_declare(queue.as_str().into(), QueueDeclareOptions::durable(), FieldTable::default()).await?;
    input.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let mut deliveries = input
        .basic_consume(queue.into(), "limit".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await?;

    let folder = std::env::var_os("LIMIT_FOLDER").map(PathBuf::from);
    let folder = folder.as_deref();
    if let Some(folder) = folder {
        fs::create_dir_all(folder.join("bench"))?;
    }
    let mut unconfirmed = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(acknowledged) = unconfirmed.next(), if !unconfirmed.is_empty() => acknowledged?,
            delivery = deliveries.next() => match delivery {
                Some(delivery) => unconfirmed.push(answer(&output, folder, delivery?)),
                None => return Err("the consumer was cancelled".into()),
            },
        }
    }
}

async fn answer(output: &Channel, folder: Option<&Path>, delivery: Delivery) -> Result<(), Failure> {
    let request = &delivery.properties;
    let id = request.correlation_id().as_ref().ok_or("no correlation id")?;
    let reply_to = request.reply_to().as_ref().ok_or("no reply address")?;
    let result = match folder {
        Some(folder) => serve(folder, &delivery)?,
        None => "true".to_owned(),
    };
    let mut body = String::with_capacity(192 + result.len());
    write!(
        body,
        r#"{{"status": "SUCCESS", "result": {result}, "traceback": null, "children": [], "date_done": "{}", "task_id": "{id}"}}"#,
        jiff::Timestamp::now(),
    )?;
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("utf-8".into())
        .with_delivery_mode(2)
        .with_priority(0)
        .with_correlation_id(id.clone());
    let confirm = output
        .basic_publish("".into(), reply_to.clone(), BasicPublishOptions::default(), body.as_bytes(), properties)
        .await?;
    match confirm.await? {
        Confirmation::Ack(_) => {}
        refused => return Err(format!("reply not confirmed: {refused:?}").into()),
    }
    delivery.ack(BasicAckOptions::default()).await?;
    Ok(())
}

/// Stores, reads or removes one file; returns the result as JSON.
fn serve(folder: &Path, delivery: &Delivery) -> Result<String, Failure> {
    let headers = delivery.properties.headers().as_ref().ok_or("no headers")?;
    let Some(AMQPValue::LongString(task)) = headers.inner().get("task") else { return Err("no task".into()) };
    let (arguments, _, _): (Vec<serde_json::Value>, serde_json::Value, serde_json::Value) =
        serde_json::from_slice(&delivery.data)?;
    let key = arguments.first().and_then(|key| key.as_str()).ok_or("no key")?;
    let path = folder.join(key);
    match task.as_bytes() {
        b"filestorage.store" => {
            let temporary = path.with_extension("new");
            let mut file = File::create(&temporary)?;
            file.write_all(arguments.get(1).and_then(|value| value.as_str()).ok_or("no text")?.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            Ok("true".to_owned())
        }
        b"filestorage.retrieve" => Ok(serde_json::to_string(&fs::read_to_string(&path)?)?),
        _ => Ok(fs::remove_file(&path).is_ok().to_string()),
    }
}
