//! The reason why a pickle cannot be read as data.

use super::limits;

/// The reason why a pickle cannot be read as data. The message names the opcode or the class, never a value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(in crate::storage) struct PickleError(String);

impl PickleError {
    /// Makes the error of a pickle that is damaged or too large.
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    /// Makes the error of a pickle of too many bytes.
    pub(in crate::storage) fn too_large(bytes: u64) -> Self {
        Self(format!("the pickle has {bytes} bytes; at most {} are read", limits::BYTES))
    }

    /// Makes the error of a class or function outside the table.
    pub(super) fn class(module: &str, name: &str) -> Self {
        Self(format!(
            "the pickle names {}, which is not executed; only Python's own None, bool, int, float, str, bytes, bytearray, \
             list, tuple, dict, set, dates, Decimal and UUID are read",
            shown(&format!("{module}.{name}"))
        ))
    }

    /// Makes the error of a value that no JSON value stands for.
    pub(super) fn unwritable(what: &str) -> Self {
        Self(format!("the pickle holds {what}, for which JSON has no form"))
    }
}

/// Shortens a name and escapes what is not printable ASCII.
fn shown(name: &str) -> String {
    let short: String = name.chars().take(120).collect();
    short.escape_default().to_string()
}
