//! The `AWS_*` variables: taken as they are, for whoever signs requests to S3.

use std::collections::BTreeMap;
use std::path::Path;

use super::gather::{read_lines, set};
use super::{Fault, Inputs, Secret, Source};

/// Secrets among them; each has a twin `…_FILE` that names a file holding it.
const SECRETS: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

/// Collects the variables by name, each with where it was given.
pub(super) fn gather(inputs: &Inputs, faults: &mut Vec<Fault>) -> BTreeMap<String, (Secret, Source)> {
    let mut found = BTreeMap::new();
    let names = inputs.environment.keys().filter(|name| name.starts_with("AWS_"));
    for (name, value) in names.filter_map(|name| Some((name, set(inputs, name)?))) {
        let source = Source::Environment(name.clone());
        let mut refuse = |message| {
            faults.push(Fault { setting: name.clone(), value: None, source: source.clone(), message });
        };
        let Some(text) = value.to_str() else {
            refuse("is not UTF-8".to_owned());
            continue;
        };
        let Some(secret) = name.strip_suffix("_FILE").filter(|secret| SECRETS.contains(secret)) else {
            found.insert(name.clone(), (Secret::new(text), source));
            continue;
        };
        if set(inputs, secret).is_some() {
            refuse(format!("is set, and so is {secret}; set one of the two"));
            continue;
        }
        match read_lines(Path::new(text)) {
            Ok(lines) => {
                found.insert(secret.to_owned(), (Secret::new(lines.concat()), source));
            }
            Err(error) => refuse(format!("names a file that cannot be read: {error}")),
        }
    }
    found
}
