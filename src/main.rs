//! The `filestorage` program; everything is in the library.

use std::process::ExitCode;

/// Most of what a command costs here is small allocations that live for a few milliseconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    filestorage::cli::main()
}
