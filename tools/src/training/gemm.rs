//! Matrix products of training: our bf16 kernels where the machine has them, candle's product elsewhere.

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use super::row_pieces::{ROWS, piece};
use pleach_kernels::MatRef;
#[cfg(target_arch = "x86_64")]
use pleach_kernels::training::gemm as bf16;

/// `c = a b`; `c` is `[a.rows, b.cols]`, row-major and dense.
pub(super) fn product(a: MatRef, b: MatRef, c: &mut [f32]) -> Result<()> {
    if a.rows() > ROWS { product_by(a, &Constant::new(b)?, c) } else { product_alone(a, b, c) }
}

/// [`product`] on one thread, for those of which threads have one each.
pub(super) fn product_alone(a: MatRef, b: MatRef, c: &mut [f32]) -> Result<()> {
    #[cfg(target_arch = "x86_64")]
    if bf16::available() {
        bf16::gemm(a, b, c);
        return Ok(());
    }
    by_candle(a, &tensor(b)?, c, false)
}

/// A right operand of many products.
pub(super) enum Constant {
    #[cfg(target_arch = "x86_64")]
    Packed(bf16::Packed),
    Plain(Tensor),
}

impl Constant {
    pub(super) fn new(b: MatRef) -> Result<Self> {
        #[cfg(target_arch = "x86_64")]
        if bf16::available() {
            return Ok(Self::Packed(bf16::Packed::new(b)));
        }
        tensor(b).map(Self::Plain)
    }
}

/// `c = a b`.
pub(super) fn product_by(a: MatRef, b: &Constant, c: &mut [f32]) -> Result<()> {
    let width = c.len() / a.rows().max(1);
    let pieces = c.par_chunks_mut((ROWS * width).max(1)).enumerate();
    pieces.try_for_each(|(index, c)| {
        let a = a.rows_of(piece(index, a.rows()));
        match b {
            #[cfg(target_arch = "x86_64")]
            Constant::Packed(b) => bf16::gemm_packed(a, b, c),
            Constant::Plain(b) => by_candle(a, b, c, false)?,
        }
        Ok(())
    })
}

/// `t = x u` and `y = x w + t v`.
pub(super) fn adapted_product(
    x: MatRef,
    w: &Constant,
    [u, v]: [MatRef; 2],
    t: &mut [f32],
    y: &mut [f32],
) -> Result<()> {
    let (rank, width) = (u.cols(), v.cols());
    let (u, v) = (Constant::new(u)?, Constant::new(v)?);
    let pieces = t.par_chunks_mut(ROWS * rank).zip(y.par_chunks_mut(ROWS * width));
    pieces.enumerate().try_for_each(|(index, (t, y))| {
        let x = x.rows_of(piece(index, x.rows()));
        match (w, &u, &v) {
            #[cfg(target_arch = "x86_64")]
            (Constant::Packed(w), Constant::Packed(u), Constant::Packed(v)) => {
                bf16::gemm_adapted(x, w, [u, v], t, y);
            }
            (Constant::Plain(w), Constant::Plain(u), Constant::Plain(v)) => {
                by_candle(x, u, t, false)?;
                by_candle(x, w, y, false)?;
                by_candle(MatRef::new(t, x.rows(), rank, rank), v, y, true)?;
            }
            #[cfg(target_arch = "x86_64")]
            _ => unreachable!("a machine has one kind"),
        }
        Ok(())
    })
}

/// `c = a b`, or `c += a b` with `accumulate`.
fn by_candle(a: MatRef, b: &Tensor, c: &mut [f32], accumulate: bool) -> Result<()> {
    let product = tensor(a)?.matmul(b)?.flatten_all()?.to_vec1::<f32>()?;
    for (c, value) in c.iter_mut().zip(product) {
        *c = if accumulate { *c + value } else { value };
    }
    Ok(())
}

fn tensor(m: MatRef) -> Result<Tensor> {
    Tensor::from_vec(m.to_dense(), (m.rows(), m.cols()), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Strided and transposed operands, against the definition.
    #[test]
    fn candle_agrees_with_the_definition() {
        let x: Vec<f32> = (0..70u16).map(|v| f32::from(v * 37 % 19) - 9.0).collect();
        let (a, b) = (MatRef::new(&x, 3, 4, 7), MatRef::new(&x[20..], 5, 4, 6).t());
        let mut c = vec![1.0; 15];
        by_candle(a, &tensor(b).unwrap(), &mut c, true).unwrap();
        for i in 0..3 {
            for j in 0..5 {
                let dot: f32 = (0..4).map(|k| x[i * 7 + k] * x[20 + j * 6 + k]).sum();
                assert_eq!(c[i * 5 + j], 1.0 + dot);
            }
        }
    }
}
