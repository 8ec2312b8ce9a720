//! Python exceptions in the form of Celery's results.

use std::fmt;

use super::repr;
use crate::json::{Json, write_string};

/// The exceptions that would end the process of a client instead of failing its call.
const FATAL: [&str; 6] =
    ["BaseException", "BaseExceptionGroup", "CancelledError", "GeneratorExit", "KeyboardInterrupt", "SystemExit"];

/// A Python exception: the answer of a failed task, which the client raises.
///
/// Its form in a result is `{"exc_type", "exc_message": [arguments], "exc_module"}`. A client that has imported the module
/// raises the class with these arguments; any other client creates a class of that name. [`fmt::Display`] writes the
/// exception as Python's `repr` does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    exc_type: String,
    exc_module: String,
    args: Vec<Json>,
}

impl Exception {
    /// Creates an exception of any class; a class that would end the client's process becomes `RuntimeError`.
    pub fn custom(module: impl Into<String>, name: impl Into<String>, args: Vec<Json>) -> Self {
        let exc_type = name.into();
        if FATAL.contains(&exc_type.as_str()) {
            return Self { exc_type: "RuntimeError".to_owned(), exc_module: "builtins".to_owned(), args };
        }
        Self { exc_type, exc_module: module.into(), args }
    }

    fn one(module: &str, name: &str, text: impl Into<String>) -> Self {
        Self::custom(module, name, vec![Json::Text(text.into())])
    }

    /// Creates a `TypeError`, for wrong arguments, with a text as Python would write it.
    pub fn type_error(text: impl Into<String>) -> Self {
        Self::one("builtins", "TypeError", text)
    }

    /// Creates a `ValueError`, for an invalid key, value or option.
    pub fn value_error(text: impl Into<String>) -> Self {
        Self::one("builtins", "ValueError", text)
    }

    /// Creates a `RuntimeError`, for a fault of the worker itself.
    pub fn runtime_error(text: impl Into<String>) -> Self {
        Self::one("builtins", "RuntimeError", text)
    }

    /// Creates a `FileNotFoundError` whose `filename` is the key.
    pub fn file_not_found(key: impl Into<String>) -> Self {
        Self::errno("FileNotFoundError", 2, "No such file or directory", key.into())
    }

    /// Creates an `OSError` with `errno`, `strerror` and `filename`; Python chooses the subclass by `errno`.
    pub fn os_error(errno: i32, text: impl Into<String>, key: impl Into<String>) -> Self {
        Self::errno("OSError", errno, text, key.into())
    }

    /// Creates a `PermissionError` whose `filename` is the key.
    pub fn permission_error(text: impl Into<String>, key: impl Into<String>) -> Self {
        Self::errno("PermissionError", 13, text, key.into())
    }

    fn errno(name: &str, errno: i32, text: impl Into<String>, key: String) -> Self {
        Self::custom("builtins", name, vec![i64::from(errno).into(), Json::Text(text.into()), Json::Text(key)])
    }

    /// Creates a `NotRegistered`, for an unknown task name.
    pub fn not_registered(task: impl Into<String>) -> Self {
        Self::one("celery.exceptions", "NotRegistered", task)
    }

    /// Creates a `TimeLimitExceeded` with the time limit in seconds, a whole number as an integer.
    #[must_use]
    pub fn time_limit_exceeded(limit: std::time::Duration) -> Self {
        let seconds = if limit.subsec_nanos() == 0 {
            Json::Number(limit.as_secs().to_string().into())
        } else {
            Json::Number(limit.as_secs_f64().to_string().into())
        };
        Self::custom("billiard.exceptions", "TimeLimitExceeded", vec![seconds])
    }

    /// Creates a `SoftTimeLimitExceeded`.
    #[must_use]
    pub fn soft_time_limit_exceeded() -> Self {
        Self::custom("billiard.exceptions", "SoftTimeLimitExceeded", Vec::new())
    }

    /// Creates a `WorkerLostError`, for a task whose worker died.
    pub fn worker_lost(text: impl Into<String>) -> Self {
        Self::one("billiard.exceptions", "WorkerLostError", text)
    }

    /// Creates a `NotImplementedError`.
    pub fn not_implemented(text: impl Into<String>) -> Self {
        Self::one("builtins", "NotImplementedError", text)
    }

    /// Creates kombu's `ContentDisallowed`, for a content type that is not accepted.
    pub fn content_disallowed(text: impl Into<String>) -> Self {
        Self::one("kombu.exceptions", "ContentDisallowed", text)
    }

    /// Creates kombu's `DecodeError`, for a body that cannot be read.
    pub fn decode_error(text: impl Into<String>) -> Self {
        Self::one("kombu.exceptions", "DecodeError", text)
    }

