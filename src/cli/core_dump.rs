//! Keeps the memory of the process out of core dumps, because it holds keys, passwords and values.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Makes sure that a crash of this process leaves no core dump, also where the limit was raised.
///
/// The limit alone keeps the kernel from writing a file. A program that `core_pattern` names is given the dump whatever the
/// limit is, unless the process is not dumpable. That also keeps other processes of the same user from reading this
/// process's memory (`ptrace`, `/proc/PID/mem`), and its environment. A new program that this process starts is dumpable
/// again.
///
/// # Errors
///
/// The kernel's error; whatever could be done has been done.
pub(super) fn forbid() -> io::Result<()> {
    let limited = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(limited?)
}
