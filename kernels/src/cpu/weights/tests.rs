use super::*;
use crate::cpu::testing::QUANTIZED;

#[test]
fn packed_sizes_are_known_before() {
    for dtype in QUANTIZED.into_iter().chain([DType::F32, DType::F16, DType::BF16]) {
        for (rows, cols) in [(1, 256), (16, 256), (33, 512)] {
            let bytes = vec![0; dtype.bytes_for(rows * cols).unwrap()];
            let packed = PackedMatrix::pack(dtype, rows, cols, &bytes).unwrap();
            assert_eq!(PackedMatrix::packed_bytes(dtype, rows, cols), packed.bytes(), "{dtype:?}");
        }
    }
}
