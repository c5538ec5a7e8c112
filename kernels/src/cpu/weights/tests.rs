use super::*;

#[test]
fn packed_sizes_are_known_before() {
    for dtype in [
        DType::F32,
        DType::F16,
        DType::BF16,
        DType::Q8_0,
        DType::Q4_0,
        DType::Q4_1,
        DType::Q5_0,
        DType::Q5_1,
        DType::Q4_K,
        DType::Q5_K,
        DType::Q6_K,
    ] {
        for (rows, cols) in [(1, 256), (16, 256), (33, 512)] {
            let bytes = vec![0; dtype.bytes_for(rows * cols).unwrap()];
            let packed = PackedMatrix::pack(dtype, rows, cols, &bytes).unwrap();
            assert_eq!(PackedMatrix::packed_bytes(dtype, rows, cols), packed.bytes(), "{dtype:?}");
        }
    }
}
