//! Reads the `AWS_*` variables, with which requests to S3 are signed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::inputs::{read_lines, set};
use super::kind::Raw;
use super::{Inputs, Secret, SettingFault, SettingKind, Source, misplaced};
use crate::redact;

/// The variables that hold secrets; for each, a variable `…_FILE` may name a file that holds the secret.
const SECRETS: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

/// The value of one variable.
pub(super) struct Given {
    pub(super) value: Secret,
    /// The variable that gave the value.
    pub(super) source: Source,
    /// The file from which the value was read, when a variable `…_FILE` names one.
    pub(super) file: Option<PathBuf>,
}

/// Reads all `AWS_*` variables, and returns them by their names without `_FILE`.
pub(super) fn load(inputs: &Inputs, faults: &mut Vec<SettingFault>) -> BTreeMap<String, Given> {
    let mut found = BTreeMap::new();
    let names = inputs.environment.keys().filter(|name| name.starts_with("AWS_"));
    for (name, value) in names.filter_map(|name| Some((name, set(inputs, name)?))) {
        let source = Source::Environment(name.clone());
        let mut refuse = |message| {
            faults.push(SettingFault { setting: name.clone(), value: None, source: source.clone(), message });
        };
        let Some(text) = value.to_str() else {
            refuse("is not UTF-8".to_owned());
            continue;
        };
        let misplaced = match name.as_str() {
            name if name.ends_with("_FILE") => misplaced::file(text, "the path of a file"),
            "AWS_ENDPOINT_URL" | "AWS_ENDPOINT_URL_S3" => {
                let kind = SettingKind::Url;
                kind.parse(&Raw::Text(text.to_owned())).is_none().then(|| format!("must be {}", kind.allowed()))
            }
            _ => None,
        };
        if let Some(misplaced) = misplaced {
            refuse(misplaced);
            continue;
        }
        let Some(secret) = name.strip_suffix("_FILE").filter(|secret| SECRETS.contains(secret)) else {
            if SECRETS.contains(&name.as_str()) {
                redact::remember(text);
            }
            found.insert(name.clone(), Given { value: Secret::new(text), source, file: None });
            continue;
        };
        if set(inputs, secret).is_some() {
            refuse(format!("is set, and so is {secret}; set one of the two"));
            continue;
        }
        match read_lines(Path::new(text)) {
            // A file that is just being replaced may be empty for a moment; this is a fault all the same.
            Ok(lines) if lines.is_empty() => refuse("names a file that is empty".to_owned()),
            Ok(lines) => {
                let secret_text = lines.concat();
                redact::remember(&secret_text);
                let given = Given { value: Secret::new(secret_text), source, file: Some(text.into()) };
                found.insert(secret.to_owned(), given);
            }
            Err(error) => refuse(format!("names a file that cannot be read: {error}")),
        }
    }
    found
}
