//! What an attached drafter reads of its target's passes.

use std::sync::Arc;

use super::workspace::Buffers;
use pleach_kernels::DType;
use pleach_kernels::cuda::{CudaError, Device, HostBuffer, Tensor};

/// Hidden states of the rows of the last pass whose logits were wanted, normed without weights: so a step multiplies
/// them as they are.
pub(super) struct States {
    /// The states that are kept, rising; state n follows n blocks.
    numbers: Vec<usize>,
    /// `[logit_rows, hidden]` of each.
    values: Vec<Tensor>,
    /// f32 `[1, hidden]`: a norm without weights.
    pub(super) ones: Tensor,
    eps: f32,
    on_host: HostBuffer,
    width: usize,
}

impl States {
    /// Room for no rows yet.
    pub(super) fn new(
        device: &Arc<Device>,
        dtype: DType,
        width: usize,
        numbers: &[usize],
        eps: f32,
    ) -> Result<Self, CudaError> {
        let tensor = |_: &usize| Tensor::new(device, dtype, 0, width);
        Ok(Self {
            numbers: numbers.to_vec(),
            values: numbers.iter().map(tensor).collect::<Result<_, _>>()?,
            ones: Tensor::from_f32(device, DType::F32, [1, width], &vec![1.0; width])?,
            eps,
            on_host: HostBuffer::new(device)?,
            width,
        })
    }

    /// Makes room for the states of so many rows, here and on the host, where it lacks.
    pub(super) fn set_rows(&mut self, device: &Arc<Device>, rows: usize) -> Result<(), CudaError> {
        self.values.iter_mut().try_for_each(|values| values.set_rows(rows))?;
        // They come to the host in two bytes a value.
        self.on_host.reserve(device, rows * self.values.len() * self.width * 2)
    }

    /// Where the states lie.
    pub(super) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.values.iter()
    }

    /// Keeps the wanted rows of `hidden`, which stand behind `blocks` blocks, if that is a state that is kept.
    pub(super) fn keep(
        &mut self,
        blocks: usize,
        device: &Device,
        buffers: &mut Buffers,
    ) -> Result<(), CudaError> {
        let Ok(place) = self.numbers.binary_search(&blocks) else { return Ok(()) };
        let Buffers { batch, hidden, .. } = buffers;
        device.add_rms_norm(
            hidden,
            None,
            &self.ones,
            Some(batch),
            &mut self.values[place],
            self.eps,
        )
    }

    /// Copies the states of some of the rows to the host: `[places, states, hidden]`.
    ///
    /// # Panics
    /// If there is no such row.
    pub(super) fn read(&mut self, places: &[usize], out: &mut Vec<f32>) -> Result<(), CudaError> {
        let Self { values, on_host, width, .. } = self;
        out.resize(places.len() * values.len() * *width, 0.0);
        let values = &*values;
        let rows = places.iter().flat_map(|&place| values.iter().map(move |state| (state, place)));
        on_host.decode_rows(rows, out)
    }
}
