//! The binding of positional and keyword arguments to the parameters of a task.
//!
//! Arguments that do not fit raise the same `TypeError` as in CPython, with the same text.

use crate::json::Json;

use super::{CommandError, KeyArgument};

/// One parameter of a task.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Name of the parameter in Python.
    pub name: &'static str,
    /// The values that the parameter accepts.
    pub kind: ParameterKind,
    /// The description of the parameter in the schema.
    pub about: &'static str,
}

/// The values that a parameter accepts.
#[derive(Clone, Copy, Debug)]
pub enum ParameterKind {
    /// A key.
    Key,
    /// A list of keys.
    Keys,
    /// A list of calls of `store`.
    Items,
    /// Any value.
    Value,
    /// A JSON object.
    Metadata,
    /// A string.
    Text,
    /// One of these strings.
    Choice(&'static [&'static str]),
    /// An integer of 0 or more.
    Count,
    /// An integer from the first number to the second, both included.
    Between(u64, u64),
    /// A number of seconds, above 0.
    Seconds,
    /// A number of seconds, 0 or more.
    Age,
    /// A point in time, as ISO 8601 text or as a `datetime` of Python.
    Instant,
    /// A boolean.
    Flag,
}

impl Parameter {
    /// Describes a parameter.
    #[must_use]
    pub const fn new(name: &'static str, kind: ParameterKind, about: &'static str) -> Self {
        Self { name, kind, about }
    }
}

/// The parameters of one task, in the order of a Python function with the same signature.
#[derive(Clone, Copy, Debug)]
pub struct CallSignature {
    /// The function's name in error messages: `store` for the task `filestorage.store`.
    pub function: &'static str,
    /// Parameters without a default value. They are given by position or by name.
    pub required: &'static [Parameter],
    /// Parameters with a default value. They are given by position or by name.
    pub optional: &'static [Parameter],
    /// Parameters after `*` in the signature. They are given by name only, and all have a default value.
    pub keyword_only: &'static [Parameter],
}

/// The arguments of one call, bound to their parameters. Each argument can be taken once, by its name.
#[derive(Debug)]
pub struct Arguments {
    signature: &'static CallSignature,
    slots: Vec<Option<Json>>,
}

impl CallSignature {
    /// Returns the parameters whose values are keys.
    pub fn key_arguments(&self) -> impl Iterator<Item = KeyArgument> {
        let positional = self.positional();
        let parameters = self.required.iter().chain(self.optional).chain(self.keyword_only).enumerate();
        parameters.filter_map(move |(place, parameter)| {
            let is_list = match parameter.kind {
                ParameterKind::Key => false,
                ParameterKind::Keys => true,
                _ => return None,
            };
            let position = Some(place).filter(|place| *place < positional);
            Some(KeyArgument { position, name: parameter.name, is_list })
        })
    }

    /// Tells whether a parameter holds calls of another task, with keys of their own.
    #[must_use]
    pub fn has_items(&self) -> bool {
        let mut parameters = self.required.iter().chain(self.optional).chain(self.keyword_only);
        parameters.any(|parameter| matches!(parameter.kind, ParameterKind::Items))
    }

    const fn positional(&self) -> usize {
        self.required.len() + self.optional.len()
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        self.required.iter().chain(self.optional).chain(self.keyword_only).map(|parameter| parameter.name)
    }

    fn place(&self, name: &str) -> Option<usize> {
        self.names().position(|parameter| parameter == name)
    }

