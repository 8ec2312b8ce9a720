//! Which Redis is the primary, by the word of its sentinels.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo as _, RedisConnectionInfo, Value, cmd};
use tokio::time::timeout;

use super::fault::Fault;
use crate::redis_url::{RedisNode, Sentinels};

/// How long a sentinel may take to answer, with the connection to it.
const ASK: Duration = Duration::from_secs(2);

/// Asks all sentinels at once and returns what the first one says that knows a primary.
pub(super) async fn primary(sentinels: &Sentinels) -> Result<RedisNode, Fault> {
    let asked = sentinels.nodes.iter().map(|node| async move {
        let asked = timeout(ASK, ask(node, sentinels)).await.unwrap_or_else(|_| Err(Fault::silent(ASK)));
        asked.map_err(|fault| fault.of_sentinel(node))
    });
    let mut asked: FuturesUnordered<_> = asked.collect();
    let mut told: Option<Fault> = None;
    while let Some(answer) = asked.next().await {
        match answer {
            Ok(primary) => return Ok(primary),
            // A wrong login is the reason only where all of them refuse it.
            Err(fault) if told.is_none() || !fault.is_login() => told = Some(fault),
            Err(_) => {}
        }
    }
    Err(told.unwrap_or_else(|| Fault::passing("no sentinel is named".to_owned())))
}

async fn ask(node: &RedisNode, sentinels: &Sentinels) -> Result<RedisNode, Fault> {
    let failed = |error| Fault::of(&error);
    let mut login = RedisConnectionInfo::default();
    if let Some(user) = &sentinels.login.user {
        login = login.set_username(user);
    }
    if let Some(password) = &sentinels.login.password {
        login = login.set_password(password);
    }
    let address = ConnectionAddr::Tcp(node.host.clone(), node.port);
    let client = Client::open(address.into_connection_info().map_err(failed)?.set_redis_settings(login));
    let config = AsyncConnectionConfig::new().set_connection_timeout(Some(ASK)).set_response_timeout(None);
    let mut sentinel =
        client.map_err(failed)?.get_multiplexed_async_connection_with_config(&config).await.map_err(failed)?;
    let question = cmd("SENTINEL").arg("MASTER").arg(&sentinels.master_name).to_owned();
    let state: HashMap<String, String> = question.query_async(&mut sentinel).await.map_err(failed)?;
    read(&state, sentinels.min_other)
}

/// Reads what a sentinel says of a primary.
fn read(state: &HashMap<String, String>, min_other: u64) -> Result<RedisNode, Fault> {
    let field = |name: &str| state.get(name).map(String::as_str).unwrap_or_default();
    let is = |flag: &str| field("flags").split(',').any(|one| one == flag);
    if !is("master") || is("s_down") || is("o_down") {
        return Err(Fault::passing("it says that the primary is down".to_owned()));
    }
    if field("num-other-sentinels").parse().unwrap_or(0) < min_other {
        return Err(Fault::passing("it knows too few other sentinels".to_owned()));
    }
    match (field("ip"), field("port").parse()) {
        (host, Ok(port)) if !host.is_empty() => Ok(RedisNode { host: host.to_owned(), port }),
        _ => Err(Fault::passing("it does not say where the primary is".to_owned())),
    }
}

/// Asks a server whether it is a primary, and returns whether replicas are connected to it.
pub(super) async fn has_replicas(connection: &mut MultiplexedConnection) -> Result<bool, Fault> {
    let role: Value = cmd("ROLE").query_async(connection).await.map_err(|error| Fault::of(&error))?;
    match role {
        Value::Array(fields) => match fields.as_slice() {
            [Value::BulkString(role), _, Value::Array(replicas)] if role == b"master" => Ok(!replicas.is_empty()),
            _ => Err(Fault::passing("the sentinels name a server that is no primary".to_owned())),
        },
        _ => Err(Fault::passing("it does not say whether it is a primary".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis_url::SentinelLogin;

    fn state(flags: &str, others: &str) -> HashMap<String, String> {
        let fields = [("ip", "h"), ("port", "1"), ("flags", flags), ("num-other-sentinels", others)];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[tokio::test]
    async fn a_sentinel_that_does_not_answer_has_two_seconds() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let node = RedisNode { host: "127.0.0.1".to_owned(), port: silent.local_addr().unwrap().port() };
        let (nodes, login) = (vec![node.clone(), node], SentinelLogin::default());
        let sentinels = Sentinels { nodes, master_name: "m".to_owned(), login, min_other: 0 };
        let begun = tokio::time::Instant::now();
        let fault = primary(&sentinels).await.unwrap_err().to_string();
        assert!(fault.starts_with("the sentinel 127.0.0.1:"), "{fault}");
        assert!((ASK..Duration::from_millis(3500)).contains(&begun.elapsed()), "all are asked at once");
    }

    #[test]
    fn only_a_primary_that_is_up_is_believed() {
        assert_eq!(read(&state("master", "1"), 1), Ok(RedisNode { host: "h".to_owned(), port: 1 }));
        assert!(read(&state("master", "0"), 1).is_err());
        for flags in ["master,s_down", "master,o_down,s_down", "slave", ""] {
            assert!(read(&state(flags, "1"), 0).is_err(), "{flags}");
        }
        assert!(read(&HashMap::new(), 0).is_err());
    }
}
