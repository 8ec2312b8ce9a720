//! Loads the settings: finds the value of each setting in four sources, and checks all values.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::inputs::{read_lines, set};
use super::kind::{Parsed, Raw};
use super::values::Values;
use super::{
    Availability, Faults, Inputs, SETTINGS, Secrecy, Setting, SettingFault, SettingKind, Settings, Source, aws,
    misplaced, overlap, storage,
};
use crate::redact::{self, HIDDEN, redact};

/// The checked settings and the source of each.
#[derive(Debug)]
pub struct Loaded {
    /// The checked settings.
    pub settings: Settings,
    /// All settings in the order of the registry, and after them the `AWS_*` variables.
    pub effective: Vec<Effective>,
    /// Warnings about probable mistakes that do not prevent the start, one sentence each.
    pub warnings: Vec<String>,
    /// The files from which secrets were read.
    pub secret_files: Vec<PathBuf>,
}

/// The effective value of one setting.
#[derive(Clone, Debug)]
pub struct Effective {
    /// The name of the setting in files, or the name of the `AWS_*` variable.
    pub name: String,
    /// The value, redacted when it is secret, or `None` when the setting is unset.
    pub value: Option<String>,
    /// The source of the value.
    pub source: Source,
}

/// Loads and checks all settings; a flag takes precedence over the environment, then the file, then the default.
///
/// # Errors
///
/// All faults together: unknown keys of the file, values that are not allowed, values that this version does not support.
pub fn load(inputs: &Inputs) -> Result<Loaded, Faults> {
    let (loaded, faults) = survey(inputs)?;
    if faults.0.is_empty() { Ok(loaded) } else { Err(faults) }
}

/// Loads the settings as [`load`] does, but replaces a refused value by the default, and returns the faults as well.
///
/// `doctor` and the check of secret files use it to go on in spite of faults.
///
/// # Errors
///
/// A setting that the program needs has neither value nor default, which is a fault of the registry.
pub fn survey(inputs: &Inputs) -> Result<(Loaded, Faults), Faults> {
    let mut faults = Vec::new();
    let table = read_file(inputs, &mut faults);
    let aws = aws::load(inputs, &mut faults);
    let mut parsed = BTreeMap::new();
    let mut effective = Vec::new();
    let mut secret_files: Vec<PathBuf> = aws.values().filter_map(|given| given.file.clone()).collect();
    for setting in SETTINGS {
        let name = setting.name.to_owned();
        let found = match from_flags(setting, inputs, &mut faults)
            .or_else(|| from_environment(setting, inputs, &mut faults))
            .or_else(|| from_table(setting, inputs, &table, &mut faults))
        {
            Some(found) => Some(found),
            None => setting.default.map(|text| Found::new(Raw::Text(text.to_owned()), Source::Default)),
        };
        let Some(Found { raw, source, file }) = found else {
            effective.push(Effective { name, value: None, source: Source::Default });
            continue;
        };
        secret_files.extend(file.clone());
        match check(setting, &raw) {
            Ok(value) => {
                parsed.insert(setting.name, value);
                effective.push(Effective { name, value: Some(show(setting, &raw)), source });
            }
            Err(message) => faults.push(match file {
                // The content of the file is not shown: it may be another secret, put there by mistake.
                Some(file) => file_fault(setting, &file, source, format!("what it holds {message}")),
                None => {
                    let value = match setting.secrecy {
                        Secrecy::Secret => Some(HIDDEN.to_owned()),
                        Secrecy::Urls => None,
                        Secrecy::Plain => misplaced::show(setting.kind, &raw),
                    };
                    SettingFault { setting: name, value, source, message }
                }
            }),
        }
    }
    let shown = |(name, given): (&String, &aws::Given)| Effective {
        name: name.clone(),
        value: Some(HIDDEN.to_owned()),
        source: given.source.clone(),
    };
    effective.extend(aws.iter().map(shown));
    let files = aws.iter().filter_map(|(name, given)| Some((name.clone(), given.file.clone()?))).collect();
    let aws = aws.into_iter().map(|(name, given)| (name, given.value)).collect();
    name_default_queue(&mut parsed, &mut effective);
    let values = Values(parsed);
    let refused = |name: &str| faults.iter().any(|fault| fault.setting == name);
    let combined = values.combined_faults().into_iter().chain(storage::combined_faults(&values, refused, &aws));
    let overlaps = overlap::faults(inputs, &table, &values).into_iter().map(|why| ("exchange_directories", why));
    let combined: Vec<_> = combined
        .chain(overlaps)
        .map(|(setting, message)| (setting.to_owned(), message))
        .map(|(setting, message)| SettingFault { setting, value: None, source: Source::Combination, message })
        .collect();
    faults.extend(combined);
    let values = Values(with_defaults(values.0));
    let mut settings = Settings::from_values(&values, aws, files).ok_or_else(|| {
        let message = "a setting that the program needs has no row in the registry of settings".to_owned();
        Faults(vec![SettingFault { setting: "registry".to_owned(), value: None, source: Source::Default, message }])
    })?;
    settings.storage.own_files = overlap::files(inputs, &table).into_iter().map(|(_, path)| path).collect();
    let is_default = |row: &Effective| row.name == "celery_broker_url" && row.source == Source::Default;
    settings.queue.broker_is_default = effective.iter().any(is_default);
    let warnings = near_misses(inputs).into_iter().chain(shown_passwords(inputs)).collect();
    Ok((Loaded { settings, effective, warnings, secret_files }, Faults(faults)))
}

