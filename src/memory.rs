//! Memory that this process may still take.

use std::path::Path;

/// Bytes that this process may still take: what the machine has free, within the limits of its control groups.
/// `None` where the system does not tell.
#[must_use]
pub fn available() -> Option<u64> {
    available_in(Path::new("/"))
}

/// What [`available`] gives, of a system whose files lie under `root`.
fn available_in(root: &Path) -> Option<u64> {
    let meminfo = std::fs::read_to_string(root.join("proc/meminfo")).ok()?;
    let free = field(&meminfo, "MemAvailable:")? * 1024;
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    Some(groups.lines().filter_map(|line| group(root, line)).fold(free, u64::min))
}

/// Memory that is reserved at once and taken as it is written to, as K/V caches are. Until then the system counts it
/// as available.
#[derive(Debug, Clone, Copy)]
pub struct Reserved {
    bytes: u64,
    /// What the process held when it was reserved.
    before: u64,
}

impl Reserved {
    /// Nothing yet: what is added is reserved from now on.
    #[must_use]
    pub fn none() -> Self {
        Self { bytes: 0, before: held_in(Path::new("/")) }
    }

    /// Reserves further bytes.
    pub fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    /// Bytes that this process may take besides: what is [`available`], without what is reserved and not written to.
    /// All that the process took since, but `others`, counts as written.
    #[must_use]
    pub fn available_beside(&self, others: u64) -> Option<u64> {
        let held = held_in(Path::new("/")).saturating_sub(others);
        Some(available()?.saturating_sub(self.unwritten(held)))
    }

    fn unwritten(&self, held: u64) -> u64 {
        self.bytes.saturating_sub(held.saturating_sub(self.before))
    }
}

/// Bytes of its own that this process holds, of a system whose files lie under `root`; 0 where it does not tell.
fn held_in(root: &Path) -> u64 {
    let status = std::fs::read_to_string(root.join("proc/self/status")).unwrap_or_default();
    field(&status, "RssAnon:").unwrap_or(0) * 1024
}

/// The names of a version's files: its folder, limit, use, and the fields of reclaimable page cache.
struct Version {
    folder: &'static str,
    limit: &'static str,
    used: &'static str,
    cached: [&'static str; 2],
}

const V1: Version = Version {
    folder: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cached: ["total_inactive_file", "total_active_file"],
};
const V2: Version = Version {
    folder: "sys/fs/cgroup",
    limit: "memory.max",
    used: "memory.current",
    cached: ["inactive_file", "active_file"],
};

/// What is left in the group of a line of `/proc/self/cgroup`, and in all groups around it.
fn group(root: &Path, line: &str) -> Option<u64> {
    let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
    let version = match controllers {
        "" => V2,
        names if names.split(',').any(|name| name == "memory") => V1,
        _ => return None,
    };
    let top = root.join(version.folder);
    let own = top.join(path.trim_start_matches('/'));
    // In a container the path may be that of the machine, and its own group be the top.
    let around = own.ancestors().take_while(|folder| folder.starts_with(&top));
    around.filter_map(|folder| left(folder, &version)).min()
}

fn left(folder: &Path, version: &Version) -> Option<u64> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    let (limit, used) = (number(version.limit)?, number(version.used)?);
    // Files that were read, weights for instance, make room when it is needed.
    let stat = read("memory.stat").unwrap_or_default();
    let cached: u64 = version.cached.iter().filter_map(|name| field(&stat, name)).sum();
    Some(limit.saturating_sub(used.saturating_sub(cached)))
}

/// The number behind a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == name).then(|| words.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn the_closest_limit_counts_less_what_can_be_reclaimed() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path();
        assert_eq!(available_in(root), None);
        write(root, "proc/meminfo", "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n");
        assert_eq!(available_in(root), Some(8_192_000));
        // A group without a limit, in one with a limit.
        write(root, "proc/self/cgroup", "0::/slice/own\n");
        write(root, "sys/fs/cgroup/slice/own/memory.max", "max\n");
        write(root, "sys/fs/cgroup/slice/own/memory.current", "1000\n");
        write(root, "sys/fs/cgroup/slice/memory.max", "5000000\n");
        write(root, "sys/fs/cgroup/slice/memory.current", "4000000\n");
        assert_eq!(available_in(root), Some(1_000_000));
        let stat = "anon 1\ninactive_file 500000\nactive_file 250000\nworkingset_refault_file 7\n";
        write(root, "sys/fs/cgroup/slice/memory.stat", stat);
        assert_eq!(available_in(root), Some(1_750_000));
        // A container that sees its own group at the top.
        write(root, "proc/self/cgroup", "0::/\n");
        write(root, "sys/fs/cgroup/memory.max", "3000\n");
        write(root, "sys/fs/cgroup/memory.current", "4000\n");
        assert_eq!(available_in(root), Some(0));
    }

    #[test]
    fn what_is_reserved_is_taken_as_it_is_written() {
        let temporary = tempfile::tempdir().unwrap();
        assert_eq!(held_in(temporary.path()), 0);
        write(temporary.path(), "proc/self/status", "VmRSS:  9 kB\nRssAnon:\t 7 kB\n");
        assert_eq!(held_in(temporary.path()), 7168);
        let reserved = Reserved { bytes: 1000, before: 5000 };
        let unwritten = [4000, 5000, 5300, 6000, 9000].map(|held| reserved.unwritten(held));
        assert_eq!(unwritten, [1000, 1000, 700, 0, 0]);
    }

    #[test]
    fn the_first_version_of_control_groups() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path();
        write(root, "proc/meminfo", "MemAvailable: 8000 kB\n");
        write(root, "proc/self/cgroup", "9:cpu,cpuacct:/x\n4:memory:/docker/7\n");
        write(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "2000000\n");
        write(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "1500000\n");
        write(root, "sys/fs/cgroup/memory/memory.stat", "total_inactive_file 100000\n");
        assert_eq!(available_in(root), Some(600_000));
    }
}