    /// Creates a `TaskRevokedError`; `reason` is `expired`, `revoked` or `terminated`.
    pub(super) fn task_revoked(reason: &str) -> Self {
        Self::one("celery.exceptions", "TaskRevokedError", reason)
    }

    /// Returns the name of the class.
    #[must_use]
    pub fn exc_type(&self) -> &str {
        &self.exc_type
    }

    /// Returns the module of the class.
    #[must_use]
    pub fn exc_module(&self) -> &str {
        &self.exc_module
    }

    /// Returns the arguments of the constructor.
    #[must_use]
    pub fn args(&self) -> &[Json] {
        &self.args
    }

    /// Appends the exception as JSON.
    pub fn write_json(&self, out: &mut String) {
        out.push_str("{\"exc_type\":");
        write_string(out, &self.exc_type);
        out.push_str(",\"exc_message\":[");
        for (index, arg) in self.args.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            arg.write_compact(out);
        }
        out.push_str("],\"exc_module\":");
        write_string(out, &self.exc_module);
        out.push('}');
    }

    /// Writes a traceback that Python's tools can parse, for a task that failed while it ran.
    ///
    /// Returns `None` for exceptions that come from outside the task, for which Celery writes no traceback either.
    #[must_use]
    pub fn traceback(&self, task: &str) -> Option<String> {
        if matches!(
            self.exc_type.as_str(),
            "NotRegistered"
                | "TimeLimitExceeded"
                | "WorkerLostError"
                | "TaskRevokedError"
                | "Reject"
                | "Retry"
                | "ContentDisallowed"
                | "DecodeError"
        ) {
            return None;
        }
        // A line break or a quote in the name would break the frame line, which tblib parses.
        let frame: String = task.chars().map(|c| if c.is_control() || c == '"' { '?' } else { c }).collect();
        let name = match self.exc_module.as_str() {
            "builtins" => self.exc_type.clone(),
            module => format!("{module}.{}", self.exc_type),
        };
        let text = self.text();
        let separator = if text.is_empty() { "" } else { ": " };
        Some(format!(
            "Traceback (most recent call last):\n  File \"filestorage\", line 1, in {frame}\n{name}{separator}{text}\n"
        ))
    }

    /// Writes the message of the exception as Python's `str` does.
    #[must_use]
    pub fn text(&self) -> String {
        match self.args.as_slice() {
            // The text of billiard.
            [] if self.exc_type == "SoftTimeLimitExceeded" => "SoftTimeLimitExceeded()".to_owned(),
            [] => String::new(),
            [Json::Number(errno), Json::Text(text), rest @ ..] if self.is_os_error() && rest.len() <= 1 => {
                let file = rest.first().map(|key| format!(": {}", repr::python(key)));
                format!("[Errno {errno}] {text}{}", file.unwrap_or_default())
            }
            [Json::Text(text)] if self.exc_type != "KeyError" => text.clone(),
            [arg] => repr::python(arg),
            _ => self.tuple(),
        }
    }

    fn is_os_error(&self) -> bool {
        matches!(self.exc_type.as_str(), "OSError" | "FileNotFoundError" | "PermissionError")
    }

    fn tuple(&self) -> String {
        let args: Vec<_> = self.args.iter().map(repr::python).collect();
        format!("({})", args.join(", "))
    }
}

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.exc_type, self.tuple())
    }
}

impl std::error::Error for Exception {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_python() {
        let os = Exception::os_error(28, "No space left on device", "a'b");
        assert_eq!(os.to_string(), r#"OSError(28, 'No space left on device', "a'b")"#);
        assert_eq!(os.text(), r#"[Errno 28] No space left on device: "a'b""#);
        assert_eq!(Exception::soft_time_limit_exceeded().to_string(), "SoftTimeLimitExceeded()");
        assert_eq!(Exception::custom("builtins", "KeyError", vec!["k".into()]).text(), "'k'");
        assert_eq!(
            Exception::custom("filestorage.exceptions", "QuotaExceeded", vec!["a".into(), 100.into()])
                .traceback("filestorage.store")
                .unwrap(),
            "Traceback (most recent call last):\n  File \"filestorage\", line 1, in filestorage.store\n\
             filestorage.exceptions.QuotaExceeded: ('a', 100)\n"
        );
        assert_eq!(Exception::not_registered("x").traceback("x"), None);
    }

    #[test]
    fn no_exception_ends_the_client() {
        for name in FATAL {
            assert_eq!(Exception::custom("builtins", name, Vec::new()).exc_type(), "RuntimeError");
        }
    }

    #[test]
    fn a_whole_time_limit_is_an_integer() {
        let limit = |seconds| Exception::time_limit_exceeded(std::time::Duration::from_secs_f64(seconds)).to_string();
        assert_eq!(limit(30.0), "TimeLimitExceeded(30)");
        assert_eq!(limit(0.5), "TimeLimitExceeded(0.5)");
    }
}
