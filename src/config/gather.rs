//! Four sources to one value each, then to checked settings.

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

/// The checked settings and where each came from.
#[derive(Debug)]
pub struct Loaded {
    /// The checked settings.
    pub settings: Settings,
    /// Every setting in force, in the order of the registry, and the `AWS_*` variables behind them.
    pub effective: Vec<Effective>,
    /// What looks like a mistake but stops nothing, one sentence each.
    pub warnings: Vec<String>,
    /// The files that secrets were read from.
    pub secret_files: Vec<PathBuf>,
}

/// One setting in force.
#[derive(Clone, Debug)]
pub struct Effective {
    /// Its name in files; of an `AWS_*` variable that in the environment.
    pub name: String,
    /// Its value, redacted when it is secret; none when unset.
    pub value: Option<String>,
    /// Where the value was given.
    pub source: Source,
}

/// Gathers every setting by precedence — flag, environment, file, default — and checks all of them.
///
/// # Errors
///
/// Every fault at once: unknown keys of the file, values that are not allowed, values this version cannot honour.
pub fn load(inputs: &Inputs) -> Result<Loaded, Faults> {
    let (loaded, faults) = survey(inputs)?;
    if faults.0.is_empty() { Ok(loaded) } else { Err(faults) }
}

/// Gathers as [`load`] does, and takes the default where a value is refused; for who looks at what is wrong.
///
/// # Errors
///
/// A setting the program needs has neither value nor default: a fault of its registry.
pub fn survey(inputs: &Inputs) -> Result<(Loaded, Faults), Faults> {
    let mut faults = Vec::new();
    let table = read_file(inputs, &mut faults);
    let aws = aws::gather(inputs, &mut faults);
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
        match check(setting, &raw, &source) {
            Ok(value) => {
                parsed.insert(setting.name, value);
                effective.push(Effective { name, value: Some(show(setting, &raw)), source });
            }
            Err(message) => faults.push(match file {
                // Nothing of the file: what was put there by mistake may be another secret.
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
        let message = "a setting the program needs has no row in its registry".to_owned();
        Faults(vec![SettingFault { setting: "registry".to_owned(), value: None, source: Source::Default, message }])
    })?;
    let is_default = |row: &Effective| row.name == "celery_broker_url" && row.source == Source::Default;
    settings.queue.broker_is_default = effective.iter().any(is_default);
    let warnings = near_misses(inputs).into_iter().chain(shown_passwords(inputs)).collect();
    Ok((Loaded { settings, effective, warnings, secret_files }, Faults(faults)))
}

/// Adds the defaults of settings whose values were refused.
fn with_defaults(mut parsed: BTreeMap<&'static str, Parsed>) -> BTreeMap<&'static str, Parsed> {
    for setting in SETTINGS {
        let default = setting.default.and_then(|text| setting.kind.parse(&Raw::Text(text.to_owned())));
        if let Some(default) = default {
            parsed.entry(setting.name).or_insert(default);
        }
    }
    parsed
}

/// Without a default queue of their own, those who say which queues are consumed mean the first of them: what follows a
/// command must not go to a queue that this worker was told to leave alone.
fn name_default_queue(parsed: &mut BTreeMap<&'static str, Parsed>, effective: &mut [Effective]) {
    let Some(Parsed::List(queues)) = parsed.get("celery_task_queues") else { return };
    let Some(first) = queues.first().cloned() else { return };
    let row = effective.iter_mut().find(|row| row.name == "celery_task_default_queue");
    let Some(row) = row.filter(|row| row.source == Source::Default) else { return };
    row.value = Some(first.clone());
    parsed.insert("celery_task_default_queue", Parsed::Text(first));
}

/// A value as found, and where.
struct Found {
    raw: Raw,
    source: Source,
    /// The file it was read from, where a twin names one.
    file: Option<PathBuf>,
}

impl Found {
    const fn new(raw: Raw, source: Source) -> Self {
        Self { raw, source, file: None }
    }
}

fn check(setting: &Setting, raw: &Raw, source: &Source) -> Result<super::kind::Parsed, String> {
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
                Some(why) if setting.kind == SettingKind::BrokerUrls => format!("must be {allowed}; {why}"),
                Some(why) => format!("{why}; it must be {allowed}"),
                None => format!("must be {allowed}"),
            },
        }
    })?;
    let given = *source != Source::Default;
    let default = setting.default.and_then(|text| setting.kind.parse(&Raw::Text(text.to_owned())));
    let refused = match setting.availability {
        Availability::Now | Availability::Idle => false,
        Availability::Later => given && default.as_ref() != Some(&parsed),
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
    let twin = setting.file_twin();
    let named = |flag: &&super::Flag| flag.setting == setting.name || Some(&flag.setting) == twin.as_ref();
    let flag = inputs.flags.iter().rev().find(named)?;
    let source = Source::Flag(flag.flag.clone());
    if Some(&flag.setting) == twin.as_ref() {
        return read_secret(setting, Path::new(&flag.value), source, faults);
    }
    Some(Found::new(Raw::Text(flag.value.clone()), source))
}

