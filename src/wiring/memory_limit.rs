//! How much memory the process may have, by its control groups.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// What is held at once where no limit is known or a quarter of it is more, in bytes.
const USUAL: u64 = 256 << 20;
/// The least that is worked with, in bytes, however small the limit.
const LEAST: u64 = 8 << 20;

/// Returns how many bytes of commands may be held in memory: 256 MiB, or a quarter of the memory limit where that is less.
pub(crate) fn in_flight_bytes() -> u64 {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    share(memory_limit(&groups, Path::new("/sys/fs/cgroup")))
}

fn share(limit: Option<u64>) -> u64 {
    limit.map_or(USUAL, |limit| (limit / 4).clamp(LEAST, USUAL))
}

/// Finds the smallest limit of the groups that hold this process; `groups` is its `/proc/self/cgroup`.
fn memory_limit(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (root, file) = if controllers.is_empty() {
            (root.to_owned(), "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            return Vec::new();
        };
        // A limit above counts as well. Inside a container the path may name what is not mounted there, but for its root.
        let mut folders = vec![root.clone()];
        let mut folder: PathBuf = root;
        for part in Path::new(path).components().filter(|part| matches!(part, Component::Normal(_))) {
            folder.push(part);
            folders.push(folder.clone());
        }
        folders.into_iter().map(|folder| folder.join(file)).collect()
    });
    // "max" is no number: no limit.
    limits.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(groups: &str, files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        memory_limit(groups, root.path())
    }

    #[test]
    fn the_smallest_limit_of_both_versions_counts() {
        let unlimited = "9223372036854771712\n";
        assert_eq!(limit("0::/a/b\n", &[("a/memory.max", "1073741824\n"), ("a/b/memory.max", "max\n")]), Some(1 << 30));
        assert_eq!(limit("0::/../outside\n", &[("memory.max", "1000\n")]), Some(1000), "in a container");
        let groups = "5:cpu:/x\n4:memory:/jobs/one\n0::/\n";
        let files =
            [("memory/memory.limit_in_bytes", unlimited), ("memory/jobs/one/memory.limit_in_bytes", "536870912")];
        assert_eq!(limit(groups, &files), Some(512 << 20));
        assert_eq!(limit("0::/\n", &[("memory.max", "max\n")]), None);
        assert_eq!(limit("", &[]), None);
    }

    #[test]
    fn a_quarter_of_the_limit_is_held_and_256_mib_at_most() {
        assert_eq!(share(None), 256 << 20);
        assert_eq!(share(Some(4 << 30)), 256 << 20);
        assert_eq!(share(Some(512 << 20)), 128 << 20);
        assert_eq!(share(Some(1000)), 8 << 20);
    }
}
