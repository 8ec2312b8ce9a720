//! The `filestorage` program, which only calls the library.

use std::process::ExitCode;

/// The memory allocator: jemalloc, because a command makes many small allocations that live for a few milliseconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    filestorage::cli::main()
}