    /// Binds the arguments of a call to the parameters.
    ///
    /// # Errors
    ///
    /// `TypeError` with the text of CPython 3.11. The checks have CPython's order: first unknown or repeated keywords,
    /// then too many positional arguments, then missing arguments.
    pub fn bind(&'static self, args: Vec<Json>, kwargs: Vec<(String, Json)>) -> Result<Arguments, CommandError> {
        let function = self.function;
        let given = args.len();
        let mut slots: Vec<Option<Json>> = self.names().map(|_| None).collect();
        for (slot, value) in slots.iter_mut().take(self.positional()).zip(args) {
            *slot = Some(value);
        }
        for (name, value) in kwargs {
            let Some(place) = self.place(&name) else {
                return Err(CommandError::type_error(format!(
                    "{function}() got an unexpected keyword argument '{name}'"
                )));
            };
            if slots[place].is_some() {
                return Err(CommandError::type_error(format!(
                    "{function}() got multiple values for argument '{name}'"
                )));
            }
            slots[place] = Some(value);
        }
        if given > self.positional() {
            let keyword_only = slots[self.positional()..].iter().flatten().count();
            return Err(CommandError::type_error(self.too_many(given, keyword_only)));
        }
        let missing: Vec<&str> = self
            .names()
            .take(self.required.len())
            .zip(&slots)
            .filter(|(_, slot)| slot.is_none())
            .map(|(name, _)| name)
            .collect();
        if !missing.is_empty() {
            let plural = if missing.len() == 1 { "" } else { "s" };
            return Err(CommandError::type_error(format!(
                "{function}() missing {} required positional argument{plural}: {}",
                missing.len(),
                enumerate(&missing)
            )));
        }
        Ok(Arguments { signature: self, slots })
    }

    fn too_many(&self, given: usize, keyword_only: usize) -> String {
        let (least, most) = (self.required.len(), self.positional());
        let takes = if least == most { most.to_string() } else { format!("from {least} to {most}") };
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let takes_plural = if least == most { plural(most) } else { "s" };
        let (kinds, verb) = match keyword_only {
            0 => (String::new(), if given == 1 { "was" } else { "were" }),
            count => (
                format!(" positional argument{} (and {count} keyword-only argument{})", plural(given), plural(count)),
                "were",
            ),
        };
        format!("{}() takes {takes} positional argument{takes_plural} but {given}{kinds} {verb} given", self.function)
    }
}

/// Joins names as CPython does: `'a'`, `'a' and 'b'`, `'a', 'b', and 'c'`.
fn enumerate(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => format!("'{one}'"),
        [one, two] => format!("'{one}' and '{two}'"),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(|name| format!("'{name}'")).collect();
            format!("{}, and '{last}'", first.join(", "))
        }
    }
}

impl Arguments {
    /// Takes an argument. An argument that was not given is `null`.
    pub fn take(&mut self, name: &'static str) -> Json {
        self.signature.place(name).and_then(|place| self.slots[place].take()).unwrap_or(Json::Null)
    }

    /// Takes a string.
    ///
    /// # Errors
    ///
    /// `TypeError` when the argument is missing or is no string.
    pub fn text(&mut self, name: &'static str) -> Result<String, CommandError> {
        match self.take(name) {
            Json::Text(text) => Ok(text),
            other => Err(self.wrong_type(name, "str", &other)),
        }
    }

    /// Takes a list of strings.
    ///
    /// # Errors
    ///
    /// `TypeError` when the argument is missing or is no list, or when a member of the list is no string.
    pub fn texts(&mut self, name: &'static str) -> Result<Vec<String>, CommandError> {
        let members = match self.take(name) {
            Json::Array(members) => members,
            other => return Err(self.wrong_type(name, "list", &other)),
        };
        let text = |(place, member)| match member {
            Json::Text(text) => Ok(text),
            other => Err(self.wrong_type(&format!("{name}[{place}]"), "str", &other)),
        };
        members.into_iter().enumerate().map(text).collect()
    }

    /// Takes a string or `null`.
    ///
    /// # Errors
    ///
    /// `TypeError` when the argument is neither.
    pub fn optional_text(&mut self, name: &'static str) -> Result<Option<String>, CommandError> {
        match self.take(name) {
            Json::Null => Ok(None),
            Json::Text(text) => Ok(Some(text)),
            other => Err(self.wrong_type(name, "str or None", &other)),
        }
    }

    /// Takes a boolean. `null`, or no argument, is `false`.
    ///
    /// # Errors
    ///
    /// `TypeError` when the argument is neither a boolean nor `null`.
    pub fn flag(&mut self, name: &'static str) -> Result<bool, CommandError> {
        match self.take(name) {
            Json::Null => Ok(false),
            Json::Bool(value) => Ok(value),
            other => Err(self.wrong_type(name, "bool", &other)),
        }
    }

