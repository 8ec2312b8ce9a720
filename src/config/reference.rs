//! Writes the table of settings that the documentation shows.

use super::{Availability, SETTINGS};

/// Writes the table of settings in Markdown: name, default, allowed values, description.
#[must_use]
pub fn markdown() -> String {
    let mut table = String::from("| setting | default | takes | does |\n|---|---|---|---|\n");
    for setting in SETTINGS {
        let mut name = format!("`{}`", setting.name);
        if let Some(variant) = setting.file_variant() {
            name.push_str(&format!(", `{variant}`"));
        }
        for alias in setting.aliases {
            name.push_str(&format!(", `{alias}`"));
        }
        let default = setting.default.map_or("unset".to_owned(), |default| format!("`{default}`"));
        let note = match setting.availability {
            Availability::Now => String::new(),
            Availability::Idle => " *It has no effect in this version.*".to_owned(),
            Availability::LaterFor(words) => format!(" *Not available in this version: {}.*", words.join(", ")),
        };
        let takes = setting.kind.allowed();
        table.push_str(&format!("| {name} | {default} | {takes} | {}{note} |\n", setting.doc));
    }
    table
}
