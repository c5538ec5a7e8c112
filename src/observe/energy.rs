//! Energy by the machine's own meters: the processor's (RAPL), where the system lets us read them, and those of GPUs.

use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, PoisonError};

use metrics::counter;

use super::gpu_energy::GpuMeters;
use crate::metrics::ENERGY;

/// Where Linux keeps the meters.
const POWERCAP: &str = "/sys/class/powercap";

/// One meter: a package, or its memory.
#[derive(Debug)]
struct Zone {
    name: String,
    file: PathBuf,
    /// Microjoules at which the meter starts anew.
    range: u64,
    last: u64,
    /// Microjoules since the start.
    total: u64,
}

/// Brings the energy counters up to date. Systems without readable meters have no such counters.
pub fn observe() {
    static ZONES: LazyLock<Mutex<Vec<Zone>>> =
        LazyLock::new(|| Mutex::new(zones(Path::new(POWERCAP))));
    static GPUS: LazyLock<Option<GpuMeters>> = LazyLock::new(GpuMeters::open);
    for zone in ZONES.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
        zone.read();
        counter!(ENERGY, "zone" => zone.name.clone()).absolute(zone.total / 1_000_000);
    }
    for (gpu, joules) in GPUS.iter().flat_map(GpuMeters::joules) {
        counter!(ENERGY, "zone" => format!("gpu-{gpu}")).absolute(joules);
    }
}

/// Packages (`intel-rapl:0`) and the memory they report on their own (`intel-rapl:0:1`, named dram); other
/// parts of a package are counted in it.
fn zones(folder: &Path) -> Vec<Zone> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut zones: Vec<Zone> = entries
        .filter_map(|entry| {
            let id = entry.file_name().into_string().ok()?.strip_prefix("intel-rapl:")?.to_owned();
            let name = text(&entry.path().join("name"))?;
            let (package, part) = id.split_once(':').map_or((&*id, false), |(p, _)| (p, true));
            if part && name != "dram" {
                return None;
            }
            let name = if part { format!("dram-{package}") } else { name };
            let file = entry.path().join("energy_uj");
            let range = number(&entry.path().join("max_energy_range_uj"))?;
            Some(Zone { name, range, last: number(&file)?, file, total: 0 })
        })
        .collect();
    zones.sort_by(|a, b| a.name.cmp(&b.name));
    zones
}

impl Zone {
    fn read(&mut self) {
        let Some(now) = number(&self.file) else { return };
        let start = if now < self.last { self.range } else { 0 };
        self.total += (start + now).saturating_sub(self.last);
        self.last = now;
    }
}

fn text(path: &Path) -> Option<String> {
    Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &Path) -> Option<u64> {
    text(path)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meters_are_followed_beyond_their_range() {
        let folder = tempfile::tempdir().unwrap();
        let meter = |id: &str, name: &str, energy: Option<u64>| {
            let zone = folder.path().join(id);
            std::fs::create_dir_all(&zone).unwrap();
            std::fs::write(zone.join("name"), format!("{name}\n")).unwrap();
            std::fs::write(zone.join("max_energy_range_uj"), "1000\n").unwrap();
            if let Some(energy) = energy {
                std::fs::write(zone.join("energy_uj"), format!("{energy}\n")).unwrap();
            }
        };
        meter("intel-rapl:0", "package-0", Some(900));
        meter("intel-rapl:0:0", "core", Some(5));
        meter("intel-rapl:0:1", "dram", Some(10));
        meter("intel-rapl:1", "package-1", None); // only root may read it
        let mut zones = zones(folder.path());
        let names: Vec<&str> = zones.iter().map(|zone| &*zone.name).collect();
        assert_eq!(names, ["dram-0", "package-0"]);
        meter("intel-rapl:0", "package-0", Some(950));
        zones.iter_mut().for_each(Zone::read);
        meter("intel-rapl:0", "package-0", Some(20));
        zones.iter_mut().for_each(Zone::read);
        assert_eq!((zones[0].total, zones[1].total), (0, 120));
        assert!(super::zones(Path::new("/nowhere")).is_empty());
    }
}
