//! Derives the byte budget from the memory limit of the process, by its control groups.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// The largest byte budget, which also holds without a memory limit, in bytes.
const USUAL: u64 = 256 << 20;
/// The smallest byte budget, which holds for any memory limit, in bytes.
const LEAST: u64 = 8 << 20;

/// Returns the byte budget for commands in memory: 256 MiB, or a quarter of the memory limit when that is less.
pub(crate) fn in_flight_bytes() -> u64 {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    share(memory_limit(&groups, Path::new("/sys/fs/cgroup")))
}

fn share(limit: Option<u64>) -> u64 {
    limit.map_or(USUAL, |limit| (limit / 4).clamp(LEAST, USUAL))
}

/// Finds the smallest memory limit among the control groups of this process; `groups` is the text of `/proc/self/cgroup`.
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
        // The limits of parent groups count as well. Inside a container, only the root of the path may be mounted.
        let mut folders = vec![root.clone()];
        let mut folder: PathBuf = root;
        for part in Path::new(path).components().filter(|part| matches!(part, Component::Normal(_))) {
            folder.push(part);
            folders.push(folder.clone());
        }
        folders.into_iter().map(|folder| folder.join(file)).collect()
    });
    // The text "max" means no limit, and is not a number.
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
    fn the_budget_is_a_quarter_of_the_limit_up_to_256_mib() {
        assert_eq!(share(None), 256 << 20);
        assert_eq!(share(Some(4 << 30)), 256 << 20);
        assert_eq!(share(Some(512 << 20)), 128 << 20);
        assert_eq!(share(Some(1000)), 8 << 20);
    }
}
