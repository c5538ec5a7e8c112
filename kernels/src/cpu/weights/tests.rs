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

/// A K-quant's 6-bit scale takes a byte, and nothing else takes more than in the file.
#[test]
fn quantised_weights_stay_as_small_as_in_files() {
    for dtype in QUANTIZED {
        let (rows, cols) = (32, 512);
        let stored = dtype.bytes_for(rows * cols).unwrap();
        let packed = PackedMatrix::packed_bytes(dtype, rows, cols);
        // Of a block of 256 weights, 16 numbers of 6 bits.
        let more =
            if matches!(dtype, DType::Q4_K | DType::Q5_K) { rows * cols / 256 * 4 } else { 0 };
        assert_eq!(packed, stored + more, "{dtype:?}");
    }
}
