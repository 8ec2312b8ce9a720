//! Python-like reprs for `argsrepr`, `kwargsrepr` and messages.

use crate::json::Json;

/// Writes a value as Python's `repr` does.
pub(super) fn python(value: &Json) -> String {
    value.compact()
}
