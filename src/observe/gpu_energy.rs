//! Energy of NVIDIA GPUs by their own meters (NVML), where the driver is there and they have them.

use nvml_wrapper::Nvml;

/// The GPUs that have a meter.
pub(super) struct GpuMeters {
    nvml: Nvml,
    /// A GPU's number, and what its meter showed at the start, in millijoules.
    starts: Vec<(u32, u64)>,
}

impl GpuMeters {
    /// Opens the driver's library, if it is there and a GPU has a meter.
    pub(super) fn open() -> Option<Self> {
        // What the driver installs; the name without a version belongs to its development files.
        let nvml = Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init().ok()?;
        let count = nvml.device_count().ok()?;
        let starts: Vec<_> =
            (0..count).filter_map(|gpu| Some((gpu, millijoules(&nvml, gpu)?))).collect();
        (!starts.is_empty()).then_some(Self { nvml, starts })
    }

    /// Number and joules since the start of every GPU whose meter can be read.
    pub(super) fn joules(&self) -> impl Iterator<Item = (u32, u64)> {
        self.starts.iter().filter_map(|&(gpu, start)| {
            let now = millijoules(&self.nvml, gpu)?;
            Some((gpu, now.saturating_sub(start) / 1000))
        })
    }
}

/// What a GPU's meter shows, since the driver was loaded.
fn millijoules(nvml: &Nvml, gpu: u32) -> Option<u64> {
    nvml.device_by_index(gpu).ok()?.total_energy_consumption().ok()
}
