//! Finds the HTTP proxy that the environment names for Cloud Storage, by the rules of the HTTP client.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The server of Cloud Storage, for the choice of a proxy.
const GOOGLE: &str = "https://storage.googleapis.com";

/// A function that returns an environment variable, or `None` when the variable is unset or empty.
type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Returns the proxy for requests to Cloud Storage or its emulator, and the variable that names it, as text.
///
/// The text has no user and no password.
pub(crate) fn of(emulator: Option<&str>) -> Option<String> {
    let server = emulator.unwrap_or(GOOGLE);
    if is_loopback(host(server)) {
        return None;
    }
    found(server, &variable)
}

/// Excludes an emulator on this machine from the use of a proxy, which could not reach it.
///
/// Google's client finds proxies only by the environment, which a running program cannot change safely. When a proxy would
/// be used, the program therefore executes itself again in the same process, with the emulator's host in `NO_PROXY`.
pub(crate) fn exclude_loopback(emulator: Option<&str>) -> Result<(), String> {
    let Some(server) = emulator.filter(|server| is_loopback(host(server))) else { return Ok(()) };
    if found(server, &variable).is_none() {
        return Ok(());
    }
    let excluded = variable("NO_PROXY").or_else(|| variable("no_proxy"));
    let excluded = excluded.map_or_else(|| host(server).to_owned(), |hosts| format!("{hosts},{}", host(server)));
    let mut arguments = std::env::args_os();
    let mut again = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        again.arg0(name);
    }
    let error = again.args(arguments).env("NO_PROXY", &excluded).env("no_proxy", &excluded).exec();
    Err(format!("{server} must be asked without a proxy: {error}; add {} to NO_PROXY", host(server)))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Finds the proxy for a server, and the variable that names it.
fn found(server: &str, variable: Variable<'_>) -> Option<String> {
    let names: &[&str] = match server.split_once("://") {
        Some(("https", _)) => &["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"],
        // In a CGI program, HTTP_PROXY may come from a header of the request.
        _ if variable("REQUEST_METHOD").is_some() => &["http_proxy", "ALL_PROXY", "all_proxy"],
        _ => &["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"],
    };
    let (name, proxy) = names.iter().find_map(|name| Some((name, variable(name)?)))?;
    let excluded = variable("NO_PROXY").or_else(|| variable("no_proxy")).unwrap_or_default();
    if excluded.split(',').any(|pattern| excludes(pattern.trim(), host(server))) {
        return None;
    }
    let (scheme, rest) = proxy.split_once("://").unwrap_or(("http", &proxy));
    let address =
        rest.rsplit_once('@').map_or(rest, |(_, address)| address).split(['/', '?', '#']).next().unwrap_or_default();
    Some(format!("{scheme}://{address} ({name})"))
}

/// Tells whether an item of `NO_PROXY` excludes a host: the item is the host, one of its domains, or `*`.
fn excludes(pattern: &str, host: &str) -> bool {
    let domain = pattern.strip_prefix('.').unwrap_or(pattern);
    pattern == "*"
        || (!domain.is_empty() && host.eq_ignore_ascii_case(domain))
        || (!domain.is_empty() && host.to_ascii_lowercase().ends_with(&format!(".{}", domain.to_ascii_lowercase())))
}

/// Returns the host of a URL, with an IPv6 address without its brackets.
fn host(server: &str) -> &str {
    let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        Some((address, _)) => address,
        None => authority.split(':').next().unwrap_or_default(),
    }
}

fn is_loopback(host: &str) -> bool {
    let name = host.to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<'a>(set: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn the_proxy_of_a_server_is_named_without_its_login() {
        for (server, set, proxy) in [
            (GOOGLE, &[][..], None),
            (GOOGLE, &[("HTTP_PROXY", "http://p")], None),
            (GOOGLE, &[("HTTPS_PROXY", "http://u:secret@p:3128/")], Some("http://p:3128 (HTTPS_PROXY)")),
            (GOOGLE, &[("https_proxy", "p:3128")], Some("http://p:3128 (https_proxy)")),
            (GOOGLE, &[("ALL_PROXY", "socks5://p")], Some("socks5://p (ALL_PROXY)")),
            ("http://gcs:1", &[("HTTP_PROXY", "http://p")], Some("http://p (HTTP_PROXY)")),
            ("http://gcs:1", &[("HTTP_PROXY", "http://p"), ("REQUEST_METHOD", "GET")], None),
            ("http://gcs:1", &[("HTTP_PROXY", "http://p"), ("NO_PROXY", "a, gcs")], None),
            (GOOGLE, &[("HTTPS_PROXY", "http://p"), ("NO_PROXY", ".googleapis.com")], None),
            (GOOGLE, &[("HTTPS_PROXY", "http://p"), ("no_proxy", "*")], None),
            (GOOGLE, &[("HTTPS_PROXY", "http://p"), ("NO_PROXY", "apis.com")], Some("http://p (HTTPS_PROXY)")),
        ] {
            assert_eq!(found(server, &with(set)).as_deref(), proxy, "{server} {set:?}");
        }
    }

    #[test]
    fn this_machine_is_known_by_all_its_names() {
        for server in
            ["http://127.0.0.1:4443", "localhost:1", "http://[::1]:9/", "http://127.9.9.9", "http://gcs.localhost"]
        {
            assert!(is_loopback(host(server)), "{server}");
        }
        for server in ["http://gcs:4443", "https://10.0.0.1", "http://[fe80::1]:9", GOOGLE, "http://localhost.example"]
        {
            assert!(!is_loopback(host(server)), "{server}");
        }
    }
}
