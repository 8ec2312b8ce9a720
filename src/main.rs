//! The `filestorage` program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    filestorage::cli::main()
}
