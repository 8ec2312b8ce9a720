//! The task `filestorage.retrieve_many`: returns many values.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use tokio::sync::OnceCell;

use super::{Items, KEYS, entry, finished, keys};
use crate::commands::retrieve::json_of;
use crate::commands::{
    Arguments, Budget, CallSignature, Command, CommandError, Context, Definition, Engine, Facts, Finished, Held, Key,
    KeyUse, schemas,
};
use crate::storage::{COPIES, Error, ErrorKind, GetOptions, Operation};

pub(in crate::commands) static DEFINITION: Definition = Definition {
    task: "filestorage.retrieve_many",
    operation: Some("retrieve"),
    signature: CallSignature { function: "retrieve_many", required: &[KEYS], optional: &[], keyword_only: &[] },
    less: "fewer keys, or for large values one at a time with a destination",
    walks: true,
    result: || entry::schema(schemas::any_value()),
    parse,
};

/// The bytes of values that one answer may have without being counted on the byte budget.
const UNCOUNTED: u64 = 256 * 1024;

#[derive(Debug)]
struct RetrieveMany(Items<()>);

fn parse(mut arguments: Arguments) -> Result<Box<dyn Command>, CommandError> {
    Ok(Box::new(RetrieveMany(keys(&mut arguments, KeyUse::read)?)))
}

/// The bytes of one answer: how many there are, and how many there may be.
///
/// A larger answer is reserved on the budget once, as if it had all the bytes that it may have. Pieces of it that waited
/// one by one could wait for each other.
#[derive(Debug)]
struct Room {
    most: u64,
    taken: AtomicU64,
    exceeded: AtomicBool,
    budget: Option<Budget>,
    held: OnceCell<Held>,
}

impl Room {
    fn new(context: &Context) -> Self {
        Self {
            most: context.max_reply_bytes.map_or(u64::MAX, |most| most as u64),
            taken: AtomicU64::new(0),
            exceeded: AtomicBool::new(false),
            budget: context.budget.clone(),
            held: OnceCell::new(),
        }
    }

    /// Takes room for bytes that are about to be in memory.
    async fn take(&self, bytes: u64) -> Result<(), Error> {
        let taken = self.taken.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        if taken > self.most || self.exceeded.load(Ordering::Relaxed) {
            self.exceeded.store(true, Ordering::Relaxed);
            let why = "the values together are too large for one reply";
            return Err(Error::new(ErrorKind::Invalid, Operation::Retrieve, None, why));
        }
        if taken > UNCOUNTED
            && let Some(budget) = &self.budget
        {
            let bytes = self.most.saturating_mul(COPIES).min(budget.total());
            self.held.get_or_init(|| budget.use_when_free(bytes)).await;
        }
        Ok(())
    }

    /// Takes the room that the text of a value needs beyond the bytes of the value.
    async fn grow(&self, text: usize, bytes: u64) -> Result<(), Error> {
        self.take((text as u64).saturating_sub(bytes)).await
    }
}

#[async_trait]
impl Command for RetrieveMany {
    fn keys(&self) -> &[KeyUse] {
        &self.0.keys
    }

    async fn run(self: Box<Self>, engine: &Engine, context: Context) -> Finished {
        let room = Room::new(&context);
        let all = self.0.keys.clone();
        let retrieve = async |_, key, ()| read(engine, &key, &room).await;
        let mut answer = finished(self.0.run(retrieve).await);
        if room.exceeded.load(Ordering::Relaxed) {
            answer.result = Err(too_large(engine, &all, &room).await);
            return answer;
        }
        answer.held = room.held.into_inner().map(|mut held| {
            let bytes = answer.result.as_ref().map_or(0, |text| text.len() as u64);
            held.shrink(bytes.saturating_mul(COPIES));
            held
        });
        answer
    }
}

async fn read(engine: &Engine, key: &Key, room: &Room) -> (Result<String, CommandError>, Facts) {
    let mut facts = Facts::of(Some(key), engine);
    // A value that is too large for any reply is the failure of its own item.
    let options = GetOptions { limit: Some(room.most), ..GetOptions::default() };
    let read = engine.retrieve_admitted(key, options, |bytes| room.take(bytes)).await;
    let result = match read {
        Ok(Some(found)) => {
            facts.note(&found.receipt);
            let bytes = found.value.size();
            let text = json_of(found.value);
            room.grow(text.len(), bytes).await.map(|()| text)
        }
        Ok(None) => Ok("null".to_owned()),
        Err(error) => Err(error),
    };
    (result.map_err(CommandError::from), facts)
}

/// Makes the error of values that are too large for one reply, and looks how large they are.
async fn too_large(engine: &Engine, keys: &[KeyUse], room: &Room) -> CommandError {
    let items = keys.iter().map(|used| super::Item { name: None, work: Ok((used.key.clone(), ())) }).collect();
    let sum = AtomicU64::new(0);
    let look = async |_, key: Key, ()| {
        if let Ok(Some(stat)) = engine.stat(&key).await {
            sum.fetch_add(stat.receipt.size.unwrap_or(stat.receipt.stored_size), Ordering::Relaxed);
        }
        (Ok(String::new()), Facts::default())
    };
    drop(Items::new(items, KeyUse::read).run(look).await);
    let (sum, most) = (sum.into_inner(), room.most);
    CommandError::value_error(format!(
        "the values have {sum} bytes together and a reply may have {most} (max_reply_bytes), in which texts are quoted and \
         bytes are base64; ask for fewer keys in one command, or for a large value with `offset` and `length` or a \
         `destination` of `retrieve`"
    ))
}
