//! The counting of the members of chords, as Celery's own backend does it, so that its workers and this one count together.

use std::collections::HashMap;

use jiff::Timestamp;
use redis::{Pipeline, Value};
use uuid::Uuid;

use super::super::ResultBackend as _;
use super::fault::Fault;
use super::{Kept, Redis};
use crate::broker::{Confirmation, Publish};
use crate::celery::chord::{AfterHeader, HeaderResult, Part, chord_error, dependency, join};
use crate::celery::reply::State;
use crate::json::{self, Json, ParseLimits};

/// The beginning of the keys of a chord, before the id of its group.
const GROUP: &str = "celery-taskset-meta-";
/// Seconds for which a worker may join a chord and publish its body before another one may do so.
const CLAIM: u64 = 15;
/// Seconds for which a chord that was joined is known, so that a late member counts for nothing.
const DONE: u64 = 300;
/// How many results a group may have inside one another.
const DEPTH: usize = 32;

/// Counts a member once, or tells the size of a header, and claims the chord once all members are counted. A group that is used again
/// begins anew with its size.
///
/// The keys, values and claims are those of `CHORD_PART_RETURN_LUA` in Celery 5.7. A chord stays as the first worker laid it out.
/// Beyond that, whoever holds the claim gets it again:
/// a body whose publication was not confirmed is published again. A claim of another worker is told apart (2), so that
/// a member which comes again outlives a worker that died with the claim.
const COUNT: &str = "
local jkey, tkey, skey, dkey, gkey, ckey = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local tid, value, score = ARGV[1], ARGV[2], ARGV[3]
local expires, claim_expires, claim_token = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local new_size, ordered = ARGV[7], ARGV[8]
if redis.call('GET', ckey) == 'done' then
    if new_size == '' then
        return {-1, 0}
    end
    redis.call('DEL', ckey)
end
local kind = redis.call('TYPE', jkey).ok
if kind ~= 'none' then
    ordered = kind == 'zset' and '1' or '0'
end
local member = tid .. ':' .. score
if new_size ~= '' then
    redis.call('SET', skey, new_size)
elseif redis.call('SISMEMBER', dkey, member) == 0 then
    if ordered == '1' then
        redis.call('ZADD', jkey, score, value)
    else
        redis.call('RPUSH', jkey, value)
    end
    redis.call('SADD', dkey, member)
end
local readycount = ordered == '1' and redis.call('ZCARD', jkey) or redis.call('LLEN', jkey)
if expires > 0 then
    for _, key in ipairs({jkey, tkey, skey, dkey, gkey}) do
        redis.call('EXPIRE', key, expires)
    end
end
local totaldiff = redis.call('GET', tkey)
local size = redis.call('GET', skey)
local claimed = 0
if size and readycount == tonumber(size) + tonumber(totaldiff or 0) then
    if redis.call('SET', ckey, claim_token, 'NX', 'EX', claim_expires) then
        claimed = 1
    elseif redis.call('GET', ckey) == claim_token then
        redis.call('EXPIRE', ckey, claim_expires)
        claimed = 1
    else
        claimed = 2
    end
end
return {readycount, claimed}
";

/// Reads what was counted, in either layout.
const COUNTED: &str = "
if redis.call('TYPE', KEYS[1]).ok == 'list' then
    return redis.call('LRANGE', KEYS[1], 0, -1)
end
return redis.call('ZRANGE', KEYS[1], 0, -1)
";

/// Ends a chord whose claim is still held: `CHORD_CLEANUP_LUA` of Celery 5.7.
const CLEAN_UP: &str = "
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5])
    redis.call('SET', KEYS[1], 'done', 'EX', tonumber(ARGV[2]))
    return 1
end
return 0
";

/// What is known of a member that was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    /// Others are still awaited, or the chord is joined already.
    Taken,
    /// It is the last one, and this worker joins the chord.
    Claimed,
    /// The chord is complete, and another worker joins it, unless that one has died.
    Elsewhere,
}

