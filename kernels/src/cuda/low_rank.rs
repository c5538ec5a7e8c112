//! Low-rank additions (LoRA, arXiv 2106.09685) on a device: the factors of adapters, and which rows of a pass go through
//! which. What an adapter adds to all matrices of its model lies in one piece of memory, behind a table that kernels look
//! it up in; so a row names its adapter by one address, and rows of several adapters are one launch.

use std::ops::Range;
use std::sync::Arc;

use super::calls::{self, Address, MATRICES, RANKS};
use super::memory::Memory;
use super::staging::Staging;
use super::{CudaError, Device, Tensor};
use crate::DType;

const WHAT: &str = "add_low_rank";

/// Factors begin at a multiple of so many values.
const ALIGNED: usize = 4;

/// What is added to one matrix: `scale * B A`.
#[derive(Debug, Clone, Copy)]
pub struct LowRankFactors<'a> {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// What their product is multiplied by.
    pub scale: f32,
    /// `[rank, inputs]`
    pub a: &'a [f32],
    /// `[outputs, rank]`
    pub b: &'a [f32],
}

/// An adapter as it will lie on a device: in the host's memory, made without one.
pub struct LowRankLayout {
    /// Of all matrices, `[outputs, inputs]`.
    shapes: Arc<[[usize; 2]]>,
    /// Addresses are still places among the values.
    table: Vec<calls::Factors>,
    values: Vec<f32>,
}

/// An adapter on a device.
pub struct LowRankAdapter {
    memory: Memory,
    shapes: Arc<[[usize; 2]]>,
    /// Of each matrix; 0 where nothing is added.
    ranks: Vec<usize>,
}

impl LowRankLayout {
    /// An adapter of a model whose matrices have these shapes, `[outputs, inputs]`, with the factors of each that it adds
    /// to.
    ///
    /// # Panics
    /// If factors do not have their matrix's shape.
    #[must_use]
    pub fn new(shapes: Arc<[[usize; 2]]>, factors: &[Option<LowRankFactors<'_>>]) -> Self {
        assert_eq!(factors.len(), shapes.len(), "factors or none of every matrix");
        let sizes = factors.iter().flatten().map(|it| it.a.len() + it.b.len() + 2 * ALIGNED);
        let mut values = Vec::with_capacity(sizes.sum());
        let entry = |(factors, &[outputs, inputs]): (&Option<LowRankFactors<'_>>, &[usize; 2])| {
            let none = calls::Factors { a: 0, b: 0, rank: 0, scale: 0.0 };
            let Some(LowRankFactors { rank, scale, a, b }) = *factors else { return none };
            assert_eq!(
                [a.len(), b.len()],
                [rank * inputs, outputs * rank],
                "[{outputs}, {inputs}]"
            );
            let mut put = |factor: &mut dyn Iterator<Item = f32>| {
                let start = values.len().next_multiple_of(ALIGNED);
                values.resize(start, 0.0);
                values.extend(factor);
                start as Address
            };
            let columns = (0..rank).flat_map(|column| b.iter().skip(column).step_by(rank));
            let (a, b) = (put(&mut a.iter().copied()), put(&mut columns.copied()));
            calls::Factors { a, b, rank: rank as i32, scale }
        };
        let table = factors.iter().zip(&*shapes).map(entry).collect();
        Self { shapes, table, values }
    }

    /// Memory of the device that it will take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.table_bytes() + self.values.len() * size_of::<f32>()
    }

    fn table_bytes(&self) -> usize {
        (self.table.len() * size_of::<calls::Factors>())
            .next_multiple_of(ALIGNED * size_of::<f32>())
    }
}

impl LowRankAdapter {
    /// Copies an adapter to a device. Work on it must not be recorded meanwhile, nor when the adapter is dropped.
    ///
    /// # Errors
    /// If there is no memory left, or the device fails.
    pub fn new(device: &Arc<Device>, layout: &LowRankLayout) -> Result<Self, CudaError> {
        let mut memory = Memory::new(device, layout.bytes())?;
        let values = layout.table_bytes();
        let first = memory.address + values as u64;
        let at = |place: Address| first + place * size_of::<f32>() as u64;
        let entry = |it: &calls::Factors| calls::Factors { a: at(it.a), b: at(it.b), ..*it };
        let table: Vec<_> = layout.table.iter().map(entry).collect();
        memory.write(bytemuck::cast_slice(&table))?;
        memory.write_at(values, bytemuck::cast_slice(&layout.values))?;
        let ranks = layout.table.iter().map(|factors| factors.rank as usize).collect();
        Ok(Self { memory, shapes: Arc::clone(&layout.shapes), ranks })
    }

    /// Memory that it takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.memory.bytes
    }
}

/// Which rows of a pass go through which adapters, on a device, and the work space of their additions.
pub struct AdaptedRows {
    /// u64 `[rows]`: the table of each row's adapter, or 0.
    adapters: Memory,
    /// What the memory is given.
    of_rows: Vec<Address>,
    staging: Staging,
    sums: Memory,
    shapes: Arc<[[usize; 2]]>,
    /// The most ranks that any of the adapters has for a matrix, rounded up to a power of two.
    ranks: Vec<usize>,
}

