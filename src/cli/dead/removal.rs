//! What `replay` and `drop` have in common: which messages are meant, and how the end is told.

use clap::Args;

use super::filter::{Filter, WantedIds};
use super::walk::Reach;
use crate::wiring::{Code, Failure};

/// The messages that are replayed or dropped.
#[derive(Debug, Args)]
pub(super) struct DeadSelection {
    /// Task ids or fingerprints.
    #[arg(value_name = "ID")]
    ids: Vec<String>,

    #[command(flatten)]
    pub(super) filter: Filter,

    #[command(flatten)]
    pub(super) reach: Reach,

    /// All messages.
    #[arg(long)]
    all: bool,

    /// Counts the messages that are meant, and changes nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
}

impl DeadSelection {
    /// Takes the names of the messages; makes sure that nobody means all of them by leaving everything out.
    pub(super) fn wanted(&mut self) -> Result<WantedIds, Failure> {
        let ids = std::mem::take(&mut self.ids);
        let is_chosen = !ids.is_empty() || !self.filter.is_empty();
        match (is_chosen, self.all) {
            (false, false) => {
                Err(Failure::new(Code::Usage, "say which messages are meant: ids, filters such as --reason, or --all"))
            }
            (true, true) => {
                Err(Failure::new(Code::Usage, "--all means all messages; leave it, or the ids and filters, out"))
            }
            _ => Ok(WantedIds::new(ids)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_means_all_messages_by_saying_nothing() {
        #[derive(clap::Parser)]
        struct Parsed {
            #[command(flatten)]
            selection: DeadSelection,
        }
        for (arguments, is_taken) in [
            (&[][..], false),
            (&["--limit", "3"], false),
            (&["--all"], true),
            (&["--all", "--limit", "3"], true),
            (&["one"], true),
            (&["--reason", "crashed"], true),
            (&["--all", "one"], false),
            (&["--all", "--older-than", "7d"], false),
        ] {
            let parsed = <Parsed as clap::Parser>::try_parse_from([&["x"], arguments].concat()).unwrap();
            let mut selection = parsed.selection;
            assert_eq!(selection.wanted().is_ok(), is_taken, "{arguments:?}");
        }
    }
}