impl Redis {
    /// Counts members, and sends what follows those that were the last; returns what became of each.
    pub(super) async fn count(&self, publisher: &dyn Publish, parts: &[Option<Part>]) -> Vec<Kept> {
        let unreadable = || Kept::Never("what counts a member of a chord cannot be read".to_owned());
        let mut kept: Vec<Kept> =
            parts.iter().map(|part| if part.is_some() { Kept::Unknown } else { unreadable() }).collect();
        let known: Vec<(usize, &Part)> =
            parts.iter().enumerate().filter_map(|(at, part)| Some((at, part.as_ref()?))).collect();
        if known.is_empty() {
            return kept;
        }
        let mut pipeline = Pipeline::new();
        for (_, part) in &known {
            let key = |suffix: &str| self.chord_key(part, suffix);
            let score = part.index.map_or_else(|| "+inf".to_owned(), |index| index.to_string());
            pipeline.cmd("EVAL").arg(COUNT).arg(6);
            pipeline.arg(key(".j")).arg(key(".t")).arg(key(".s")).arg(key(".d")).arg(key("")).arg(key(".c"));
            pipeline.arg(&part.task_id).arg(&part.value).arg(score).arg(self.expires.unwrap_or(0));
            pipeline.arg(CLAIM).arg(self.token(part)).arg(part.size.map_or_else(String::new, |size| size.to_string()));
            pipeline.arg(u8::from(self.layout.is_ordered));
        }
        let Ok(values) = self.store.run(&pipeline).await else { return kept };
        for ((at, part), value) in known.into_iter().zip(&values) {
            kept[at] = match counted(value) {
                Ok(Counted::Taken) => Kept::Yes,
                Ok(Counted::Elsewhere) => Kept::Unknown,
                Ok(Counted::Claimed) => self.end(publisher, part).await,
                Err(fault) => {
                    self.store.note(&fault);
                    Kept::Unknown
                }
            };
        }
        kept
    }

    /// Returns a key of the chord of a member.
    fn chord_key(&self, part: &Part, suffix: &str) -> String {
        format!("{}{GROUP}{}{suffix}", self.layout.key_prefix, part.group)
    }

    /// Names the claim of a member on this node, which has it again after a restart.
    fn token(&self, part: &Part) -> String {
        let name = format!("{}/{}/{}/{}", self.replies.worker, part.group, part.task_id, part.index.unwrap_or(-1));
        Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).simple().to_string()
    }

    /// Joins a chord, sends its body or the failure of its body, and cleans up once that is confirmed.
    async fn end(&self, publisher: &dyn Publish, part: &Part) -> Kept {
        let joined = match self.joined(part).await {
            Ok(Some(joined)) => joined,
            // Of a chord within a header, a result is not there yet.
            Ok(None) => return Kept::Unknown,
            Err(fault) => {
                self.store.note(&fault);
                return Kept::Unknown;
            }
        };
        let has_failed = matches!(joined, HeaderResult::Failed(_));
        let now = Timestamp::now();
        let answer = |to: &_, exception: &_| self.answer_to(to, &State::Failure(exception), None, now);
        let AfterHeader { publications, sizes, answers } = part.ended(joined, &self.canvas, &answer, now);
        if has_failed {
            tracing::info!(group = part.group, "a chord has failed");
        }
        if !self.keep(&answers.iter().collect::<Vec<_>>()).await.iter().all(|kept| *kept == Kept::Yes) {
            return Kept::Unknown;
        }
        // Their members may end at once.
        let sizes: Vec<_> = sizes.into_iter().map(Some).collect();
        if !Box::pin(self.count(publisher, &sizes)).await.iter().all(|kept| *kept == Kept::Yes) {
            return Kept::Unknown;
        }
        if !publications.is_empty() {
            let limit = publisher.patience();
            let sent = publisher.publish_within(limit, publications, true, None).await;
            for answer in &sent {
                match answer {
                    Ok(Confirmation::Routed) => {}
                    Ok(Confirmation::Returned { text, .. }) => {
                        tracing::error!(group = part.group, text, "the body of a chord has no queue; it is sent again");
                        return Kept::Unknown;
                    }
                    Err(error) => {
                        tracing::warn!(group = part.group, %error, "the body of a chord was not confirmed; it is sent again");
                        return Kept::Unknown;
                    }
                }
            }
        }
        let mut pipeline = Pipeline::new();
        pipeline.cmd("EVAL").arg(CLEAN_UP).arg(5).arg(self.chord_key(part, ".c"));
        pipeline
            .arg(self.chord_key(part, ".j"))
            .arg(self.chord_key(part, ".t"))
            .arg(self.chord_key(part, ".s"))
            .arg(self.chord_key(part, ".d"));
        pipeline.arg(self.token(part)).arg(DONE);
        // What is left behind expires, and a member that comes again sends the body again, with the same id.
        match self.store.run(&pipeline).await {
            Ok(values) if matches!(values.as_slice(), [Value::Int(_)]) => Kept::Yes,
            _ => Kept::Unknown,
        }
    }

    /// Joins what was counted; `None` while a result of a nested group is awaited.
    async fn joined(&self, part: &Part) -> Result<Option<HeaderResult>, Fault> {
        let mut pipeline = Pipeline::new();
        pipeline
            .cmd("GET")
            .arg(self.chord_key(part, ""))
            .cmd("EVAL")
            .arg(COUNTED)
            .arg(1)
            .arg(self.chord_key(part, ".j"));
        let values = self.store.run(&pipeline).await?;
        match values.as_slice() {
            [Value::BulkString(saved), _] => self.nested(saved).await,
            [Value::Nil, Value::Array(counted)] => {
                let texts = counted.iter().filter_map(|value| match value {
                    Value::BulkString(text) => Some(text.as_slice()),
                    _ => None,
                });
                Ok(Some(join(texts)))
            }
            values => Err(values
                .iter()
                .find_map(|value| matches!(value, Value::ServerError(_)).then(|| Fault::of_value(value))?)
                .unwrap_or_else(|| Fault::passing("it answered a chord with something else".to_owned()))),
        }
    }

    /// Joins the results of a header with groups in it, whose structure is kept: `{"result": [[id, parent], [member…]]}`.
    async fn nested(&self, saved: &[u8]) -> Result<Option<HeaderResult>, Fault> {
        let tree = json::parse(saved, ParseLimits::default()).ok().and_then(|saved| saved.get("result").cloned());
        let mut ids = Vec::new();
        let Some(tree) = tree.filter(|tree| leaves(tree, &mut ids, DEPTH)) else {
            let why = "Join error: ValueError('the group of a chord cannot be read')";
            return Ok(Some(HeaderResult::Failed(chord_error(why.to_owned()))));
        };
        if ids.is_empty() {
            return Ok(Some(HeaderResult::Results("[]".to_owned())));
        }
        let mut pipeline = Pipeline::new();
        pipeline.cmd("MGET");
        for id in &ids {
            pipeline.arg(self.task_key(id));
        }
        let values = self.store.run(&pipeline).await?;
        let Some(Value::Array(found)) = values.first() else {
            return Err(Fault::passing("it answered with something else than results".to_owned()));
        };
        let mut results = HashMap::new();
        for (id, value) in ids.iter().zip(found) {
            let Value::BulkString(text) = value else { return Ok(None) };
            let meta = json::parse(text, ParseLimits::default()).ok();
            let status = meta.as_ref().and_then(|meta| meta.get("status")).and_then(Json::as_text);
            let result = meta.as_ref().and_then(|meta| meta.get("result")).cloned().unwrap_or(Json::Null);
            match status {
                Some("SUCCESS") => drop(results.insert(id.clone(), result)),
                Some("FAILURE" | "REVOKED") => return Ok(Some(HeaderResult::Failed(dependency(id, &result)))),
                _ => return Ok(None),
            }
        }
        Ok(Some(HeaderResult::Results(assembled(&tree, &results).compact())))
    }
}

