//! Matrices as kernels take them.

use std::ops::Range;

/// A matrix of f32 seen through strides; one of the two strides must be 1.
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a> {
    pub(crate) data: &'a [f32],
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) row_stride: usize,
    pub(crate) col_stride: usize,
}

impl<'a> MatRef<'a> {
    /// `rows x cols`, row-major, rows `row_stride` apart.
    ///
    /// # Panics
    /// If `data` is too short for the shape.
    #[must_use]
    pub fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(row_stride >= cols, "rows of {cols} columns overlap at a stride of {row_stride}");
        if rows > 0 {
            let needed = (rows - 1) * row_stride + cols;
            assert!(data.len() >= needed, "matrix needs {needed} values, got {}", data.len());
        }
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Some of its rows.
    ///
    /// # Panics
    /// If it does not have them.
    #[must_use]
    pub fn rows_of(self, rows: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "{rows:?} of {} rows", self.rows);
        let data = self.data.get(rows.start * self.row_stride..).unwrap_or_default();
        Self { data, rows: rows.len(), ..self }
    }

    /// The values, row-major and dense.
    #[must_use]
    pub fn to_dense(&self) -> Vec<f32> {
        let row = |i: usize| {
            (0..self.cols).map(move |j| self.data[i * self.row_stride + j * self.col_stride])
        };
        (0..self.rows).flat_map(row).collect()
    }

    /// The transposed view of the same values.
    #[must_use]
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}
