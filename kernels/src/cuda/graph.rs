//! Passes that repeat: a pass's launches are recorded as a CUDA graph, and started as one from then on.

use std::ffi::c_void;
use std::sync::Arc;

use super::{Batch, CudaError, Device, Tensor};

/// Graphs kept; the one unused for longest goes first.
const MOST: usize = 64;

/// All that tells one pass's launches from another's: numbers of rows, and where everything lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassKey(Vec<usize>);

impl PassKey {
    /// The key of a pass over these rows in these tensors.
    #[must_use]
    pub fn new<'a>(batch: &Batch, tensors: impl IntoIterator<Item = &'a Tensor>) -> Self {
        let mut key = batch.layout();
        key.extend(tensors.into_iter().flat_map(|tensor| [tensor.rows, tensor.pointer() as usize]));
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

struct Graph(*mut c_void);

// SAFETY: graphs belong to the process, and are used by one thread at a time.
unsafe impl Send for Graph {}

impl Graphs {
    /// None yet; where not `enabled`, none ever.
    #[must_use]
    pub fn new(device: &Arc<Device>, enabled: bool) -> Self {
        Self { device: Arc::clone(device), known: Vec::new(), enabled, replayed: 0 }
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
        if let Some(Graph(graph)) = &graph {
            self.device.enter()?;
            // SAFETY: the graph is whole, and what it reads and writes is there: the key is that of its recording.
            let status =
                unsafe { (self.device.kernels.pleach_graph_launch)(*graph, self.device.stream) };
            self.device.check("starting a recorded pass", status)?;
            self.replayed += 1;
        }
        if self.known.len() == MOST {
            let (_, oldest) = self.known.remove(0);
            self.destroy(oldest);
        }
        self.known.push((key, graph));
        Ok(())
    }

    fn record(
        &self,
        launches: &mut dyn FnMut() -> Result<(), CudaError>,
    ) -> Result<Graph, CudaError> {
        let Device { kernels, stream, .. } = &*self.device;
        self.device.enter()?;
        // SAFETY: the stream is the device's own, and nothing else uses it meanwhile.
        let status = unsafe { (kernels.pleach_graph_begin)(*stream) };
        self.device.check("recording a pass", status)?;
        let launched = launches();
        let mut graph = std::ptr::null_mut();
        // SAFETY: recording was begun just above; the function writes one pointer.
        let status = unsafe { (kernels.pleach_graph_end)(*stream, &raw mut graph) };
        self.device.check("recording a pass", status)?;
        let graph = Graph(graph);
        if let Err(error) = launched {
            self.destroy(Some(graph));
            return Err(error);
        }
        Ok(graph)
    }

    fn destroy(&self, graph: Option<Graph>) {
        // It may still run.
        if let Some(Graph(graph)) = graph
            && self.device.synchronize().is_ok()
        {
            // SAFETY: made by `record`, and used by nothing any more.
            let _ = unsafe { (self.device.kernels.pleach_graph_destroy)(graph) };
        }
    }
}

impl Drop for Graphs {
    fn drop(&mut self) {
        for (_, graph) in std::mem::take(&mut self.known) {
            self.destroy(graph);
        }
    }
}
