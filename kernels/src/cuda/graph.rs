//! Passes that repeat: a pass's launches are recorded as a CUDA graph, and started as one from then on.

use std::sync::Arc;

use cudarc::driver::{CudaGraph, sys};

use super::device::failed;
use super::{AdaptedRows, Batch, CudaError, Device, Tensor};

const RECORDING: &str = "recording a pass";

/// Graphs kept; the one unused for longest goes first.
const MOST: usize = 64;

/// All that tells one pass's launches from another's: numbers of rows, and where everything lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassKey(Vec<usize>);

impl PassKey {
    /// The key of a pass over these rows in these tensors, some of which may go through adapters.
    #[must_use]
    pub fn new<'a>(
        batch: &Batch,
        tensors: impl IntoIterator<Item = &'a Tensor>,
        adapted: Option<&AdaptedRows>,
    ) -> Self {
        let mut key = batch.layout();
        key.extend(tensors.into_iter().flat_map(|tensor| [tensor.rows, tensor.address() as usize]));
        key.extend(adapted.into_iter().flat_map(AdaptedRows::layout));
        Self(key)
    }
}

/// Recorded passes of one model.
pub struct Graphs {
    device: Arc<Device>,
    /// Those used last stand last; without a graph, a pass that was seen once.
    known: Vec<(PassKey, Option<Graph>)>,
    enabled: bool,
    replayed: u64,
}

struct Graph(CudaGraph);

// SAFETY: a graph belongs to its context, and whoever has it is the only one to use it.
unsafe impl Send for Graph {}

impl Graphs {
    /// None yet; where not `enabled`, none ever.
    #[must_use]
    pub fn new(device: &Arc<Device>, enabled: bool) -> Self {
        Self { device: Arc::clone(device), known: Vec::new(), enabled, replayed: 0 }
    }

    /// Forgets all passes: something that they read or write has moved.
    pub fn clear(&mut self) {
        for (_, graph) in std::mem::take(&mut self.known) {
            self.destroy(graph);
        }
    }

    /// Passes that were started as a graph.
    #[must_use]
    pub fn replayed(&self) -> u64 {
        self.replayed
    }

    /// Starts a pass: as a graph from its third time on, recorded the second time. `launches` launches the pass, and
    /// nothing that `key` does not tell: whatever else it reads or writes stays where it is while `self` lives.
    ///
    /// # Errors
    /// What `launches` or the device says. A pass that cannot be recorded is launched, like all after it.
    pub fn run(
        &mut self,
        key: PassKey,
        launches: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        if !self.enabled {
            return launches();
        }
        let place = self.known.iter().position(|(known, _)| *known == key);
        let graph = match place.map(|place| self.known.remove(place)) {
            None => {
                launches()?;
                None
            }
            Some((_, Some(graph))) => Some(graph),
            Some((_, None)) => match self.record(launches) {
                Ok(graph) => Some(graph),
                Err(error) => {
                    tracing::warn!(%error, "passes cannot be recorded; going on without CUDA graphs");
                    self.enabled = false;
                    return launches();
                }
            },
        };
        let mut started = Ok(());
        if let Some(Graph(graph)) = &graph {
            // What it reads and writes is there: the key is that of its recording.
            let launched = graph.launch().map_err(failed("starting a recorded pass"));
            self.replayed += u64::from(launched.is_ok());
            started = launched;
        }
        if self.known.len() == MOST {
            let (_, oldest) = self.known.remove(0);
            self.destroy(oldest);
        }
        self.known.push((key, graph));
        started
    }

    fn record(
        &self,
        launches: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<Graph, CudaError> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let stream = &self.device.stream;
        stream.begin_capture(mode).map_err(failed(RECORDING))?;
        let launched = launches();
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        launched?;
        let graph = graph.map_err(failed(RECORDING))?;
        graph.map(Graph).ok_or_else(|| CudaError::Failed {
            what: RECORDING,
            reason: "nothing was recorded".into(),
        })
    }

    fn destroy(&self, graph: Option<Graph>) {
        // It may still run. A device that failed keeps its graphs until the program ends.
        if graph.is_some() && self.device.synchronize().is_err() {
            std::mem::forget(graph);
        }
    }
}

impl Drop for Graphs {
    fn drop(&mut self) {
        self.clear();
    }
}
