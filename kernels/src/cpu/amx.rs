//! AMX tiles: whether this process may use them, and their configuration.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// Whether bf16 tiles can be multiplied here.
pub(super) fn bf16() -> bool {
    // CPUID leaf 7, EDX bit 22.
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has(22) && is_x86_feature_detected!("avx512bf16"))
}

/// Whether int8 tiles can be multiplied here.
pub(super) fn int8() -> bool {
    // CPUID leaf 7, EDX bit 25.
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has(25))
}

fn has(bit: u32) -> bool {
    // EDX bit 24: the tiles themselves.
    let edx = __cpuid_count(7, 0).edx;
    edx >> bit & 1 == 1
        && edx >> 24 & 1 == 1
        && is_x86_feature_detected!("avx512f")
        && request_permission()
}

/// Asks Linux to let this process use the tile state (`arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)`).
#[cfg(target_os = "linux")]
fn request_permission() -> bool {
    const SYS_ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: the call takes two integers and touches no memory of this process; the clobbers are
    // those of the x86-64 system-call convention.
    unsafe {
        asm!("syscall", inlateout("rax") SYS_ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn request_permission() -> bool {
    false
}

/// Shapes of the eight tiles (palette 1).
#[repr(C, align(64))]
pub(super) struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    /// Tiles of `(rows, bytes per row)` each.
    pub(super) const fn new(tiles: [(u8, u16); 8]) -> Self {
        let mut config = Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes_per_row: [0; 16],
            rows: [0; 16],
        };
        let mut i = 0;
        while i < 8 {
            (config.rows[i], config.bytes_per_row[i]) = tiles[i];
            i += 1;
        }
        config
    }

    /// Makes this the configuration of the calling thread until [`release`].
    ///
    /// # Safety
    /// One of [`bf16`] and [`int8`] must have said yes.
    #[inline]
    pub(super) unsafe fn load(&'static self) {
        // SAFETY: a valid palette-1 description.
        unsafe { asm!("ldtilecfg [{}]", in(reg) self, options(nostack, readonly)) };
    }
}

/// Returns the tile state to its initial form, in which it costs nothing to switch.
///
/// # Safety
/// As [`TileConfig::load`].
#[inline]
pub(super) unsafe fn release() {
    // SAFETY: by the caller's promise.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}
