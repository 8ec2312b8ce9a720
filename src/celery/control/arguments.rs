//! The arguments of requests, as Python's handlers take them.

use std::time::Duration;

use crate::json::Json;

/// The longest time between two starts of a task.
const LONGEST_SPAN: Duration = Duration::from_secs(7 * 86_400);
/// The longest text of a rate in bytes.
const LONGEST_RATE: usize = 32;

/// The named arguments of a request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Arguments(pub(super) Vec<(String, Json)>);

/// How often a task may begin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RateLimit {
    /// As often as it comes.
    None,
    /// Once in each span of this length.
    Every(Duration),
}

impl Arguments {
    /// Returns an argument; null counts as not given.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Json> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value).filter(|value| **value != Json::Null)
    }

    /// Returns a text.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Json::as_text)
    }

    /// Tells whether an argument is true, as Python understands it.
    #[must_use]
    pub fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !value.is_falsy())
    }

    /// Returns one text or a list of texts as a list; what is no text is left out.
    #[must_use]
    pub fn texts(&self, name: &str) -> Vec<String> {
        self.get(name).map(texts).unwrap_or_default()
    }

    /// Returns seconds; 0 and less stand for no limit, as in Celery.
    ///
    /// # Errors
    /// It is no number.
    pub fn seconds(&self, name: &str) -> Result<Option<Duration>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => match number(value) {
                Some(seconds) => Ok(crate::celery::time::limit(seconds)),
                None => Err(format!("{name} is no number of seconds")),
            },
        }
    }

    /// Returns a count, 1 where none is given.
    ///
    /// # Errors
    /// It is no whole number of at least 0.
    pub fn count(&self, name: &str) -> Result<usize, String> {
        match self.get(name) {
            None => Ok(1),
            Some(value) => number(value)
                .filter(|count| count.fract() == 0.0 && (0.0..=1e6).contains(count))
                .map(|count| count as usize)
                .ok_or_else(|| format!("{name} is no whole number from 0 to 1000000")),
        }
    }

    /// Returns the stamps that are named: a table of values or lists of values, or a list of `name=value` as the command line sends it.
    #[must_use]
    pub fn stamps(&self, name: &str) -> Vec<(String, String)> {
        match self.get(name) {
            Some(Json::Object(members)) => members
                .iter()
                .flat_map(|(header, values)| texts(values).into_iter().map(move |value| (header.clone(), value)))
                .collect(),
            Some(value) => texts(value)
                .iter()
                .filter_map(|pair| pair.split_once('='))
                .map(|(header, value)| (header.to_owned(), value.to_owned()))
                .collect(),
            None => Vec::new(),
        }
    }
}

impl RateLimit {
    /// Reads `10/m`, `5/s`, `2/h`, or a number of starts a second; 0 is no limit.
    ///
    /// # Errors
    /// It is none of them.
    pub fn read(value: Option<&Json>) -> Result<Self, String> {
        let (count, span) = match value {
            None => (0.0, 1.0),
            Some(Json::Text(text)) if text.len() > LONGEST_RATE => return Err("it is too long".to_owned()),
            Some(Json::Text(text)) => {
                let (count, unit) = text.split_once('/').unwrap_or((text, "s"));
                let span = match unit {
                    "s" => 1.0,
                    "m" => 60.0,
                    "h" => 3600.0,
                    _ => return Err(format!("unknown unit {unit:?}: use s, m or h")),
                };
                let count = count.trim().parse::<f64>().map_err(|_| format!("{count:?} is no number"))?;
                (count, span)
            }
            Some(value) => (number(value).ok_or("it is neither a number nor a text")?, 1.0),
        };
        if !count.is_finite() || count < 0.0 {
            return Err(format!("{count} is no rate"));
        }
        if count == 0.0 {
            return Ok(Self::None);
        }
        let every = Duration::try_from_secs_f64(span / count).ok().filter(|every| *every <= LONGEST_SPAN);
        every.map(Self::Every).ok_or_else(|| format!("{count} is less than one a week"))
    }
}

fn number(value: &Json) -> Option<f64> {
    match value {
        Json::Text(text) => text.trim().parse().ok(),
        value => value.as_f64(),
    }
}

fn texts(value: &Json) -> Vec<String> {
    match value {
        Json::Text(text) => vec![text.clone()],
        Json::Array(items) => items.iter().filter_map(Json::as_text).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}
