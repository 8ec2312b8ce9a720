//! The table of settings for people, as the README shows it.

use super::{Availability, SETTINGS};

/// Writes the table of settings in Markdown: name, default, what it takes, what it does.
#[must_use]
pub fn markdown() -> String {
    let mut table = String::from("| setting | default | takes | does |\n|---|---|---|---|\n");
    for setting in SETTINGS {
        let mut name = format!("`{}`", setting.name);
        if let Some(twin) = setting.file_twin() {
            name.push_str(&format!(", `{twin}`"));
        }
        for alias in setting.aliases {
            name.push_str(&format!(", `{alias}`"));
        }
        let default = setting.default.map_or("unset".to_owned(), |default| format!("`{default}`"));
        let note = match setting.availability {
            Availability::Now => String::new(),
            Availability::Idle => " *Nothing in this version acts on it.*".to_owned(),
            Availability::Later => " *Not available in this version.*".to_owned(),
            Availability::LaterFor(words) => format!(" *Not available in this version: {}.*", words.join(", ")),
        };
        let takes = setting.kind.allowed();
        table.push_str(&format!("| {name} | {default} | {takes} | {}{note} |\n", setting.doc));
    }
    table
}