fn from_environment(setting: &Setting, inputs: &Inputs, faults: &mut Vec<SettingFault>) -> Option<Found> {
    let own = setting.environment();
    let names = std::iter::once(own.as_str()).chain(setting.aliases.iter().copied());
    let set = |name: &str| set(inputs, name);
    let direct = names.into_iter().find_map(|name| Some((name, set(name)?)));
    let twin = setting.file_twin().map(|twin| twin.to_ascii_uppercase());
    let twin = twin.as_deref().and_then(|name| Some((name, set(name)?)));
    match (direct, twin) {
        (Some((name, _)), Some((twin, _))) => {
            faults.push(both(setting, twin, Source::Environment(name.to_owned())));
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
        (None, Some((twin, path))) => {
            read_secret(setting, Path::new(path), Source::Environment(twin.to_owned()), faults)
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
    let twin = setting.file_twin().and_then(|twin| Some((table.get(&twin)?, twin)));
    match (table.get(setting.name), twin) {
        (Some(_), Some((_, twin))) => {
            faults.push(both(setting, &twin, source));
            None
        }
        (Some(value), None) => {
            let Some(raw) = raw_of(value) else {
                let message = format!("must be {}, not a {}", setting.kind.allowed(), value.type_str());
                faults.push(SettingFault { setting: setting.name.to_owned(), value: None, source, message });
                return None;
            };
            Some(Found::new(raw, source))
        }
        (None, Some((value, twin))) => {
            let Some(path) = value.as_str() else {
                let message = format!("must be a path, not a {}", value.type_str());
                faults.push(SettingFault { setting: twin, value: None, source, message });
                return None;
            };
            read_secret(setting, Path::new(path), source, faults)
        }
        (None, None) => None,
    }
}

fn both(setting: &Setting, twin: &str, source: Source) -> SettingFault {
    let message = format!("is set, and so is {twin}; set one of the two");
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

/// Reads the file a twin names; several lines are joined as the setting joins them.
fn read_secret(setting: &Setting, path: &Path, source: Source, faults: &mut Vec<SettingFault>) -> Option<Found> {
    if let Some(message) = misplaced::file(&path.to_string_lossy(), "the path of a file that holds it") {
        faults.push(SettingFault { setting: setting.file_twin().unwrap_or_default(), value: None, source, message });
        return None;
    }
    match read_lines(path) {
        Ok(lines) if lines.is_empty() => {
            faults.push(file_fault(setting, path, source, "is empty".to_owned()));
            None
        }
        Ok(lines) => {
            let separator = if setting.secrecy == Secrecy::Urls { ";" } else { "," };
            Some(Found { raw: Raw::Text(lines.join(separator)), source, file: Some(path.to_owned()) })
        }
        Err(error) => {
            faults.push(file_fault(setting, path, source, format!("cannot be read: {error}")));
            None
        }
    }
}

/// The fault of a file that a twin names.
fn file_fault(setting: &Setting, file: &Path, source: Source, message: String) -> SettingFault {
    let value = Some(redact::path(file));
    SettingFault { setting: setting.file_twin().unwrap_or_default(), value, source, message }
}

/// Reads the file's table and reports its unknown keys.
fn read_file(inputs: &Inputs, faults: &mut Vec<SettingFault>) -> toml::Table {
    let Some(file) = &inputs.file else { return toml::Table::new() };
    let source = || Source::File(file.path.clone());
    let table: toml::Table = match toml::from_str(&file.text) {
        Ok(table) => table,
        Err(error) => {
            // The library's own text quotes the line, which may hold a secret, and its message may quote a part of it.
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
        // A word that is like no setting may be a secret that stands in the wrong line.
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

/// Tells in which line a byte stands.
fn line_of(text: &str, at: usize) -> usize {
    1 + text[..at].matches('\n').count()
}

/// Tells in which line a key of the file's table stands.
fn line_of_key(text: &str, key: &str) -> usize {
    let table = toml::de::DeTable::parse(text).ok();
    let span = table.and_then(|table| table.get_ref().keys().find(|it| it.get_ref() == key).map(toml::Spanned::span));
    span.map_or(1, |span| line_of(text, span.start))
}

fn names() -> impl Iterator<Item = String> {
    SETTINGS.iter().flat_map(|setting| std::iter::once(setting.name.to_owned()).chain(setting.file_twin()))
}

fn is_known(key: &str) -> bool {
    names().any(|name| name == key)
}

/// Finds the setting somebody may have meant: by another spelling, by an alias, by Celery's name without its prefix.
fn nearest(key: &str) -> Option<String> {
    let key = key.to_ascii_lowercase();
    let alias = SETTINGS.iter().find(|setting| setting.aliases.iter().any(|alias| alias.eq_ignore_ascii_case(&key)));
    if let Some(setting) = alias {
        return Some(setting.name.to_owned());
    }
    // Compared without the prefix that many names share, or any word would look a little like all of them.
    let bare = |name: &str| name.strip_prefix("celery_").unwrap_or(name).to_owned();
    let score = |name: &str| strsim::jaro_winkler(&bare(&key), &bare(name));
    let (name, score) = names()
        .map(|name| (score(&name), name))
        .fold((String::new(), 0.0), |best, (score, name)| if score > best.1 { (name, score) } else { best });
    (score >= 0.8).then_some(name)
}

/// Looks for flags whose passwords everybody on the machine can see.
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
        let mend = format!("give --{}-file or the variable {variable} instead", name.replace('_', "-"));
        format!("flag {} shows its password to everybody who lists processes on this machine; {mend}", flag.flag)
    };
    inputs.flags.iter().filter(secret).map(warn).collect()
}

/// Looks for variables that nearly bear a setting's name; others belong to somebody else.
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
