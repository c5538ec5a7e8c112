use super::*;
use crate::cpu::testing::Random;

#[test]
fn quantize_comes_back_close() {
    let mut random = Random::new();
    let x = random.vec(32 * 9);
    for (dtype, tolerance) in [
        (DType::F32, 0.0),
        (DType::F16, 1e-3),
        (DType::BF16, 1e-2),
        (DType::Q8_0, 0.005),
        (DType::Q4_0, 0.15),
        (DType::Q4_1, 0.08),
    ] {
        let bytes = dtype.quantize(&x).expect("supported");
        let mut back = vec![f32::NAN; x.len()];
        dtype.dequantize(&bytes, &mut back);
        for (a, b) in x.iter().zip(&back) {
            assert!((a - b).abs() <= tolerance, "{dtype:?}: {a} {b}");
        }
    }
    assert_eq!(DType::Q8_0.quantize(&x[..33]), None);
    let zeros = DType::Q4_0.quantize(&[0.0; 32]).expect("supported");
    let mut back = [f32::NAN; 32];
    DType::Q4_0.dequantize(&zeros, &mut back);
    assert_eq!(back, [0.0; 32]);
}

/// The worked layouts of the 5-bit formats: two codes set, everything else zero.
#[test]
fn five_bit_codes_have_their_fifth_bits_apart() {
    let half = |v: f32| f16::from_f32(v).to_le_bytes();
    let mut block = [0u8; 24];
    block[..2].copy_from_slice(&half(0.5));
    block[2..4].copy_from_slice(&half(-3.0));
    block[4 + 2] = 1 << 3; // the fifth bit of value 19
    block[8 + 3] = 9 << 4 | 6; // the low bits of values 19 and 3
    let mut out = [f32::NAN; 32];
    DType::Q5_1.dequantize(&block, &mut out);
    assert_eq!((out[3], out[19], out[0]), (0.0, 9.5, -3.0));
    let centred = [&block[..2], &block[4..]].concat();
    DType::Q5_0.dequantize(&centred, &mut out);
    assert_eq!((out[3], out[19], out[0]), (-5.0, 4.5, -8.0));
}

#[test]
fn five_bits_are_eight_without_loss() {
    let mut random = Random::new();
    let blocks: Vec<u8> = (0..9)
        .flat_map(|_| {
            let scale = f16::from_f32(random.vec(1)[0]).to_le_bytes();
            let codes = random.vec(20).into_iter().map(|value| value.to_bits() as u8);
            scale.into_iter().chain(codes).collect::<Vec<_>>()
        })
        .collect();
    let (mut narrow, mut wide) = ([f32::NAN; 288], [f32::NAN; 288]);
    DType::Q5_0.dequantize(&blocks, &mut narrow);
    DType::Q8_0.dequantize(&DType::q5_0_as_q8_0(&blocks), &mut wide);
    assert_eq!(narrow, wide);
}

/// The worked layouts of the K-quants: one weight set, everything else zero.
#[test]
fn k_quants_put_each_weight_in_its_place() {
    let one = f16::ONE.to_le_bytes();
    let mut q4 = [0u8; 144];
    q4[..2].copy_from_slice(&one);
    q4[4 + 1] = 3; // scale of sub-block 1
    q4[16 + 5] = 7 << 4; // its sixth code
    let mut out = [f32::NAN; 256];
    DType::Q4_K.dequantize(&q4, &mut out);
    assert_eq!((out[37], out.iter().filter(|v| **v != 0.0).count()), (21.0, 1));

    let mut q6 = [0u8; 210];
    q6[208..].copy_from_slice(&one);
    q6[192 + 9] = 2; // scale of weights 144..160
    q6[64 + 16] = 5; // low bits of weight 144
    q6[128 + 32 + 16] = 2; // and its high bits
    DType::Q6_K.dequantize(&q6, &mut out);
    assert_eq!(out[144], 2.0 * (37.0 - 32.0));
    assert_eq!(out[145], 2.0 * -32.0);
}