/// Reads what the script answered.
fn counted(value: &Value) -> Result<Counted, Fault> {
    match value {
        Value::Array(values) => match values.as_slice() {
            [Value::Int(-1), _] | [Value::Int(_), Value::Int(0)] => Ok(Counted::Taken),
            [Value::Int(_), Value::Int(1)] => Ok(Counted::Claimed),
            [Value::Int(_), Value::Int(2)] => Ok(Counted::Elsewhere),
            _ => Err(Fault::passing("it answered the count of a chord with something else".to_owned())),
        },
        other => Err(Fault::of_value(other)
            .unwrap_or_else(|| Fault::passing("it answered the count of a chord with something else".to_owned()))),
    }
}

/// Collects the ids of the tasks in a saved result `[[id, parent], null or [member…]]`; tells whether it is one.
fn leaves(tree: &Json, ids: &mut Vec<String>, depth: usize) -> bool {
    let Some([own, members]) = tree.as_array() else { return false };
    match members {
        Json::Array(members) => depth > 0 && members.iter().all(|member| leaves(member, ids, depth - 1)),
        _ => {
            let id = own.as_array().and_then(<[Json]>::first).and_then(Json::as_text);
            ids.extend(id.map(str::to_owned));
            id.is_some()
        }
    }
}

/// Puts results in the places of their tasks.
fn assembled(tree: &Json, results: &HashMap<String, Json>) -> Json {
    match tree.as_array() {
        Some([_, Json::Array(members)]) => {
            Json::Array(members.iter().map(|member| assembled(member, results)).collect())
        }
        Some([own, _]) => own
            .as_array()
            .and_then(<[Json]>::first)
            .and_then(Json::as_text)
            .and_then(|id| results.get(id))
            .cloned()
            .unwrap_or(Json::Null),
        _ => Json::Null,
    }
}
