//! Bank conflicts of shared memory, which the emulator counts, against a table of every kernel: they are as it says.

use std::collections::BTreeMap;
use std::process::Command;

use super::{LIBRARY, build_library, root};

/// Parts of the names of tests that use every kernel that has shared memory, at sizes that stay.
const TESTS: [&str; 5] = ["attention", "norm", "matmul", "verify_agrees", "low_rank_keeps_nan"];
const HEAD: &str = "kernel\trequests\tturns\tworst\n";

/// Requests of a kernel, the turns that they took, and those of the worst.
type Counts = [u64; 3];

fn read(table: &str) -> BTreeMap<&str, Counts> {
    table
        .lines()
        .filter(|line| !HEAD.starts_with(line))
        .map(|line| {
            let (kernel, counts) = line.split_once('\t').unwrap();
            let counts: Vec<u64> = counts.split('\t').map(|count| count.parse().unwrap()).collect();
            (kernel, counts.try_into().unwrap())
        })
        .collect()
}

/// With PLEACH_UPDATE_CONFLICTS set, the table becomes what was counted.
pub(crate) fn bank_conflicts_are_as_in_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let library = build_library(folder.path());
    let counted = folder.path().join("conflicts.tsv");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--seed", "1"])
        .args(TESTS)
        .env(LIBRARY, library)
        .env("EMULATOR_ORDER", "forward")
        .env("EMULATOR_CONFLICTS", &counted)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let counted = std::fs::read_to_string(counted).unwrap();
    let table = root().join("kernels/cuda/conflicts.tsv");
    if std::env::var_os("PLEACH_UPDATE_CONFLICTS").is_some() {
        std::fs::write(&table, HEAD.to_owned() + &counted).unwrap();
    }
    let known = std::fs::read_to_string(table).unwrap();
    let (counted, known) = (read(&counted), read(&known));
    let how = "PLEACH_UPDATE_CONFLICTS=1 has kernels/cuda/conflicts.tsv written anew";
    let kernels = counted.keys().chain(known.keys());
    for kernel in kernels {
        let [counted, known] = [&counted, &known].map(|table| table.get(kernel));
        assert_eq!(
            counted, known,
            "{kernel}: requests, turns and the worst's, and the table's; {how}"
        );
    }
}
