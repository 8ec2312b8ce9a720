//! A broker's URL in the library's terms.

use std::time::Duration;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo, SASLMechanism};

use crate::broker_url::{BrokerUrl, LoginMethod};

/// Says in the library's terms where the broker is and how to log in.
pub(super) fn to_lapin(url: &BrokerUrl, method: LoginMethod, heartbeat: u16, connect_within: Duration) -> AMQPUri {
    AMQPUri {
        scheme: if url.is_tls() { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: url.user().to_owned(), password: url.password().to_owned() },
            host: url.host().to_owned(),
            port: url.port(),
        },
        vhost: url.vhost().to_owned(),
        query: AMQPQueryString {
            heartbeat: Some(heartbeat),
            // RabbitMQ's own default. Without it the library grows its four buffers to 4 MiB each by writing zeros.
            frame_max: Some(128 << 10),
            connection_timeout: u64::try_from(connect_within.as_millis()).ok(),
            auth_mechanism: Some(match method {
                LoginMethod::Plain => SASLMechanism::Plain,
                LoginMethod::Amqplain => SASLMechanism::AMQPlain,
                LoginMethod::External => SASLMechanism::External,
            }),
            ..AMQPQueryString::default()
        },
    }
}
