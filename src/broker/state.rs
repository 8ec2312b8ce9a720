//! How a session is.

/// How a session is, as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Both connections work.
    Open,
    /// The broker takes no publications (memory or disk alarm), with its reason; nothing is lost, everything waits.
    Blocked(String),
    /// Over for good, with the reason; open a new session.
    Lost(String),
}