impl AdaptedRows {
    /// No rows.
    ///
    /// # Errors
    /// If there is no memory left.
    pub fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        Ok(Self {
            adapters: Memory::none(device),
            of_rows: Vec::new(),
            staging: Staging::new(device)?,
            sums: Memory::none(device),
            shapes: Arc::new([]),
            ranks: Vec::new(),
        })
    }

    /// Makes room for passes of so many rows whose activations have this format: they take no memory then.
    ///
    /// # Errors
    /// If there is no memory left, or the format is not one of activations.
    pub fn reserve(&mut self, rows: usize, dtype: DType) -> Result<(), CudaError> {
        self.adapters.reserve(rows * size_of::<Address>())?;
        self.sums.reserve(rows * MATRICES * RANKS * size_of::<f32>())?;
        let none = calls::LowRank::new([0; 4], [1, ALIGNED as i64], 0, &[1]);
        self.sums.device.prepare(WHAT, calls::add_low_rank(none, 1, dtype))
    }

    /// Takes on the adapters of a pass of `rows` rows: ranges of rows, each with its own; other rows have none.
    ///
    /// # Errors
    /// If the adapters are of models of several shapes or on another device, there is no memory left, or the device fails.
    ///
    /// # Panics
    /// If a range lies outside the rows.
    pub fn set<'a>(
        &mut self,
        rows: usize,
        parts: impl IntoIterator<Item = (Range<usize>, &'a LowRankAdapter)>,
    ) -> Result<(), CudaError> {
        self.of_rows.clear();
        self.of_rows.resize(rows, 0);
        self.ranks.clear();
        for (own, adapter) in parts {
            if self.ranks.is_empty() {
                self.shapes = Arc::clone(&adapter.shapes);
                self.ranks.resize(self.shapes.len(), 0);
            }
            let here = Arc::ptr_eq(&adapter.memory.device, &self.adapters.device);
            if !here || adapter.shapes != self.shapes {
                let reason = "adapters of another model, or of another device".into();
                return Err(CudaError::Argument { what: WHAT, reason });
            }
            self.of_rows[own].fill(adapter.memory.address);
            for (most, rank) in self.ranks.iter_mut().zip(&adapter.ranks) {
                *most = (*most).max(*rank);
            }
        }
        for rank in self.ranks.iter_mut().filter(|rank| **rank > 0) {
            *rank = rank.next_power_of_two();
        }
        let most = self.ranks.iter().copied().max().unwrap_or(0).min(RANKS);
        self.sums.reserve(rows * MATRICES * most * size_of::<f32>())?;
        let bytes: &[u8] = bytemuck::cast_slice(&self.of_rows);
        self.adapters.reserve(bytes.len())?;
        self.staging.send(bytes, &mut self.adapters)
    }

    /// Every number and place that launches over the rows are given, but their number.
    pub(super) fn layout(&self) -> impl Iterator<Item = usize> {
        let places = [self.adapters.address, self.sums.address].map(|place| place as usize);
        places.into_iter().chain(self.ranks.iter().copied())
    }
}

impl Device {
    /// Adds to `out`, the outputs of neighbouring `matrices` of a model side by side, what each row's adapter adds to the
    /// matrices' outputs of `x`; nothing is launched where no row's adapter adds anything. x `[rows, inputs]`, out `[rows,
    /// outputs]` of its format, which the sum is rounded to: once, and once more for every further 128 ranks.
    ///
    /// # Errors
    /// If a tensor does not fit, or the launch fails.
    pub fn add_low_rank(
        &self,
        rows: &AdaptedRows,
        matrices: Range<usize>,
        x: &Tensor,
        out: &mut Tensor,
    ) -> Result<(), CudaError> {
        let ([count, inputs], [_, width]) = (x.shape(), out.shape());
        let AdaptedRows { adapters, of_rows, sums, shapes, ranks, .. } = rows;
        let (Some(shapes), Some(ranks)) =
            (shapes.get(matrices.clone()), ranks.get(matrices.clone()))
        else {
            let reason = format!("no adapters of matrices {matrices:?}");
            return Err(CudaError::Argument { what: WHAT, reason });
        };
        let outputs: Vec<i64> = shapes.iter().map(|[outputs, _]| *outputs as i64).collect();
        let fits = shapes.iter().all(|[_, own]| *own == inputs)
            && (1..=MATRICES).contains(&outputs.len())
            && outputs.iter().sum::<i64>() == width as i64
            && (of_rows.len(), x.dtype) == (count, out.dtype)
            && out.rows == count;
        let here = [&adapters.device, &x.memory.device, &out.memory.device]
            .iter()
            .all(|device| std::ptr::eq(Arc::as_ptr(device), self));
        if !fits || !here {
            let reason = format!(
                "x is {:?} {:?} and out {:?} {:?}, of {} rows of matrices {shapes:?}",
                x.dtype,
                x.shape(),
                out.dtype,
                out.shape(),
                of_rows.len()
            );
            return Err(CudaError::Argument { what: WHAT, reason });
        }
        let ranks = ranks.iter().copied().max().unwrap_or(0);
        if ranks == 0 {
            return Ok(());
        }
        let arguments = calls::LowRank::new(
            [adapters.address, x.address(), sums.address, out.address()],
            [count as i64, inputs as i64],
            matrices.start as i32,
            &outputs,
        );
        // SAFETY: all memory is this device's; the adapters' factors have the shapes that were compared, and `set` made
        // room for the sums. An adapter's memory is freed when what was started before is done.
        unsafe { self.start(WHAT, calls::add_low_rank(arguments, ranks as i64, x.dtype)) }
    }
}
