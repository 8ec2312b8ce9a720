//! What `celery inspect conf` and `report` show of the settings, and `stats` of the broker.

use crate::broker::BrokerUrl;
use crate::json::write_string;

/// The settings in force, without secrets, under Celery's names.
#[derive(Clone, Debug, Default)]
pub struct ShownSettings {
    set: String,
    all: String,
    report: String,
}

impl ShownSettings {
    /// Takes the settings over: name, value without secrets, and whether it is the default.
    #[must_use]
    pub fn new<'s>(settings: impl IntoIterator<Item = (&'s str, Option<&'s str>, bool)>) -> Self {
        let mut shown = Self { set: "{".to_owned(), all: "{".to_owned(), report: String::new() };
        for (name, value, is_default) in settings {
            let name = name.strip_prefix("celery_").unwrap_or(name);
            let out = [Some(&mut shown.all), (!is_default).then_some(&mut shown.set)];
            for out in out.into_iter().flatten() {
                out.push_str(if out.len() > 1 { "," } else { "" });
                write_string(out, name);
                out.push(':');
                write_value(out, value);
            }
            if !is_default {
                shown.report.push_str(&format!("{name}: {}\n", value.unwrap_or("-")));
            }
        }
        shown.set.push('}');
        shown.all.push('}');
        shown
    }

    /// Returns the settings as a JSON object: those that somebody set, or all of them.
    #[must_use]
    pub(in crate::worker) fn conf(&self, with_defaults: bool) -> &str {
        if with_defaults { &self.all } else { &self.set }
    }

    /// Returns a text for reports of faults.
    #[must_use]
    pub(in crate::worker) fn report(&self) -> String {
        let version = env!("CARGO_PKG_VERSION");
        let system = rustix::system::uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        format!(
            "\nsoftware -> filestorage:{version}\nplatform -> system:{} arch:{} kernel version:{}\n\n{}",
            text(system.sysname()),
            text(system.machine()),
            text(system.release()),
            self.report
        )
    }
}

/// Writes a value as JSON: a truth, a whole number or a text.
fn write_value(out: &mut String, value: Option<&str>) {
    match value {
        None => out.push_str("null"),
        Some(word @ ("true" | "false")) => out.push_str(word),
        Some(value) => match value.parse::<i64>() {
            Ok(number) => out.push_str(&number.to_string()),
            Err(_) => write_string(out, value),
        },
    }
}

/// Writes a broker's address in the fields of Celery, without the password.
pub(in crate::worker) fn broker_info(url: Option<&BrokerUrl>) -> String {
    let mut out = String::from("{\"hostname\":");
    write_string(&mut out, url.map_or("", BrokerUrl::host));
    out.push_str(",\"userid\":");
    write_string(&mut out, url.map_or("", BrokerUrl::user));
    out.push_str(",\"virtual_host\":");
    write_string(&mut out, url.map_or("", BrokerUrl::vhost));
    let (port, is_tls) = url.map_or((0, false), |url| (url.port(), url.is_tls()));
    out.push_str(&format!(
        ",\"port\":{port},\"insist\":false,\"ssl\":{is_tls},\"transport\":\"amqp\",\"connect_timeout\":null,\
         \"transport_options\":{{}},\"login_method\":null,\"uri_prefix\":null,\"heartbeat\":8.0,\
         \"failover_strategy\":\"round-robin\",\"alternates\":[],\"credential_provider\":null}}"
    ));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_shown_under_the_names_of_celery_with_their_types() {
        let settings = [
            ("celery_broker_url", Some("amqp://guest:***@h//"), false),
            ("celery_worker_concurrency", Some("8"), false),
            ("enable_cache", Some("true"), true),
            ("gcs_bucket_name", None, true),
        ];
        let shown = ShownSettings::new(settings);
        assert_eq!(shown.conf(false), r#"{"broker_url":"amqp://guest:***@h//","worker_concurrency":8}"#);
        assert!(shown.conf(true).ends_with(r#","enable_cache":true,"gcs_bucket_name":null}"#));
        let report = shown.report();
        assert!(report.contains("worker_concurrency: 8\n") && !report.contains("enable_cache"), "{report}");
    }

    #[test]
    fn the_broker_is_shown_without_its_password() {
        let urls = BrokerUrl::parse_all("amqps://me:secret@h:5671/v").unwrap();
        let info = broker_info(urls.first());
        assert!(info.contains(r#""hostname":"h","userid":"me","virtual_host":"v","port":5671"#), "{info}");
        assert!(!info.contains("secret") && crate::json::check(&info).is_ok());
        assert!(crate::json::check(&broker_info(None)).is_ok());
    }
}