/// Adds the defaults of settings that have no value or a refused value.
fn with_defaults(mut parsed: BTreeMap<&'static str, Parsed>) -> BTreeMap<&'static str, Parsed> {
    for setting in SETTINGS {
        let default = setting.default.and_then(|text| setting.kind.parse(&Raw::Text(text.to_owned())));
        if let Some(default) = default {
            parsed.entry(setting.name).or_insert(default);
        }
    }
    parsed
}

/// Makes the first of `celery_task_queues` the default queue when `celery_task_default_queue` is not given.
///
/// Follow-ups of a command go to the default queue, and must not go to a queue that this worker does not consume.
fn name_default_queue(parsed: &mut BTreeMap<&'static str, Parsed>, effective: &mut [Effective]) {
    let Some(Parsed::List(queues)) = parsed.get("celery_task_queues") else { return };
    let Some(first) = queues.first().cloned() else { return };
    let row = effective.iter_mut().find(|row| row.name == "celery_task_default_queue");
    let Some(row) = row.filter(|row| row.source == Source::Default) else { return };
    row.value = Some(first.clone());
    parsed.insert("celery_task_default_queue", Parsed::Text(first));
}

/// A value as it was found, and its source.
struct Found {
    raw: Raw,
    source: Source,
    /// The file from which the value was read, when the `_file` variant of the setting names one.
    file: Option<PathBuf>,
}

impl Found {
    const fn new(raw: Raw, source: Source) -> Self {
        Self { raw, source, file: None }
    }
}

fn check(setting: &Setting, raw: &Raw) -> Result<super::kind::Parsed, String> {
    let plain = setting.secrecy == Secrecy::Plain;
    if let Some(misplaced) = misplaced::find(setting.kind, raw).filter(|_| plain) {
        return Err(misplaced);
    }
    let parsed = setting.kind.parse(raw).ok_or_else(|| {
        let allowed = setting.kind.allowed();
        match (setting.kind, raw) {
            (SettingKind::Choice(words), Raw::Text(text)) if let Some(word) = misplaced::meant(text, words) => {
                format!("must be {allowed}; did you mean {word}?")
            }
            _ => match setting.kind.flaw(raw) {
                Some(why)
                    if matches!(
                        setting.kind,
                        SettingKind::BrokerUrls | SettingKind::ResultUrl | SettingKind::ResultOptions
                    ) =>
                {
                    format!("must be {allowed}; {why}")
                }
                Some(why) => format!("{why}; it must be {allowed}"),
                None => format!("must be {allowed}"),
            },
        }
    })?;
    let refused = match setting.availability {
        Availability::Now | Availability::Idle => false,
        Availability::LaterFor(words) => {
            words.iter().any(|&word| setting.kind.parse(&Raw::Text(word.to_owned())).as_ref() == Some(&parsed))
        }
    };
    if refused { Err("is not available in this version; unset it".to_owned()) } else { Ok(parsed) }
}

fn show(setting: &Setting, raw: &Raw) -> String {
    match (setting.secrecy, raw) {
        (Secrecy::Secret, _) => HIDDEN.to_owned(),
        (Secrecy::Urls, Raw::Text(text)) => redact::urls(text),
        (Secrecy::Urls, Raw::List(items)) => redact::urls(&items.join(";")),
        (Secrecy::Plain, raw) => redact(&raw.show()).into_owned(),
    }
}

fn from_flags(setting: &Setting, inputs: &Inputs, faults: &mut Vec<SettingFault>) -> Option<Found> {
    let variant = setting.file_variant();
    let named = |flag: &&super::Flag| flag.setting == setting.name || Some(&flag.setting) == variant.as_ref();
    let flag = inputs.flags.iter().rev().find(named)?;
    let source = Source::Flag(flag.flag.clone());
    if Some(&flag.setting) == variant.as_ref() {
        return read_secret(setting, Path::new(&flag.value), source, faults);
    }
    Some(Found::new(Raw::Text(flag.value.clone()), source))
}

fn from_environment(setting: &Setting, inputs: &Inputs, faults: &mut Vec<SettingFault>) -> Option<Found> {
    let own = setting.environment();
    let names = std::iter::once(own.as_str()).chain(setting.aliases.iter().copied());
    let set = |name: &str| set(inputs, name);
    let direct = names.into_iter().find_map(|name| Some((name, set(name)?)));
    let variant = setting.file_variant().map(|variant| variant.to_ascii_uppercase());
    let variant = variant.as_deref().and_then(|name| Some((name, set(name)?)));
    match (direct, variant) {
        (Some((name, _)), Some((variant, _))) => {
            faults.push(both(setting, variant, Source::Environment(name.to_owned())));
            None
        }
        (Some((name, value)), None) => {
            let source = Source::Environment(name.to_owned());
            let Some(text) = value.to_str() else {
                let message = "is not UTF-8".to_owned();
                faults.push(SettingFault { setting: setting.name.to_owned(), value: None, source, message });
                return None;
            };
            Some(Found::new(Raw::Text(text.to_owned()), source))
        }
        (None, Some((variant, path))) => {
            read_secret(setting, Path::new(path), Source::Environment(variant.to_owned()), faults)
        }
        (None, None) => None,
    }
}

fn from_table(
    setting: &Setting,
    inputs: &Inputs,
    table: &toml::Table,
    faults: &mut Vec<SettingFault>,
) -> Option<Found> {
    let source = Source::File(inputs.file.as_ref()?.path.clone());
    let variant = setting.file_variant().and_then(|variant| Some((table.get(&variant)?, variant)));
    match (table.get(setting.name), variant) {
        (Some(_), Some((_, variant))) => {
            faults.push(both(setting, &variant, source));
            None
        }
        (Some(value), None) => {
            let is_object = setting.kind == SettingKind::ResultOptions && value.is_table();
            let object = is_object.then(|| serde_json::to_string(value).ok()).flatten().map(Raw::Text);
            let Some(raw) = object.or_else(|| raw_of(value)) else {
                let message = format!("must be {}, not a {}", setting.kind.allowed(), value.type_str());
                faults.push(SettingFault { setting: setting.name.to_owned(), value: None, source, message });
                return None;
            };
            Some(Found::new(raw, source))
        }
        (None, Some((value, variant))) => {
            let Some(path) = value.as_str() else {
                let message = format!("must be a path, not a {}", value.type_str());
                faults.push(SettingFault { setting: variant, value: None, source, message });
                return None;
            };
            read_secret(setting, Path::new(path), source, faults)
        }
        (None, None) => None,
    }
}

fn both(setting: &Setting, variant: &str, source: Source) -> SettingFault {
    let message = format!("is set, and so is {variant}; set one of the two");
    SettingFault { setting: setting.name.to_owned(), value: None, source, message }
}

fn raw_of(value: &toml::Value) -> Option<Raw> {
    match value {
        toml::Value::String(text) => Some(Raw::Text(text.clone())),
        toml::Value::Integer(number) => Some(Raw::Text(number.to_string())),
        toml::Value::Float(number) => Some(Raw::Text(number.to_string())),
        toml::Value::Boolean(value) => Some(Raw::Text(value.to_string())),
        toml::Value::Array(items) => {
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect::<Option<_>>().map(Raw::List)
        }
        toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

/// Reads the file that the `_file` variant of a setting names; several lines become a list in the form of the setting.
fn read_secret(setting: &Setting, path: &Path, source: Source, faults: &mut Vec<SettingFault>) -> Option<Found> {
    if let Some(message) = misplaced::file(&path.to_string_lossy(), "the path of a file that holds it") {
        faults.push(SettingFault { setting: setting.file_variant().unwrap_or_default(), value: None, source, message });
        return None;
    }
    match read_lines(path) {
        Ok(lines) if lines.is_empty() => {
            faults.push(file_fault(setting, path, source, "is empty".to_owned()));
            None
        }
        Ok(lines) => {
            let separator = match (setting.kind, setting.secrecy) {
                (SettingKind::ResultOptions, _) => " ",
                (_, Secrecy::Urls) => ";",
                _ => ",",
            };
            Some(Found { raw: Raw::Text(lines.join(separator)), source, file: Some(path.to_owned()) })
        }
        Err(error) => {
            faults.push(file_fault(setting, path, source, format!("cannot be read: {error}")));
            None
        }
    }
}

/// Creates the fault of a file that the `_file` variant of a setting names.
fn file_fault(setting: &Setting, file: &Path, source: Source, message: String) -> SettingFault {
    let value = Some(redact::path(file));
    SettingFault { setting: setting.file_variant().unwrap_or_default(), value, source, message }
}

/// Parses the configuration file and reports its unknown keys.
fn read_file(inputs: &Inputs, faults: &mut Vec<SettingFault>) -> toml::Table {
    let Some(file) = &inputs.file else { return toml::Table::new() };
    let source = || Source::File(file.path.clone());
    let table: toml::Table = match toml::from_str(&file.text) {
        Ok(table) => table,
        Err(error) => {
            // The full error of the library quotes the line, which may hold a secret. Its message may quote a part of the line.
            let line = error.span().map_or(1, |span| line_of(&file.text, span.start));
            let what = error.message().split(['`', '"', '\'', '\n', ':']).next().unwrap_or_default().trim();
            let message = format!("is not TOML: {what} in line {line}");
            let setting = "configuration file".to_owned();
            faults.push(SettingFault { setting, value: None, source: source(), message });
            return toml::Table::new();
        }
    };
    for key in table.keys().filter(|key| !is_known(key)) {
        let line = line_of_key(&file.text, key);
        // A word that is not similar to any setting may be a secret in the wrong line, and is not repeated.
        let (setting, message) = match nearest(key) {
            Some(name) => (key.clone(), format!("no setting has this name; did you mean {name}?")),
            None => {
                let lists = "`filestorage config` lists all";
                (format!("line {line}"), format!("begins with a name that no setting has; {lists}"))
            }
        };
        faults.push(SettingFault { setting, value: None, source: source(), message });
    }
    table
}

/// Returns the number of the line that holds the byte at `at`.
fn line_of(text: &str, at: usize) -> usize {
    1 + text[..at].matches('\n').count()
}

/// Returns the number of the line that holds a key of the file's table.
fn line_of_key(text: &str, key: &str) -> usize {
    let table = toml::de::DeTable::parse(text).ok();
    let span = table.and_then(|table| table.get_ref().keys().find(|it| it.get_ref() == key).map(toml::Spanned::span));
    span.map_or(1, |span| line_of(text, span.start))
}

fn names() -> impl Iterator<Item = String> {
    SETTINGS.iter().flat_map(|setting| std::iter::once(setting.name.to_owned()).chain(setting.file_variant()))
}

fn is_known(key: &str) -> bool {
    names().any(|name| name == key)
}

/// Finds the setting that an unknown key may mean: by an alias, or by a similar name with or without `celery_`.
fn nearest(key: &str) -> Option<String> {
    let key = key.to_ascii_lowercase();
    let alias = SETTINGS.iter().find(|setting| setting.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(&key)));
    if let Some(setting) = alias {
        return Some(setting.name.to_owned());
    }
    // The common prefix of many names is left out, because it would make any word a little similar to all of them.
    let bare = |name: &str| name.strip_prefix("celery_").unwrap_or(name).to_owned();
    let score = |name: &str| strsim::jaro_winkler(&bare(&key), &bare(name));
    let (name, score) = names()
        .map(|name| (score(&name), name))
        .fold((String::new(), 0.0), |best, (score, name)| if score > best.1 { (name, score) } else { best });
    (score >= 0.8).then_some(name)
}

/// Warns about flags that hold a password, which any user of the machine can see in the list of processes.
fn shown_passwords(inputs: &Inputs) -> Vec<String> {
    let has_password = |url: &str| {
        let login = url.rsplit_once('@').map_or("", |(login, _)| login);
        login.split_once("://").map_or(login, |(_, login)| login).contains(':')
    };
    let secret = |flag: &&super::Flag| {
        super::find(&flag.setting).is_some_and(|setting| setting.secrecy == Secrecy::Urls)
            && flag.value.split(';').any(has_password)
    };
    let warn = |flag: &super::Flag| {
        let (name, variable) = (&flag.setting, flag.setting.to_ascii_uppercase());
        let remedy = format!("give --{}-file or the variable {variable} instead", name.replace('_', "-"));
        format!("flag {} shows its password to everybody who lists processes on this machine; {remedy}", flag.flag)
    };
    inputs.flags.iter().filter(secret).map(warn).collect()
}

/// Warns about environment variables whose names are similar to that of a setting.
fn near_misses(inputs: &Inputs) -> Vec<String> {
    let known: Vec<String> = SETTINGS
        .iter()
        .flat_map(|setting| setting.aliases.iter().map(|&alias| alias.to_owned()))
        .chain(names().map(|name| name.to_ascii_uppercase()))
        .collect();
    let unknown = inputs.environment.keys().filter(|name| !known.contains(name) && name.contains('_'));
    unknown
        .filter_map(|name| {
            let meant = known.iter().find(|known| strsim::damerau_levenshtein(name, known) <= 2)?;
            Some(format!("environment {name} is no setting; did you mean {meant}?"))
        })
        .collect()
}