    /// Takes an integer from 0 to 2**63 - 1, or `null`.
    ///
    /// # Errors
    ///
    /// `TypeError` when the argument is neither an integer nor `null`. `ValueError` when the integer is out of range.
    pub fn optional_count(&mut self, name: &'static str) -> Result<Option<u64>, CommandError> {
        let value = self.take(name);
        if value.is_null() {
            return Ok(None);
        }
        if value.python_type() != "int" {
            return Err(self.wrong_type(name, "int or None", &value));
        }
        let count = value.as_i64().and_then(|number| u64::try_from(number).ok());
        count.map(Some).ok_or_else(|| {
            CommandError::value_error(format!("{} must be an integer from 0 to 9223372036854775807", name))
        })
    }

    /// Makes the `TypeError` of an argument that has the wrong type. `wanted` names the accepted types of Python.
    pub fn wrong_type(&self, name: &str, wanted: &str, found: &Json) -> CommandError {
        CommandError::type_error(format!(
            "{}() argument '{name}' must be {wanted}, not {}",
            self.signature.function,
            found.python_type()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn any(name: &'static str) -> Parameter {
        Parameter::new(name, ParameterKind::Value, "")
    }

    static STORE: CallSignature = CallSignature {
        function: "store",
        required: &[any("key"), any("data")],
        optional: &[any("metadata")],
        keyword_only: &[any("content_type"), any("if_absent")],
    };
    static RETRIEVE: CallSignature =
        CallSignature { function: "retrieve", required: &[any("key")], optional: &[], keyword_only: &[any("offset")] };
    static STATS: CallSignature =
        CallSignature { function: "get_stats", required: &[], optional: &[], keyword_only: &[] };
    static THREE: CallSignature =
        CallSignature { function: "f", required: &[any("a"), any("b"), any("c")], optional: &[], keyword_only: &[] };

    fn refused(signature: &'static CallSignature, positional: usize, names: &[&str]) -> String {
        let args = (0..positional).map(|_| Json::Null).collect();
        let kwargs = names.iter().map(|name| ((*name).to_owned(), Json::Bool(true))).collect();
        signature.bind(args, kwargs).unwrap_err().to_string()
    }

    // The texts were printed by CPython 3.11 for functions of these signatures.
    #[test]
    fn type_errors_have_the_text_of_cpython() {
        for (signature, positional, names, text) in [
            (&STORE, 1, &[][..], "store() missing 1 required positional argument: 'data'"),
            (&STORE, 0, &[], "store() missing 2 required positional arguments: 'key' and 'data'"),
            (&THREE, 0, &[], "f() missing 3 required positional arguments: 'a', 'b', and 'c'"),
            (&STORE, 2, &["nope"], "store() got an unexpected keyword argument 'nope'"),
            (&STORE, 2, &["key"], "store() got multiple values for argument 'key'"),
            (&STORE, 4, &[], "store() takes from 2 to 3 positional arguments but 4 were given"),
            (&RETRIEVE, 2, &[], "retrieve() takes 1 positional argument but 2 were given"),
            (&STATS, 1, &[], "get_stats() takes 0 positional arguments but 1 was given"),
            (
                &RETRIEVE,
                2,
                &["offset"],
                "retrieve() takes 1 positional argument but 2 positional arguments (and 1 keyword-only argument) were given",
            ),
            (
                &STORE,
                4,
                &["content_type", "if_absent"],
                "store() takes from 2 to 3 positional arguments but 4 positional arguments (and 2 keyword-only arguments) were given",
            ),
        ] {
            assert_eq!(refused(signature, positional, names), text);
        }
    }

    #[test]
    fn binds_by_position_and_by_name() {
        let mut bound = STORE
            .bind(vec![Json::from("k")], vec![("if_absent".into(), true.into()), ("data".into(), 7.into())])
            .unwrap();
        assert_eq!(bound.text("key").unwrap(), "k");
        assert_eq!(bound.take("data").as_i64(), Some(7));
        assert!(bound.flag("if_absent").unwrap());
        assert!(bound.take("metadata").is_null());
        assert_eq!(bound.optional_text("content_type").unwrap(), None);
    }
}
