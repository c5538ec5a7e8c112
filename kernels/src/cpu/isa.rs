//! Which instruction set the kernels use: found once, at run time.

use std::sync::OnceLock;

/// Instruction sets the kernels have paths for. All give the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// The next, and AMX tiles for products of many rows (Sapphire Rapids and later).
    AmxInt8,
    /// AVX-512 with VNNI (Ice Lake, Zen 4 and later).
    Avx512Vnni,
    /// The next, and VNNI on its registers (Alder Lake, Zen 5 and later).
    AvxVnni,
    /// AVX2 with FMA (Haswell, Zen and later).
    Avx2,
    /// Plain Rust.
    Plain,
}

impl Isa {
    /// The best set of this machine.
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| Self::supported()[0])
    }

    /// All sets of this machine, best first.
    pub(crate) fn supported() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                if super::amx::int8() {
                    sets.push(Self::AmxInt8);
                }
                sets.push(Self::Avx512Vnni);
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                if is_x86_feature_detected!("avxvnni") {
                    sets.push(Self::AvxVnni);
                }
                sets.push(Self::Avx2);
            }
        }
        sets.push(Self::Plain);
        sets
    }
}

/// Defines a function compiled once per instruction set and a dispatcher that picks one by its first
/// argument. The body is plain Rust; the compiler vectorises it with what each set offers.
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<$(const $c:ident: usize),+>)? ($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        #[expect(clippy::allow_attributes, reason = "kernels take what they take")]
        #[allow(clippy::too_many_arguments)]
        $vis fn $name $(<$(const $c: usize),+>)? (isa: $crate::cpu::isa::Isa, $($arg: $ty),*) {
            #[inline(always)]
            fn body $(<$(const $c: usize),+>)? ($($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma,f16c")]
            fn avx512 $(<$(const $c: usize),+>)? ($($arg: $ty),*) {
                body $(::<$($c),+>)? ($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2 $(<$(const $c: usize),+>)? ($($arg: $ty),*) {
                body $(::<$($c),+>)? ($($arg),*)
            }

            match isa {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Isa` values other than `Plain` exist only where the set was detected.
                $crate::cpu::isa::Isa::AmxInt8 | $crate::cpu::isa::Isa::Avx512Vnni => unsafe { avx512 $(::<$($c),+>)? ($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as above.
                $crate::cpu::isa::Isa::AvxVnni | $crate::cpu::isa::Isa::Avx2 => unsafe { avx2 $(::<$($c),+>)? ($($arg),*) },
                _ => body $(::<$($c),+>)? ($($arg),*),
            }
        }
    };
}
pub(crate) use per_isa;
