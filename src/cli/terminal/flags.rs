//! Creates a flag for each setting of the registry.

use std::sync::LazyLock;

use clap::{Arg, ArgMatches, Command};

use crate::config::{Flag, SETTINGS, Secrecy};

/// The flag of one setting, or of its `_file` variant.
struct SettingFlag {
    setting: String,
    /// The name of the flag without the leading dashes.
    long: String,
    help: String,
    value: &'static str,
}

/// The flags of all settings.
///
/// A secret has only the flag of its `_file` variant, since all users of the machine can see the arguments of processes.
static FLAGS: LazyLock<Vec<SettingFlag>> = LazyLock::new(|| {
    let mut flags = Vec::new();
    let mut add = |setting: &str, help: String, value| {
        flags.push(SettingFlag { setting: setting.to_owned(), long: setting.replace('_', "-"), help, value });
    };
    for setting in SETTINGS {
        if setting.secrecy != Secrecy::Secret {
            add(setting.name, setting.doc.trim_end_matches('.').to_owned(), "VALUE");
        }
        if let Some(variant) = setting.file_variant() {
            add(&variant, format!("File that holds {}", setting.name), "FILE");
        }
    }
    flags
});

/// Adds `--name-of-setting VALUE` for each setting to all subcommands.
pub(in crate::cli) fn add_settings(command: Command) -> Command {
    command.args(FLAGS.iter().map(|flag| {
        Arg::new(flag.setting.as_str())
            .long(flag.long.as_str())
            .value_name(flag.value)
            .help(flag.help.as_str())
            .help_heading("Settings")
            .hide_short_help(true)
            .allow_hyphen_values(true)
            .global(true)
    }))
}

/// Returns the settings that were given as flags.
pub(in crate::cli) fn given(matches: &ArgMatches) -> Vec<Flag> {
    FLAGS
        .iter()
        .filter_map(|flag| {
            let value = matches.get_one::<String>(&flag.setting)?.clone();
            Some(Flag { setting: flag.setting.clone(), flag: format!("--{}", flag.long), value })
        })
        .collect()
}
